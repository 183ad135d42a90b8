"""What a customer pays: quantity breaks, vouchers, shipping."""

from dataclasses import dataclass
from datetime import date

from stockroom.money import percent_of

FREE_SHIPPING_FROM = 5000
SHIPPING_STEPS = [(500, 390), (2000, 590), (10000, 990)]
SHIPPING_HEAVY = 1990


class PriceList:
    """Unit prices by item, cheaper from certain quantities on."""

    def __init__(self):
        self._breaks = {}

    def set_price(self, sku, cents, from_quantity=1):
        """Price of one piece when at least `from_quantity` are bought."""
        if cents < 0 or from_quantity < 1:
            raise ValueError("price and quantity must not be negative")
        self._breaks.setdefault(sku, {})[from_quantity] = cents

    def unit_price(self, sku, quantity=1):
        """The price of the highest quantity break that is reached. Raises KeyError for an unknown item."""
        breaks = self._breaks[sku]
        reached = [start for start in breaks if quantity >= start]
        if not reached:
            raise ValueError(f"{sku} is sold from {min(breaks)} pieces")
        return breaks[max(reached)]

    def total(self, quantities):
        """Price of a basket {sku: quantity}."""
        return sum(self.unit_price(sku, count) * count for sku, count in quantities.items() if count)

    def next_break(self, sku, quantity):
        """How many more pieces reach the next cheaper price, or None."""
        higher = [start for start in self._breaks[sku] if start > quantity]
        return min(higher) - quantity if higher else None

    def copy(self):
        """An independent price list with the same prices."""
        twin = PriceList()
        twin._breaks = {sku: dict(breaks) for sku, breaks in self._breaks.items()}
        return twin


@dataclass(frozen=True)
class Voucher:
    """A discount code: a percentage or a fixed amount, never more than the order itself."""

    code: str
    percent: float = 0
    cents: int = 0
    minimum: int = 0
    valid_until: date | None = None

    def applies(self, amount, today):
        """Whether the voucher may be used; the last day of validity still counts."""
        if self.valid_until is not None and today > self.valid_until:
            return False
        return amount >= self.minimum

    def discount(self, amount, today):
        """Cents that are taken off `amount`."""
        if not self.applies(amount, today):
            return 0
        reduction = percent_of(amount, self.percent) + self.cents
        return min(reduction, amount)


def find_voucher(vouchers, code):
    """The voucher with that code, whatever its case and the spaces around it, or None."""
    wanted = code.strip().upper()
    for voucher in vouchers:
        if voucher.code.upper() == wanted:
            return voucher
    return None


def best_voucher(vouchers, amount, today):
    """The voucher that saves most, the first of equals, or None when none saves anything."""
    best = None
    for voucher in vouchers:
        saved = voucher.discount(amount, today)
        if saved > (best.discount(amount, today) if best else 0):
            best = voucher
    return best


def shipping_cost(amount, grams):
    """Postage for an order of `amount` cents and `grams`; free from FREE_SHIPPING_FROM up to 10 kg."""
    for limit, price in SHIPPING_STEPS:
        if grams <= limit:
            return 0 if amount >= FREE_SHIPPING_FROM else price
    return SHIPPING_HEAVY
