import assert from 'node:assert/strict';
import { test } from 'node:test';

import { History } from '../src/history.js';

test('undo and redo', () => {
  const history = new History('a').push('b').push('c');
  assert.equal(history.undo(), 'b');
  assert.equal(history.undo(), 'a');
  assert.equal(history.redo(), 'b');
  assert.equal(history.current, 'b');
});

test('a new state forgets what could be redone', () => {
  const history = new History('a').push('b');
  history.undo();
  history.push('c');
  assert.equal(history.canRedo, false);
  assert.equal(history.redo(), 'c');
});

test('stays at the ends', () => {
  const history = new History('a');
  assert.equal(history.undo(), 'a');
  assert.equal(history.redo(), 'a');
  assert.equal(history.canUndo, false);
});

test('limit', () => {
  const history = new History(0, { limit: 2 }).push(1).push(2).push(3);
  assert.equal(history.go(-5), 1);
  assert.throws(() => new History(0, { limit: 0 }), RangeError);
});

test('reset', () => {
  const history = new History('a').push('b');
  history.reset();
  assert.equal(history.canUndo, false);
  assert.equal(history.current, 'b');
});
