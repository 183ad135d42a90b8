/**
 * Promotions take a cart-like `{ items, subtotal }` and return a discount in whole cents (never negative).
 * Each has `name`, `discount(cart, remaining)` and optional `exclusive` and `shipping`.
 */

/** A percentage of everything, or of the items in a category. */
export function percentOff(percent, { category = null, minimum = 0 } = {}) {
  return {
    name: `${percent}% off`,
    discount(cart, remaining) {
      if (cart.subtotal < minimum) return 0;
      if (category === null) return Math.round((remaining * percent) / 100);
      const base = cart.items
        .filter((item) => item.category === category)
        .reduce((sum, item) => sum + item.price * item.quantity, 0);
      return Math.round((base * percent) / 100);
    },
  };
}

/** A fixed amount from a minimum order on. */
export function amountOff(cents, { minimum = 0 } = {}) {
  return {
    name: `${(cents / 100).toFixed(2)} off`,
    discount: (cart, remaining) => (cart.subtotal >= minimum ? Math.min(cents, remaining) : 0),
  };
}

/** Buy `buy`, pay `pay`: of every full group of equal items some are free. */
export function multiBuy(sku, buy, pay) {
  return {
    name: `${buy} for ${pay}`,
    discount(cart) {
      return cart.items
        .filter((item) => item.sku === sku)
        .reduce((sum, item) => sum + Math.floor(item.quantity / buy) * (buy - pay) * item.price, 0);
    },
  };
}

/** The cheapest piece in the cart is free when at least `pieces` are bought. */
export function cheapestFree(pieces) {
  return {
    name: `cheapest of ${pieces} free`,
    discount(cart) {
      const count = cart.items.reduce((sum, item) => sum + item.quantity, 0);
      if (count < pieces) return 0;
      return Math.min(...cart.items.map((item) => item.price));
    },
  };
}

/** No shipping from an order value on. */
export function freeShipping(minimum) {
  return { name: 'free shipping', discount: () => 0, shipping: (cart) => cart.subtotal >= minimum };
}

/** Whether a promotion runs at a moment; both dates are optional, the end is excluded. */
export function isRunning({ from = null, until = null }, now) {
  if (from !== null && now < from) return false;
  return until === null || now < until;
}

/**
 * Apply promotions in order; each sees what the ones before left over. An exclusive promotion
 * that gives a discount stops all after it. Returns { discounts, total, shippingFree }.
 */
export function applyPromotions(cart, promotions) {
  const discounts = [];
  let remaining = cart.subtotal;
  let shippingFree = false;
  for (const promotion of promotions) {
    if (promotion.shipping?.(cart)) shippingFree = true;
    const amount = Math.min(promotion.discount(cart, remaining), remaining);
    if (amount <= 0) continue;
    discounts.push({ name: promotion.name, amount });
    remaining -= amount;
    if (promotion.exclusive) break;
  }
  return { discounts, total: remaining, shippingFree };
}
