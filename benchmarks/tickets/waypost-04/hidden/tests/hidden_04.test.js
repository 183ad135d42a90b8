import assert from 'node:assert/strict';
import { test } from 'node:test';

import { normalizePath } from '../src/url.js';

test('leading dots of relative paths are kept', () => {
  assert.equal(normalizePath('../../a'), '../../a');
  assert.equal(normalizePath('../../../'), '../../../');
  assert.equal(normalizePath('a/b/../../../c/../d'), '../d');
});

test('absolute paths stop at the root', () => {
  assert.equal(normalizePath('/../../a/..'), '/');
  assert.equal(normalizePath('/a/../../b/'), '/b/');
});

test('inner dots are resolved', () => {
  assert.equal(normalizePath('a/../b/./c'), 'b/c');
  assert.equal(normalizePath('./..'), '..');
});
