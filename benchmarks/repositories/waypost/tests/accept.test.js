import assert from 'node:assert/strict';
import { test } from 'node:test';

import { covers, isJson, parseAccept, parseContentType, preferred } from '../src/accept.js';

test('parseAccept sorts by quality', () => {
  assert.deepEqual(parseAccept('text/html;q=0.8, application/json'), [
    { value: 'application/json', q: 1 },
    { value: 'text/html', q: 0.8 },
  ]);
});

test('covers', () => {
  assert.ok(covers('text/*', 'text/html'));
  assert.ok(covers('en', 'en-gb'));
  assert.ok(!covers('text/html', 'text/plain'));
});

test('preferred', () => {
  assert.equal(preferred('de;q=0.5, fr', ['de', 'fr']), 'fr');
  assert.equal(preferred('', ['de', 'fr']), 'de');
  assert.equal(preferred('ja', ['de']), null);
});

test('parseContentType', () => {
  assert.deepEqual(parseContentType('Text/HTML; Charset="utf-8"'), { type: 'text/html', params: { charset: 'utf-8' } });
});

test('isJson', () => {
  assert.ok(isJson('application/json; charset=utf-8'));
  assert.ok(isJson('application/problem+json'));
  assert.ok(!isJson('text/html'));
});
