/** Texts for people. */

/** '€12.50' from cents; negative amounts start with a minus sign. */
export function formatPrice(cents, symbol = '€') {
  const sign = cents < 0 ? '-' : '';
  const absolute = Math.abs(cents);
  const whole = String(Math.floor(absolute / 100)).replace(/\B(?=(\d{3})+$)/g, ',');
  const rest = String(absolute % 100).padStart(2, '0');
  return `${sign}${symbol}${whole}.${rest}`;
}

/** '1 item', '2 items'; the plural may be given for irregular nouns. */
export function pluralize(count, singular, plural = `${singular}s`) {
  return `${count} ${count === 1 ? singular : plural}`;
}

/** 'a', 'a and b', 'a, b and c'; with a limit 'a, b and 3 more'. */
export function formatList(items, limit = Infinity) {
  const shown = items.slice(0, limit);
  const hidden = items.length - shown.length;
  const parts = hidden > 0 ? [...shown, `${hidden} more`] : shown;
  if (parts.length <= 1) return parts.join('');
  return `${parts.slice(0, -1).join(', ')} and ${parts.at(-1)}`;
}

/** Text that fits into `length` characters, cut at a space if there is one, with '…' at the end. */
export function shorten(text, length) {
  if (text.length <= length) return text;
  const cut = text.slice(0, length - 1);
  const space = cut.lastIndexOf(' ');
  return `${(space > 0 ? cut.slice(0, space) : cut).trimEnd()}…`;
}

const DAYS = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday'];

/** The day (Date, UTC) `days` working days after a date; Saturdays and Sundays do not count. */
export function addWorkingDays(date, days) {
  const result = new Date(date);
  let left = days;
  while (left > 0) {
    result.setUTCDate(result.getUTCDate() + 1);
    const weekday = result.getUTCDay();
    if (weekday !== 0 && weekday !== 6) left -= 1;
  }
  return result;
}

/** 'Arrives Tuesday, 14 May'; orders from `cutoffHour` (UTC) on take one working day more. */
export function deliveryText(orderedAt, days, cutoffHour = 15) {
  const extra = orderedAt.getUTCHours() >= cutoffHour ? 1 : 0;
  const day = addWorkingDays(orderedAt, days + extra);
  const month = day.toLocaleString('en-GB', { month: 'long', timeZone: 'UTC' });
  return `Arrives ${DAYS[day.getUTCDay()]}, ${day.getUTCDate()} ${month}`;
}

/** 'Only 2 left', 'In stock' or 'Sold out'; few means at most `few` pieces. */
export function stockText(stock, few = 5) {
  if (stock <= 0) return 'Sold out';
  return stock <= few ? `Only ${stock} left` : 'In stock';
}

/** '20% off' between an old and a new price, rounded down; '' when it is not cheaper. */
export function savingText(before, now) {
  if (before <= 0 || now >= before) return '';
  const percent = Math.floor(((before - now) / before) * 100);
  return `${percent}% off`;
}
