/** Pagination and Link headers. */

import { withQuery } from './query.js';

/** Number of pages for `total` items; at least 1. */
export function pageCount(total, perPage) {
  return Math.max(1, Math.ceil(total / perPage));
}

/** `{ first, prev, next, last }` URLs of a page; prev and next are missing at the ends. */
export function pageLinks(url, page, total, perPage) {
  const last = pageCount(total, perPage);
  const links = { first: withQuery(url, { page: 1 }) };
  if (page > 1) links.prev = withQuery(url, { page: Math.min(page - 1, last) });
  if (page < last) links.next = withQuery(url, { page: page + 1 });
  links.last = withQuery(url, { page: last });
  return links;
}

/** Page numbers to show around the current one, with null for a gap: [1, null, 4, 5, 6, null, 20]. */
export function pageWindow(page, count, around = 1) {
  const pages = [];
  for (let number = 1; number <= count; number += 1) {
    const isEdge = number === 1 || number === count;
    const isNear = Math.abs(number - page) <= around;
    if (isEdge || isNear) {
      pages.push(number);
    } else if (pages.at(-1) !== null) {
      pages.push(null);
    }
  }
  return pages;
}

/** `{ from, to }` of the items on a page, 1-based; both 0 when there is nothing. */
export function itemRange(page, total, perPage) {
  if (total === 0) return { from: 0, to: 0 };
  return { from: (page - 1) * perPage + 1, to: Math.min(page * perPage, total) };
}

/** A Link header from { rel: url }. */
export function buildLinkHeader(links) {
  return Object.entries(links).map(([rel, url]) => `<${url}>; rel="${rel}"`).join(', ');
}

/** { rel: url } of a Link header; an entry with several rels appears under each. */
export function parseLinkHeader(header) {
  const links = {};
  for (const match of header.matchAll(/<([^>]*)>([^<]*)/g)) {
    const rel = match[2].match(/;\s*rel="?([^";]+)"?/i);
    if (!rel) continue;
    for (const name of rel[1].trim().replace(/,$/, '').split(/\s+/)) {
      links[name.toLowerCase()] = match[1];
    }
  }
  return links;
}
