"""Qdrant without a server: a part of its REST interface, answered in this process by the engine `qdrant_edge`.

Given to Qdrant's own client as its transport, so that whoever uses the client cannot tell. What is not in that part is
refused with 400, never ignored. Only one process may open a folder, and not even try to: a second `EdgeShard.load`
fails at the engine's lock, but only after it has spoiled files of the first.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import qdrant_edge as edge

from infra.memory.outbox import private_folder

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_DONE = {"operation_id": 0, "status": "completed"}
_INDEXES = {
    "keyword": edge.PayloadSchemaType.Keyword,
    "datetime": edge.PayloadSchemaType.Datetime,
}

Body = dict[str, Any]


class Refused(Exception):
    """A request that the engine cannot take. `status` is what a server would answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class EmbeddedTransport(httpx.BaseTransport):
    """Answers requests to a Qdrant server from collections below `folder`. The caller holds the lock on the folder."""

    def __init__(self, folder: Path) -> None:
        self._collections = Collections(folder)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        try:
            body = json.loads(request.read() or b"{}")
            result = self._collections.answer(request.method, request.url.path, body)
        except Refused as refused:
            return httpx.Response(refused.status, json={"status": {"error": str(refused)}, "time": 0})
        except Exception as error:  # noqa: BLE001  the engine raises nothing more precise; a server would answer 500
            return httpx.Response(500, json={"status": {"error": str(error)}, "time": 0})
        return httpx.Response(200, json={"result": result, "status": "ok", "time": 0})

    def close(self) -> None:
        self._collections.close()


