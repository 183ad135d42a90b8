import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Emitter } from '../src/emitter.js';

test('listeners are called in order', () => {
  const emitter = new Emitter();
  const calls = [];
  emitter.on('x', (value) => calls.push(['first', value]));
  emitter.on('x', (value) => calls.push(['second', value]));
  assert.equal(emitter.emit('x', 1), true);
  assert.deepEqual(calls, [['first', 1], ['second', 1]]);
});

test('emit without listeners', () => {
  assert.equal(new Emitter().emit('x'), false);
});

test('once is called once', () => {
  const emitter = new Emitter();
  let calls = 0;
  emitter.once('x', () => { calls += 1; });
  emitter.emit('x');
  emitter.emit('x');
  assert.equal(calls, 1);
});

test('on returns a function that stops', () => {
  const emitter = new Emitter();
  let calls = 0;
  const stop = emitter.on('x', () => { calls += 1; });
  stop();
  emitter.emit('x');
  assert.equal(calls, 0);
  assert.deepEqual(emitter.events(), []);
});

test('wildcard gets the name', () => {
  const emitter = new Emitter();
  const heard = [];
  emitter.on('*', (...args) => heard.push(args));
  emitter.emit('x', 1);
  assert.deepEqual(heard, [['x', 1]]);
});

test('emitAsync collects results', async () => {
  const emitter = new Emitter();
  emitter.on('x', async (n) => n + 1);
  emitter.on('x', (n) => n + 2);
  assert.deepEqual(await emitter.emitAsync('x', 1), [2, 3]);
});

test('count', () => {
  const emitter = new Emitter();
  emitter.on('x', () => {});
  emitter.on('y', () => {});
  assert.equal(emitter.count('x'), 1);
  assert.equal(emitter.count(), 2);
});

test('listener must be a function', () => {
  assert.throws(() => new Emitter().on('x', 1), TypeError);
});
