import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Router } from '../src/router.js';

const build = () => new Router()
  .add('GET', '/users/:id', 'show', 'user')
  .add('GET', '/users/new', 'form')
  .add('POST', '/users', 'create')
  .add('GET', '/files/*path', 'file', 'file')
  .add('GET', '/posts/:page?', 'posts', 'posts');

test('parameters', () => {
  assert.deepEqual(build().match('GET', '/users/42'), { handler: 'show', params: { id: '42' } });
});

test('fixed parts win over parameters', () => {
  assert.equal(build().match('GET', '/users/new').handler, 'form');
});

test('query and hash are ignored', () => {
  assert.equal(build().match('post', '/users?x=1#y').handler, 'create');
});

test('rest takes what is left', () => {
  assert.deepEqual(build().match('GET', '/files/a/b.txt').params, { path: 'a/b.txt' });
});

test('optional parameters', () => {
  assert.deepEqual(build().match('GET', '/posts').params, {});
  assert.deepEqual(build().match('GET', '/posts/2').params, { page: '2' });
});

test('no route', () => {
  assert.equal(build().match('GET', '/nothing'), null);
});

test('allowed methods', () => {
  assert.deepEqual(build().allowed('/users'), ['POST']);
  assert.deepEqual(build().allowed('/users/1'), ['GET', 'HEAD']);
});

test('named paths', () => {
  assert.equal(build().path('user', { id: 'a b' }), '/users/a%20b');
  assert.equal(build().path('posts'), '/posts');
  assert.throws(() => build().path('user'), RangeError);
  assert.throws(() => build().path('nobody'), RangeError);
});

test('prefix', () => {
  const router = new Router({ prefix: '/api' }).add('GET', '/ping', 'pong');
  assert.equal(router.match('GET', '/api/ping').handler, 'pong');
});
