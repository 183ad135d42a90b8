"""Reading what a board's service answered: values that may be missing, of another type, or hostile, taken out safely."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any


def dig(value: object, *path: str) -> Any:
    """The value at `path`, or None when something on the way is missing or no object."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def items(value: object) -> list[Any]:
    """The list, or an empty one for anything else."""
    return value if isinstance(value, list) else []


def one_line(value: object) -> str | None:
    """Printable text in one line, or None."""
    if not isinstance(value, str):
        return None
    return " ".join("".join(c if c.isprintable() else " " for c in value).split()) or None


def moment(value: object) -> datetime | None:
    """An ISO 8601 time, aware and in UTC; one without a zone is UTC. None for anything else."""
    try:
        return aware(datetime.fromisoformat(value.strip())) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None


def aware(time: datetime) -> datetime:
    """The time in UTC; one without a zone is UTC."""
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def folded(names: Iterable[str]) -> set[str]:
    """Names as they are compared, without case."""
    return {name.casefold() for name in names}
