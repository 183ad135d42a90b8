"""The learning suite's repository and tickets: house rules that no ticket mentions, and that its ordinary tests enforce.

Every ticket wants one function written. What comes naturally breaks a rule of the folder it lies in; what the failing test
says is enough to keep it. Six tickets for each rule, so that the first three can teach the others. Each folder
has a label of its own on the board: lessons are kept by kind of work.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import indent
from typing import NamedTuple

COMMON = '''"""What all parts of the shop use."""


class ShopError(Exception):
    """Something the shop refuses; the text is for customers."""


def notice(text):
    """Tell the people behind the counter."""
'''
HOUSE = '''"""Rules of the house. They hold for all code of a folder."""

import ast
from pathlib import Path


def nodes(folder):
    files = sorted(Path("shop", folder).glob("*.py"))
    return [node for file in files for node in ast.walk(ast.parse(file.read_text()))]


def called(node):
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_texts_are_made_with_format():
    glued = [n for n in nodes("labels") if isinstance(n, ast.BinOp) and (is_text(n.left) or is_text(n.right))]
    assert not glued + [n for n in nodes("labels") if isinstance(n, ast.JoinedStr)], 'use "{} {}".format(a, b)'


def test_refusals_are_shop_errors():
    raised = {called(n.exc) or ast.unparse(n.exc) for n in nodes("counter") if isinstance(n, ast.Raise) and n.exc}
    assert raised <= {"ShopError", "NotImplementedError"}, 'use raise ShopError("why")'


def test_warnings_are_notices():
    said = {called(n).rpartition(".")[2] for n in nodes("watch")}
    assert not said & {"print", "warn", "warning"}, 'use notice("text") to warn'
'''


class Rule(NamedTuple):
    """A rule of the house: the folder it holds in, the test that enforces it, what that test says, and how the board labels
    tickets about that folder."""

    folder: str
    test: str
    says: str
    label: str


class Repeating(NamedTuple):
    """One ticket: a function to be written, and two bodies for it, what comes naturally and what keeps the rule."""

    rule: Rule
    position: int
    """From 1, within its rule."""
    name: str
    arguments: str
    about: str
    body: str
    natural: str
    kept: str

    @property
    def path(self) -> str:
        return f"shop/{self.rule.folder}/{self.name}.py"

    @property
    def signature(self) -> str:
        return f"def {self.name}({self.arguments}):"

    def source(self, body: str = "raise NotImplementedError") -> str:
        """The file with this body of the function."""
        told = indent(f'"""{self.about}"""\n{body}', "    ")
        return f'"""{self.about}"""\n\nfrom shop.common import *\n\n\n{self.signature}\n{told}\n'

    def text(self, mixed: bool = False) -> str:
        """ticket.md as a folder board reads it. `mixed`: with the label that all tickets have then."""
        label = LABELS.label if mixed else self.rule.label
        return f"---\ntitle: {self.name} is not written yet\nstate: ready\nlabels: [{label}]\n---\n\n{self.body}\n"


LABELS = Rule("labels", "test_texts_are_made_with_format", 'use "{} {}".format(a, b)', "feature")
COUNTER = Rule("counter", "test_refusals_are_shop_errors", 'use raise ShopError("why")', "bug")
WATCH = Rule("watch", "test_warnings_are_notices", 'use notice("text") to warn', "maintenance")
RULES = (LABELS, COUNTER, WATCH)


def _label(position: int, name: str, arguments: str, about: str, *examples: tuple[str, str], form: str) -> Repeating:
    parts = arguments.split(", ")
    natural = f'return f"{form}"'
    kept = f'return "{form.format(**dict.fromkeys(parts, "{}"))}".format({arguments})'
    body = f"`{name}({arguments})` should give the text:\n\n{_examples(name, examples)}"
    return Repeating(LABELS, position, name, arguments, about, body, natural, kept)


def _refusal(
    position: int, name: str, arguments: str, about: str, *examples: tuple[str, str], wrong: str, when: str, value: str
) -> Repeating:
    body = (
        f"`{name}({arguments})` should give the number, and refuse {when} with an error:\n\n{_examples(name, examples)}"
    )
    natural, kept = (f'if {wrong}:\n    raise {kind}("{when}")\nreturn {value}' for kind in ("ValueError", "ShopError"))
    return Repeating(COUNTER, position, name, arguments, about, body, natural, kept)


def _warning(
    position: int, name: str, arguments: str, about: str, *examples: tuple[str, str], wrong: str, when: str, value: str
) -> Repeating:
    body = f"`{name}({arguments})` should give the number, and warn {when}:\n\n{_examples(name, examples)}"
    natural, kept = (f'if {wrong}:\n    {tell}("{when}")\nreturn {value}' for tell in ("print", "notice"))
    return Repeating(WATCH, position, name, arguments, about, body, natural, kept)


def _examples(name: str, examples: tuple[tuple[str, str], ...]) -> str:
    return "\n".join(f">>> {name}({given})\n{wanted}" for given, wanted in examples)


TICKETS = (
    _label(1, "price_tag", "name, price", "What the tag of an article says.",
           ("'Tea', 3", "'Tea costs 3'"), ("'Cake', 12", "'Cake costs 12'"), form="{name} costs {price}"),
    _label(2, "order_line", "count, name", "One line of an order.",
           ("3, 'Tea'", "'3 of Tea'"), ("1, 'Cake'", "'1 of Cake'"), form="{count} of {name}"),
    _label(3, "greeting", "name, city", "How a letter begins.",
           ("'Ada', 'Turin'", "'Dear Ada from Turin'"), ("'Bob', 'Oslo'", "'Dear Bob from Oslo'"),
           form="Dear {name} from {city}"),
    _label(4, "stock_note", "name, left", "What the list of the stock says.",
           ("'Tea', 4", "'Tea: 4 left'"), ("'Cake', 0", "'Cake: 0 left'"), form="{name}: {left} left"),
    _label(5, "address_line", "street, town", "The line of an address.",
           ("'High Street', 'Bath'", "'High Street, Bath'"), ("'Quay', 'Cork'", "'Quay, Cork'"), form="{street}, {town}"),
    _label(6, "shelf_label", "row, place", "Where an article stands.",
           ("2, 7", "'row 2 place 7'"), ("1, 1", "'row 1 place 1'"), form="row {row} place {place}"),
    _refusal(1, "split_bill", "total, people", "What each of the people pays.",
             ("30, 3", "10.0"), ("5, 2", "2.5"), wrong="people < 1", when="fewer than one person", value="total / people"),
    _refusal(2, "reserve", "stock, wanted", "What is left when the wanted are taken.",
             ("10, 3", "7"), ("5, 5", "0"), wrong="wanted > stock", when="more than there are", value="stock - wanted"),
    _refusal(3, "add_points", "points, more", "The points of a customer after some more.",
             ("10, 5", "15"), ("0, 1", "1"), wrong="more < 0", when="a negative number of points", value="points + more"),
    _refusal(4, "pay_back", "paid, price", "The change that a customer gets.",
             ("20, 15", "5"), ("7, 7", "0"), wrong="paid < price", when="less than the price", value="paid - price"),
    _refusal(5, "fill_boxes", "articles, boxes", "How many articles go into each box.",
             ("12, 3", "4"), ("7, 2", "3"), wrong="boxes < 1", when="fewer than one box", value="articles // boxes"),
    _refusal(6, "lower_price", "price, less", "The price when something is taken off.",
             ("10, 4", "6"), ("3, 3", "0"), wrong="less > price", when="to take off more than the price",
             value="price - less"),
    _warning(1, "low_stock", "left", "How many are left.",
             ("8", "8"), ("3", "3"), wrong="left < 3", when="when fewer than three are left", value="left"),
    _warning(2, "big_order", "count", "The count of an order.",
             ("5", "5"), ("100", "100"), wrong="count > 100", when="when it is above one hundred", value="count"),
    _warning(3, "late_parcel", "days", "How many days a parcel takes.",
             ("2", "2"), ("7", "7"), wrong="days > 7", when="when it is more than seven", value="days"),
    _warning(4, "cold_room", "degrees", "How warm the cold room is.",
             ("4", "4"), ("8", "8"), wrong="degrees > 8", when="when it is above eight", value="degrees"),
    _warning(5, "empty_seats", "seats", "How many seats are free.",
             ("9", "9"), ("2", "2"), wrong="seats < 2", when="when it is below two", value="seats"),
    _warning(6, "long_queue", "people", "How many people wait.",
             ("1", "1"), ("12", "12"), wrong="people > 12", when="when it is above twelve", value="people"),
)  # fmt: skip


def files() -> Mapping[str, str]:
    """The repository all tickets start from, path to text: every function is there and not written."""
    packages = ["shop", *(f"shop/{rule.folder}" for rule in RULES)]
    return {
        **{f"{package}/__init__.py": "" for package in packages},
        "shop/common.py": COMMON,
        "tests/test_house.py": HOUSE,
        "README.md": "# Shop\n",
        **{ticket.path: ticket.source() for ticket in TICKETS},
    }


def in_order(each: int, rules: int = len(RULES)) -> list[Repeating]:
    """The first `each` tickets of the first `rules` rules, one of every rule after another, as work comes in."""
    wanted = [t for t in TICKETS if t.position <= each and t.rule in RULES[:rules]]
    return sorted(wanted, key=lambda t: (t.position, RULES.index(t.rule)))
