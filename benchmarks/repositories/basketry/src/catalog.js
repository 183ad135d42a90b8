/** Finding products `{ sku, name, price, category, tags, stock }`. None of these functions changes its arguments. */

/** Products whose name or tags hold every word of the query, in any case; an empty query finds all. */
export function search(products, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  return products.filter((product) => {
    const text = [product.name, ...(product.tags ?? [])].join(' ').toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

const ORDERS = {
  price: (a, b) => a.price - b.price,
  name: (a, b) => a.name.localeCompare(b.name),
  stock: (a, b) => (b.stock ?? 0) - (a.stock ?? 0),
};

/** Sorted products: by 'price', 'name' or 'stock'; a leading '-' turns the order round. */
export function sortProducts(products, order) {
  const reversed = order.startsWith('-');
  const compare = ORDERS[reversed ? order.slice(1) : order];
  if (!compare) throw new RangeError(`unknown order '${order}'`);
  const sorted = [...products];
  return sorted.sort(reversed ? (a, b) => compare(b, a) : compare);
}

/** How many products each value of a field has: [{ value, count }], most first, then by value. */
export function facets(products, field) {
  const counts = new Map();
  for (const product of products) {
    const values = Array.isArray(product[field]) ? product[field] : [product[field]];
    for (const value of values) {
      if (value === undefined || value === null) continue;
      counts.set(value, (counts.get(value) ?? 0) + 1);
    }
  }
  return [...counts]
    .map(([value, count]) => ({ value, count }))
    .sort((a, b) => b.count - a.count || String(a.value).localeCompare(String(b.value)));
}

/** Products within a price range; both ends are included and optional. */
export function inPriceRange(products, { min = 0, max = Infinity } = {}) {
  return products.filter((product) => product.price >= min && product.price <= max);
}

/** One page: { items, page, pages, total }; the page is moved into the valid range. */
export function paginate(products, page, perPage = 10) {
  const pages = Math.max(1, Math.ceil(products.length / perPage));
  const current = Math.min(Math.max(1, page), pages);
  const start = (current - 1) * perPage;
  return { items: products.slice(start, start + perPage), page: current, pages, total: products.length };
}

/** Other products in the same category that share most tags, best first, at most `limit`. */
export function related(products, product, limit = 3) {
  const tags = new Set(product.tags ?? []);
  const shared = (other) => (other.tags ?? []).filter((tag) => tags.has(tag)).length;
  return products
    .filter((other) => other.sku !== product.sku && other.category === product.category)
    .sort((a, b) => shared(b) - shared(a))
    .slice(0, limit);
}

/** The price span of products as { min, max }, or null without products. */
export function priceSpan(products) {
  if (products.length === 0) return null;
  const prices = products.map((product) => product.price);
  return { min: Math.min(...prices), max: Math.max(...prices) };
}
