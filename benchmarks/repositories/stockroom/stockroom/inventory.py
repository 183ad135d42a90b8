"""What is in stock: quantities per item and place, reservations, reordering."""

from dataclasses import dataclass


class OutOfStock(Exception):
    """There is less available than was asked for."""

    def __init__(self, sku, wanted, available):
        super().__init__(f"{sku}: wanted {wanted}, available {available}")
        self.sku = sku
        self.wanted = wanted
        self.available = available


@dataclass
class Movement:
    """One entry of the journal; `change` is negative when goods leave."""

    sku: str
    place: str
    change: int
    reason: str


class Inventory:
    """Quantities by item and place. Reserved pieces are in stock but not available."""

    def __init__(self, reorder_points=None):
        self._stock = {}
        self._reserved = {}
        self._reorder_points = dict(reorder_points or {})
        self.journal = []

    def receive(self, sku, quantity, place="main", reason="delivery"):
        """Put goods on a place."""
        if quantity <= 0:
            raise ValueError(f"quantity must be positive, not {quantity}")
        places = self._stock.setdefault(sku, {})
        places[place] = places.get(place, 0) + quantity
        self.journal.append(Movement(sku, place, quantity, reason))

    def on_hand(self, sku, place=None):
        """Pieces in stock, on one place or on all."""
        places = self._stock.get(sku, {})
        if place is not None:
            return places.get(place, 0)
        return sum(places.values())

    def reserved(self, sku):
        return self._reserved.get(sku, 0)

    def available(self, sku):
        """Pieces that can still be promised."""
        return self.on_hand(sku) - self.reserved(sku)

    def reserve(self, sku, quantity):
        """Promise pieces to a customer. Raises OutOfStock."""
        if quantity > self.available(sku):
            raise OutOfStock(sku, quantity, self.available(sku))
        self._reserved[sku] = self.reserved(sku) + quantity

    def release(self, sku, quantity):
        """Give up a reservation; never below zero."""
        self._reserved[sku] = max(0, self.reserved(sku) - quantity)

    def pick(self, sku, quantity, reason="sale"):
        """Take pieces that are not reserved, fullest place first. Returns {place: quantity}."""
        if quantity > self.available(sku):
            raise OutOfStock(sku, quantity, self.available(sku))
        picked = {}
        missing = quantity
        places = self._stock.get(sku, {})
        for place in sorted(places, key=lambda name: (-places[name], name)):
            taken = min(missing, places[place])
            if taken:
                picked[place] = taken
                places[place] -= taken
                missing -= taken
                self.journal.append(Movement(sku, place, -taken, reason))
        return picked

    def move(self, sku, quantity, source, target):
        """Carry pieces from one place to another."""
        present = self.on_hand(sku, source)
        if quantity > present:
            raise OutOfStock(sku, quantity, present)
        self._stock[sku][source] -= quantity
        self.receive(sku, quantity, target, reason=f"moved from {source}")
        self.journal.append(Movement(sku, source, -quantity, f"moved to {target}"))

    def to_reorder(self):
        """Items whose available pieces are at or below their reorder point, by name."""
        low = [sku for sku, point in self._reorder_points.items() if self.available(sku) <= point]
        return sorted(low)

    def snapshot(self):
        """A copy of all quantities, {sku: {place: quantity}}, without empty places."""
        result = {}
        for sku, places in self._stock.items():
            filled = {place: quantity for place, quantity in places.items() if quantity}
            if filled:
                result[sku] = filled
        return result
