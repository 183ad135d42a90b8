/** Small functions on arrays. None of them changes its arguments. */

/** Pieces of at most `size` items. */
export function chunk(items, size) {
  if (size < 1) throw new RangeError('size must be at least 1');
  const pieces = [];
  for (let start = 0; start < items.length; start += size) {
    pieces.push(items.slice(start, start + size));
  }
  return pieces;
}

/** A Map from key to items, keys in the order in which they appear. */
export function groupBy(items, keyOf) {
  const groups = new Map();
  for (const item of items) {
    const key = keyOf(item);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(item);
  }
  return groups;
}

/** The first item of each key. */
export function uniqueBy(items, keyOf) {
  const seen = new Set();
  return items.filter((item) => {
    const key = keyOf(item);
    if (seen.has(key)) return false;
    seen.add(key);
    return true;
  });
}

export function sumBy(items, valueOf) {
  return items.reduce((sum, item) => sum + valueOf(item), 0);
}

/** [those that pass, those that do not]. */
export function partition(items, test) {
  const passed = [];
  const failed = [];
  for (const item of items) (test(item) ? passed : failed).push(item);
  return [passed, failed];
}

/** The item with the highest value, the first of equals; undefined for an empty array. */
export function maxBy(items, valueOf) {
  let best;
  let bestValue = -Infinity;
  for (const item of items) {
    const value = valueOf(item);
    if (value > bestValue) {
      best = item;
      bestValue = value;
    }
  }
  return best;
}

/** Integers from start up to (not including) end. */
export function range(start, end, step = 1) {
  const numbers = [];
  for (let number = start; step > 0 ? number < end : number > end; number += step) numbers.push(number);
  return numbers;
}

/** A copy with the item at `from` moved to position `to`. */
export function move(items, from, to) {
  const result = [...items];
  const [item] = result.splice(from, 1);
  result.splice(to, 0, item);
  return result;
}

/** Remember results of a one-argument function. */
export function memoize(fn) {
  const results = new Map();
  return (argument) => {
    if (!results.has(argument)) results.set(argument, fn(argument));
    return results.get(argument);
  };
}
