from stockroom.inventory import Inventory


def test_reserved_pieces_do_not_count():
    stock = Inventory({"TEA": 5, "PEN": 2, "INK": 0})
    stock.receive("TEA", 14)
    stock.receive("PEN", 3)
    stock.receive("INK", 1)
    stock.reserve("TEA", 9)
    assert stock.to_reorder() == ["TEA"]
    stock.reserve("PEN", 1)
    assert stock.to_reorder() == ["PEN", "TEA"]
    stock.release("TEA", 1)
    assert stock.to_reorder() == ["PEN"]


def test_never_received():
    assert Inventory({"NEW": 0}).to_reorder() == ["NEW"]
