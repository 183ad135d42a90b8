from stockroom.reports import abc_classes


def test_one_item_is_a():
    assert abc_classes({"only": 10}) == {"only": "A"}


def test_share_of_the_items_before():
    assert abc_classes({"a": 60, "b": 25, "c": 11, "d": 4}) == {"a": "A", "b": "A", "c": "B", "d": "C"}


def test_own_limits():
    assert abc_classes({"a": 50, "b": 30, "c": 20}, 50, 80) == {"a": "A", "b": "B", "c": "C"}


def test_nothing_is_worth_anything():
    assert abc_classes({"a": 0}) == {"a": "C"}
