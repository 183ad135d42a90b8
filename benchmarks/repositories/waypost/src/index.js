export { parseQuery, buildQuery, withQuery, pick } from './query.js';
export { joinPaths, normalizePath, relativePath, isActive, splitUrl } from './url.js';
export { Router } from './router.js';
export { parseAccept, preferred, parseContentType } from './accept.js';
export { parseCookies, serializeCookie } from './cookies.js';
export { pageLinks, parseLinkHeader, buildLinkHeader } from './links.js';
