import assert from 'node:assert/strict';
import { test } from 'node:test';

import { parseCookies } from '../src/cookies.js';

test('a value may hold equals signs', () => {
  assert.deepEqual(parseCookies('session=YWJjZA==; theme=dark'), { session: 'YWJjZA==', theme: 'dark' });
  assert.deepEqual(parseCookies('q="a=1"; r==; s='), { q: 'a=1', r: '=', s: '' });
});

test('names and decoding', () => {
  assert.deepEqual(parseCookies(' a = b=c%20d ; a=2; junk; =x'), { a: 'b=c d' });
});
