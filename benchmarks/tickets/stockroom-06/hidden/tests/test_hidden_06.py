from stockroom.invoice import Line, merge_lines


def test_a_discount_survives():
    assert merge_lines([Line("Tea", 500, 2, discount=10)]) == [Line("Tea", 500, 2, discount=10)]


def test_lines_with_other_discounts_stay_apart():
    lines = [Line("Tea", 500, 2, discount=10), Line("Tea", 500, 3), Line("Tea", 500, 1, discount=10)]
    assert merge_lines(lines) == [Line("Tea", 500, 3, discount=10), Line("Tea", 500, 3)]


def test_other_fields_still_matter():
    lines = [Line("Tea", 500), Line("Tea", 400), Line("Tea", 500, tax=7), Line("Tea", 500)]
    assert merge_lines(lines) == [Line("Tea", 500, 2), Line("Tea", 400), Line("Tea", 500, tax=7)]
