import assert from 'node:assert/strict';
import { test } from 'node:test';

import { domainMatches, parseCookies, serializeCookie } from '../src/cookies.js';

test('parseCookies', () => {
  assert.deepEqual(parseCookies('a=1; b="x y"; c=%C3%BC'), { a: '1', b: 'x y', c: 'ü' });
});

test('broken escapes stay', () => {
  assert.deepEqual(parseCookies('a=100%'), { a: '100%' });
});

test('serializeCookie', () => {
  assert.equal(serializeCookie('id', 'a b'), 'id=a%20b; Path=/');
  assert.equal(
    serializeCookie('id', '1', { maxAge: 60, httpOnly: true, sameSite: 'lax' }),
    'id=1; Max-Age=60; Path=/; HttpOnly; SameSite=Lax',
  );
});

test('invalid names', () => {
  assert.throws(() => serializeCookie('a b', '1'), TypeError);
});

test('domainMatches', () => {
  assert.ok(domainMatches('www.example.org', 'example.org'));
  assert.ok(!domainMatches('example.org', 'www.example.org'));
});
