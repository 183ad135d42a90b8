import assert from 'node:assert/strict';
import { test } from 'node:test';

import { domainMatches } from '../src/cookies.js';

test('only the host and those below it', () => {
  assert.equal(domainMatches('evilshop.example', 'shop.example'), false);
  assert.equal(domainMatches('shop.example', 'shop.example'), true);
  assert.equal(domainMatches('www.shop.example', 'shop.example'), true);
  assert.equal(domainMatches('a.b.shop.example', '.shop.example'), true);
  assert.equal(domainMatches('evilshop.example', '.shop.example'), false);
});

test('case does not matter', () => {
  assert.equal(domainMatches('WWW.Shop.example', 'shop.EXAMPLE'), true);
  assert.equal(domainMatches('example', 'shop.example'), false);
});
