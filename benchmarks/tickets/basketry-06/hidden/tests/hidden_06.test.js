import assert from 'node:assert/strict';
import { test } from 'node:test';

import { addWorkingDays, deliveryText } from '../src/format.js';

const friday = () => new Date('2024-05-10T10:00:00Z');

test('the date that is handed in stays', () => {
  const ordered = friday();
  assert.equal(deliveryText(ordered, 2), 'Arrives Tuesday, 14 May');
  assert.equal(ordered.toISOString(), '2024-05-10T10:00:00.000Z');
  assert.equal(deliveryText(ordered, 2), 'Arrives Tuesday, 14 May');
});

test('a new date comes back', () => {
  const ordered = friday();
  const same = addWorkingDays(ordered, 0);
  assert.equal(same.getTime(), ordered.getTime());
  assert.notEqual(same, ordered);
  assert.equal(addWorkingDays(ordered, 6).toISOString(), '2024-05-20T10:00:00.000Z');
});
