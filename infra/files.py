"""Writing a file so that a reader, or a process that is killed, sees the old bytes or the new ones and nothing between."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import ConfigError, DiskFull

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, data: bytes, mode: int | None = None) -> None:
    """Replace `path` with `data`; its folder is made. Permissions stay as they are unless `mode` names others.

    Raises DiskFull, or ConfigError when the place cannot be written. A killed writer leaves a hidden `.NAME.*.tmp` at most.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, data, mode)
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(f"no space left to write {str(path)!r}; free some and run again") from error
        raise ConfigError(
            f"cannot write {str(path)!r}: {error.strerror}; make it writable or choose another"
        ) from error


@contextmanager
def naming_a_full_disk(what: str) -> Iterator[None]:
    """Turn "no space" and "over quota" into DiskFull; `what` says what was being written."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(
                f"no space left while writing {what} ({error.filename!r}); free some and run again"
            ) from error
        raise


def _replace(path: Path, data: bytes, mode: int | None) -> None:
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")
    if mode is None and path.exists():
        mode = path.stat().st_mode & 0o777
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
    try:
        with open(handle, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            if mode is not None:
                os.fchmod(handle, mode)
            file.write(data)
            file.flush()
            os.fsync(handle)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
