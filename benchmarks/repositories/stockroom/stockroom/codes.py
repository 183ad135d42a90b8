"""Item codes: SKUs such as "SHIRT-RED-042" and EAN-13 numbers."""

import re

_SKU = re.compile(r"[A-Z]{2,8}(?:-[A-Z0-9]{1,8}){1,3}")


def normalise_sku(text):
    """Upper case, single hyphens instead of spaces and underscores. Raises ValueError when malformed."""
    sku = re.sub(r"[\s_-]+", "-", text.strip()).upper()
    if not _SKU.fullmatch(sku):
        raise ValueError(f"not a SKU: {text!r}")
    return sku


def family(sku):
    """The part before the first hyphen."""
    return sku.partition("-")[0]


def ean_check_digit(digits):
    """Check digit of the first twelve digits: weights 1, 3, 1, 3, ... from the left."""
    if len(digits) != 12 or not digits.isdigit():
        raise ValueError(f"twelve digits expected, not {digits!r}")
    total = sum(int(digit) * (3 if index % 2 else 1) for index, digit in enumerate(digits))
    return (10 - total % 10) % 10


def is_valid_ean(code):
    """True for thirteen digits with the right check digit; spaces and hyphens are ignored."""
    digits = re.sub(r"[\s-]", "", code)
    if len(digits) != 13 or not digits.isdigit():
        return False
    return ean_check_digit(digits[:12]) == int(digits[12])


def next_sku(prefix, existing):
    """The next free number under a prefix: "SHIRT-RED" -> "SHIRT-RED-003"; gaps are not filled."""
    highest = 0
    for sku in existing:
        head, _, tail = sku.rpartition("-")
        if head == prefix and tail.isdigit():
            highest = max(highest, int(tail))
    return f"{prefix}-{highest + 1:03d}"
