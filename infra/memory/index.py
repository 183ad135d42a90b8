"""The collection of knowledge points: written and searched by Qdrant's own client, whatever answers it.

Dense and BM25 results are joined by rank (RRF with k = 2, Qdrant's default), because neither finds what the other does;
age and confidence then weigh the ranks. The collection's name holds the embedder's, so vector spaces never mix.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from infra.errors import AuthFailed, InfraError, RateLimited, Unreachable
from infra.memory import EVERYWHERE, Cluster, Point, Recalled, Record, Wanted
from infra.memory.clusters import Placed, Vectors, clusters_of, similarity
from infra.memory.embedding import Bm25, Embedder, Words, telling_words
from infra.memory.outbox import Entry
from infra.memory.records import joined, marked, text_hash, weight

DENSE, SPARSE = "dense", "bm25"
CANDIDATES = 40
"""How many of each kind of result are joined; weights only change the order among them."""
PAGE = 256
_log = logging.getLogger(__name__)
_KEYWORDS = ("kind", "scope", "visible", "status", "ticket", "error_signature", "hash", "derived_from", "doubtful")
_DERIVED = ("visible", "hash", "schema", "doubtful")
LOOKED_AT = 16
NEIGHBOURS = 8
"""Candidates for a point's neighbours, and how many of them may be its own."""
MOST_SCROLLED = 2_000
DOUBTFUL = 0.3
UNUSED = timedelta(days=180)
"""From this confidence on downwards a lesson, decision or fact is put aside when nobody recalled it for so long."""


