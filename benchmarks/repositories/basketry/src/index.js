export { Emitter } from './emitter.js';
export { Cart } from './cart.js';
export { applyPromotions, percentOff, amountOff, multiBuy, freeShipping } from './promotions.js';
export { History } from './history.js';
export { search, sortProducts, facets, paginate } from './catalog.js';
export { formatPrice, formatList, deliveryText } from './format.js';
export { chunk, groupBy, uniqueBy, sumBy, partition } from './collections.js';
