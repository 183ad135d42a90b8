"""Invoices: lines, tax per rate, payments, due dates."""

from dataclasses import dataclass, field
from datetime import date, timedelta

from stockroom.money import percent_of


@dataclass(frozen=True)
class Line:
    """`quantity` pieces at `unit_cents` net each, taxed with `tax` per cent."""

    text: str
    unit_cents: int
    quantity: int = 1
    tax: float = 19
    discount: float = 0

    @property
    def net(self):
        """Net amount of the line after its discount (per cent)."""
        gross = self.unit_cents * self.quantity
        return gross - percent_of(gross, self.discount)


@dataclass
class Invoice:
    """One invoice. Amounts are net until `total`."""

    number: str
    issued: date
    lines: list = field(default_factory=list)
    payments: list = field(default_factory=list)
    terms_days: int = 14

    def add(self, line):
        self.lines.append(line)
        return self

    @property
    def net(self):
        return sum(line.net for line in self.lines)

    def tax_by_rate(self):
        """{rate: tax} in ascending order of the rate; tax is rounded once per rate, not per line."""
        bases = {}
        for line in self.lines:
            bases[line.tax] = bases.get(line.tax, 0) + line.net
        return {rate: percent_of(bases[rate], rate) for rate in sorted(bases)}

    @property
    def total(self):
        return self.net + sum(self.tax_by_rate().values())

    def pay(self, cents, day):
        """Note a payment. Raises ValueError unless it is positive."""
        if cents <= 0:
            raise ValueError(f"a payment must be positive, not {cents}")
        self.payments.append((day, cents))

    @property
    def balance(self):
        """What is still to pay; negative when too much was paid."""
        return self.total - sum(cents for _, cents in self.payments)

    @property
    def due(self):
        return self.issued + timedelta(days=self.terms_days)

    def status(self, today):
        """One of "paid", "overdue" (after the due day), "partial" or "open"."""
        if self.balance <= 0:
            return "paid"
        if today > self.due:
            return "overdue"
        return "partial" if self.payments else "open"

    def days_late(self, today):
        """Days past the due day; 0 before it and when paid."""
        if self.status(today) != "overdue":
            return 0
        return (today - self.due).days

    def late_fee(self, today, yearly_percent=9, grace_days=3):
        """Interest on the balance for each day past the grace days."""
        days = self.days_late(today) - grace_days
        if days <= 0:
            return 0
        return percent_of(self.balance, yearly_percent * days / 365)


def next_number(last, year):
    """The number after "2024-0041"; a new year starts at 1; None starts the series."""
    if last is None:
        return f"{year}-0001"
    last_year, _, counter = last.partition("-")
    if int(last_year) != year:
        return f"{year}-0001"
    return f"{year}-{int(counter) + 1:04d}"


def merge_lines(lines):
    """Lines that differ only in quantity become one, in the order they first appear."""
    merged = {}
    for line in lines:
        key = (line.text, line.unit_cents, line.tax, line.discount)
        merged[key] = merged.get(key, 0) + line.quantity
    return [Line(text, cents, quantity, tax, discount) for (text, cents, tax, discount), quantity in merged.items()]
