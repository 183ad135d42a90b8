import assert from 'node:assert/strict';
import { test } from 'node:test';

import { pageWindow } from '../src/links.js';

test('neighbours on both sides', () => {
  assert.deepEqual(pageWindow(10, 20, 2), [1, null, 8, 9, 10, 11, 12, null, 20]);
  assert.deepEqual(pageWindow(5, 9), [1, null, 4, 5, 6, null, 9]);
});

test('at the ends', () => {
  assert.deepEqual(pageWindow(1, 20), [1, 2, null, 20]);
  assert.deepEqual(pageWindow(20, 20), [1, null, 19, 20]);
});

test('no neighbours wanted', () => {
  assert.deepEqual(pageWindow(5, 9, 0), [1, null, 5, null, 9]);
  assert.deepEqual(pageWindow(1, 1), [1]);
});
