import assert from 'node:assert/strict';
import { test } from 'node:test';

import { buildQuery, decode, numberParam, parseQuery, pick, withQuery } from '../src/query.js';

test('decode keeps malformed escapes', () => {
  assert.equal(decode('a+b%20c'), 'a b c');
  assert.equal(decode('100%'), '100%');
});

test('parseQuery reads names and values', () => {
  assert.deepEqual(parseQuery('?a=1&b=x+y'), { a: '1', b: 'x y' });
});

test('parseQuery collects repeated names', () => {
  assert.deepEqual(parseQuery('tag=a&tag=b&tag=c'), { tag: ['a', 'b', 'c'] });
});

test('parseQuery reads bracket lists', () => {
  assert.deepEqual(parseQuery('ids[]=7'), { ids: ['7'] });
});

test('buildQuery repeats arrays and skips null', () => {
  assert.equal(buildQuery({ tag: ['a', 'b'], q: 'x y', none: null }), 'tag=a&tag=b&q=x+y');
});

test('buildQuery can sort', () => {
  assert.equal(buildQuery({ b: 1, a: 2 }, { sort: true }), 'a=2&b=1');
});

test('withQuery replaces values', () => {
  assert.equal(withQuery('/list?page=1&q=x', { page: 2 }), '/list?page=2&q=x');
  assert.equal(withQuery('/list?page=1', { page: null }), '/list');
});

test('numberParam', () => {
  assert.equal(numberParam({ page: '3' }, 'page', { fallback: 1 }), 3);
  assert.equal(numberParam({}, 'page', { fallback: 1 }), 1);
  assert.equal(numberParam({ page: 'x' }, 'page', { fallback: 1 }), 1);
});

test('pick', () => {
  assert.deepEqual(pick({ a: 1, b: 2 }, ['a', 'c']), { a: 1 });
});
