import { Emitter } from './emitter.js';

const MAX_QUANTITY = 99;

/** A cart of items `{ sku, name, price, quantity, options }`. Emits 'change' with the cart, 'add', 'remove'. */
export class Cart extends Emitter {
  #items = [];

  constructor(items = []) {
    super();
    for (const item of items) this.#items.push({ ...item });
  }

  /** Copies of the items in the order in which they were added. */
  get items() {
    return this.#items.map((item) => ({ ...item, options: { ...item.options } }));
  }

  get isEmpty() {
    return this.#items.length === 0;
  }

  /** Number of pieces. */
  get count() {
    return this.#items.reduce((sum, item) => sum + item.quantity, 0);
  }

  get subtotal() {
    return this.#items.reduce((sum, item) => sum + item.price * item.quantity, 0);
  }

  #find(sku, options = {}) {
    const wanted = optionKey(options);
    return this.#items.find((item) => item.sku === sku && optionKey(item.options) === wanted);
  }

  /** Put a product in; the same product with the same options adds up, at most 99 pieces. */
  add(product, quantity = 1, options = {}) {
    if (!Number.isInteger(quantity) || quantity < 1) {
      throw new RangeError(`quantity must be a positive integer, not ${quantity}`);
    }
    const existing = this.#find(product.sku, options);
    if (existing) {
      existing.quantity = Math.min(MAX_QUANTITY, existing.quantity + quantity);
    } else {
      this.#items.push({ ...product, quantity: Math.min(MAX_QUANTITY, quantity), options: { ...options } });
    }
    this.emit('add', product.sku, quantity);
    this.emit('change', this);
    return this;
  }

  /** Change the quantity of an item; 0 removes it. Throws a RangeError for an item that is not there. */
  setQuantity(sku, quantity, options = {}) {
    const item = this.#find(sku, options);
    if (!item) throw new RangeError(`no '${sku}' in the cart`);
    if (quantity <= 0) {
      this.remove(sku, options);
      return this;
    }
    item.quantity = Math.min(MAX_QUANTITY, quantity);
    this.emit('change', this);
    return this;
  }

  /** Take an item out; true when it was there. */
  remove(sku, options = {}) {
    const item = this.#find(sku, options);
    if (!item) return false;
    this.#items = this.#items.filter((other) => other !== item);
    this.emit('remove', sku);
    this.emit('change', this);
    return true;
  }

  clear() {
    if (this.isEmpty) return;
    this.#items = [];
    this.emit('change', this);
  }

  /** Take over the items of another cart, for example after login; quantities of equal items add up. */
  merge(other) {
    for (const { quantity, options, ...product } of other.items) {
      this.add(product, quantity, options);
    }
    return this;
  }

  toJSON() {
    return { items: this.items };
  }

  static fromJSON(data) {
    const parsed = typeof data === 'string' ? JSON.parse(data) : data;
    return new Cart(parsed.items ?? []);
  }
}

/** Equal for equal options, whatever their order. */
export function optionKey(options = {}) {
  return JSON.stringify(Object.entries(options).sort(([a], [b]) => (a < b ? -1 : 1)));
}