class Index:
    """Points in one collection. Methods raise InfraError when it cannot be asked; all of them may be repeated."""

    def __init__(self, client: QdrantClient, embedder: Embedder) -> None:
        self._client, self._embedder, self._bm25 = client, embedder, Bm25()
        self.collection = f"memory__{embedder.name}__{embedder.size}"

    def exists(self) -> bool:
        with _translated():
            return bool(self._client.collection_exists(self.collection))

    def ensure(self) -> None:
        """Make the collection and its indexes where they are missing."""
        if not self.exists():
            self._create()
        with _translated():
            for field, schema in _schema().items():
                self._client.create_payload_index(self.collection, field, field_schema=schema)

    def _create(self) -> None:
        dense = {DENSE: models.VectorParams(size=self._embedder.size, distance=models.Distance.COSINE)}
        sparse = {SPARSE: models.SparseVectorParams(modifier=models.Modifier.IDF)}
        with suppress(_Conflict), _translated():  # another machine may be making it
            self._client.create_collection(
                self.collection, vectors_config=dense if self._embedder.size else {}, sparse_vectors_config=sparse
            )

    def close(self) -> None:
        self._client.close()

    def drop(self) -> None:
        """Forget all points; the journal has them."""
        with _translated():
            self._client.delete_collection(self.collection)

    def apply(self, entries: Sequence[Entry]) -> None:
        """Join these writings with what is there. Those that were applied before change nothing."""
        known = {point.id: point for point in self.get(sorted({name for e in entries for name in e.points}))}
        changed: dict[str, Point] = {}
        for entry in entries:
            for name in entry.points:
                before = changed.get(name) or known.get(name)
                after = _after(before, name, entry)
                if after is not None and after != before:
                    changed[name] = after
        self.put(changed.values())

    def put(self, points: Iterable[Point]) -> None:
        """Write points as they are."""
        listed = list(points)
        dense = self._embedder.embed([point.record.text for point in listed])
        made = [
            models.PointStruct(id=p.id, vector=self._vectors(p.record.text, v), payload=as_payload(p))
            for p, v in zip(listed, dense, strict=True)
        ]
        for start in range(0, len(made), PAGE):
            with _translated():
                self._client.upsert(self.collection, made[start : start + PAGE], wait=True)

    def _vectors(self, text: str, dense: list[float]) -> dict[str, Any]:
        words = self._bm25.document(text)
        sparse = {SPARSE: models.SparseVector(indices=words.indices, values=words.values)}
        return {DENSE: dense, **sparse} if dense else sparse

    def get(self, ids: Sequence[str]) -> list[Point]:
        """The points of these ids that are there."""
        with _translated():
            found = self._client.retrieve(self.collection, list(ids)) if ids else []
        return [point for each in found if (point := as_point(each.payload))]

    def count(self) -> int:
        with _translated():
            return self._client.count(self.collection, exact=True).count

    def search(self, wanted: Wanted, now: datetime) -> list[Recalled]:
        """The best `wanted.limit` points that may be seen from its scope, best first."""
        prefetch = self._prefetches(wanted, now)
        if not prefetch:
            return []
        with _translated():
            answer = self._client.query_points(
                self.collection, prefetch=prefetch, query=models.FusionQuery(fusion=models.Fusion.RRF),
                limit=CANDIDATES, with_payload=True,
            )  # fmt: skip
        weighed = [
            Recalled(point=point, score=scored.score * weight(point, now))
            for scored in answer.points
            if (point := as_point(scored.payload))
        ]
        return sorted(weighed, key=lambda each: (-each.score, each.point.id))[: wanted.limit]

    def used(self, ids: Sequence[str], now: datetime) -> None:
        """Note that these points were recalled. A note of the index alone: the journal does not repeat it."""
        with _translated():
            self._client.set_payload(self.collection, {"last_used_at": now.isoformat()}, points=list(ids), wait=False)

    def clusters(self, ids: Sequence[str], now: datetime) -> list[Cluster]:
        """Clusters of these points and their nearest active neighbours of the same scope and kind.

        Candidates share words, which an inverted index finds at a cost that hardly grows with the store; how near they are
        then says the dense vector, where there is one.
        """
        placed: dict[str, Placed] = {}
        pairs: list[tuple[str, str]] = []
        for start in range(0, len(ids), PAGE):
            for name, each in self._placed(ids[start : start + PAGE]).items():
                if each.point.status == "active" and not _is_over(each.point, now):
                    near = self._near(each, now)
                    placed |= {name: each, **near}
                    pairs += [(name, other) for other in near]
        return clusters_of(placed, pairs)

    def _near(self, each: Placed, now: datetime) -> dict[str, Placed]:
        point, words = each.point, self._bm25.query(telling_words(each.point.record.text))
        wanted = Wanted(text="", scope=point.record.scope, kinds=(point.record.kind,))
        here = models.Filter(must=[_visible(wanted, now), _equals("scope", point.record.scope)])
        sparse = models.SparseVector(indices=words.indices, values=words.values)
        with _translated():
            answer = self._client.query_points(
                self.collection, query=sparse, using=SPARSE, query_filter=here, limit=LOOKED_AT, with_vectors=True
            )
        found = {str(other.id): _placed(other) for other in answer.points if str(other.id) != point.id}
        ranked = sorted(
            ((similarity(each.vectors, other.vectors), name) for name, other in found.items() if other is not None),
            reverse=True,
        )
        near = [name for value, name in ranked[:NEIGHBOURS] if value >= each.vectors.near]
        return {name: other for name in near if (other := found[name])}

    def _placed(self, ids: Sequence[str]) -> dict[str, Placed]:
        with _translated():
            found = self._client.retrieve(self.collection, list(ids), with_vectors=True) if ids else []
        return {str(each.id): placed for each in found if (placed := _placed(each))}

    def stale(self, now: datetime) -> list[Point]:
        """Active points whose time is over, and lessons that did harm and were not recalled for half a year."""
        active = _equals("status", "active")
        ended = models.FieldCondition(key="expires_at", range=models.DatetimeRange(lte=now))
        found = self._scrolled([active, ended]) + [
            point
            for point in self._scrolled([active, _equals("doubtful", "yes")])
            if now - (point.last_used_at or point.updated_at) > UNUSED
        ]
        return list({point.id: point for point in found}.values())

    def derived(self, ids: Sequence[str]) -> list[Point]:
        """Summaries that were made of any of these points."""
        return self._scrolled([models.FieldCondition(key="derived_from", match=models.MatchAny(any=list(ids)))])

    def _scrolled(self, must: list[Any]) -> list[Point]:
        """Up to MOST_SCROLLED; the rest is for the next time."""
        with _translated():
            found, _ = self._client.scroll(
                self.collection, scroll_filter=models.Filter(must=must), limit=MOST_SCROLLED, with_payload=True
            )
        return [point for each in found if (point := as_point(each.payload))]

    def _prefetches(self, wanted: Wanted, now: datetime) -> list[models.Prefetch]:
        text = f"{wanted.text}\n{wanted.error_signature}".strip()
        visible = _visible(wanted, now)
        words = self._bm25.query(text)
        found = []
        if words.indices:
            sparse = models.SparseVector(indices=words.indices, values=words.values)
            found.append(_prefetch(sparse, SPARSE, visible))
            if wanted.error_signature:
                found.append(_prefetch(sparse, SPARSE, _same_failure(visible, wanted.error_signature)))
        if self._embedder.size and text:
            found.append(_prefetch(self._embedder.embed([text])[0], DENSE, visible))
        return found


