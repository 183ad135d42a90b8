"""Which files a ticket is about: all of a small repository, the right ones of a large one."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.git import Mirror
from tasks.code_search import CANDIDATES, SMALL_REPOSITORY_FILES, likely_files
from tasks.context import source_files
from tests.shop import make_repository

SHOP = {
    "shop/cart.py": "from shop.money import rounded\n\n\ndef checkout_total(cart):\n    return rounded(sum(cart))\n",
    "shop/money.py": "def rounded(amount):\n    return int(amount)\n",
    "shop/refunds.py": "def repay(order):\n    '''Pays refunds out to the customer after a complaint.'''\n    return order\n",
    "tests/test_cart.py": "def test_checkout_total(): ...\n",
}


def made(folder: Path, fillers: int) -> tuple[Mirror, str, list[str]]:
    filler = {f"lib/part{n}.py": f"def handle_{n}(value):\n    return value + {n}\n" for n in range(fillers)}
    mirror = Mirror.open(folder / "mirrors", "shop", str(make_repository(folder / "source", {**SHOP, **filler})))
    _, sha = mirror.base(None)
    return mirror, sha, source_files(mirror.paths(sha))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mirror, str, list[str]]:
    return made(tmp_path_factory.mktemp("large"), SMALL_REPOSITORY_FILES + 50)


def test_in_a_small_repository_nothing_is_left_out_and_nothing_is_indexed(tmp_path: Path) -> None:
    """The prompts of small repositories are the same bytes with and without an index."""
    mirror, sha, paths = made(tmp_path, 20)
    assert likely_files(mirror, sha, paths, "anything") == paths
    assert not list((tmp_path / "mirrors").glob("*.code"))


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("`checkout_total(cart)` drops cents", "shop/cart.py"),
        ('File "shop/refunds.py", line 2, in repay', "shop/refunds.py"),
        ("After a complaint the customer waits for the refund for ever", "shop/refunds.py"),
        ("something is wrong in part17", "lib/part17.py"),
    ],
)
def test_in_a_large_repository_the_right_file_comes_first(
    large: tuple[Mirror, str, list[str]], text: str, first: str
) -> None:
    """A8."""
    found = likely_files(*large, text)
    assert found[0] == first
    assert len(found) <= CANDIDATES


def test_what_the_named_function_calls_is_a_candidate_too(large: tuple[Mirror, str, list[str]]) -> None:
    assert "shop/money.py" in likely_files(*large, "`checkout_total(cart)` drops cents")


def test_tests_are_no_candidates_and_a_hostile_ticket_is_words(large: tuple[Mirror, str, list[str]]) -> None:
    assert "tests/test_cart.py" not in likely_files(*large, "checkout_total tests/test_cart.py")
    likely_files(*large, '" OR ( * ` \\' + "(" * 1_000 + "a_b(" * 1_000)
