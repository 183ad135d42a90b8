"""What a running ticket does right now, for whoever watches in this process. Steps report; nothing depends on it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from pydantic import Field

from infra.llm import Frozen

Phase = Literal[
    "", "brief", "plan", "code", "test", "security", "collect", "evidence", "review", "judge", "revise", "publish"
]
"""Empty: a report about a role whose phase was told before, or that belongs to no phase."""


class Progress(Frozen):
    """One thing that happened. `tokens` are those written so far by the call that runs; `done` ends the role's call."""

    ticket: str
    phase: Phase = ""
    role: str = ""
    candidate: int = Field(default=0, ge=0)
    message: str = ""
    tokens: int = Field(default=0, ge=0)
    tokens_per_second: float = 0.0
    done: bool = False


_last = time.monotonic()
_silences: dict[object, float] = {}


@contextmanager
def may_be_silent(seconds: float) -> Iterator[None]:
    """A step that says nothing for up to `seconds`, because it has a time limit of its own, is not stuck meanwhile."""
    silence = object()
    _silences[silence] = time.monotonic() + seconds
    try:
        yield
    finally:
        del _silences[silence]
        touch()


def touch() -> None:
    """Something got on."""
    global _last
    _last = time.monotonic()


def idle_seconds() -> float:
    """How long nothing was reported in this process, without the silence that was announced. For any thread."""
    announced = _silences.copy().values()  # at once: steps begin and end while a heartbeat asks
    return max(0.0, time.monotonic() - max([_last, *announced]))


Listener = Callable[[Progress], None]

_listeners: list[Listener] = []
_log = logging.getLogger(__name__)


def subscribe(listener: Listener) -> Callable[[], None]:
    """Call `listener` with every report of this process, on the reporting thread. Returns what ends it again."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def report(
    ticket: str,
    *,
    phase: Phase = "",
    role: str = "",
    candidate: int = 0,
    message: str = "",
    tokens: int = 0,
    tokens_per_second: float = 0.0,
    done: bool = False,
) -> None:
    """Tell all listeners. Never raises: a broken screen must not cost a ticket its work."""
    event = Progress(
        ticket=ticket,
        phase=phase,
        role=role,
        candidate=candidate,
        message=message,
        tokens=tokens,
        tokens_per_second=tokens_per_second,
        done=done,
    )
    touch()
    for listener in tuple(_listeners):
        try:
            listener(event)
        except Exception:  # noqa: BLE001  a listener is foreign code and only watches
            _log.debug("progress listener failed", exc_info=True)
