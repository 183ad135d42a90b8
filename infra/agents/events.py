"""What a program prints while it works: lines, JSON events, and the story that they tell. Nothing of it is trusted.

Every reader here takes any value for any field, because an agent's tools and the code it runs write to the same pipe.
"""

from __future__ import annotations

import json
import math
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from infra.agents import MAX_EVENTS, Activity, Session
from infra.llm import Usage
from infra.redaction import MASK

MAX_LINE_BYTES = 8 << 20
"""A longer line is left out. Events carry whole tool outputs and pictures."""
KEPT_CHARS = 8_000
"""Longest text kept of one field of an event, and of what was printed besides events."""
KEPT_ITEMS, KEPT_DEPTH = 100, 12
SHOWN_CHARS = 200
SPOKEN_SECONDS = 1.0
"""Plain lines become activities at most this often."""
MAX_SESSION_FILE_BYTES = 64 << 20
MAX_TOKENS, MAX_USD = 10**10, 10**5
"""Larger figures of one session are taken for nonsense."""

Event = dict[str, Any]
Overrun = Literal["turns", "usd"]


class Lines:
    """Cuts a stream of bytes at its newlines."""

    def __init__(self) -> None:
        self._line, self._too_long = bytearray(), False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that end in this chunk."""
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            self._add(piece)
            yield from self.flush()
        self._add(rest)

    def flush(self) -> Iterator[bytes]:
        """The line so far, which ends here."""
        if self._line:
            yield bytes(self._line)
        self._line, self._too_long = bytearray(), False

    def _add(self, piece: bytes) -> None:
        self._too_long = self._too_long or len(self._line) + len(piece) > MAX_LINE_BYTES
        self._line = bytearray() if self._too_long else self._line + piece


def parse(line: bytes) -> Event | None:
    """The JSON object that a line is, bounded; None for any other line."""
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        event = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return bounded(event) if isinstance(event, dict) else None


def bounded(value: Any, depth: int = 0) -> Any:
    """The same value with long texts, lists and mappings cut and only what JSON and UTF-8 can say."""
    if isinstance(value, str):
        return _clean(value[:KEPT_CHARS]) + ("…" if len(value) > KEPT_CHARS else "")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth >= KEPT_DEPTH and isinstance(value, dict | list):
        return None
    if isinstance(value, list):
        return [bounded(one, depth + 1) for one in value[:KEPT_ITEMS]]
    if isinstance(value, dict):
        return {_clean(name[:SHOWN_CHARS]): bounded(value[name], depth + 1) for name in list(value)[:KEPT_ITEMS]}
    return value


def _clean(text: str) -> str:
    return text.encode(errors="replace").decode().replace("\0", "")


def table(value: object, *names: str) -> Event:
    """The mapping at this place, or an empty one."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def items(value: object) -> list[Event]:
    """The mappings of a list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def text(value: object) -> str:
    return value if isinstance(value, str) else ""


def tokens(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_TOKENS else 0


def usd(value: object) -> float:
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_USD else 0.0
    )


class Story:
    """What a session's events tell so far. Every agent has a class of its own that reads its events.

    `ended_well`: the agent itself says so, in its own fields. `plain`: it prints no events, so its lines are its progress.
    """

    plain = False

    def __init__(self) -> None:
        self.said, self.session_id = "", ""
        self.usage, self.tool_calls, self.turns = Usage(), 0, 0
        self.ended_well = False
        self.last_event: Event = {}
        """Told by its files after the end; empty: nothing."""

    def read(self, event: Event) -> Iterator[Activity]:
        """Take an event in, and tell what happened."""
        yield from ()

    def close(self, exit_code: int | None) -> Iterator[Activity]:
        """After the end: what the session's files tell and the events did not."""
        yield from ()

    def say(self, said: object) -> Iterator[Activity]:
        if text(said).strip():
            self.said = text(said)
            yield Activity(kind="said", text=text(said)[:SHOWN_CHARS])

    def use_tool(self, name: object, what: object = "") -> Iterator[Activity]:
        self.tool_calls += 1
        yield Activity(kind="tool", text=f"{text(name)} {text(what)}".strip()[:SHOWN_CHARS])

    def use(self, total: Usage) -> Iterator[Activity]:
        """The session's usage is this now. Counters only grow, so a smaller one is an old one."""
        grown = Usage(
            prompt_tokens=max(0, total.prompt_tokens - self.usage.prompt_tokens),
            cached_tokens=max(0, total.cached_tokens - self.usage.cached_tokens),
            completion_tokens=max(0, total.completion_tokens - self.usage.completion_tokens),
            calls=max(0, total.calls - self.usage.calls),
            cost_usd=max(0.0, total.cost_usd - self.usage.cost_usd),
        )
        if grown != Usage():
            self.usage += grown
            yield Activity(kind="usage", usage=grown)


