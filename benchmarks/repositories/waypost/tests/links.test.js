import assert from 'node:assert/strict';
import { test } from 'node:test';

import { buildLinkHeader, itemRange, pageCount, pageLinks, pageWindow, parseLinkHeader } from '../src/links.js';

test('pageCount', () => {
  assert.equal(pageCount(0, 10), 1);
  assert.equal(pageCount(21, 10), 3);
});

test('pageLinks', () => {
  assert.deepEqual(pageLinks('/list', 2, 25, 10), {
    first: '/list?page=1', prev: '/list?page=1', next: '/list?page=3', last: '/list?page=3',
  });
});

test('no prev on the first page', () => {
  assert.equal(pageLinks('/list', 1, 25, 10).prev, undefined);
});

test('pageWindow', () => {
  assert.deepEqual(pageWindow(5, 20), [1, null, 4, 5, 6, null, 20]);
  assert.deepEqual(pageWindow(1, 3), [1, 2, 3]);
});

test('itemRange', () => {
  assert.deepEqual(itemRange(2, 45, 20), { from: 21, to: 40 });
  assert.deepEqual(itemRange(1, 0, 20), { from: 0, to: 0 });
});

test('link headers', () => {
  const links = { next: '/list?page=3', last: '/list?page=9' };
  assert.equal(buildLinkHeader(links), '</list?page=3>; rel="next", </list?page=9>; rel="last"');
  assert.deepEqual(parseLinkHeader(buildLinkHeader(links)), links);
});
