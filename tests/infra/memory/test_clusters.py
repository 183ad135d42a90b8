"""Which points belong together, with and without a model's vectors, and what a summary by rule keeps (M3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("qdrant_edge", reason="memory's packages are not installed")
pytest.importorskip("qdrant_client", reason="memory's packages are not installed")

from qdrant_client import QdrantClient

from infra.memory import MAX_TEXT_CHARS, MOST_MEMBERS, Cluster
from infra.memory.clusters import MOST_COMPARED, Placed, Vectors, clusters_of, similarity
from infra.memory.edge import EmbeddedTransport
from infra.memory.embedding import Bm25, Words, telling_words
from infra.memory.index import Index
from infra.memory.outbox import entry_of
from infra.memory.records import joined
from infra.memory.upkeep import extract, names_in
from tests.infra.memory.serving import NOW, record


def turned(degrees: float) -> list[float]:
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


def placed(*angles: float) -> dict[str, Placed]:
    points = [joined(None, record(f"Point number {n} of the circle", key=str(n)), "e") for n in range(len(angles))]
    return {p.id: Placed(p, Vectors(turned(a), Words([], []))) for p, a in zip(points, angles, strict=True)}


class Clockwork:
    """Turns the first number of a text into an angle, so that a test chooses what is near by meaning."""

    name, size = "clockwork", 2

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [turned(float(next((w for w in text.split() if w.isdigit()), "0"))) for text in texts]


def test_a_member_that_is_only_near_to_a_neighbour_of_the_medoid_is_left_out() -> None:
    circle = placed(0, 40, 80, 120)
    names = list(circle)
    (found,) = clusters_of(circle, [(names[0], names[1]), (names[1], names[2]), (names[2], names[3])])
    assert found.medoid in names[1:3]
    assert len(found.members) == 3


def test_a_flood_of_points_that_say_the_same_is_not_compared_each_with_each(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    def counted(one: Vectors, other: Vectors) -> float:
        nonlocal compared
        compared += 1
        return similarity(one, other)

    monkeypatch.setattr("infra.memory.clusters.similarity", counted)
    circle = placed(*(n / 1_000 for n in range(600)))
    names = list(circle)
    (found,) = clusters_of(circle, pairwise(names))
    assert len(found.members) == MOST_MEMBERS
    assert compared <= MOST_COMPARED**2


def test_a_cluster_is_bounded_and_the_same_whatever_order_its_pairs_come_in() -> None:
    circle = placed(*(n / 10 for n in range(60)))
    pairs = [(one, other) for one in list(circle)[:1] for other in list(circle)[1:]]
    (found,) = clusters_of(circle, pairs)
    assert len(found.members) == MOST_MEMBERS
    assert clusters_of(circle, reversed(pairs)) == [found]


def test_two_texts_without_a_common_word_are_not_near_and_an_empty_one_is_near_to_nothing() -> None:
    bm25 = Bm25()
    one, other = (Vectors((), bm25.document(text)) for text in ("gradle wants a newer JDK", "the blog is closed"))
    assert similarity(one, other) == 0
    assert similarity(one, Vectors((), Words([], []))) == 0
    assert similarity(one, one) == pytest.approx(1)


def test_with_a_model_nearness_is_that_of_meaning_among_what_shares_words(tmp_path: Path) -> None:
    with closing(EmbeddedTransport(tmp_path / "index")) as transport:
        index = Index(QdrantClient(url="http://embedded", transport=transport, check_compatibility=False), Clockwork())
        index.ensure()
        told = [record(f"{angle} degrees is the angle of this point", key=str(angle)) for angle in (0, 10, 90)]
        index.apply([entry_of(each) for each in told])
        (found,) = index.clusters([entry_of(told[0]).points[0]], NOW)
        assert {point.record.key for point in found.members} == {"0", "10"}
        assert len(found.alike) == 1


def test_the_longest_words_are_asked_for() -> None:
    assert telling_words("it is a reproducibly broken checkout_total in the shop of the client at a time of day now").split()[:2] == ["checkout_total", "reproducibly"]  # fmt: skip
    assert telling_words("") == ""


def test_a_summary_by_rule_leaves_out_members_whose_names_it_has_no_room_for() -> None:
    texts = ["The build of the shop fails in shop/a.py", "The build of the shop fails in shop/b.py", "The build of the shop fails in shop/c.py"]  # fmt: skip
    crowded = "The build fails in " + " ".join(f"folder/file_{n}.py" for n in range(45))
    points = [joined(None, record(text, key=str(n)), "e") for n, text in enumerate([*texts, crowded])]
    found = extract(Cluster(medoid=points[0].id, members=tuple(points)))
    assert found is not None
    assert len(found.record.text) <= MAX_TEXT_CHARS
    assert set(found.replaces) == {point.id for point in points[:3]}
    for point in points[:3]:
        assert names_in(point.record.text) <= names_in(found.record.text)
    assert extract(Cluster(medoid=points[0].id, members=tuple(points[:2]))) is None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Gradle needs JDK 17, not 21.", {"JDK", "17", "21"}),
        ("see shop/cart.py: totalPrice() and max_retries", {"shop/cart.py", "totalPrice", "max_retries"}),
        ("an ordinary sentence. Nothing more", set()),
    ],
)
def test_names_are_numbers_paths_and_identifiers(text: str, names: set[str]) -> None:
    assert names_in(text) == names
