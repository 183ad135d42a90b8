import assert from 'node:assert/strict';
import { test } from 'node:test';

import { History } from '../src/history.js';

test('push forgets what was undone', () => {
  const history = new History(1).push(2).push(3);
  history.go(-2);
  history.push(4);
  assert.equal(history.canRedo, false);
  assert.equal(history.redo(), 4);
  assert.equal(history.undo(), 1);
  assert.equal(history.redo(), 4);
});

test('redo without a new state still works', () => {
  const history = new History(1).push(2).push(3);
  history.go(-2);
  assert.equal(history.go(2), 3);
});
