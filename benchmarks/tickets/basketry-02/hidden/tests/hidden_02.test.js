import assert from 'node:assert/strict';
import { test } from 'node:test';

import { formatList } from '../src/format.js';

test('counts what is hidden', () => {
  assert.equal(formatList(['a', 'b', 'c', 'd', 'e'], 2), 'a, b and 3 more');
  assert.equal(formatList(['a', 'b'], 1), 'a and 1 more');
});

test('nothing hidden', () => {
  assert.equal(formatList(['a', 'b', 'c'], 3), 'a, b and c');
  assert.equal(formatList(['a', 'b'], 9), 'a and b');
  assert.equal(formatList(['a'], 1), 'a');
});
