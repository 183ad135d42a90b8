import assert from 'node:assert/strict';
import { test } from 'node:test';

import { numberParam } from '../src/query.js';

const read = (text, options) => numberParam({ min: text }, 'min', options);

test('zero is a number', () => {
  assert.equal(read('0', { fallback: 10 }), 0);
  assert.equal(read('0.0', { fallback: 10 }), 0);
  assert.equal(numberParam({ min: ['0', '5'] }, 'min', { fallback: 10 }), 0);
});

test('the rest falls back', () => {
  for (const text of ['', '  ', 'abc', '12x']) assert.equal(read(text, { fallback: 10 }), 10);
  assert.equal(numberParam({}, 'min', { fallback: 10 }), 10);
});

test('bounds', () => {
  assert.equal(read('0', { fallback: 10, min: 1 }), 10);
  assert.equal(read('-3', { fallback: 10, min: -5 }), -3);
  assert.equal(read('7', { fallback: 10, max: 5 }), 10);
});
