"""The verification protocol: which sentences are claims, and which places of a real repository show one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from infra.git import Mirror
from tasks.verification import ConfigClaim, claims_in, is_claim, shown_by
from tests.shop import make_repository
from tests.tasks.claim_sentences import HELD_OUT, WRITTEN_WITH

FILES = {
    "src/pay.py": 'import os\n\n\ndef key():\n    return os.environ["STRIPE_KEY"]\n',
    "deploy/dns.md": "# Hosts\n\nThe CNAME of www points at the old host.\n",
}


def figures(labelled: tuple[tuple[bool, str], ...]) -> tuple[float, float]:
    """Precision and recall of the detection."""
    found = [label for label, sentence in labelled if is_claim(sentence)]
    return sum(found) / len(found), sum(found) / sum(label for label, _ in labelled)


def test_claims_are_told_from_other_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    """T14. `pytest -s` on this test prints the figures."""
    known, unseen = figures(WRITTEN_WITH), figures(HELD_OUT)
    with capsys.disabled():
        print(
            f"\nknown {len(WRITTEN_WITH)}: {known[0]:.2f} {known[1]:.2f}; held out {len(HELD_OUT)}: {unseen[0]:.2f} {unseen[1]:.2f}"
        )
    assert min(known) >= 0.95
    assert unseen[0] >= 0.9
    assert unseen[1] >= 0.75


def test_only_the_sentences_that_claim_something_are_taken_with_all_places_of_the_text() -> None:
    text = "The total is wrong. You must set the environment variable STRIPE_KEY. It is read in src/pay.py:5 at 12:30."
    (claim,) = claims_in(text)
    assert claim.what == "You must set the environment variable STRIPE_KEY."
    assert claim.evidence == ("src/pay.py:5", "12:30")


def test_endless_sentences_are_no_trouble() -> None:
    started = time.monotonic()
    for text in ("must set " * 20_000, "a" * 100_000, "a/" * 50_000 + ":1", "set\n" * 20_000, "A_" * 50_000):
        claims_in(text)
    assert time.monotonic() - started < 10


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Mirror:
    folder: Path = tmp_path_factory.mktemp("shop")
    return Mirror.open(folder / "mirrors", "shop", str(make_repository(folder / "source", FILES)))


@pytest.mark.parametrize(
    ("what", "place", "holds"),
    [
        ("Set STRIPE_KEY in production.", "src/pay.py:5", True),
        ("Set STRIPE_KEY in production.", "`src/pay.py:5`", True),
        ("Set STRIPE_KEY in production.", "./src/pay.py:3", True),
        ("Set STRIPE_KEY in production.", "src/pay.py:1", False),
        ("Set STRIPE_KEY in production.", "src/pay.py:500", False),
        ("Set STRIPE_KEY in production.", "src/pay.py:0", False),
        ("Set STRIPE_KEY in production.", "src/nowhere.py:5", False),
        ("Set STRIPE_KEY in production.", "../../../../etc/passwd:1", False),
        ("Set STRIPE_KEY in production.", "src/pay.py", False),
        ("Set OTHER_KEY in production.", "src/pay.py:5", False),
        ("Change the CNAME of the shop at the registrar.", "deploy/dns.md:3", True),
        ("Change the nameservers at the registrar.", "deploy/dns.md:3", False),
        ("Do something about it (src/pay.py:5).", "src/pay.py:5", False),
    ],
)
def test_a_place_counts_when_it_exists_and_shows_what_the_claim_names(
    mirror: Mirror, what: str, place: str, holds: bool
) -> None:
    """T14."""
    found = shown_by(mirror, mirror.base(None)[1], ConfigClaim(what=what, evidence=(place,)))
    assert bool(found) is holds
