from datetime import date

from stockroom.reports import (
    abc_classes,
    average_basket,
    best_sellers,
    growth,
    median_basket,
    running_total,
    stock_value,
    turnover_by_month,
)

SALES = [
    (date(2024, 5, 3), "TEA", 2, 1000),
    (date(2024, 4, 9), "PEN", 5, 800),
    (date(2024, 5, 9), "PEN", 1, 200),
]


def test_turnover():
    assert turnover_by_month(SALES) == {"2024-04": 800, "2024-05": 1200}


def test_best_sellers():
    assert best_sellers(SALES) == [("PEN", 6), ("TEA", 2)]


def test_average():
    assert average_basket([1000, 2001]) == 1500
    assert average_basket([]) == 0


def test_median():
    assert median_basket([300, 100, 200]) == 200
    assert median_basket([100, 200, 400, 900]) == 300


def test_stock_value():
    assert stock_value({"TEA": {"main": 2, "shop": 1}, "X": {"main": 9}}, {"TEA": 100}) == 300


def test_growth():
    assert growth(200, 250) == 25.0
    assert growth(0, 250) is None


def test_abc():
    assert abc_classes({"a": 80, "b": 15, "c": 5}) == {"a": "A", "b": "B", "c": "C"}


def test_running_total():
    assert running_total([1, 2, 3]) == [1, 3, 6]
