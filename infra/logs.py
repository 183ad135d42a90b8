"""The form of every log line: one line of words, whom it is about first, secrets masked, hostile text harmless (OB1)."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from infra.processes import MARK, UNMARKED
from infra.redaction import redact

PACKAGES = ("infra", "tasks", "flows", "deployments", "__main__")
"""Whose lines are shown from INFO on; of everybody else's, warnings. The last one is a module that is started as a program."""
LONGEST = 4_000
"""Characters of a message, and of one line of a traceback."""

_nobody: Mapping[str, str] = {}
_about: ContextVar[Mapping[str, str]] = ContextVar("about", default=_nobody)


@contextmanager
def about(**names: str | None) -> Iterator[None]:
    """Every line that is logged inside carries these words: `board`, `ticket`, `run`, `session`, … (None: not that one).

    So do lines of tasks and `asyncio.to_thread` that are started inside, for they copy the context; a plain thread does not.
    """
    before = _about.get()
    _about.set({**before, **{name: value for name, value in names.items() if value}})
    try:
        yield
    finally:
        _about.set(before)  # not `reset`: an async generator may be closed in another context


class Lines(logging.Formatter):
    """`TIME level=… logger=… board=… ticket=… run=… session=… message`, and a traceback as lines that begin with `    | `.

    Nothing in a record can begin another line. `head` False: without time, level and logger, where they are shown anyway.
    """

    def __init__(self, head: bool = True) -> None:
        super().__init__()
        self._head = head

    def format(self, record: logging.LogRecord) -> str:
        words = [*(_head(record) if self._head else ()), *_subject(record), _flat(_message(record))]
        return "\n".join([" ".join(words), *self._traceback(record)])

    def _traceback(self, record: logging.LogRecord) -> Iterator[str]:
        told = self.formatException(record.exc_info) if record.exc_info else ""
        for text in filter(None, (told, record.stack_info)):
            yield from (f"    | {_flat(line)}" for line in redact(text).splitlines())


def start() -> None:
    """Log to stderr in this form, in a process that does not import Prefect; where it is imported, `deployments/logging.yml`
    says the same."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO)


def _head(record: logging.LogRecord) -> tuple[str, ...]:
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return at, f"level={record.levelname.lower()}", f"logger={record.name}"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, LookupError):  # logging would print such a line unmasked
        return f"{record.msg!r} {record.args!r}"


def _subject(record: logging.LogRecord) -> Iterator[str]:
    """Whom the line is about. In a run's own process it is at least that run; `step` is Prefect's word for its task."""
    run, step = os.environ.get(MARK, UNMARKED), getattr(record, "task_run_name", None)
    words = dict(_about.get())
    if run != UNMARKED:
        words.setdefault("run", run)
    if isinstance(step, str):
        words["step"] = step
    for name, value in words.items():
        yield f"{name}={_quoted(_flat(value))}"


def _quoted(value: str) -> str:
    return value if re.fullmatch(r"[\w.:/@+#-]+", value) else "'" + value.replace("'", r"\x27") + "'"


def _flat(text: str) -> str:
    """One line of bounded length without secrets and without what a terminal would obey."""
    plain = redact(text)
    kept = plain if len(plain) <= LONGEST else f"{plain[:LONGEST]}… ({len(plain)} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in kept)
