import assert from 'node:assert/strict';
import { test } from 'node:test';

import { amountOff, applyPromotions, percentOff } from '../src/promotions.js';

const cart = { items: [{ sku: 'A', price: 10000, quantity: 1 }], subtotal: 10000 };

test('each promotion sees what is left', () => {
  assert.deepEqual(applyPromotions(cart, [percentOff(10), percentOff(10), percentOff(10)]).discounts.map((d) => d.amount), [1000, 900, 810]);
  assert.equal(applyPromotions(cart, [amountOff(4000), percentOff(25)]).total, 4500);
});

test('order matters', () => {
  assert.equal(applyPromotions(cart, [percentOff(25), amountOff(4000)]).total, 3500);
});

test('one promotion', () => {
  assert.equal(applyPromotions(cart, [percentOff(25)]).total, 7500);
  assert.deepEqual(applyPromotions(cart, []), { discounts: [], total: 10000, shippingFree: false });
});
