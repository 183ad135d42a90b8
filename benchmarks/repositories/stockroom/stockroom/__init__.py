"""Stock keeping and invoicing; all money in whole cents."""

from stockroom.inventory import Inventory, OutOfStock
from stockroom.invoice import Invoice, Line
from stockroom.money import format_money, parse_money, percent_of, split_evenly
from stockroom.pricing import PriceList, Voucher, shipping_cost

__all__ = [
    "Inventory",
    "Invoice",
    "Line",
    "OutOfStock",
    "PriceList",
    "Voucher",
    "format_money",
    "parse_money",
    "percent_of",
    "shipping_cost",
    "split_evenly",
]
