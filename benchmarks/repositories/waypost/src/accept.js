/** Content negotiation. */

/**
 * Entries of an Accept or Accept-Language header, best first: [{ value, q }].
 * A missing q is 1, one that cannot be read is 0; equal ones keep their order; entries with q=0 are left out.
 */
export function parseAccept(header) {
  const entries = [];
  for (const item of header.split(',')) {
    const [value, ...params] = item.split(';').map((part) => part.trim());
    if (value === '') continue;
    const q = qualityOf(params);
    if (q > 0) entries.push({ value: value.toLowerCase(), q });
  }
  return entries.sort((a, b) => b.q - a.q);
}

function qualityOf(params) {
  for (const param of params) {
    const [name, raw] = param.split('=').map((part) => part.trim());
    if (name.toLowerCase() !== 'q') continue;
    const q = Number.parseFloat(raw);
    return Number.isNaN(q) ? 0 : Math.min(1, Math.max(0, q));
  }
  return 1;
}

/** Whether an accepted value such as `text/*`, `*` or `en` covers an offered one such as `text/html` or `en-gb`. */
export function covers(accepted, offered) {
  if (accepted === '*' || accepted === '*/*') return true;
  if (accepted.endsWith('/*')) return offered.startsWith(accepted.slice(0, -1));
  return offered === accepted || offered.startsWith(`${accepted}-`);
}

/** The first offer that the client likes best, or null when it accepts none; no header accepts everything. */
export function preferred(header, offers) {
  if (!header) return offers[0] ?? null;
  for (const { value } of parseAccept(header)) {
    const found = offers.find((offer) => covers(value, offer.toLowerCase()));
    if (found !== undefined) return found;
  }
  return null;
}

/** `{ type, params }` of a Content-Type header; names and type in lower case, quotes removed from values. */
export function parseContentType(header) {
  const [type, ...rest] = header.split(';');
  const params = {};
  for (const item of rest) {
    const split = item.indexOf('=');
    if (split === -1) continue;
    const name = item.slice(0, split).trim().toLowerCase();
    params[name] = item.slice(split + 1).trim().replace(/^"(.*)"$/, '$1');
  }
  return { type: type.trim().toLowerCase(), params };
}

/** Whether a content type is JSON: `application/json`, `text/json` or anything that ends in `+json`. */
export function isJson(header) {
  const { type } = parseContentType(header);
  return type === 'application/json' || type === 'text/json' || type.endsWith('+json');
}
