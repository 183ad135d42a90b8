"""The engine without a server answers as Qdrant's own client does in local mode, whose contract is the server's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qdrant_edge", reason="memory's packages are not installed")
pytest.importorskip("qdrant_client", reason="memory's packages are not installed")

import httpx
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from infra.errors import AuthFailed, Unreachable
from infra.memory import Record, Wanted
from infra.memory.edge import EmbeddedTransport
from infra.memory.embedding import Bm25Only
from infra.memory.index import Index, as_payload
from infra.memory.outbox import Entry
from infra.memory.records import event_id, joined, point_id

NOW = datetime(2026, 11, 1, tzinfo=UTC)
WORDS = "cart total price discount build gradle android login session queue cache index parser timeout retry".split()


class Letters:
    """A dense space that needs no model: how often each letter stands in the text."""

    name, size = "letters", 26

    def embed(self, texts: Any) -> list[list[float]]:
        return [[text.lower().count(chr(97 + n)) + 0.01 * n + 0.1 for n in range(26)] for text in texts]


def text_of(number: int) -> str:
    """A text whose words, and how often they come, no other has: equal ranks would be cut at different places."""
    chance = random.Random(number)
    said = chance.choices(WORDS, weights=range(1, len(WORDS) + 1), k=chance.randint(9, 40))
    return f"{' '.join(said)} breaks number{number}"


def records() -> list[Record]:
    """120 of all kinds, scopes and ages; some expired, some confirmed, some with a failure."""
    return [
        Record(
            kind=("lesson", "outcome", "observation", "fact")[n % 4], scope=("shop", "blog", "*")[n % 3], text=text_of(n),
            ticket=f"T-{n}", confirmed=n % 5 == 0, error_signature="E: broken" if n % 6 == 0 else "",
            created_at=NOW - timedelta(days=n), a=1 + n % 3,
        )
        for n in range(120)
    ]  # fmt: skip


def entries(given: list[Record]) -> list[Entry]:
    return [Entry(event=event_id(record), record=record) for record in given]


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[QdrantClient]:
    transport = EmbeddedTransport(tmp_path / "index")
    client = QdrantClient(url="http://embedded", transport=transport, check_compatibility=False)
    yield client
    client.close()
    transport.close()


@pytest.fixture
def local() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    yield client
    client.close()


def filled(client: QdrantClient) -> Index:
    index = Index(client, Letters())
    index.ensure()
    index.ensure()
    index.apply(entries(records()))
    return index


def index_pair(ours: Index, theirs: Index, wanted: Wanted) -> list[list[tuple[str, float]]]:
    return [[(each.point.id, each.score) for each in index.search(wanted, NOW)] for index in (ours, theirs)]


SEARCHES = [
    Wanted(text="cart total discount"),
    Wanted(text="gradle build android parser timeout retry", scope="shop"),
    Wanted(text="session timeout queue cache index login", scope="blog", kinds=("lesson", "fact"), limit=20),
    Wanted(text="parser number40 index cache queue", scope="shop", error_signature="E: broken"),
    Wanted(text="zzz qqq timeout retry parser index", scope="nowhere", limit=20),
]
"""Of several words, so that no two texts have the same value."""


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
def test_the_same_code_finds_the_same_with_the_engine_and_with_qdrants_local_mode(
    embedded: QdrantClient, local: QdrantClient
) -> None:
    """M4."""
    ours, theirs = filled(embedded), filled(local)
    assert ours.count() == theirs.count() == 120
    for wanted in SEARCHES:
        found, expected = index_pair(ours, theirs, wanted)
        assert [name for name, _ in found] == [name for name, _ in expected], wanted
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-6), wanted
    ids = [point_id(record) for record in records()[:5]]
    assert sorted(ours.get(ids), key=lambda p: p.id) == sorted(theirs.get(ids), key=lambda p: p.id)


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
def test_filters_pages_and_payloads_are_the_same_as_in_local_mode(embedded: QdrantClient, local: QdrantClient) -> None:
    name = filled(embedded).collection
    filled(local)
    one = models.FieldCondition(key="scope", match=models.MatchValue(value="shop"))
    some = models.FieldCondition(key="kind", match=models.MatchAny(any=["lesson", "fact"]))
    recent = models.FieldCondition(key="created_at", range=models.DatetimeRange(gte=NOW - timedelta(days=40)))
    without = models.IsEmptyCondition(is_empty=models.PayloadField(key="expires_at"))
    for wanted in (
        models.Filter(must=[one]), models.Filter(must=[some, recent]), models.Filter(should=[one, some]),
        models.Filter(must=[without]), models.Filter(must=[models.Filter(should=[one, recent])], must_not=[some]),
        models.Filter(must=one),
    ):  # fmt: skip
        assert embedded.count(name, wanted).count == local.count(name, wanted).count
        ids = [{str(r.id) for r in client.scroll(name, wanted, limit=200)[0]} for client in (embedded, local)]
        assert ids[0] == ids[1]
    first, following = embedded.scroll(name, limit=70)
    rest, end = embedded.scroll(name, limit=70, offset=following)
    assert (len({str(r.id) for r in [*first, *rest]}), end) == (120, None)
    changed = point_id(records()[3])
    for client in (embedded, local):
        client.set_payload(name, {"status": "archived"}, points=[changed])
        client.delete(name, models.PointIdsList(points=[point_id(records()[4])]))
    (ours,), (theirs,) = (client.retrieve(name, [changed], with_vectors=True) for client in (embedded, local))
    assert ours.payload == theirs.payload
    assert ours.vector["dense"] == pytest.approx(theirs.vector["dense"], abs=1e-5)  # type: ignore[index,call-overload]
    assert embedded.count(name).count == local.count(name).count == 119


def test_only_what_may_be_seen_is_found(embedded: QdrantClient) -> None:
    """Another repository's lessons only where they were confirmed; nothing that expired, none that was superseded."""
    index = filled(embedded)
    found = index.search(Wanted(text=text_of(10), scope="shop", limit=40), NOW)
    assert {each.point.record.scope for each in found} == {"shop", "blog", "*"}
    assert all(e.point.record.confirmed for e in found if e.point.record.scope == "blog")
    assert all(e.point.expires_at is None or e.point.expires_at > NOW for e in found)
    best = found[0].point
    index.put([best.model_copy(update={"status": "superseded"})])
    again = index.search(Wanted(text=text_of(10), scope="shop", limit=40), NOW)
    assert best.id not in {each.point.id for each in again}


