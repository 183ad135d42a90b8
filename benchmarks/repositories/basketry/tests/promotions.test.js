import assert from 'node:assert/strict';
import { test } from 'node:test';

import { amountOff, applyPromotions, cheapestFree, freeShipping, isRunning, multiBuy, percentOff } from '../src/promotions.js';

const cart = {
  items: [
    { sku: 'TEA', price: 500, quantity: 7, category: 'drinks' },
    { sku: 'CUP', price: 1500, quantity: 1, category: 'kitchen' },
  ],
  subtotal: 5000,
};

test('percentage of everything', () => {
  assert.deepEqual(applyPromotions(cart, [percentOff(10)]), {
    discounts: [{ name: '10% off', amount: 500 }], total: 4500, shippingFree: false,
  });
});

test('percentage of a category', () => {
  assert.equal(percentOff(10, { category: 'kitchen' }).discount(cart, 5000), 150);
});

test('amount off needs the minimum', () => {
  assert.equal(amountOff(700, { minimum: 6000 }).discount(cart, 5000), 0);
});

test('three for two', () => {
  assert.equal(multiBuy('TEA', 3, 2).discount(cart), 1000);
});

test('cheapest free', () => {
  assert.equal(cheapestFree(5).discount(cart), 500);
  assert.equal(cheapestFree(9).discount(cart), 0);
});

test('promotions see what is left', () => {
  assert.equal(applyPromotions(cart, [amountOff(1000), percentOff(50)]).total, 2000);
});

test('free shipping', () => {
  assert.equal(applyPromotions(cart, [freeShipping(4000)]).shippingFree, true);
  assert.equal(applyPromotions(cart, [freeShipping(9000)]).shippingFree, false);
});

test('exclusive stops the rest', () => {
  const first = { ...amountOff(1000), exclusive: true };
  assert.equal(applyPromotions(cart, [first, percentOff(50)]).total, 4000);
});

test('total never goes below zero', () => {
  assert.equal(applyPromotions(cart, [amountOff(4000), multiBuy('TEA', 2, 0)]).total, 0);
});

test('isRunning', () => {
  assert.ok(isRunning({ from: 10, until: 20 }, 15));
  assert.ok(!isRunning({ from: 10, until: 20 }, 25));
  assert.ok(isRunning({}, 0));
});
