"""Settings that survive a bad edit: every process reads factory.yaml anew and falls back to the last good copy (CF1).

Every tick is a process of its own, so the last good settings are a file: `<home>/run/factory.good.yaml`.
"""

from __future__ import annotations

import os
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from infra.errors import ConfigError, FactoryError
from infra.files import write_atomically
from infra.mistakes import Document, Place, read_document, secrets_in
from infra.sections import secrets_may_miss
from infra.settings import Settings, load_settings, parse_settings, settings_text, wanted_config_path

LOOK_SECONDS = 5.0
_ORIGIN = "# The last good copy of "


class Loaded(NamedTuple):
    """Settings to work with. `problem` says why they are not the file's, and what to mend; `warnings` stop nothing."""

    settings: Settings
    problem: str | None = None
    warnings: tuple[str, ...] = ()


def current_settings() -> Loaded:
    """The settings of factory.yaml, kept as the last good ones; of the last good copy when the file cannot be used.

    A missing variable that the file names as `$NAME` makes it unusable, too (CF4). Raises ConfigError when nothing
    usable is there (CF2). Call it in every process that does future work; a run keeps what it read at its start.
    """
    path = wanted_config_path()
    try:
        if not os.path.lexists(path):
            return _without_file(path)
        text = settings_text(path)
        settings = parse_settings(text, str(path))
    except ConfigError as error:
        return _last_good(path, error)
    return Loaded(settings, None, (*literal_secrets(settings, read_document(text, str(path))), *_keep(path, text)))


def settings_at_hand() -> Loaded:
    """As `current_settings`, for commands that use no secret: variables may be missing, and no copy is kept."""
    path = wanted_config_path()
    with secrets_may_miss():
        try:
            return Loaded(load_settings()) if os.path.lexists(path) else _without_file(path)
        except ConfigError as error:
            return _last_good(path, error)


class Edits:
    """The edits of factory.yaml, for a process that stays: `settings` are those that were taken last."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.problem: str | None = None
        self._next = 0.0

    def look(self) -> Loaded | None:
        """What changed: other settings, or another problem (None: it was mended). Reads the file every LOOK_SECONDS."""
        if time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + LOOK_SECONDS
        try:
            found = current_settings()
        except ConfigError as error:
            found = Loaded(self.settings, str(error))
        if (found.settings, found.problem) == (self.settings, self.problem):
            return None
        self.settings, self.problem = found.settings, found.problem
        return found


def is_news(settings: Settings, problem: str | None) -> bool:
    """Whether people were not told of this problem yet (`was_told`). None: there is none, and the next one is news."""
    if problem is None:
        _told_path(settings).unlink(missing_ok=True)
        return False
    try:
        return _told_path(settings).read_text(encoding="utf-8") != problem
    except (OSError, UnicodeDecodeError):
        return True


def was_told(settings: Settings, problem: str) -> None:
    """Keep it: every tick is a process of its own."""
    write_atomically(_told_path(settings), problem.encode())


def _told_path(settings: Settings) -> Path:
    return settings.root / "run" / "factory.problem"


def literal_secrets(settings: Settings, document: Document) -> tuple[str, ...]:
    """A sentence for each secret that stands in the file itself instead of as `$NAME`; quotes none of them."""
    found = [*secrets_in(settings.model_dump()), *_passwords_in_addresses(document.values)]
    places = [place if place in document.lines else place[:-1] for place in found]  # one, where a list may stand
    return tuple(
        f"line {document.lines.get(place, 0)}: `{'.'.join(map(str, place))}` holds the secret itself; {_ADVICE.get(place, _INSTEAD)}"
        for place in places
        if isinstance(written := _at(document.values, place), str) and not re.fullmatch(r"\$\w+", written)
    )


_INSTEAD = "put it into an environment variable and write `$NAME`"
_ADVICE: dict[Place, str] = {("database_url",): "remove the line and set DARKFACTORY_DATABASE_URL in the environment"}


def _passwords_in_addresses(values: dict[str, Any]) -> list[Place]:
    return [("database_url",)] if re.search(r"//[^/@]*:[^/@]+@", str(values.get("database_url", ""))) else []


def _at(values: Any, place: Place) -> object:
    for name in place:
        try:
            values = values[name]
        except (LookupError, TypeError):
            return None
    return values


def _without_file(path: Path) -> Loaded:
    """Defaults and environment, unless there was a file: then somebody is replacing it, or lost it."""
    if os.environ.get("DARKFACTORY_CONFIG") or _read_copy(path) is not None:
        raise ConfigError(f"{str(path)!r} is gone; put it back, or write an empty file there to work with the defaults")
    return Loaded(load_settings())


def _last_good(path: Path, error: ConfigError) -> Loaded:
    copy = _read_copy(path)
    if copy is None:
        raise error
    text, kept_at = copy
    try:
        settings = parse_settings(text, str(path))
    except ConfigError:
        raise error from None
    return Loaded(settings, f"{error}\nuntil then the settings of {kept_at:%Y-%m-%d %H:%M} UTC stay in force")


def _keep(path: Path, text: str) -> tuple[str, ...]:
    """Copy the file's text; a sentence when that is not possible. Only its owner may read it: it may hold a secret."""
    copy = _copy_path(path, text)
    wanted = _ORIGIN + repr(str(path.absolute())) + "\n" + text
    try:
        if not copy.is_file() or copy.read_text(encoding="utf-8") != wanted:
            write_atomically(copy, wanted.encode(), 0o600)
    except (FactoryError, OSError, UnicodeDecodeError) as error:
        return (f"no copy of the settings can be kept for the next bad edit: {error}",)
    return ()


def _read_copy(path: Path) -> tuple[str, datetime] | None:
    """The last good copy of this very file and when it was made, or None."""
    try:
        copy = _copy_path(path, path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "")
        origin, _, text = copy.read_text(encoding="utf-8").partition("\n")
        made_at = datetime.fromtimestamp(copy.stat().st_mtime, UTC)
    except (OSError, UnicodeDecodeError):
        return None
    return (text, made_at) if origin == _ORIGIN + repr(str(path.absolute())) else None


def _copy_path(path: Path, text: str) -> Path:
    """In the home that the environment or the file names, read so that a mistake elsewhere in the file does not matter."""
    line = re.search(r"^home:[^\n]*", text, re.MULTILINE)
    try:
        named = yaml.safe_load(line[0])["home"] if line else None
    except yaml.YAMLError:
        named = None
    home = os.environ.get("DARKFACTORY_HOME") or named or "~/.darkfactory"
    return Path(str(home)).expanduser().absolute() / "run" / "factory.good.yaml"
