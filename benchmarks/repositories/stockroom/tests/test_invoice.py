from datetime import date

import pytest

from stockroom.invoice import Invoice, Line, merge_lines, next_number


@pytest.fixture
def invoice():
    return Invoice("2024-0001", date(2024, 5, 1)).add(Line("Tea", 500, 4)).add(Line("Book", 1000, 1, tax=7))


def test_totals(invoice):
    assert invoice.net == 3000
    assert invoice.tax_by_rate() == {7: 70, 19: 380}
    assert invoice.total == 3450


def test_line_discount():
    assert Line("Tea", 500, 4, discount=10).net == 1800


def test_invoices_do_not_share_lines(invoice):
    assert Invoice("2024-0002", date(2024, 5, 1)).lines == []


def test_payments(invoice):
    invoice.pay(3000, date(2024, 5, 2))
    assert invoice.balance == 450
    with pytest.raises(ValueError):
        invoice.pay(0, date(2024, 5, 2))


def test_status(invoice):
    assert invoice.status(date(2024, 5, 2)) == "open"
    invoice.pay(1000, date(2024, 5, 2))
    assert invoice.status(date(2024, 5, 3)) == "partial"
    assert invoice.status(date(2024, 6, 3)) == "overdue"
    invoice.pay(2450, date(2024, 6, 3))
    assert invoice.status(date(2024, 6, 4)) == "paid"


def test_days_late(invoice):
    assert invoice.days_late(date(2024, 5, 10)) == 0
    assert invoice.days_late(date(2024, 5, 20)) == 5


def test_late_fee(invoice):
    assert invoice.late_fee(date(2024, 5, 17)) == 0
    assert invoice.late_fee(date(2024, 6, 17)) == 26


def test_next_number():
    assert next_number(None, 2024) == "2024-0001"
    assert next_number("2024-0041", 2024) == "2024-0042"
    assert next_number("2023-0999", 2024) == "2024-0001"


def test_merge_lines():
    merged = merge_lines([Line("Tea", 500, 2), Line("Book", 1000), Line("Tea", 500, 3)])
    assert merged == [Line("Tea", 500, 5), Line("Book", 1000)]
