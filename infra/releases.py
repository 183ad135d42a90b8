"""Releases: whole revisions of the factory's own repository below `<home>/releases`, and the one new runs come from.

Knows files only, so that a person, or a node whose database is away, can go back. A release is complete or not there; a
switch is one rename of the link `current`; without that link the installed package runs.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from infra.errors import ConfigError, WorkFailed
from infra.files import naming_a_full_disk, write_atomically
from infra.llm import Frozen
from infra.slots import file_lock

INSTALLED = "installed"
"""The name of the installed package among the releases."""
SMOKE_SECONDS = 120.0
_SHOWN_CHARS = 500
_EXTRACTION: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
_SHA = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class Book(Frozen):
    """`<home>/releases/book.json`, written before every switch: where to go back to, and what is never used again."""

    previous: str = INSTALLED
    refused: tuple[str, ...] = ()


def running() -> str:
    """The release that this process was started from."""
    place = Path(__file__).resolve().parents[1]
    return place.name if place.parent.name == "releases" and _SHA.fullmatch(place.name) else INSTALLED


class Releases:
    """The releases of one home. Everything may be repeated, and killed between any two lines."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "releases"

    @property
    def link(self) -> Path:
        return self.folder / "current"

    @property
    def book(self) -> Book:
        """Raises ConfigError for a file that is not ours."""
        try:
            return Book.model_validate_json((self.folder / "book.json").read_bytes())
        except FileNotFoundError:
            return Book()
        except ValidationError as error:
            place = str(self.folder / "book.json")
            raise ConfigError(
                f"{place!r} cannot be understood: {error}; remove it to forget earlier releases"
            ) from None

    def current(self) -> str:
        """What new runs come from: a revision, or `installed`."""
        try:
            return str(self.link.readlink())
        except FileNotFoundError:
            return INSTALLED

    def path(self, release: str) -> Path | None:
        """The folder of a release, None for the installed package. Raises ConfigError for one that is not here."""
        if release == INSTALLED:
            return None
        folder = self.folder / release
        if not _SHA.fullmatch(release) or not folder.is_dir():
            raise ConfigError(
                f"there is no release {release!r} in {str(self.folder)!r}; see `darkfactory repair status`"
            )
        return folder

    def has(self, release: str) -> bool:
        return release == INSTALLED or (bool(_SHA.fullmatch(release)) and (self.folder / release).is_dir())

    def add(self, sha: str, archive: Callable[[], bytes], smoke: str) -> None:
        """Make a revision ready: unpacked, on the disk, proved by the command `smoke` in it, and only then in its place.

        `archive` gives its tree as a tar below `<sha>/`. Raises WorkFailed when that leads out of its place or the command
        fails, DiskFull.
        """
        if self.has(sha):
            return
        with naming_a_full_disk("a release"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with file_lock(self.folder / "lock"):
                for left in self.folder.glob(".new-*"):
                    shutil.rmtree(left)
                if not self.has(sha):
                    self._add(sha, archive(), smoke)

    def _add(self, sha: str, archive: bytes, smoke: str) -> None:
        draft = self.folder / f".new-{sha}"
        try:
            with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
                members = [_contained(member) for member in packed]
                packed.extractall(draft, members=members, **_EXTRACTION)  # noqa: S202 - each was looked at
        except tarfile.TarError as error:
            raise WorkFailed(f"the tree of {sha!r} cannot be a release: {error}") from None
        prove(draft / sha, smoke)
        _sync_tree(draft / sha)
        (draft / sha).rename(self.folder / sha)
        _sync(self.folder)
        shutil.rmtree(draft)

    def switch(self, release: str, previous: str) -> bool:
        """Let new runs come from `release`; `previous` is where `roll_back` goes. False when it was refused here before."""
        book = self.book
        if release in book.refused:
            self._leave(book)
            return False
        self.path(release)
        if book.previous != previous:
            self._note(book.model_copy(update={"previous": previous}))
        self._point(release)
        return True

    def roll_back(self) -> tuple[str, str]:
        """Go back to the release before, or to the installed package where none is known, and never use the current one here
        again. Returns both, the left one first.

        Without a database. Raises ConfigError when there is nothing to go back to.
        """
        left, book = self.current(), self.book
        if left == INSTALLED:
            raise ConfigError("nothing to roll back: the installed package runs, and nothing was before it")
        if left not in book.refused:
            self._note(book.model_copy(update={"refused": (*book.refused, left)}))
        return left, self._leave(self.book)

    def _leave(self, book: Book) -> str:
        """Away from a release that was refused, to the one before it, or the installed package where that is not here, or
        was refused too."""
        if self.current() in book.refused:
            usable = self.has(book.previous) and book.previous not in book.refused
            self._point(book.previous if usable else INSTALLED)
        return self.current()

    def _note(self, book: Book) -> None:
        write_atomically(self.folder / "book.json", book.model_dump_json().encode())

    def _point(self, release: str) -> None:
        if release == self.current():
            return
        if release == INSTALLED:
            self.link.unlink()
        else:
            draft = self.folder / f".current.{secrets.token_hex(6)}"
            draft.symlink_to(release)
            draft.replace(self.link)
        _sync(self.folder)


def _contained(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The member, when it and what it links to stay in its place. Raises TarError. Python before 3.11.4 does not look."""
    places = [member.name]
    if member.issym():
        places.append(f"{posixpath.dirname(member.name)}/{member.linkname}")
    outside = any(posixpath.isabs(place) or posixpath.normpath(place).startswith("..") for place in places)
    if outside or (member.issym() and posixpath.isabs(member.linkname)):
        raise tarfile.TarError(f"{member.name!r} leads out of its place")
    if not (member.isfile() or member.isdir() or member.issym()):
        raise tarfile.TarError(f"{member.name!r} is neither file, folder nor link")
    return member


def prove(folder: Path, command: str) -> None:
    """Run a shell command in a release, with its code before the installed one and none of our secrets. Raises WorkFailed."""
    with tempfile.TemporaryDirectory(prefix="darkfactory-smoke-") as home:
        environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "HOME": home, "DARKFACTORY_HOME": home, "LANG": "C.UTF-8",
        }  # fmt: skip
        child = subprocess.Popen(
            ["/bin/sh", "-c", command], cwd=folder, env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            said, _ = child.communicate(timeout=SMOKE_SECONDS)
        except subprocess.TimeoutExpired:
            raise WorkFailed(f"the smoke command {command!r} did not end within {SMOKE_SECONDS:.0f} s") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if child.returncode != 0:
        tail = said.decode(errors="replace").strip()[-_SHOWN_CHARS:]
        raise WorkFailed(f"the smoke command {command!r} ended with exit code {child.returncode}: {tail!r}")


def _sync_tree(folder: Path) -> None:
    """Everything below is on the disk before the rename that makes it a release."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
