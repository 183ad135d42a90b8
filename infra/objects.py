"""Large values by key (artifacts, test output, adapters): the protocol, and a folder that keeps it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from infra.errors import ConfigError
from infra.files import write_atomically
from infra.settings import Settings

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}(?:/[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}){0,9}")


class Objects(Protocol):
    """A store of bytes. Keys are 1 to 10 names joined by `/`, each of letters, digits and `._-`, none with a dot first."""

    def put(self, key: str, data: bytes) -> None:
        """Store or replace, all or nothing."""
        ...

    def get(self, key: str) -> bytes | None:
        """The bytes, or None when nothing is stored there."""
        ...

    def list(self, prefix: str = "") -> list[str]:
        """All keys that begin with `prefix`, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Forget it; nothing when it is not stored."""
        ...


def open_objects(settings: Settings) -> Objects:
    """The store in the folder `objects` of the home folder."""
    return FolderObjects(settings.root / "objects")


class FolderObjects:
    """Objects as files below `path`. Raises ConfigError for an unusable key or folder, DiskFull."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, key: str, data: bytes) -> None:
        write_atomically(self._file(key), data)

    def get(self, key: str) -> bytes | None:
        file = self._file(key)
        try:
            return file.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise ConfigError(f"object {key!r} cannot be read from {str(file)!r}: {error.strerror}") from error

    def list(self, prefix: str = "") -> list[str]:
        folder = self._file(name) if (name := prefix.rpartition("/")[0]) else self.path
        keys = (file.relative_to(self.path).as_posix() for file in folder.rglob("*") if file.is_file())
        return sorted(key for key in keys if key.startswith(prefix) and _KEY.fullmatch(key))

    def delete(self, key: str) -> None:
        try:
            self._file(key).unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            raise ConfigError(f"object {key!r} cannot be deleted: {error.strerror}; look at its rights") from error

    def _file(self, key: str) -> Path:
        """The file of `key`, certainly below the folder, also when a link lies in between."""
        if not _KEY.fullmatch(key):
            raise ConfigError(f"object key {key!r} is not usable; join names of letters, digits and . _ - by /")
        file = self.path / key
        if not file.resolve().is_relative_to(self.path.resolve()):
            raise ConfigError(f"object key {key!r} leads out of {str(self.path)!r} by a link; remove the link")
        return file
