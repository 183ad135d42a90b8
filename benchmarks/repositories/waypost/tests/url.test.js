import assert from 'node:assert/strict';
import { test } from 'node:test';

import { breadcrumbs, isActive, joinPaths, normalizePath, relativePath, sameOrigin, splitUrl } from '../src/url.js';

test('joinPaths uses single slashes', () => {
  assert.equal(joinPaths('/api/', '/users', '42'), '/api/users/42');
  assert.equal(joinPaths('https://x.org/', 'a'), 'https://x.org/a');
});

test('normalizePath', () => {
  assert.equal(normalizePath('/a/./b//c'), '/a/b/c');
  assert.equal(normalizePath('/a/b/../c/'), '/a/c/');
  assert.equal(normalizePath('a/..'), '.');
});

test('normalizePath keeps leading dots of a relative path', () => {
  assert.equal(normalizePath('../../a'), '../../a');
  assert.equal(normalizePath('a/../../b'), '../b');
  assert.equal(normalizePath('/../a'), '/a');
});

test('relativePath', () => {
  assert.equal(relativePath('/a/b', '/a/c/d'), '../c/d');
  assert.equal(relativePath('/a', '/a'), '.');
});

test('splitUrl', () => {
  assert.deepEqual(splitUrl('HTTP://Example.org:8080/p?q=1#top'), {
    scheme: 'http', host: 'example.org', port: 8080, path: '/p', query: 'q=1', hash: 'top',
  });
});

test('sameOrigin', () => {
  assert.ok(sameOrigin('http://a.org/x', 'http://A.org:80/y'));
  assert.ok(!sameOrigin('http://a.org', 'https://a.org'));
});

test('isActive', () => {
  assert.ok(isActive('/docs/intro', '/docs'));
  assert.ok(isActive('/docs/', '/docs'));
  assert.ok(!isActive('/blog', '/docs'));
});

test('breadcrumbs', () => {
  assert.deepEqual(breadcrumbs('/a%20b/c'), [{ name: 'a b', path: '/a%20b' }, { name: 'c', path: '/a%20b/c' }]);
});
