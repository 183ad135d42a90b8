import assert from 'node:assert/strict';
import { test } from 'node:test';

import { facets, inPriceRange, paginate, priceSpan, related, search, sortProducts } from '../src/catalog.js';

const PRODUCTS = [
  { sku: '1', name: 'Green Tea', price: 500, category: 'drinks', tags: ['leaf', 'bio'], stock: 3 },
  { sku: '2', name: 'Black Tea', price: 400, category: 'drinks', tags: ['leaf'], stock: 9 },
  { sku: '3', name: 'Cup', price: 1500, category: 'kitchen', tags: [], stock: 0 },
  { sku: '4', name: 'Apple Juice', price: 300, category: 'drinks', tags: ['bio'] },
];
const skus = (products) => products.map((product) => product.sku);

test('search needs every word', () => {
  assert.deepEqual(skus(search(PRODUCTS, 'tea bio')), ['1']);
  assert.equal(search(PRODUCTS, ' ').length, 4);
});

test('sorting', () => {
  assert.deepEqual(skus(sortProducts(PRODUCTS, 'price')), ['4', '2', '1', '3']);
  assert.deepEqual(skus(sortProducts(PRODUCTS, '-name')), ['1', '3', '2', '4']);
  assert.throws(() => sortProducts(PRODUCTS, 'size'), RangeError);
});

test('facets', () => {
  assert.deepEqual(facets(PRODUCTS, 'category'), [{ value: 'drinks', count: 3 }, { value: 'kitchen', count: 1 }]);
  assert.deepEqual(facets(PRODUCTS, 'tags'), [{ value: 'bio', count: 2 }, { value: 'leaf', count: 2 }]);
});

test('price range', () => {
  assert.deepEqual(skus(inPriceRange(PRODUCTS, { min: 350, max: 600 })), ['1', '2']);
});

test('pages', () => {
  const page = paginate(PRODUCTS, 2, 3);
  assert.deepEqual(skus(page.items), ['4']);
  assert.equal(page.pages, 2);
});

test('related', () => {
  assert.deepEqual(skus(related(PRODUCTS, PRODUCTS[0])), ['2', '4']);
});

test('price span', () => {
  assert.deepEqual(priceSpan(PRODUCTS), { min: 300, max: 1500 });
  assert.equal(priceSpan([]), null);
});
