"""Figures for the owner. A sale is (day, sku, quantity, cents)."""

from collections import defaultdict


def turnover_by_month(sales):
    """{"2024-05": cents} in calendar order."""
    totals = defaultdict(int)
    for day, _, _, cents in sales:
        totals[f"{day.year}-{day.month:02d}"] += cents
    return dict(sorted(totals.items()))


def best_sellers(sales, count=3):
    """(sku, pieces) of the items sold most, ties by name."""
    pieces = defaultdict(int)
    for _, sku, quantity, _ in sales:
        pieces[sku] += quantity
    return sorted(pieces.items(), key=lambda pair: (-pair[1], pair[0]))[:count]


def average_basket(totals):
    """Mean of order totals in whole cents, rounded down; 0 without orders."""
    if not totals:
        return 0
    return sum(totals) // len(totals)


def median_basket(totals):
    """Middle order total; the mean of both middles (rounded down) for an even number; 0 without orders."""
    if not totals:
        return 0
    ordered = sorted(totals)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) // 2


def stock_value(snapshot, costs):
    """Value of all pieces; an item without known cost counts 0."""
    return sum(costs.get(sku, 0) * sum(places.values()) for sku, places in snapshot.items())


def growth(before, now):
    """Change in per cent with one decimal, or None when there is nothing to compare with."""
    if before == 0:
        return None
    return round((now - before) / before * 100, 1)


def abc_classes(values, a_share=80, b_share=95):
    """{sku: "A"|"B"|"C"} by share of the total value, most valuable first.

    An item is A while the value of the items before it is below `a_share` per cent, then B, then C.
    """
    total = sum(values.values())
    classes = {}
    running = 0
    for sku, value in sorted(values.items(), key=lambda pair: (-pair[1], pair[0])):
        share = running * 100 / total if total else 100
        classes[sku] = "A" if share < a_share else "B" if share < b_share else "C"
        running += value
    return classes


def running_total(amounts):
    """The sum so far after each amount."""
    totals = []
    current = 0
    for amount in amounts:
        current += amount
        totals.append(current)
    return totals