def test_writing_again_changes_nothing_and_another_source_counts(embedded: QdrantClient) -> None:
    index = filled(embedded)
    index.apply(entries(records()))
    assert index.count() == 120
    same = records()[0]
    index.apply(entries([same.model_copy(update={"source": "run 2"})]))
    (point,) = index.get([point_id(same)])
    assert (point.seen, point.sources) == (2, ("run 2",))


def test_points_that_are_no_memories_of_ours_hide_no_other(embedded: QdrantClient) -> None:
    index = filled(embedded)
    ours = as_payload(joined(None, records()[0], "e"))
    foreign: list[dict[str, Any]] = [
        {}, {"text": "cart total"}, {**ours, "kind": "order"}, {**ours, "seen": "many"}, {**ours, "text": ["cart"]}, {**ours, "more": 1},
    ]  # fmt: skip
    dense = Letters().embed(["cart total discount"])[0]
    for number, payload in enumerate(foreign):
        vector = {"dense": dense, "bm25": models.SparseVector(indices=[1], values=[1.0])}
        embedded.upsert(
            index.collection, [models.PointStruct(id=number, vector=vector, payload={"status": "active", **payload})]
        )
    assert len(index.search(Wanted(text="cart total discount", limit=40), NOW)) > 20


def test_without_a_dense_space_words_alone_find_parts_of_names(embedded: QdrantClient) -> None:
    index = Index(embedded, Bm25Only())
    index.ensure()
    index.apply(
        entries([records()[0].model_copy(update={"text": "checkRecovery in retryQueue.py raises on empty input"})])
    )
    assert len(index.search(Wanted(text="recovery of the queue"), NOW)) == 1
    assert index.search(Wanted(text="the of and"), NOW) == []
    assert index.collection == "memory__bm25__0"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/collections/m/points/query", {"query": [1.0], "score_threshold": 0.5}),
        ("POST", "/collections/m/points/query", {"query": {"recommend": {}}}),
        ("POST", "/collections/m/points/scroll", {"filter": {"must": [{"key": "a", "geo_radius": {}}]}}),
        ("POST", "/collections/m/points/count", {"filter": {"min_should": {}}}),
        ("POST", "/collections/m/points/count", {"filter": {"must": {"key": "a", "match": {"value": True}}}}),
        ("PUT", "/collections/m", {"vectors": {"d": {"size": 4, "distance": "Dot"}}}),
        ("PUT", "/collections/m", {"vectors": {"d": {"size": 4, "distance": "Cosine", "on_disk": True}}}),
        ("PUT", "/collections/..", {}),
        ("PUT", "/collections/m/aliases", {}),
        ("GET", "/telemetry", {}),
    ],
)
def test_what_is_not_understood_is_refused_and_never_ignored(
    tmp_path: Path, method: str, path: str, body: dict[str, Any]
) -> None:
    with httpx.Client(transport=EmbeddedTransport(tmp_path / "index"), base_url="http://embedded") as client:
        made = client.put("/collections/m", json={"vectors": {"d": {"size": 4, "distance": "Cosine"}}})
        assert made.status_code == 200 or path == "/collections/m"
        if path == "/collections/m":
            client.delete(path)
        assert client.request(method, path, json=body).status_code in (400, 404)
        assert not (tmp_path / "outside").exists()


def test_a_collection_that_was_left_half_made_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "index" / ".memory__letters__26" / "segments").mkdir(parents=True)
    transport = EmbeddedTransport(tmp_path / "index")
    client = QdrantClient(url="http://embedded", transport=transport, check_compatibility=False)
    Index(client, Letters()).ensure()
    with pytest.raises(UnexpectedResponse, match="exists"):
        client.create_collection("memory__letters__26", vectors_config={})
    transport.close()


def test_a_server_that_is_away_and_one_that_refuses_the_key_are_told_apart() -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    for answer, error in ((away, Unreachable), (lambda _: httpx.Response(401, json={}), AuthFailed)):
        transport = httpx.MockTransport(answer)  # type: ignore[arg-type]
        client = QdrantClient(url="http://away", transport=transport, check_compatibility=False)
        with pytest.raises(error):
            Index(client, Letters()).ensure()
