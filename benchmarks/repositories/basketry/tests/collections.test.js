import assert from 'node:assert/strict';
import { test } from 'node:test';

import { chunk, groupBy, maxBy, memoize, move, partition, range, sumBy, uniqueBy } from '../src/collections.js';

test('chunk', () => {
  assert.deepEqual(chunk([1, 2, 3, 4], 2), [[1, 2], [3, 4]]);
  assert.throws(() => chunk([1], 0), RangeError);
});

test('groupBy', () => {
  const groups = groupBy([1, 2, 3], (n) => (n % 2 ? 'odd' : 'even'));
  assert.deepEqual([...groups], [['odd', [1, 3]], ['even', [2]]]);
});

test('uniqueBy', () => {
  assert.deepEqual(uniqueBy(['a', 'A', 'b'], (s) => s.toLowerCase()), ['a', 'b']);
});

test('sumBy and maxBy', () => {
  assert.equal(sumBy([{ n: 1 }, { n: 2 }], (x) => x.n), 3);
  assert.deepEqual(maxBy([{ n: 1 }, { n: 2 }], (x) => x.n), { n: 2 });
  assert.equal(maxBy([], (x) => x), undefined);
});

test('partition', () => {
  assert.deepEqual(partition([1, 2, 3], (n) => n > 1), [[2, 3], [1]]);
});

test('range', () => {
  assert.deepEqual(range(0, 3), [0, 1, 2]);
});

test('move', () => {
  assert.deepEqual(move(['a', 'b', 'c'], 0, 2), ['b', 'c', 'a']);
});

test('memoize', () => {
  let calls = 0;
  const twice = memoize((n) => { calls += 1; return 2 * n; });
  assert.deepEqual([twice(2), twice(2)], [4, 4]);
  assert.equal(calls, 1);
});
