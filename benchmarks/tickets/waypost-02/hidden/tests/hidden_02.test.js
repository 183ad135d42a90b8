import assert from 'node:assert/strict';
import { test } from 'node:test';

import { withQuery } from '../src/query.js';

test('the fragment stays at the end', () => {
  assert.equal(withQuery('/list?page=1#top', { page: 2 }), '/list?page=2#top');
  assert.equal(withQuery('/list#top', { page: 2 }), '/list?page=2#top');
  assert.equal(withQuery('/list?page=1#top', { page: null }), '/list#top');
  assert.equal(withQuery('/list#a#b', {}), '/list#a#b');
});

test('no fragment', () => {
  assert.equal(withQuery('/list', { q: 'x y' }), '/list?q=x+y');
});
