from datetime import date

from stockroom.invoice import Invoice, Line


def invoice(*lines):
    return Invoice("2024-0001", date(2024, 5, 1), lines=list(lines))


def test_rounded_once_per_rate():
    assert invoice(*[Line("Screw", 3)] * 3).tax_by_rate() == {19: 2}
    assert invoice(*[Line("Stamp", 7, tax=7)] * 10).tax_by_rate() == {7: 5}


def test_rates_are_kept_apart_and_sorted():
    found = invoice(Line("Tea", 103), Line("Book", 107, tax=7), Line("Cup", 104)).tax_by_rate()
    assert list(found.items()) == [(7, 7), (19, 39)]


def test_total():
    assert invoice(*[Line("Screw", 3)] * 3).total == 11
    assert invoice().tax_by_rate() == {}
