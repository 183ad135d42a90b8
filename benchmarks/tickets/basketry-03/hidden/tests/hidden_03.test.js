import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Cart, optionKey } from '../src/cart.js';

const SHIRT = { sku: 'SHIRT', name: 'Shirt', price: 2000 };

test('the order of options does not matter', () => {
  const cart = new Cart().add(SHIRT, 1, { size: 'L', color: 'red' }).add(SHIRT, 1, { color: 'red', size: 'L' });
  assert.equal(cart.items.length, 1);
  assert.equal(cart.count, 2);
  cart.setQuantity('SHIRT', 5, { color: 'red', size: 'L' });
  assert.equal(cart.remove('SHIRT', { size: 'L', color: 'red' }), true);
  assert.ok(cart.isEmpty);
});

test('other values are other items', () => {
  const cart = new Cart().add(SHIRT, 1, { size: 'L', color: 'red' }).add(SHIRT, 1, { color: 'L', size: 'red' });
  assert.equal(cart.items.length, 2);
});

test('many options', () => {
  assert.equal(optionKey({ c: 1, a: 2, b: 3 }), optionKey({ b: 3, c: 1, a: 2 }));
  assert.notEqual(optionKey({ a: 1 }), optionKey({ a: '1' }));
  assert.equal(optionKey(), optionKey({}));
});
