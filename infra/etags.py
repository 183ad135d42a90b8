"""What a service answered before, kept in a folder with its ETag for the processes that come later: every tick is a new one.

An answer that the service confirms (304) does not count against GitHub's hourly budget, says its documentation.
"""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from infra.errors import FactoryError
from infra.files import write_atomically
from infra.llm import Frozen

_MOST_ANSWERS = 300
_LONGEST_ANSWER = 1_000_000

_log = logging.getLogger(__name__)


class Kept(Frozen):
    """One answer: `etag` asks whether it is still true, `link` leads to the page after it."""

    etag: str
    link: str
    text: str


class Etags:
    """Answers by what was asked, which has to name the asker too. Losing some, or the whole folder, only costs calls."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, asked: str) -> Kept | None:
        """The answer of last time, if it was kept and can be read."""
        path = self._path(asked)
        try:
            kept = Kept.model_validate_json(path.read_bytes())
            os.utime(path)
        except (OSError, ValidationError):
            return None
        return kept

    def put(self, asked: str, kept: Kept) -> None:
        """Keep an answer. A place that cannot be written is only logged."""
        if len(kept.text) > _LONGEST_ANSWER:
            return
        try:
            write_atomically(self._path(asked), kept.model_dump_json().encode(), mode=0o600)
        except FactoryError as error:
            _log.warning("outcome=not-kept reason=%r", str(error))
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        with suppress(OSError):  # another process forgets too
            paths = [*self._folder.glob("*.json")]
            if len(paths) > _MOST_ANSWERS:
                for path in sorted(paths, key=lambda path: path.stat().st_mtime)[: _MOST_ANSWERS // 3]:
                    path.unlink(missing_ok=True)

    def _path(self, asked: str) -> Path:
        return self._folder / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"
