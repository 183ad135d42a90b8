import pytest

from stockroom.inventory import Inventory, OutOfStock


@pytest.fixture
def stock():
    inventory = Inventory({"TEA": 5})
    inventory.receive("TEA", 10)
    inventory.receive("TEA", 4, place="shop")
    return inventory


def test_on_hand(stock):
    assert stock.on_hand("TEA") == 14
    assert stock.on_hand("TEA", "shop") == 4
    assert stock.on_hand("COFFEE") == 0


def test_receive_needs_pieces(stock):
    with pytest.raises(ValueError):
        stock.receive("TEA", 0)


def test_reserve_and_release(stock):
    stock.reserve("TEA", 6)
    assert stock.available("TEA") == 8
    stock.release("TEA", 2)
    assert stock.available("TEA") == 10


def test_reserve_too_much(stock):
    with pytest.raises(OutOfStock):
        stock.reserve("TEA", 15)


def test_pick_takes_from_the_fullest_place(stock):
    assert stock.pick("TEA", 12) == {"main": 10, "shop": 2}
    assert stock.on_hand("TEA") == 2


def test_move(stock):
    stock.move("TEA", 3, "main", "shop")
    assert stock.on_hand("TEA", "main") == 7
    assert stock.on_hand("TEA", "shop") == 7
    with pytest.raises(OutOfStock):
        stock.move("TEA", 8, "main", "shop")


def test_to_reorder(stock):
    assert stock.to_reorder() == []
    stock.pick("TEA", 10)
    assert stock.to_reorder() == ["TEA"]


def test_snapshot(stock):
    stock.pick("TEA", 10)
    assert stock.snapshot() == {"TEA": {"shop": 4}}


def test_journal_adds_up(stock):
    stock.pick("TEA", 12)
    stock.move("TEA", 1, "shop", "main")
    assert sum(entry.change for entry in stock.journal) == stock.on_hand("TEA")