class Collections:
    """One engine folder per collection, opened when first asked for. One request at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, edge.EdgeShard] = {}
        self._lock = threading.Lock()
        private_folder(folder)
        for half_made in folder.glob(".*"):
            shutil.rmtree(half_made)

    def close(self) -> None:
        with self._lock:
            for shard in self._open.values():
                shard.close()
            self._open.clear()

    def answer(self, method: str, path: str, body: Body) -> Any:
        """The `result` of a request. Raises Refused."""
        _, _, name, *rest = [*path.split("/"), ""][:6] if path.startswith("/collections/") else [""] * 3
        what = "/".join(part for part in rest if part)
        action = _ACTIONS.get((method, what))
        if action is None or not _NAME.fullmatch(name):
            raise Refused(404, f"{method} {path} is not answered without a server")
        with self._lock:
            return action(self, name, {key: value for key, value in body.items() if value is not None})

    def exists(self, name: str, body: Body) -> Body:
        _only(body)
        return {"exists": self._place(name).is_dir()}

    def create(self, name: str, body: Body) -> bool:
        """Made under another name and moved when whole: a killed creation leaves nothing that looks like a collection."""
        _only(body, "vectors", "sparse_vectors")
        if self._place(name).exists():
            raise Refused(409, f"collection {name!r} exists")
        draft = self._folder / f".{name}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        edge.EdgeShard.create(str(draft), _config(body)).close()
        draft.rename(self._place(name))
        return True

    def delete(self, name: str, body: Body) -> bool:
        _only(body)
        shard = self._open.pop(name, None)
        if shard is not None:
            shard.close()
        if not self._place(name).exists():
            return False
        trash = self._folder / f".{name}"
        shutil.rmtree(trash, ignore_errors=True)
        self._place(name).rename(trash)
        shutil.rmtree(trash)
        return True

    def index(self, name: str, body: Body) -> Body:
        _only(body, "field_name", "field_schema")
        schema = _INDEXES.get(body["field_schema"])
        if schema is None:
            raise Refused(400, f"an index of kind {body['field_schema']!r} is not made without a server")
        self._shard(name).update(edge.UpdateOperation.create_field_index(body["field_name"], schema))
        return _DONE

    def upsert(self, name: str, body: Body) -> Body:
        _only(body, "points")
        points = [edge.Point(p["id"], _vectors(p["vector"]), p.get("payload")) for p in body["points"]]
        shard = self._shard(name)
        shard.update(edge.UpdateOperation.upsert_points(points))
        shard.flush()  # without it the engine syncs nothing, and what it said it has is gone with the power
        return _DONE

    def set_payload(self, name: str, body: Body) -> Body:
        _only(body, "payload", "points")
        self._shard(name).update(edge.UpdateOperation.set_payload(body["points"], body["payload"]))
        return _DONE

    def delete_points(self, name: str, body: Body) -> Body:
        _only(body, "points")
        shard = self._shard(name)
        shard.update(edge.UpdateOperation.delete_points(body["points"]))
        shard.flush()
        return _DONE

    def retrieve(self, name: str, body: Body) -> list[Body]:
        _only(body, "ids", "with_payload", "with_vector")
        wanted = body.get("with_payload", True), body.get("with_vector", False)
        return [_record(each) for each in self._shard(name).retrieve(body["ids"], *wanted)]

    def scroll(self, name: str, body: Body) -> Body:
        _only(body, "filter", "limit", "offset", "with_payload", "with_vector")
        request = edge.ScrollRequest(
            offset=body.get("offset"), limit=body.get("limit", 10), filter=_filter(body.get("filter")),
            with_payload=body.get("with_payload", True), with_vector=body.get("with_vector", False),
        )  # fmt: skip
        found, following = self._shard(name).scroll(request)
        return {
            "points": [_record(each) for each in found],
            "next_page_offset": None if following is None else str(following),
        }

    def count(self, name: str, body: Body) -> Body:
        _only(body, "filter", "exact")
        return {
            "count": self._shard(name).count(edge.CountRequest(body.get("exact", True), _filter(body.get("filter"))))
        }

    def query(self, name: str, body: Body) -> Body:
        _only(body, "query", "prefetch", "using", "filter", "limit", "with_payload", "with_vector")
        request = edge.QueryRequest(
            limit=body.get("limit", 10), query=_query(body), prefetches=_prefetches(body),
            filter=_filter(body.get("filter")),
            with_payload=body.get("with_payload", False), with_vector=body.get("with_vector", False),
        )  # fmt: skip
        found = self._shard(name).query(request)
        return {"points": [{**_record(each), "score": each.score, "version": each.version} for each in found]}

    def _place(self, name: str) -> Path:
        return self._folder / name

    def _shard(self, name: str) -> edge.EdgeShard:
        if name not in self._open:
            if not self._place(name).is_dir():
                raise Refused(404, f"collection {name!r} does not exist")
            self._open[name] = edge.EdgeShard.load(str(self._place(name)))
        return self._open[name]


_ACTIONS: Mapping[tuple[str, str], Callable[[Collections, str, Body], Any]] = {
    ("GET", "exists"): Collections.exists,
    ("PUT", ""): Collections.create,
    ("DELETE", ""): Collections.delete,
    ("PUT", "index"): Collections.index,
    ("PUT", "points"): Collections.upsert,
    ("POST", "points"): Collections.retrieve,
    ("POST", "points/payload"): Collections.set_payload,
    ("POST", "points/delete"): Collections.delete_points,
    ("POST", "points/scroll"): Collections.scroll,
    ("POST", "points/count"): Collections.count,
    ("POST", "points/query"): Collections.query,
}


def _only(given: Body, *known: str) -> None:
    """Raises Refused for what is not understood: an ignored filter would show what must not be seen."""
    if unknown := sorted(given.keys() - set(known)):
        raise Refused(400, f"{', '.join(unknown)} is not understood without a server")


def _config(body: Body) -> edge.EdgeConfig:
    dense = {name: _dense(params) for name, params in body.get("vectors", {}).items()}
    sparse = {name: _sparse(params) for name, params in body.get("sparse_vectors", {}).items()}
    return edge.EdgeConfig(vectors=dense or None, sparse_vectors=sparse or None)


def _dense(params: Body) -> edge.EdgeVectorParams:
    _only(params, "size", "distance")
    if params["distance"] != "Cosine":
        raise Refused(400, f"the distance {params['distance']!r} is not offered without a server")
    return edge.EdgeVectorParams(size=params["size"], distance=edge.Distance.Cosine)


def _sparse(params: Body) -> edge.EdgeSparseVectorParams:
    _only(params, "modifier")
    return edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf if params.get("modifier") == "idf" else None)


def _vectors(given: Body) -> dict[str, Any]:
    return {name: _vector(value) for name, value in given.items()}


def _vector(value: Any) -> Any:
    return edge.SparseVector(value["indices"], value["values"]) if isinstance(value, dict) else value


def _query(body: Body) -> Any:
    query = body.get("query")
    if query is None or query == {"fusion": "rrf"}:
        return edge.Fusion.Rrf(k=2) if query else None
    nearest = query.get("nearest", query) if isinstance(query, dict) else query
    if isinstance(nearest, list) or (isinstance(nearest, dict) and nearest.keys() == {"indices", "values"}):
        return edge.Query.Nearest(_vector(nearest), body.get("using"))
    raise Refused(400, f"the query {sorted(query) if isinstance(query, dict) else query!r} is not understood")


def _prefetches(body: Body) -> list[edge.Prefetch]:
    found = []
    for each in body.get("prefetch", []):
        _only(each, "query", "using", "filter", "limit")
        limit = each.get("limit", 10)
        found.append(edge.Prefetch(limit, query=_query(each), filter=_filter(each.get("filter"))))
    return found


def _filter(given: Body | None) -> edge.Filter | None:
    if given is None:
        return None
    given = {key: value for key, value in given.items() if value is not None}
    _only(given, "must", "should", "must_not")
    must, should, must_not = (_conditions(given.get(name)) for name in ("must", "should", "must_not"))
    return edge.Filter(must=must, should=should, must_not=must_not)


def _conditions(given: Any) -> list[Any] | None:
    """A list, or the one condition that the interface also takes."""
    if given is None:
        return None
    return [_condition(each) for each in (given if isinstance(given, list) else [given])]


def _condition(given: Body) -> Any:
    given = {key: value for key, value in given.items() if value is not None}
    if given.keys() <= {"must", "should", "must_not"}:
        return _filter(given)
    if given.keys() == {"is_empty"}:
        return edge.IsEmptyCondition(given["is_empty"]["key"])
    _only(given, "key", "match", "range")
    if "match" in given:
        return edge.FieldCondition(given["key"], match=_match(given["match"]))
    bounds = {name: value for name, value in given["range"].items() if value is not None}
    _only(bounds, "gt", "gte", "lt", "lte")
    return edge.FieldCondition(given["key"], range=edge.RangeDateTime(**bounds))


def _match(given: Body) -> Any:
    _only(given, "value", "any")
    if isinstance(given.get("value"), bool):
        raise Refused(400, "true and false cannot be matched without a server: the engine takes them for numbers")
    return edge.MatchAny(given["any"]) if "any" in given else edge.MatchValue(given["value"])


def _record(found: Any) -> Body:
    """A point as the server words it; `vector` only where it was asked for."""
    said = {"id": str(found.id), "payload": found.payload}
    if found.vector:
        said["vector"] = {name: _plain(vector) for name, vector in found.vector.items()}
    return said


def _plain(vector: Any) -> Any:
    with suppress(AttributeError):
        return {"indices": list(vector.indices), "values": list(vector.values)}
    return vector
