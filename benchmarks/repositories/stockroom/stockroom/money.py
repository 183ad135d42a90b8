"""Amounts in whole cents."""

from decimal import ROUND_HALF_UP, Decimal, InvalidOperation

SYMBOLS = {"EUR": "€", "USD": "$", "GBP": "£"}


def round_half_up(value):
    """Whole cents from a Decimal or a number; halves go away from zero."""
    return int(Decimal(str(value)).quantize(Decimal(1), rounding=ROUND_HALF_UP))


def percent_of(cents, percent):
    """`percent` per cent of an amount, in whole cents."""
    return round_half_up(Decimal(cents) * Decimal(str(percent)) / 100)


def net_from_gross(gross, percent):
    """The amount before tax that is contained in `gross`."""
    return round_half_up(Decimal(gross) * 100 / (100 + Decimal(str(percent))))


def split_evenly(cents, parts):
    """`parts` amounts that differ by at most one cent and add up to `cents`; larger shares first."""
    if parts < 1:
        raise ValueError(f"parts must be at least 1, not {parts}")
    share, rest = divmod(cents, parts)
    return [share + 1 if index < rest else share for index in range(parts)]


def split_by_weights(cents, weights):
    """Amounts in proportion to `weights` that add up to `cents`; what rounding leaves goes to the largest weight."""
    total = sum(weights)
    if total <= 0:
        raise ValueError("weights must add up to more than 0")
    shares = [cents * weight // total for weight in weights]
    largest = weights.index(max(weights))
    shares[largest] += cents - sum(shares)
    return shares


def format_money(cents, currency="EUR", thousands=","):
    """Text such as "€1,234.50"; negative amounts start with a minus sign."""
    sign = "-" if cents < 0 else ""
    whole, rest = divmod(abs(cents), 100)
    digits = f"{whole:,}".replace(",", thousands)
    return f"{sign}{SYMBOLS.get(currency, currency + ' ')}{digits}.{rest:02d}"


def parse_money(text):
    """Cents from "12", "12.5", "€ 1,234.50" or "-3.20"."""
    cleaned = text.strip()
    for symbol in SYMBOLS.values():
        cleaned = cleaned.replace(symbol, "")
    cleaned = cleaned.replace(",", "").replace(" ", "")
    try:
        amount = Decimal(cleaned)
    except InvalidOperation:
        raise ValueError(f"cannot read amount {text!r}") from None
    return round_half_up(amount * 100)
