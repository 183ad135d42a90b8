"""Folders in which agents and tests ran: used, read, written and removed without following a link they may have left there
(WS1), and by nobody while another process is at work in them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from infra.errors import ConfigError, InvalidOutput
from infra.files import naming_a_full_disk

_PATH_ERRORS = {
    errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.EPERM,
}  # fmt: skip


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Hold a folder of checkouts with a lock that dies with this process, so that nobody takes it away (`take_away`)."""
    while True:
        with naming_a_full_disk("a worktree"):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            if folder.exists() and os.path.samestat(folder.stat(), os.fstat(handle)):  # not taken away meanwhile
                yield
                return
        finally:
            os.close(handle)


@contextmanager
def _out_of_use(folder: Path) -> Iterator[bool]:
    """Whether no living process uses a checkout in this folder; while inside, none begins to."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:  # gone, or a link
        yield not folder.exists()
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(handle)


def take_away(folder: Path, place: Path) -> bool:
    """Move a folder of checkouts to `place`, at once. False while a living process uses one of them, or when it is gone."""
    with _out_of_use(folder) as free, suppress(FileNotFoundError):
        if free:
            folder.rename(place)
            return True
    return False


def remove_empty(folder: Path) -> None:
    with _out_of_use(folder) as free, suppress(OSError):  # not empty: something unfinished is there
        if free:
            (folder / ".private").rmdir()
            folder.rmdir()


def refuse_outside(root: Path, path: Path) -> None:
    if path == root or not path.is_relative_to(root) or path.resolve() != path:
        raise ConfigError(
            f"{str(path)!r} leads out of the worktree folder {str(root)!r}; remove the link that is there"
        )


def remove_inside(root: Path, path: Path) -> None:
    """Delete `path`, which must lie inside the root with no link on the way (WS1)."""
    root = root.resolve()
    refuse_outside(root, path)
    for parent in reversed(path.relative_to(root).parents[:-1]):
        if (root / parent).exists() and not (root / parent).is_dir():
            delete(root / parent)
    delete(path)


def delete(path: Path) -> None:
    """Delete a file, link or folder, also one whose folders were made unreadable. Follows no link."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    elif path.exists():
        shutil.rmtree(path, onerror=_open_up_and_retry)


def _open_up_and_retry(function: Callable[..., object], name: str, _: object) -> None:
    with suppress(FileNotFoundError):  # somebody else removes it, too
        for folder in (Path(name).parent, Path(name)):
            if folder.is_dir() and not folder.is_symlink():
                folder.chmod(0o700)
        if Path(name).is_dir() and not Path(name).is_symlink():
            shutil.rmtree(name)
        else:
            Path(name).unlink(missing_ok=True)


@contextmanager
def within(root: Path, path: str, *, make: bool = False) -> Iterator[tuple[int | None, str]]:
    """The folder of `path` (opened without following a link; None when missing) and the name in it.

    What is wrong with the path becomes InvalidOutput, a full disk DiskFull.
    """
    parts = _checked_parts(path)
    with ExitStack() as opened, naming_a_full_disk(f"the file {path!r}"):
        try:
            folder: int | None = _open_folder(str(root), None, opened)
            for part in parts[:-1]:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(part, dir_fd=folder)
                folder = None if folder is None else _open_folder(part, folder, opened)
            yield folder, parts[-1]
        except OSError as error:
            if error.errno not in _PATH_ERRORS:
                raise
            raise InvalidOutput(f"{path!r} cannot be used in the repository: {error.strerror}") from None


def _open_folder(name: str, folder: int | None, opened: ExitStack) -> int | None:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        return None
    opened.callback(os.close, descriptor)
    return descriptor


def _checked_parts(path: str) -> tuple[str, ...]:
    """The parts of a path inside a repository. Raises InvalidOutput for every other path."""
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts) or not path.isprintable():
        raise InvalidOutput(f"{path!r} is not a path inside the repository")
    if any(is_git_name(part) for part in parts):
        raise InvalidOutput(f"{path!r} belongs to git itself and cannot be written")
    return tuple(parts)


def is_git_name(part: str) -> bool:
    """`.git` under any of the names that some file system takes for it."""
    return re.fullmatch(r"(\.git|git~\d+)[ .]*(:.*)?", part.casefold()) is not None
