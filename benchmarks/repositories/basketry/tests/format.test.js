import assert from 'node:assert/strict';
import { test } from 'node:test';

import { addWorkingDays, deliveryText, formatList, formatPrice, pluralize, savingText, shorten, stockText } from '../src/format.js';

test('prices', () => {
  assert.equal(formatPrice(1250), '€12.50');
  assert.equal(formatPrice(-99, '$'), '-$0.99');
});

test('plurals', () => {
  assert.equal(pluralize(1, 'item'), '1 item');
  assert.equal(pluralize(2, 'box', 'boxes'), '2 boxes');
});

test('lists', () => {
  assert.equal(formatList(['a', 'b', 'c']), 'a, b and c');
  assert.equal(formatList([]), '');
});

test('shorten', () => {
  assert.equal(shorten('short', 10), 'short');
  assert.equal(shorten('a rather long name', 12), 'a rather…');
});

test('working days', () => {
  const friday = new Date('2024-05-10T10:00:00Z');
  assert.equal(addWorkingDays(friday, 1).toISOString().slice(0, 10), '2024-05-13');
});

test('delivery', () => {
  assert.equal(deliveryText(new Date('2024-05-10T10:00:00Z'), 2), 'Arrives Tuesday, 14 May');
  assert.equal(deliveryText(new Date('2024-05-10T16:00:00Z'), 2), 'Arrives Wednesday, 15 May');
});

test('stock', () => {
  assert.equal(stockText(0), 'Sold out');
  assert.equal(stockText(2), 'Only 2 left');
  assert.equal(stockText(50), 'In stock');
});

test('saving', () => {
  assert.equal(savingText(1000, 800), '20% off');
  assert.equal(savingText(1000, 1000), '');
});
