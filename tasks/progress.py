"""What a running ticket does right now, for whoever watches in this process. Steps report; nothing depends on it."""

from __future__ import annotations

import logging
from collections.abc import Callable
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
    for listener in tuple(_listeners):
        try:
            listener(event)
        except Exception:  # noqa: BLE001  a listener is foreign code and only watches
            _log.debug("progress listener failed", exc_info=True)
