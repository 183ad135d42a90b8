from datetime import date

from stockroom.pricing import Voucher, best_voucher

VOUCHER = Voucher("MAY", cents=500, valid_until=date(2024, 5, 31))


def test_the_last_day_counts():
    assert VOUCHER.applies(1000, date(2024, 5, 31))
    assert VOUCHER.discount(1000, date(2024, 5, 31)) == 500
    assert best_voucher([VOUCHER], 1000, date(2024, 5, 31)) is VOUCHER


def test_the_day_after_does_not():
    assert not VOUCHER.applies(1000, date(2024, 6, 1))


def test_without_end():
    assert Voucher("EVER", cents=1).applies(0, date(2099, 1, 1))
