/** Cookie headers. */

/** `{ name: value }` of a Cookie header; the first of equal names wins, quotes around a value are removed. */
export function parseCookies(header) {
  const cookies = {};
  for (const pair of header.split(';')) {
    const split = pair.indexOf('=');
    if (split === -1) continue;
    const name = pair.slice(0, split).trim();
    if (name === '' || Object.hasOwn(cookies, name)) continue;
    const value = pair.slice(split + 1).trim().replace(/^"(.*)"$/, '$1');
    cookies[name] = safeDecode(value);
  }
  return cookies;
}

function safeDecode(value) {
  try {
    return decodeURIComponent(value);
  } catch {
    return value;
  }
}

const NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;

/**
 * A Set-Cookie header value. Options: maxAge (seconds, 0 deletes), expires (Date), path ('/' by default),
 * domain, secure, httpOnly, sameSite ('lax', 'strict', 'none').
 */
export function serializeCookie(name, value, options = {}) {
  if (!NAME.test(name)) throw new TypeError(`invalid cookie name '${name}'`);
  const parts = [`${name}=${encodeURIComponent(value)}`];
  if (options.maxAge !== undefined) parts.push(`Max-Age=${Math.floor(options.maxAge)}`);
  if (options.expires) parts.push(`Expires=${options.expires.toUTCString()}`);
  if (options.domain) parts.push(`Domain=${options.domain}`);
  parts.push(`Path=${options.path ?? '/'}`);
  if (options.secure || options.sameSite === 'none') parts.push('Secure');
  if (options.httpOnly) parts.push('HttpOnly');
  if (options.sameSite) parts.push(`SameSite=${capitalize(options.sameSite)}`);
  return parts.join('; ');
}

function capitalize(word) {
  return word.charAt(0).toUpperCase() + word.slice(1).toLowerCase();
}

/** Whether a cookie for `domain` is sent to `host`: the same host or one below it. */
export function domainMatches(host, domain) {
  const wanted = domain.replace(/^\./, '').toLowerCase();
  const actual = host.toLowerCase();
  return actual === wanted || actual.endsWith(`.${wanted}`);
}
