"""What may be remembered and for how long: admission, identity, and joining two writings of one point."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from infra.errors import FactoryError
from infra.memory import EVERYWHERE, MAX_TEXT_CHARS, SHORT_CHARS, Kind, Mark, MarkKind, Point, Record, Status
from infra.redaction import MASK, redact

SHORTEST_TEXT_CHARS = 20
KEPT_SOURCES = 20
KEPT_EVENTS = 100
"""More than the owner takes in at once, so that what a kill repeats is known."""
LIFETIME: dict[Kind, timedelta] = {"observation": timedelta(days=30), "outcome": timedelta(days=180)}
"""After which a point is no longer found; the other kinds stay until something supersedes them."""
HALF_LIFE_DAYS: dict[Kind, float] = {
    "observation": 30,
    "outcome": 90,
    "lesson": 365,
    "decision": 365,
    "fact": 365,
}

_NAMESPACE = UUID("6f0f2c7e-0d8c-4f0e-9a55-6c1f0b7a5d11")
_PLACEHOLDER = re.compile(
    r"(?:\s|[.…\-_*#|`])*(?:todo|tbd|n/?a|none|lorem ipsum\b.*|tests? pass(?:ed)?|all good|done|ok|placeholder"
    r"|\{\{.*\}\}|<[a-z _-]+>)(?:\s|[.…!\-_*#|`])*",
    re.IGNORECASE | re.DOTALL,
)
_VARYING = (
    (re.compile(r"(?:[A-Za-z]:)?(?:/[\w.@+~-]+){2,}/?"), "PATH"),
    (re.compile(r"\b(?:0x)?[0-9a-f]{7,}\b", re.IGNORECASE), "HEX"),
    (re.compile(r"\d+(?:\.\d+)*"), "N"),
    (re.compile(r"\s+"), " "),
)


class Refused(FactoryError):
    """The gate keeps this record out: it says nothing, or too little to be found again."""

    category = "memory"


def admit(record: Record) -> Record:
    """The record as it may be stored: secrets masked, one text of bounded length. Raises Refused with the reason."""
    text = redact(" ".join(_printable(record.text).split()))
    bare = text.replace(MASK, " ").strip()
    if len(bare) < SHORTEST_TEXT_CHARS:
        raise Refused(f"the text {bare!r} is too short to help anybody; write a sentence that stands on its own")
    if _PLACEHOLDER.fullmatch(bare[:200]):
        raise Refused(f"the text {bare[:80]!r} is a placeholder; write what happened")
    names = ("scope", "key", "ticket", "role", "error_class", "error_signature", "verdict", "source")
    cleaned = {name: redact(" ".join(_printable(getattr(record, name)).split()))[:SHORT_CHARS] for name in names}
    if not cleaned["scope"]:
        raise Refused("a record needs a scope: the name of a repository, or * for all")
    return record.model_copy(update={"text": _shortened(text), **cleaned})


def point_id(record: Record) -> str:
    """The same for everything said about one key, on every machine."""
    return str(uuid5(_NAMESPACE, f"point:{record.key or f'{record.kind}:{record.scope}:{text_hash(record)}'}"))


def event_id(record: Record) -> str:
    """The same when one source says the same thing again, so that a step that runs twice counts once."""
    return str(uuid5(_NAMESPACE, f"event:{point_id(record)}:{record.source}:{text_hash(record)}"))


def mark_id(mark: Mark) -> str:
    """The same for the same mark of one source, whenever it is made."""
    return str(uuid5(_NAMESPACE, f"mark:{mark.kind}:{mark.source}:{mark.by}:{' '.join(mark.points)}"))


def text_hash(record: Record) -> str:
    return hashlib.sha256(record.text.casefold().encode()).hexdigest()


def without_echoes(text: str, known: Iterable[Point]) -> str:
    """`text` without what these points say word for word: what was recalled is not news."""
    text = " ".join(text.split())
    for point in known:
        text = re.sub(re.escape(point.record.text), " ", text, flags=re.IGNORECASE)
    return " ".join(text.split())


def signature(error_class: str, message: str) -> str:
    """A failure without what differs from run to run (numbers, hashes, paths), so that two of a kind are equal."""
    text = redact(_printable(message))[:2_000]
    for pattern, stand_in in _VARYING:
        text = pattern.sub(stand_in, text)
    return f"{error_class}: {text.strip()}"[:SHORT_CHARS].rstrip()


def joined(known: Point | None, record: Record, event: str) -> Point:
    """The point after this writing. An event that is already in it changes nothing, in whatever order they come."""
    if known is None:
        return _new(record, event)
    if event in known.events or known.status == "forgotten":
        return known
    newest = record if record.created_at >= known.record.created_at else known.record
    sources = [record.source] if record.source and record.source not in known.sources else []
    return known.model_copy(
        update={
            "record": newest.model_copy(update={"confirmed": known.record.confirmed or record.confirmed}),
            "seen": known.seen + record.stands_for,
            "sources": (*sources, *known.sources)[:KEPT_SOURCES],
            "events": (event, *known.events)[:KEPT_EVENTS],
            "updated_at": max(known.updated_at, record.created_at),
            "expires_at": _expiry(newest),
            **_said_again(known, record),
        }
    )


def _said_again(known: Point, record: Record) -> dict[str, Any]:
    """What was put aside and is seen again later is active again."""
    again = known.status_at is not None and record.created_at > known.status_at
    return {"status": "active", "status_at": record.created_at, "superseded_by": ""} if again else {}


_BECOMES: dict[MarkKind, Status] = {"superseded": "superseded", "archived": "archived", "restored": "active"}


def marked(known: Point | None, name: str, mark: Mark, event: str) -> Point | None:
    """The point `name` after this mark; repeating it changes nothing."""
    if known is not None and known.status == "forgotten":
        return known
    if mark.kind == "forgotten":
        return _forgotten(name, mark.at)
    if known is None:
        return None
    if mark.kind == "credit":
        return known if event in known.events else _credited(known, mark, event)
    if mark.at < max(known.updated_at, known.status_at or known.updated_at):
        return known
    by = mark.by if mark.kind == "superseded" else ""
    return known.model_copy(update={"status": _BECOMES[mark.kind], "status_at": mark.at, "superseded_by": by})


def _credited(known: Point, mark: Mark, event: str) -> Point:
    return known.model_copy(
        update={
            "helped": known.helped + mark.a,
            "hindered": known.hindered + mark.b,
            "events": (event, *known.events)[:KEPT_EVENTS],
            "last_used_at": max(mark.at, known.last_used_at or mark.at),
        }
    )


def _forgotten(name: str, at: datetime) -> Point:
    """A stone over a grave: the id, the day, and nothing else."""
    record = Record(kind="fact", text="(forgotten)", scope=EVERYWHERE, created_at=at)
    return Point(id=name, record=record, status="forgotten", status_at=at, updated_at=at)


def _new(record: Record, event: str) -> Point:
    return Point(
        id=point_id(record),
        record=record,
        seen=record.stands_for,
        sources=(record.source,) if record.source else (),
        events=(event,),
        updated_at=record.created_at,
        expires_at=_expiry(record),
    )


def _expiry(record: Record) -> datetime | None:
    lifetime = LIFETIME.get(record.kind)
    return record.created_at + lifetime if lifetime else None


def weight(point: Point, now: datetime) -> float:
    """What age and confidence leave of a point's rank, 0.25 to 1: neither can hide what fits far better."""
    days = max((now - point.updated_at).total_seconds(), 0) / 86_400
    decay: float = 0.5 ** (days / HALF_LIFE_DAYS[point.record.kind])
    return (0.5 + 0.5 * decay) * (0.5 + 0.5 * point.confidence)


def _printable(text: str) -> str:
    """Without control characters, lone surrogates and the marks that make text look other than it is."""
    return "".join(c if c.isprintable() else " " for c in text)


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else f"{text[: MAX_TEXT_CHARS - 1].rstrip()}…"