class Transcript:
    """The output of one session as it comes: kept within bounds, told to the story, and held against its limits."""

    def __init__(
        self,
        story: Story,
        session: Session,
        on_activity: Callable[[Activity], None],
        priced: Callable[[Usage], Usage] = lambda usage: usage,
        hidden: Sequence[str] = (),
    ) -> None:
        """`priced` adds the cost to a usage; `hidden` are secrets that the program can read and might print."""
        self.story, self._session, self._on_activity, self._priced = story, session, on_activity, priced
        self._hidden = [secret.encode() for secret in hidden]
        self._lines, self._spoke = Lines(), 0.0
        self._first: list[Event] = []
        self._last: deque[Event] = deque(maxlen=MAX_EVENTS - MAX_EVENTS // 4)
        self._output = ""

    @property
    def events(self) -> tuple[Event, ...]:
        return (*self._first, *self._last)

    @property
    def output(self) -> str:
        """The tail of what was printed besides events."""
        return self._output

    @property
    def usage(self) -> Usage:
        """What was used so far, and what it costs."""
        return self._priced(self.story.usage)

    @property
    def overrun(self) -> Overrun | None:
        """The session's limit that is passed: agents that have limits of their own end before."""
        if self.story.turns > self._session.max_turns:
            return "turns"
        most = self._session.max_usd
        return "usd" if most is not None and self.usage.cost_usd > most else None

    def feed(self, chunk: bytes) -> None:
        for line in self._lines.feed(chunk):
            self._take(line)

    def close(self, exit_code: int | None) -> None:
        """Nothing more will come."""
        for line in self._lines.flush():
            self._take(line)
        self._tell(self.story.close(exit_code))
        if self.story.last_event:
            self._keep(self.story.last_event)

    def _keep(self, event: Event) -> None:
        if len(self._first) < MAX_EVENTS // 4:
            self._first.append(event)
        else:
            self._last.append(event)

    def _take(self, line: bytes) -> None:
        for secret in self._hidden:
            line = line.replace(secret, MASK.encode())
        event = None if self.story.plain else parse(line)
        if event is not None:
            self._keep(event)
            self._tell(self.story.read(event))
            return
        words = _clean(line[-KEPT_CHARS:].decode(errors="replace"))
        self._output = f"{self._output}{words}\n"[-KEPT_CHARS:]
        if self.story.plain and words.strip() and time.monotonic() - self._spoke >= SPOKEN_SECONDS:
            self._spoke = time.monotonic()
            self._on_activity(Activity(kind="said", text=words.strip()[:SHOWN_CHARS]))

    def _tell(self, activities: Iterator[Activity]) -> None:
        for activity in activities:
            self._on_activity(activity.model_copy(update={"usage": self._priced(activity.usage)}))


def read_session_file(path: Path) -> bytes:
    """The content of a file that a sandbox left behind; nothing for a link, a pipe, a giant or none at all."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        return file.read() if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_SESSION_FILE_BYTES else b""


def session_files(folder: Path, suffix: str) -> list[Path]:
    """Files below a folder of an agent, sorted by path. Links to folders are not followed."""
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names if name.endswith(suffix))
    return sorted(found)


def session_events(folder: Path, suffix: str) -> Iterator[Event]:
    """All events of a session's files in their order."""
    for path in session_files(folder, suffix):
        for line in read_session_file(path).split(b"\n"):
            event = parse(line)
            if event is not None:
                yield event
