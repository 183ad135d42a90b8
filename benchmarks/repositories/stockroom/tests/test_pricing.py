from datetime import date

import pytest

from stockroom.pricing import PriceList, Voucher, best_voucher, find_voucher, shipping_cost

TODAY = date(2024, 5, 15)


@pytest.fixture
def prices():
    price_list = PriceList()
    price_list.set_price("PEN", 200)
    price_list.set_price("PEN", 150, from_quantity=10)
    price_list.set_price("PEN", 120, from_quantity=50)
    return price_list


def test_unit_price(prices):
    assert prices.unit_price("PEN") == 200
    assert prices.unit_price("PEN", 12) == 150
    assert prices.unit_price("PEN", 80) == 120


def test_unknown_item(prices):
    with pytest.raises(KeyError):
        prices.unit_price("INK")


def test_total(prices):
    prices.set_price("INK", 900)
    assert prices.total({"PEN": 10, "INK": 1}) == 2400


def test_next_break(prices):
    assert prices.next_break("PEN", 7) == 3
    assert prices.next_break("PEN", 60) is None


def test_copy_is_independent(prices):
    twin = prices.copy()
    twin.set_price("PEN", 1)
    assert prices.unit_price("PEN") == 200


def test_voucher_percent():
    assert Voucher("SPRING", percent=10).discount(5000, TODAY) == 500


def test_voucher_minimum():
    assert Voucher("BIG", cents=500, minimum=5000).discount(4000, TODAY) == 0


def test_voucher_never_exceeds_the_order():
    assert Voucher("GIFT", cents=5000).discount(1200, TODAY) == 1200


def test_expired_voucher():
    assert Voucher("OLD", cents=500, valid_until=date(2024, 1, 1)).discount(5000, TODAY) == 0


def test_find_voucher():
    vouchers = [Voucher("SPRING", percent=10)]
    assert find_voucher(vouchers, "spring") is vouchers[0]
    assert find_voucher(vouchers, "WINTER") is None


def test_best_voucher():
    small, large = Voucher("A", percent=5), Voucher("B", cents=400)
    assert best_voucher([small, large], 5000, TODAY) is large
    assert best_voucher([], 5000, TODAY) is None


def test_shipping():
    assert shipping_cost(1000, 300) == 390
    assert shipping_cost(1000, 1500) == 590
    assert shipping_cost(6000, 1500) == 0
    assert shipping_cost(6000, 15000) == 1990
