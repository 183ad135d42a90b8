/** Query strings to plain objects and back. */

/** Decode one component; a plus sign is a space, malformed escapes stay as they are. */
export function decode(text) {
  const spaced = text.replace(/\+/g, ' ');
  try {
    return decodeURIComponent(spaced);
  } catch {
    return spaced;
  }
}

/** Encode one component; spaces become plus signs. */
export function encode(value) {
  return encodeURIComponent(String(value)).replace(/%20/g, '+');
}

/**
 * An object from a query string. A name that appears once has a string, one that appears several
 * times (or ends in `[]`) an array of strings. A name without `=` has the empty string.
 */
export function parseQuery(query) {
  const result = {};
  const text = query.startsWith('?') ? query.slice(1) : query;
  for (const pair of text.split('&')) {
    if (pair === '') continue;
    const split = pair.indexOf('=');
    const rawName = split === -1 ? pair : pair.slice(0, split);
    const value = split === -1 ? '' : decode(pair.slice(split + 1));
    addValue(result, decode(rawName), value);
  }
  return result;
}

function addValue(result, name, value) {
  const isList = name.endsWith('[]');
  const key = isList ? name.slice(0, -2) : name;
  if (!Object.hasOwn(result, key)) {
    result[key] = isList ? [value] : value;
  } else if (Array.isArray(result[key])) {
    result[key].push(value);
  } else {
    result[key] = [result[key], value];
  }
}

/** A query string without `?`, names in order. Arrays repeat the name; null and undefined are left out. */
export function buildQuery(values, { sort = false } = {}) {
  const names = Object.keys(values);
  if (sort) names.sort();
  const pairs = [];
  for (const name of names) {
    const items = Array.isArray(values[name]) ? values[name] : [values[name]];
    for (const item of items) {
      if (item === null || item === undefined) continue;
      pairs.push(`${encode(name)}=${encode(item)}`);
    }
  }
  return pairs.join('&');
}

/** The URL with some query values replaced; null removes a name; the fragment stays at the end. */
export function withQuery(url, changes) {
  const [beforeHash, ...hashParts] = url.split('#');
  const [path, ...queryParts] = beforeHash.split('?');
  const values = { ...parseQuery(queryParts.join('?')), ...changes };
  const query = buildQuery(values);
  const hash = hashParts.length > 0 ? `#${hashParts.join('#')}` : '';
  return path + (query ? `?${query}` : '') + hash;
}

/** A number from a query value, or the fallback when it is missing, not a number or out of bounds. */
export function numberParam(values, name, { fallback = 0, min = -Infinity, max = Infinity } = {}) {
  const raw = Array.isArray(values[name]) ? values[name][0] : values[name];
  if (raw === undefined || raw.trim() === '') return fallback;
  const number = Number(raw);
  if (Number.isNaN(number) || number < min || number > max) return fallback;
  return number;
}

/** A new object with only the named values that are there. */
export function pick(values, names) {
  const result = {};
  for (const name of names) {
    if (Object.hasOwn(values, name)) result[name] = values[name];
  }
  return result;
}
