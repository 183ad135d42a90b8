/** Paths and URLs as text. */

/** Join parts with single slashes; empty parts are skipped. A leading or trailing slash is kept. */
export function joinPaths(...parts) {
  const filled = parts.filter((part) => part !== '');
  if (filled.length === 0) return '';
  const joined = filled.join('/');
  const match = joined.match(/^[a-z][a-z0-9+.-]*:\/\//i);
  const scheme = match ? match[0] : '';
  return scheme + joined.slice(scheme.length).replace(/\/{2,}/g, '/');
}

/** The path without `.`, `..` and doubled slashes; `..` never climbs above the root. */
export function normalizePath(path) {
  const absolute = path.startsWith('/');
  const trailing = path.length > 1 && path.endsWith('/');
  const kept = [];
  for (const part of path.split('/')) {
    if (part === '' || part === '.') continue;
    if (part !== '..') {
      kept.push(part);
    } else if (kept.length > 0 && kept.at(-1) !== '..') {
      kept.pop();
    } else if (!absolute) {
      kept.push(part);
    }
  }
  const body = kept.join('/');
  if (body === '') return absolute ? '/' : '.';
  return (absolute ? '/' : '') + body + (trailing ? '/' : '');
}

/** How to get from one absolute folder to another path: ('/a/b', '/a/c/d') -> '../c/d'. */
export function relativePath(from, to) {
  const source = from.split('/').filter(Boolean);
  const target = to.split('/').filter(Boolean);
  let shared = 0;
  while (shared < source.length && shared < target.length && source[shared] === target[shared]) {
    shared += 1;
  }
  const up = source.slice(shared).map(() => '..');
  return [...up, ...target.slice(shared)].join('/') || '.';
}

/** Scheme, host, port, path, query and hash of a URL; what is missing is the empty string (port: null). */
export function splitUrl(url) {
  const match = url.match(/^(?:([a-z][a-z0-9+.-]*):)?(?:\/\/([^/?#:]*)(?::(\d+))?)?([^?#]*)(?:\?([^#]*))?(?:#(.*))?$/i);
  const [, scheme = '', host = '', port, path = '', query = '', hash = ''] = match;
  return {
    scheme: scheme.toLowerCase(),
    host: host.toLowerCase(),
    port: port === undefined ? null : Number(port),
    path,
    query,
    hash,
  };
}

const DEFAULT_PORTS = { http: 80, https: 443, ws: 80, wss: 443 };

/** True when two URLs have the same scheme, host and port; a default port may be left out. */
export function sameOrigin(first, second) {
  const [a, b] = [splitUrl(first), splitUrl(second)];
  const portOf = (parts) => parts.port ?? DEFAULT_PORTS[parts.scheme] ?? null;
  return a.scheme === b.scheme && a.host === b.host && portOf(a) === portOf(b);
}

/** Whether a menu entry is active: the current path equals its path or lies below it ('/' only equals). */
export function isActive(current, path) {
  const clean = (text) => text.replace(/\/+$/, '');
  const here = clean(current);
  const there = clean(path);
  if (there === '') return here === '';
  return here === there || here.startsWith(`${there}/`);
}

/** Bread crumbs of a path: [{ name, path }], from the first folder down. */
export function breadcrumbs(path) {
  const crumbs = [];
  let current = '';
  for (const name of path.split('/').filter(Boolean)) {
    current += `/${name}`;
    crumbs.push({ name: decodeURIComponent(name), path: current });
  }
  return crumbs;
}
