import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Cart } from '../src/cart.js';

const TEA = { sku: 'TEA', name: 'Tea', price: 500 };
const CUP = { sku: 'CUP', name: 'Cup', price: 1200 };

test('add and totals', () => {
  const cart = new Cart().add(TEA, 2).add(CUP);
  assert.equal(cart.count, 3);
  assert.equal(cart.subtotal, 2200);
});

test('equal items add up', () => {
  const cart = new Cart().add(TEA).add(TEA, 2);
  assert.equal(cart.items.length, 1);
  assert.equal(cart.items[0].quantity, 3);
});

test('options make different items', () => {
  const cart = new Cart().add(CUP, 1, { color: 'red' }).add(CUP, 1, { color: 'blue' });
  assert.equal(cart.items.length, 2);
});

test('quantity has to be a positive integer', () => {
  assert.throws(() => new Cart().add(TEA, 0), RangeError);
  assert.throws(() => new Cart().add(TEA, 1.5), RangeError);
});

test('setQuantity', () => {
  const cart = new Cart().add(TEA);
  cart.setQuantity('TEA', 5);
  assert.equal(cart.count, 5);
  assert.throws(() => cart.setQuantity('CUP', 1), RangeError);
});

test('remove', () => {
  const cart = new Cart().add(TEA).add(CUP);
  assert.equal(cart.remove('TEA'), true);
  assert.equal(cart.remove('TEA'), false);
  assert.deepEqual(cart.items.map((item) => item.sku), ['CUP']);
});

test('change is emitted', () => {
  const cart = new Cart();
  let changes = 0;
  cart.on('change', () => { changes += 1; });
  cart.add(TEA);
  cart.setQuantity('TEA', 3);
  cart.clear();
  assert.equal(changes, 3);
});

test('items are copies', () => {
  const cart = new Cart().add(TEA);
  cart.items[0].quantity = 50;
  assert.equal(cart.count, 1);
});

test('JSON round trip', () => {
  const cart = new Cart().add(TEA, 2, { size: 'L' });
  assert.deepEqual(Cart.fromJSON(JSON.stringify(cart)).items, cart.items);
});

test('merge', () => {
  const cart = new Cart().add(TEA);
  cart.merge(new Cart().add(TEA, 2).add(CUP));
  assert.equal(cart.count, 4);
  assert.equal(cart.items.length, 2);
});