def _after(before: Point | None, name: str, entry: Entry) -> Point | None:
    if entry.record is not None:
        return joined(before, entry.record, entry.event)
    return marked(before, name, entry.mark, entry.event) if entry.mark else before


def _is_over(point: Point, now: datetime) -> bool:
    return point.expires_at is not None and point.expires_at <= now


def _placed(found: Any) -> Placed | None:
    """A point of an answer with its vectors; None for what is no memory of ours."""
    point, vectors = as_point(found.payload), found.vector or {}
    sparse = vectors.get(SPARSE)
    if point is None or sparse is None:
        return None
    return Placed(point, Vectors(vectors.get(DENSE) or (), Words(list(sparse.indices), list(sparse.values))))


def _prefetch(query: Any, using: str, visible: models.Filter) -> models.Prefetch:
    return models.Prefetch(query=query, using=using, filter=visible, limit=CANDIDATES)


def _schema() -> dict[str, models.PayloadSchemaType]:
    keywords = dict.fromkeys(_KEYWORDS, models.PayloadSchemaType.KEYWORD)
    return {
        **keywords,
        "expires_at": models.PayloadSchemaType.DATETIME,
    }


def _visible(wanted: Wanted, now: datetime) -> models.Filter:
    """Active, not expired, of the wanted kinds, and of this scope, of all, or confirmed by others."""
    must: list[Any] = [_equals("status", "active")]
    if wanted.kinds:
        must.append(models.FieldCondition(key="kind", match=models.MatchAny(any=list(wanted.kinds))))
    if wanted.scope is not None:
        must.append(models.FieldCondition(key="visible", match=models.MatchAny(any=[wanted.scope, EVERYWHERE])))
    expired = models.FieldCondition(key="expires_at", range=models.DatetimeRange(lte=now))
    return models.Filter(must=must, must_not=[expired])


def _same_failure(visible: models.Filter, signature: str) -> models.Filter:
    return models.Filter(must=[visible, _equals("error_signature", signature)])


def _equals(key: str, value: str) -> models.FieldCondition:
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))


def as_payload(point: Point) -> dict[str, Any]:
    """Flat, so that every field can be filtered on; times in ISO 8601 with zone. Empty fields are left out."""
    own = point.model_dump(mode="json", exclude={"record"})
    visible = [point.record.scope, *([EVERYWHERE] if point.record.confirmed else [])]
    derived = {"visible": visible, "hash": text_hash(point.record), "schema": 1}
    if point.confidence < DOUBTFUL:
        derived["doubtful"] = "yes"
    said = {**own, **point.record.model_dump(mode="json"), **derived}
    return {name: value for name, value in said.items() if value not in (None, "", [])}


def as_point(payload: dict[str, Any] | None) -> Point | None:
    """None for what is not a memory of ours: others may write to a shared server, and one bad point must hide no good one."""
    given = {name: value for name, value in (payload or {}).items() if name not in _DERIVED}
    record = {name: given.pop(name) for name in Record.model_fields if name in given}
    try:
        return Point.model_validate_json(json.dumps({**given, "record": record}))
    except ValidationError as error:
        _log.warning("memory point=%r outcome=skipped reason=%d mistake(s)", given.get("id"), error.error_count())
        return None


@contextmanager
def _translated() -> Iterator[None]:
    """Errors of Qdrant's client as ours."""
    try:
        yield
    except UnexpectedResponse as error:
        raise _meaning(error.status_code or 0, str(error)) from error
    except ResourceExhaustedResponse as error:
        raise RateLimited(f"Qdrant asks to wait: {error}") from error
    except (ResponseHandlingException, OSError) as error:
        raise Unreachable(f"Qdrant does not answer: {error!r}; check QDRANT_URL") from error


class _Conflict(Unreachable):
    """What is to be made is there."""


def _meaning(status: int, said: str) -> InfraError:
    if status == 409 or (status == 400 and "already exists" in said):
        return _Conflict(said[:300])
    if status in (401, 403):
        return AuthFailed("Qdrant refuses the key; correct QDRANT_API_KEY")
    return Unreachable(f"Qdrant answers {status}: {said[:300]!r}")
