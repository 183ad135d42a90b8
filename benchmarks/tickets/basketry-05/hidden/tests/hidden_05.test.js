import assert from 'node:assert/strict';
import { test } from 'node:test';

import { sortProducts } from '../src/catalog.js';

const products = () => [
  { sku: 'b', name: 'B', price: 2 }, { sku: 'a', name: 'A', price: 1, stock: 4 }, { sku: 'c', name: 'C', price: 2, stock: 1 },
];
const skus = (items) => items.map((item) => item.sku).join('');

test('the argument stays as it is', () => {
  const given = Object.freeze(products());
  for (const order of ['price', '-price', 'name', '-name', 'stock']) sortProducts(given, order);
  assert.equal(skus(given), 'bac');
  assert.notEqual(sortProducts(given, 'price'), given);
});

test('sorted and stable', () => {
  assert.equal(skus(sortProducts(products(), 'price')), 'abc');
  assert.equal(skus(sortProducts(products(), '-price')), 'bca');
  assert.equal(skus(sortProducts(products(), 'stock')), 'acb');
});
