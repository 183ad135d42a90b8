"""Git without the user's git: a bare mirror per repository, worktrees made from it, and commits made in the sandbox.

Owns names, mirrors, worktrees, diffs and pushes. Host git runs with none of the user's or the repository's
configuration, and never in a folder where an agent or a test ran.
"""

from __future__ import annotations

import asyncio
import base64
import fnmatch
import hashlib
import os
import posixpath
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from pydantic import SecretStr

from infra.errors import AuthFailed, ConfigError, DiskFull, FactoryError, InfraError, InvalidOutput, Unreachable
from infra.files import naming_a_full_disk, write_atomically
from infra.folders import delete, in_use, is_git_name, refuse_outside, remove_empty, remove_inside, within
from infra.llm import Frozen
from infra.sandbox import WORKSPACE, Bind, Sandbox
from infra.slots import file_lock

MAX_TEXT_BYTES = 16 << 20
"""Larger files are not text that a model reads or writes."""

SESSION = "session"
"""Name of the file, beside a checkout, that says whose unfinished work is in it."""
_EMAIL = "darkfactory@localhost"
_GIT_SECONDS = 900.0
_MAX_NAME = 80
_CONFIG = (
    "core.hooksPath=/dev/null", "core.fsmonitor=false", "core.protectHFS=true", "core.bigFileThreshold=4m",
    "protocol.ext.allow=never", "submodule.recurse=false", "gc.auto=0", "maintenance.auto=false",
)  # fmt: skip
_SERVER = "git -c core.hooksPath=/dev/null -c 'safe.directory=*' -c gc.auto=0 -c receive.autogc=false"
_ENVIRONMENT = {
    "HOME": "/nonexistent",
    "LANG": "C.UTF-8",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_AUTHOR_NAME": "Darkfactory",
    "GIT_AUTHOR_EMAIL": _EMAIL,
    "GIT_COMMITTER_NAME": "Darkfactory",
    "GIT_COMMITTER_EMAIL": _EMAIL,
}
_LEFT_OUT = ("__pycache__/", "*.py[co]", ".pytest_cache/", ".ruff_cache/", ".mypy_cache/", "node_modules/")
"""What running tests leaves behind; never part of a change, whatever the repository ignores."""

_GIT_DIR_CONFIG = f"""[core]
\trepositoryformatversion = 0
\tbare = false
\tprotectHFS = true
[user]
\tname = Darkfactory
\temail = {_EMAIL}
"""
_COMMIT = """set -e
git read-tree "$BASE"
git add -A
tree=$(git write-tree)
if [ "$tree" = "$(git rev-parse "$BASE^{tree}")" ]; then echo "$BASE"; exit 0; fi
sha=$(git commit-tree "$tree" -p "$BASE" -F -)
git update-ref refs/heads/out "$sha"
git bundle create --quiet "$GIT_DIR/out.bundle" refs/heads/out "^$BASE"
echo "$sha"
"""


class ChangedFile(Frozen):
    """One file of a diff. `previous` is the path it was renamed from; lines are 0 for a binary file, and git takes a text of
    more than 4 MiB for one.

    `mode` is git's new mode ("100644", "120000" for a link, "160000" for a submodule; "000000" when deleted).
    """

    path: str
    previous: str | None = None
    status: Literal["added", "modified", "deleted", "renamed", "retyped"]
    added: int = 0
    removed: int = 0
    mode: str
    previous_mode: str
    binary: bool = False


class Merged(Frozen):
    """Two commits' trees as one. `conflicts` are the paths on which they collide; the tree holds them with git's marks."""

    tree: str
    conflicts: tuple[str, ...] = ()


def directory_name(key: str) -> str:
    """A file and branch name for any key: `[A-Za-z0-9._-]`, at most 97 characters, a different one for each key (WS2).

    A plain lower-case key stays as it is. Any other (upper case too: some file systems do not tell it apart) is
    cleaned and gets "-" and 64 bits of its hash; so does a key that already ends like that.
    """
    clean = re.sub(r"[^A-Za-z0-9._-]+", "_", key)
    clean = re.sub(r"\.(?=\.|$|lock$)", "_", clean)  # git refuses "..", a last "." and ".lock" in branch names
    clean = re.sub(r"^[.-]|^$", "_", clean)[:_MAX_NAME]
    if clean == key and clean == clean.lower() and not re.search(r"-[0-9a-f]{16}$", key):
        return key
    return f"{clean}-{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def _fetched(branch: str) -> str:
    """Where a mirror keeps what was fetched of a remote's branch. Flat: `a` and `a/b` may both have been branches."""
    return f"refs/darkfactory/remote/{directory_name(branch)}"


def branch_name(key: str) -> str:
    """The one branch of a ticket: `agent/<key>`. A plain key keeps its upper case, which every board's keys have (T8)."""
    plain = directory_name(key.lower()) == key.lower()
    return f"agent/{key if plain else directory_name(key)}"


class Remote(Frozen):
    """The other side of a fetch or push: a path or an address, and the token for its host when that is http(s)."""

    address: str
    token: SecretStr | None = None

    @classmethod
    def checked(cls, source: str, token: SecretStr | None = None) -> Remote:
        """A path is made absolute. Raises ConfigError for a path where no repository is, and for a token that anyone
        on the network could read."""
        remote = cls(address=_checked_source(source), token=token)
        if remote._header and not re.match(
            r"https:|http://(127\.0\.0\.1|localhost|\[::1\])[:/]", source, re.IGNORECASE
        ):
            raise ConfigError(f"a token is not sent to {remote.name!r} in the clear; use its https address as `remote`")
        return remote

    @property
    def name(self) -> str:
        """The address for people, without a password."""
        return _redacted(self.address)

    @property
    def server(self) -> tuple[str, ...]:
        """Run the other side of a local repository without its hooks, also when it belongs to another user."""
        return self._programs("upload-pack")

    @property
    def receiver(self) -> tuple[str, ...]:
        """As `server`, for a push."""
        return self._programs("receive-pack")

    def environment(self) -> dict[str, str]:
        """What git gets to know for this address alone: the token for its host, or the ssh agent.

        Git would carry the header along to wherever a redirect leads, so then it follows none. ssh finds the user's
        `~/.ssh` by itself and must not ask anything: nobody is there to answer.
        """
        if self._header:
            return {
                "GIT_CONFIG_COUNT": "2",
                "GIT_CONFIG_KEY_0": f"http.{self._host}.extraHeader",
                "GIT_CONFIG_VALUE_0": self._header,
                "GIT_CONFIG_KEY_1": "http.followRedirects",
                "GIT_CONFIG_VALUE_1": "false",
            }
        if self._is_ssh:
            agent = os.environ.get("SSH_AUTH_SOCK")
            return {"GIT_SSH_COMMAND": "ssh -o BatchMode=yes", **({"SSH_AUTH_SOCK": agent} if agent else {})}
        return {}

    def masked(self, text: str) -> str:
        """A text by git or the server without the token, should one of them repeat it."""
        if not self.token:
            return text
        return text.replace(self._basic, "***").replace(self.token.get_secret_value(), "***")

    @property
    def remedy(self) -> str:
        """What a person does about refused credentials."""
        if self._header:
            return "renew its `github.token`, which has to read and write the repository's contents"
        if self._host:
            return "set `github: {project, token}` of the repository in factory.yaml"
        if self._is_ssh:
            return (
                "try `ssh` to it by hand, and `ssh-add` the key, or name it in ~/.ssh/config, before the factory starts"
            )
        return "let the factory's user read and write it"

    @property
    def _host(self) -> str | None:
        """Scheme, host and port of an http(s) address."""
        found = re.match(r"(https?://)(?:[^/@]*@)?([^/@]+)", self.address, re.IGNORECASE)
        return f"{found[1]}{found[2]}/" if found else None

    @property
    def _basic(self) -> str:
        """The form in which GitHub takes a token over http, with any user name."""
        secret = self.token.get_secret_value() if self.token else ""
        return base64.b64encode(f"x-access-token:{secret}".encode()).decode()

    @property
    def _header(self) -> str | None:
        return f"Authorization: Basic {self._basic}" if self.token and self._host else None

    @property
    def _is_ssh(self) -> bool:
        by_scheme = re.match(r"(git\+)?ssh(\+git)?://", self.address) is not None
        return by_scheme or ("://" not in self.address and _is_address(self.address))

    def _programs(self, program: str) -> tuple[str, ...]:
        local = not _is_address(self.address) or self.address.startswith("file://")
        return (f"--{program}={_SERVER} {program}",) if local else ()


class Mirror:
    """The factory's own bare copy of a repository. The source's branches are at `refs/source/heads/*`.

    Methods block; each one that writes holds the mirror's lock. Git that fails raises InfraError with its message.
    `token` is for the http(s) address it is fetched from or pushed to, and reaches no other process than that git.
    """

    def __init__(self, path: Path, token: SecretStr | None = None) -> None:
        self.path = path
        self._token = token

    @classmethod
    def open(cls, folder: Path, name: str, source: str, token: SecretStr | None = None) -> Mirror:
        """Make or refresh the mirror of `source` (a path or URL). Idempotent, also after a kill in the middle.

        Raises ConfigError (no such path, no repository, no commits), AuthFailed, Unreachable, DiskFull.
        """
        remote = Remote.checked(source, token)
        with naming_a_full_disk("a mirror"):
            folder.mkdir(parents=True, exist_ok=True)
        mirror = cls(folder.resolve() / f"{directory_name(name)}.git", token)
        with mirror._locked() as lock:
            _init_bare(mirror.path)
            mirror._fetch(remote, lock)
        return mirror

    def base(self, branch: str | None) -> tuple[str, str]:
        """Name and sha of the branch to work on: the named one, or the one the source has checked out.

        A detached HEAD is no branch a pull request could go to: ConfigError, as for an unknown branch.
        """
        name = branch or self._head_branch()
        sha = self._resolve(f"refs/source/heads/{name}")
        if sha is None:
            raise ConfigError(f"the repository has no branch {name!r} with commits; set its `base_branch`")
        return name, sha

    def paths(self, sha: str) -> list[str]:
        """All regular files of a commit: no links, no submodules, no names that are not UTF-8."""
        return list(self.blobs(sha))

    def read(self, sha: str, path: str) -> bytes | None:
        """The content of a file in a commit, or None when there is no such file."""
        try:
            return self._run("cat-file", "blob", f"{sha}:{path}")
        except _Failed as error:
            if re.search(r"does not exist in|exists on disk, but not in|bad file|relative path syntax", error.stderr):
                return None
            raise

    def read_all(self, sha: str, paths: Collection[str]) -> dict[str, bytes]:
        """The content of those of the `paths` that are regular files of a commit, in their order, by two runs of git."""
        blobs = self.blobs(sha)
        wanted = [path for path in dict.fromkeys(paths) if path in blobs]
        return dict(zip(wanted, self.contents([blobs[path] for path in wanted]), strict=True))

    def blobs(self, sha: str) -> dict[str, str]:
        """Path and blob id of all regular files of a commit whose names are UTF-8."""
        entries = self._run("ls-tree", "-r", "-z", "--full-tree", sha).split(b"\0")
        return {path: blob for mode, blob, path in map(_tree_entry, entries) if mode.startswith("100") and path}

    def links(self, sha: str) -> dict[str, str]:
        """Path and target of all symbolic links of a commit; the target as a path of the repository, links not followed."""
        entries = map(_tree_entry, self._run("ls-tree", "-r", "-z", "--full-tree", sha).split(b"\0"))
        found = {path: blob for mode, blob, path in entries if mode == "120000" and path}
        targets = self.contents(list(found.values()))
        return {
            path: posixpath.normpath(posixpath.join(posixpath.dirname(path), target.decode(errors="replace")))
            for path, target in zip(found, targets, strict=True)
        }

    def sizes(self, blobs: Sequence[str]) -> list[int]:
        """The bytes of each of the blobs, in their order."""
        if not blobs:
            return []
        said = self._run("cat-file", "--batch-check=%(objectsize)", "--buffer", stdin=_lines(blobs))
        return [int(line) for line in said.split()]

    def contents(self, blobs: Sequence[str]) -> Iterator[bytes]:
        """The content of each of the blobs, in their order."""
        return _batched(self._run("cat-file", "--batch", "--buffer", stdin=_lines(blobs))) if blobs else iter(())

    def tar(self, sha: str, prefix: str) -> bytes:
        """The tree of a commit as an uncompressed tar below `prefix/`; the same for the same commit."""
        return self._run("archive", "--format=tar", f"--prefix={prefix}/", sha)

    def diff(self, base: str, head: str) -> str:
        """The change as a patch for people and models: binary files are only named, renames are found."""
        text = self._run("diff-tree", "-p", "-r", "-M", "--no-color", "--no-ext-diff", "--no-textconv", base, head)
        return text.decode(errors="replace")

    def patch(self, base: str, head: str, paths: Collection[str]) -> bytes:
        """The change of these paths as `git apply` takes it, binary files too; nothing for no paths."""
        options = (
            "-p",
            "-r",
            "--binary",
            "--full-index",
            "--no-renames",
            "--no-color",
            "--no-ext-diff",
            "--no-textconv",
        )
        return self._run("diff-tree", *options, base, head, "--", *paths) if paths else b""

    def changed(self, base: str, head: str) -> list[ChangedFile]:
        """Every file that differs between two commits, in path order."""
        found = self._run(
            "diff-tree", "-r", "-z", "-M", "--raw", "--numstat", "--no-ext-diff", "--no-textconv", base, head
        )
        return _changed_files(found.decode(errors="replace").split("\0"))

    def violations(
        self, base: str, head: str, *, protected_paths: Sequence[str], max_files: int, max_lines: int
    ) -> tuple[str, ...]:
        """The rules a diff breaks, one sentence each. Both names of a renamed file count; globs ignore case."""
        files = self.changed(base, head)
        lines = sum(f.added + f.removed for f in files)
        found = [sentence for f in files for sentence in _file_violations(f, protected_paths)]
        for file in files:
            if file.binary and file.status != "deleted" and b"\0" not in (self.read(head, file.path) or b"\0")[:8000]:
                found.append(f"{file.path!r} is text whose lines git does not count (over 4 MiB, or by an attribute).")
        if len(files) > max_files:
            found.append(f"The change touches {len(files)} files, more than the {max_files} allowed.")
        if lines > max_lines:
            found.append(f"The change has {lines} changed lines, more than the {max_lines} allowed.")
        return tuple(found)

    @contextmanager
    def worktree(self, root: Path, key: str, name: str, sha: str, session: str = "") -> Iterator[Worktree]:
        """A fresh checkout of `sha` at `root/<key>/<name>`, the same place each time, removed on exit whatever happens.

        What a killed run left there is removed first; only a `session`, which names all that its work was begun with, gets
        back what it had changed there, and what it changed stays on an error (WS3), but for a full disk: see
        `Worktree.begin`. The caller holds the ticket's claim. Raises ConfigError when the place, after links, is not inside the root (WS1).
        """
        with naming_a_full_disk("a worktree"):
            root.mkdir(parents=True, exist_ok=True)
        path = root.resolve() / directory_name(key) / directory_name(name)
        private = path.parent / ".private" / path.name
        worktree = Worktree(self, path, private, sha, session)
        if worktree.begun is None:
            self._remove(root, private, path)
        else:
            refuse_outside(root.resolve(), path)
        stays = False
        try:
            with in_use(path.parent):
                if worktree.begun is None:
                    with self._locked() as lock, naming_a_full_disk("a worktree"):
                        private.mkdir(parents=True)
                        self._run("worktree", "add", "--quiet", "--detach", str(path), sha, keep=lock)
                yield worktree
        except BaseException as error:
            stays = worktree.stays_after(error)
            raise
        finally:
            if not stays:  # the session's mark first: half removed, a checkout is nobody's work
                self._remove(root, private, path)
                remove_empty(path.parent)

    def point(self, ref: str, sha: str) -> None:
        """Set a ref of the mirror (`refs/…`)."""
        with self._locked() as lock:
            self._run("update-ref", ref, sha, keep=lock)

    def push(self, remote: str, branch: str, sha: str) -> None:
        """Make `branch` of `remote` (a bare repository's path or a URL) point at `sha`; doing it twice changes nothing.

        Replaces only what the factory itself committed there: a tip by anyone else raises ConfigError. Raises
        AuthFailed, Unreachable (also when the branch moves meanwhile), ConfigError (no such remote, refused).
        """
        other = Remote.checked(remote, self._token)
        ref = f"refs/heads/{branch}"
        seen = self._remote_tip(other, ref)
        if seen == sha:
            return
        with self._locked() as lock:
            if seen:
                self._refuse_foreign(other, ref, seen, lock)
            self._remote(
                other, "push", "--quiet", "--no-verify", f"--force-with-lease={ref}:{seen}", *other.receiver,
                other.address, f"{sha}:{ref}", keep=lock,
            )  # fmt: skip

    def take(self, remote: str, branches: Sequence[str]) -> dict[str, str]:
        """Bring those of the branches that `remote` has into the mirror. Returns the tip of each that is there.

        Raises AuthFailed, Unreachable and ConfigError as `push`.
        """
        other = Remote.checked(remote, self._token)
        tips = self.tips(remote, branches)
        if tips:
            refs = [f"+refs/heads/{name}:{_fetched(name)}" for name in tips]
            with self._locked() as lock:
                self._remote(
                    other, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--update-shallow",
                    *other.server, other.address, *refs, keep=lock,
                )  # fmt: skip
        return {name: sha for name in tips if (sha := self._resolve(_fetched(name)))}

    def take_proposal(self, remote: str, number: int) -> str | None:
        """The head commit of a pull request that GitHub keeps by its number, brought into the mirror; None when it is gone.

        It may be a stranger's. Raises as `take`.
        """
        other, ref = Remote.checked(remote, self._token), f"refs/pull/{int(number)}/head"
        if not self._remote_tip(other, ref):
            return None
        kept = f"refs/darkfactory/proposed/{int(number)}"
        with self._locked() as lock:
            self._remote(
                other, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--update-shallow", *other.server,
                other.address, f"+{ref}:{kept}", keep=lock,
            )  # fmt: skip
        return self._resolve(kept)

    def tips(self, remote: str, branches: Sequence[str] = ()) -> dict[str, str]:
        """What the branches of `remote` (all, or the named ones) point at; nothing is fetched."""
        other = Remote.checked(remote, self._token)
        wanted = [f"refs/heads/{name}" for name in branches] or ["refs/heads/*"]
        listing = self._remote(other, "ls-remote", *other.server, other.address, *wanted).decode(errors="replace")
        found = {
            ref.removeprefix("refs/heads/"): sha for sha, _, ref in (x.partition("\t") for x in listing.splitlines())
        }
        return {name: found[name] for name in branches if name in found} if branches else found

    def merge_base(self, one: str, other: str) -> str | None:
        """The best common ancestor of two commits, or None when they have none that is here."""
        try:
            return self._run("merge-base", one, other).decode().split("\n")[0] or None
        except _Failed:
            return None

    def contains(self, commit: str, ancestor: str) -> bool:
        """Whether `ancestor` is `commit` or lies in its past."""
        return self.merge_base(commit, ancestor) == ancestor

    def merge(self, ours: str, theirs: str) -> Merged:
        """Both commits' trees merged, without a checkout: no filter, hook or driver of the repository runs."""
        try:
            said = self._merge_tree(ours, theirs)
        except _Failed as error:
            if not error.stdout:
                raise
            said = error.stdout
        tree, *paths = said.decode(errors="replace").rstrip("\0").split("\0")
        return Merged(tree=tree, conflicts=tuple(dict.fromkeys(path for path in paths if path)))

    def _merge_tree(self, ours: str, theirs: str) -> bytes:
        with self._locked() as lock:
            return self._run(
                "merge-tree", "--write-tree", "--name-only", "--no-messages", "-z", ours, theirs, keep=lock
            )

    def commit_tree(self, tree: str, parents: Sequence[str], message: str) -> str:
        """A commit of the factory with this tree (or a commit's tree). The same again is the same commit."""
        seconds = max(map(self.committed_at, parents)) + 1
        named = [part for parent in parents for part in ("-p", parent)]
        dates = {"GIT_AUTHOR_DATE": f"@{seconds} +0000", "GIT_COMMITTER_DATE": f"@{seconds} +0000"}
        with self._locked() as lock:
            sha = _git(
                f"--git-dir={self.path}", "commit-tree", f"{tree}^{{tree}}", *named, "-F", "-",
                cwd=self.path, keep=lock, stdin=message.encode(errors="replace") or b"\n", more=dates,
            )  # fmt: skip
            found = sha.decode().strip()
            self._run("update-ref", f"refs/darkfactory/commits/{found}", found, keep=lock)
        return found

    def advance(self, remote: str, branch: str, sha: str, before: str) -> None:
        """Move `branch` of `remote` from `before` on to `sha`, which has it in its past; doing it twice changes nothing.

        Nobody's commit is ever lost: Unreachable when the branch is elsewhere by now. Else raises what `push` does.
        """
        if not self.contains(sha, before):
            raise InfraError(f"{sha!r} does not follow {before!r}, so {branch!r} is not moved; run again")
        ref = f"refs/heads/{branch}"
        tip = self.tips(remote, [branch]).get(branch)
        if tip == sha:
            return
        if tip != before:
            raise Unreachable(f"the branch {branch!r} moved meanwhile (to {tip!r}); run again")
        other = Remote.checked(remote, self._token)
        with self._locked() as lock:
            self._remote(
                other, "push", "--quiet", "--no-verify", f"--force-with-lease={ref}:{before}", *other.receiver,
                other.address, f"{sha}:{ref}", keep=lock,
            )  # fmt: skip

    def sweep(self, root: Path, keep: set[str]) -> list[str]:
        """Remove the worktrees of all tickets whose folder names are not in `keep`. Returns the names removed."""
        if not root.is_dir():
            return []
        gone = sorted(entry.name for entry in root.resolve().iterdir() if entry.name not in keep)
        self._remove(root, *(root.resolve() / name for name in gone))
        return gone

    def accept(self, bundle: Path, sha: str) -> None:
        """Take the commit `sha` from a bundle that the sandbox made; its objects are checked as data of a stranger."""
        ref = f"refs/darkfactory/commits/{sha}"
        with self._locked() as lock:
            try:
                self._run(
                    "-c", "fetch.fsckObjects=true", "fetch", "--quiet", "--no-tags", "--no-write-fetch-head",
                    str(bundle), f"+refs/heads/out:{ref}", keep=lock,
                )  # fmt: skip
            except _Failed as error:
                raise InvalidOutput(f"the change cannot become a commit: {_short(error.stderr)}") from None
        if self._resolve(ref) != sha:
            raise InvalidOutput(f"the sandbox handed out another commit than {sha!r}")

    def committed_at(self, sha: str) -> int:
        """Unix time of a commit."""
        return int(self._run("show", "-s", "--format=%ct", sha))

    def written_at(self, sha: str, path: str, lines: Sequence[int]) -> dict[int, int]:
        """Unix time of the commit that wrote each of these lines (from 1) of a file; at most 200 lines are looked at."""
        wanted = [f"-L{line},{line}" for line in lines[:200]]
        said = self._run("blame", "--porcelain", *wanted, sha, "--", path).decode(errors="replace").splitlines()
        times: dict[str, int] = {}
        found: list[tuple[int, str]] = []
        for line in said:
            if header := re.fullmatch(r"([0-9a-f]{40}) \d+ (\d+)( \d+)?", line):
                found.append((int(header[2]), header[1]))
            elif found and line.startswith("committer-time "):
                times[found[-1][1]] = int(line.split()[1])
        return {number: times[commit] for number, commit in found if commit in times}

    def _run(self, *arguments: str, keep: int | None = None, stdin: bytes = b"") -> bytes:
        return _git(f"--git-dir={self.path}", *arguments, cwd=self.path, keep=keep, stdin=stdin)

    def _remote(self, remote: Remote, *arguments: str, keep: int | None = None) -> bytes:
        return _ask(remote, f"--git-dir={self.path}", *arguments, cwd=self.path, keep=keep)

    def _resolve(self, ref: str) -> str | None:
        try:
            return self._run("rev-parse", "--quiet", "--verify", f"{ref}^{{commit}}").decode().strip()
        except _Failed:
            return None

    def _head_branch(self) -> str:
        try:
            ref = self._run("symbolic-ref", "--quiet", "refs/source/HEAD").decode().strip()
        except _Failed:
            raise ConfigError(
                "the repository has no branch with commits checked out (detached HEAD?); set its `base_branch`"
            ) from None
        return ref.removeprefix("refs/source/heads/")

    def _fetch(self, source: Remote, lock: int) -> None:
        listing = self._remote(
            source, "ls-remote", "--symref", *source.server, source.address, "HEAD", "refs/heads/*", keep=lock
        ).decode()
        if not re.search(r"\t(HEAD|refs/heads/.+)$", listing, re.MULTILINE):
            raise ConfigError(f"the repository {source.name!r} is empty: it has no branch with a commit")
        self._remote(
            source, "fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--update-shallow",
            *source.server, source.address, "+refs/heads/*:refs/source/heads/*", keep=lock,
        )  # fmt: skip
        head = re.search(r"^ref: refs/heads/(.+)\tHEAD$", listing, re.MULTILINE)
        if head:
            self._run("symbolic-ref", "refs/source/HEAD", f"refs/source/heads/{head[1]}", keep=lock)
        else:
            (self.path / "refs/source/HEAD").unlink(missing_ok=True)

    def _remote_tip(self, remote: Remote, ref: str) -> str:
        """What the remote's ref points at, or ""."""
        listing = self._remote(remote, "ls-remote", *remote.server, remote.address, ref).decode()
        return listing.split("\t")[0].strip()

    def _refuse_foreign(self, remote: Remote, ref: str, tip: str, lock: int) -> None:
        seen = f"refs/darkfactory/seen/{tip}"
        self._remote(
            remote, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", *remote.server, remote.address,
            f"+{ref}:{seen}", keep=lock,
        )  # fmt: skip
        committer = self._run("show", "-s", "--format=%ce", seen).decode(errors="replace").strip()
        if committer != _EMAIL:
            raise ConfigError(
                f"{ref!r} of {remote.name!r} ends with a commit by {committer!r} ({tip[:12]}), which is not "
                "overwritten: merge, rename or delete that branch"
            )
        self._refuse_foreign_below(remote, ref, seen)

    def _refuse_foreign_below(self, remote: Remote, ref: str, seen: str) -> None:
        """A person's commits that the factory added to later; what came from a branch of the repository is not theirs."""
        said = self._run("log", "--first-parent", "--format=%ce", seen, "--not", "--glob=refs/source/heads/*")
        others = sorted(set(said.decode(errors="replace").split()) - {_EMAIL})
        if others:
            raise ConfigError(
                f"{ref!r} of {remote.name!r} holds commits by {', '.join(map(repr, others[:3]))}, which are not "
                "overwritten: merge, rename or delete that branch"
            )

    def _remove(self, root: Path, *paths: Path) -> None:
        """Delete folders inside the root and forget the worktrees that were there."""
        for path in paths:
            remove_inside(root, path)
        if self.path.is_dir():
            with self._locked():
                self._forget_lost_worktrees()

    def _forget_lost_worktrees(self) -> None:
        """As `git worktree prune`, which spares one whose making was killed ("locked: initializing")."""
        for entry in self.path.glob("worktrees/*"):
            try:
                lost = not Path((entry / "gitdir").read_text().strip()).exists()
            except OSError:
                lost = True
            if lost:
                shutil.rmtree(entry, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the mirror's lock, after clearing what a killed git left. Yields the lock's descriptor."""
        with file_lock(self.path.with_name(self.path.name + ".lock")) as lock:
            for pattern in ("*.lock", "refs/**/*.lock", "worktrees/*/*.lock", "objects/pack/tmp_*"):
                for leftover in self.path.glob(pattern):
                    leftover.unlink(missing_ok=True)
            yield lock


class Worktree:
    """A checkout of one commit that agents and tests may ruin. Made and removed by `Mirror.worktree`.

    `read`, `write` and `delete` follow no link and touch no `.git`: such a path raises InvalidOutput. `begun` is the commit
    that its session began with, when an earlier run of that session left its changes here.
    """

    def __init__(self, mirror: Mirror, path: Path, private: Path, sha: str, session: str = "") -> None:
        self.path, self.sha = path, sha
        self._mirror, self._private, self._session = mirror, private, session
        self.begun = self._begun()

    def begin(self, start: str) -> str:
        """From here on the changes of the session are worth keeping: on an error, or a kill, the next one goes on with them.

        Returns `start`, the commit it begins with.
        """
        if self._session:
            write_atomically(self._private / SESSION, f"{self._session} {start}".encode())
            self.begun = start
        return start

    def end(self) -> None:
        """Nothing here is worth keeping any more."""
        self.begun = None

    def stays_after(self, error: BaseException) -> bool:
        """Whether what is here outlives the error. It does not when it filled the disk."""
        return self.begun is not None and not isinstance(error, DiskFull)

    def _begun(self) -> str | None:
        try:
            session, _, start = (self._private / SESSION).read_text().partition(" ")
        except (OSError, UnicodeDecodeError):
            return None
        if not start or session != self._session or not self.path.is_dir():
            return None
        return self._mirror._resolve(start)  # None when the mirror was made anew

    def read(self, path: str) -> str | None:
        """The text of a file; None when there is none, or when it is not UTF-8 text of at most MAX_TEXT_BYTES."""
        data = self.read_bytes(path, MAX_TEXT_BYTES)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError:
            return None

    def read_bytes(self, path: str, most: int) -> bytes | None:
        """The content of a regular file of at most `most` bytes, else None."""
        with within(self.path, path) as (folder, name):
            if folder is None:
                return None
            try:
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            except FileNotFoundError:
                return None
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return None
                data = file.read(most + 1)
        return data if len(data) <= most else None

    def matching(self, patterns: Sequence[str], most: int) -> list[str]:
        """Up to `most` paths of files, sorted, that match one of the globs (`*` also goes over `/`). Follows no link."""
        found = (
            (Path(folder) / name).relative_to(self.path).as_posix()
            for folder, _, names in os.walk(self.path)
            for name in names
            if ".git" not in Path(folder).relative_to(self.path).parts
        )
        return sorted(path for path in found if any(fnmatch.fnmatchcase(path, glob) for glob in patterns))[:most]

    def write(self, path: str, text: str) -> None:
        """Make or replace a file, byte for byte; an existing one keeps its mode."""
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise InvalidOutput(f"the text for {path!r} is not valid Unicode: {error.reason}") from None
        with within(self.path, path, make=True) as (folder, name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(name, flags, 0o644, dir_fd=folder)
            with os.fdopen(descriptor, "wb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise InvalidOutput(f"{path!r} is not a regular file")
                file.truncate()
                file.write(data)

    def delete(self, path: str) -> None:
        """Remove a file; one that is not there is no error."""
        with within(self.path, path) as (folder, name):
            if folder is not None:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)

    async def commit(self, sandbox: Sandbox, message: str) -> str:
        """Commit everything in the worktree on top of `sha`. Returns the new sha, or `sha` when nothing differs.

        Git runs in the sandbox, on a git folder that nobody else ever saw; a bundle comes out. The same content on
        the same parent gives the same sha. Raises InvalidOutput when git refuses the content.
        """
        git_dir = await asyncio.to_thread(self._fresh_git_dir, "commit")
        seconds = await asyncio.to_thread(self._mirror.committed_at, self.sha)
        inside = "/git" if sandbox.name != "none" else str(git_dir)
        work_tree = WORKSPACE if sandbox.name != "none" else str(self.path)
        date = f"@{seconds + 1} +0000"
        result = await sandbox.run(
            ["/bin/sh", "-c", _COMMIT],
            worktree=self.path,
            environment={
                **{name: value for name, value in _ENVIRONMENT.items() if name.startswith("GIT_")},
                "GIT_DIR": inside,
                "GIT_WORK_TREE": work_tree,
                "GIT_AUTHOR_DATE": date,
                "GIT_COMMITTER_DATE": date,
                "BASE": self.sha,
            },
            binds=self._binds(git_dir),
            stdin=message.replace("\0", "").encode(errors="replace"),
        )
        sha = result.output.strip().rpartition("\n")[2]
        if result.exit_code != 0 or not re.fullmatch(r"[0-9a-f]{40}", sha):
            raise _commit_error(result.output)
        if sha != self.sha:
            await asyncio.to_thread(self._mirror.accept, git_dir / "out.bundle", sha)
        return sha

    def git_binds(self) -> list[Bind]:
        """Binds that make `git status`, `diff`, `log` and even `commit` work for an agent in the sandbox.

        They give it a git folder of its own; nothing it does there is ever used.
        """
        git_dir = self._fresh_git_dir("agent")
        _git(f"--git-dir={git_dir}", "read-tree", self.sha, cwd=git_dir)
        pointer = self._private / "pointer"
        with naming_a_full_disk("a git folder"):
            pointer.write_text("gitdir: /git\n")
        return [*self._binds(git_dir), Bind(source=pointer, target=f"{WORKSPACE}/.git")]

    def _binds(self, git_dir: Path) -> list[Bind]:
        objects = Bind(source=self._mirror.path / "objects", target="/objects")
        return [Bind(source=git_dir, target="/git", writable=True), objects]

    def _fresh_git_dir(self, name: str) -> Path:
        """A git folder with the mirror's objects, written by hand: nothing of a template or an earlier use is in it.

        Its alternate `../../objects` is a link here and the bind `/objects` beside `/git` in the sandbox.
        """
        git_dir = self._private / name
        with naming_a_full_disk("a git folder"):
            delete(git_dir)
            for folder in ("objects/info", "refs/heads", "info"):
                (git_dir / folder).mkdir(parents=True)
            (git_dir / "HEAD").write_text(f"{self.sha}\n")
            (git_dir / "config").write_text(_GIT_DIR_CONFIG)
            (git_dir / "objects/info/alternates").write_text("../../objects\n")
            (git_dir / "info/exclude").write_text("\n".join(_LEFT_OUT) + "\n")
            with suppress(FileNotFoundError):
                shutil.copyfile(self._mirror.path / "shallow", git_dir / "shallow")
            with suppress(FileExistsError):
                (self._private / "objects").symlink_to(self._mirror.path / "objects")
        return git_dir


def ensure_bare(path: Path, source_mirror: Mirror, branch: str) -> None:
    """The embedded forge: a bare repository at `path` that holds `branch`. Idempotent.

    The branch follows the source as long as that is a fast-forward; what was merged here is not thrown away.
    """
    with naming_a_full_disk("the bare repository"):
        path.parent.mkdir(parents=True, exist_ok=True)
    forge = Mirror(path.resolve())
    with forge._locked() as lock:
        _init_bare(forge.path)
        refs = f"refs/source/heads/{branch}:refs/heads/{branch}"
        flags = ("--no-tags", "--no-write-fetch-head", "--update-shallow")
        try:
            forge._run("fetch", *flags, str(source_mirror.path), refs, keep=lock)
        except _Failed as error:
            if "non-fast-forward" not in error.stderr:
                raise
        forge._run("symbolic-ref", "HEAD", f"refs/heads/{branch}", keep=lock)


def found_repository(path: Path, files: Mapping[str, str], message: str) -> Mirror:
    """A bare repository at `path` whose branch `main` begins with one commit of `files` (path -> text).

    One that has a `main` already stays as it is. A kill in the middle leaves no branch, so the next call begins anew.
    """
    with naming_a_full_disk("the repository"):
        path.parent.mkdir(parents=True, exist_ok=True)
    made = Mirror(path.resolve())
    with made._locked() as lock:
        _init_bare(made.path)
        if made._resolve("refs/heads/main") is None:
            made._run("fast-import", "--quiet", "--done", keep=lock, stdin=_first_commit(files, message))
    return made


def _first_commit(files: Mapping[str, str], message: str) -> bytes:
    """A stream for `git fast-import`."""

    def data(text: str) -> bytes:
        raw = text.encode()
        return b"data %d\n%b\n" % (len(raw), raw)

    head = f"commit refs/heads/main\ncommitter Darkfactory <{_EMAIL}> {int(time.time())} +0000\n".encode()
    named = (f"M 100644 inline {path}\n".encode() + data(text) for path, text in files.items())
    return b"".join([head, data(message), *named, b"done\n"])


def clone_branch(bare: Path, branch: str, folder: Path) -> None:
    """A person's own clone of a repository of the factory, with `branch` checked out. See `refuse_other_folder`."""
    refuse_other_folder(folder, bare)
    if _is_clone_of(folder, bare):
        return
    with naming_a_full_disk("the clone"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = folder.with_name(f".{folder.name}.darkfactory")
        delete(draft)
        _git("clone", "--quiet", "--no-hardlinks", "--template=", f"--branch={branch}", str(bare), str(draft), cwd=bare)
        draft.rename(folder)


def refuse_other_folder(folder: Path, bare: Path) -> None:
    """Raises ConfigError when something else than a clone of `bare` is in the folder. A clone is left as it is."""
    taken = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    if taken and not _is_clone_of(folder, bare):
        raise ConfigError(f"{str(folder)!r} is not empty; name a new folder, nothing in this one is overwritten")


def _is_clone_of(folder: Path, bare: Path) -> bool:
    config = folder / ".git" / "config"
    return config.is_file() and f"url = {bare}\n" in config.read_text(errors="replace")


async def is_dirty(checkout: Path, sandbox: Sandbox) -> bool:
    """Whether a person's checkout has changes that are not committed (untracked files count, ignored ones do not).

    A bare repository has none. Git runs in the sandbox with the checkout read-only, so its hooks, filters and fsmonitor reach nothing.
    Raises InfraError with git's message when it cannot tell.
    """
    if not (checkout / ".git").exists():
        return False
    binds = [Bind(source=path, target=str(path)) for path in (checkout.resolve(), *_linked_git_dirs(checkout))]
    with tempfile.TemporaryDirectory() as scratch:
        result = await sandbox.run(
            ["git", *_options(), "-c", "safe.directory=*", "-C", str(checkout.resolve()), "status", "--porcelain"],
            worktree=Path(scratch).resolve(),
            environment={"GIT_OPTIONAL_LOCKS": "0", **{k: v for k, v in _ENVIRONMENT.items() if k.startswith("GIT_")}},
            binds=binds,
        )
    if result.exit_code != 0:
        raise InfraError(f"cannot tell whether {str(checkout)!r} has uncommitted changes: {_short(result.output)}")
    return bool(result.output.strip())


_FULL = ("No space left on device", "Disk quota exceeded", "unable to write file", "sha1 file write error")


class _Failed(InfraError):
    """Git ended with an error; callers that know why name it better."""

    def __init__(self, arguments: Sequence[str], stderr: str, stdout: bytes = b"") -> None:
        command = next((a for a in arguments if not a.startswith("-") and "=" not in a), "")
        super().__init__(f"git {command} failed: {_short(stderr)}")
        self.stderr, self.stdout = stderr, stdout


def _options() -> list[str]:
    return [part for setting in _CONFIG for part in ("-c", setting)]


def _git(
    *arguments: str,
    cwd: Path,
    keep: int | None = None,
    stdin: bytes = b"",
    remote: Remote | None = None,
    more: Mapping[str, str] | None = None,
    timeout_seconds: float = _GIT_SECONDS,
) -> bytes:
    """Run host git and return its output. `keep` is a lock that git holds on to, should we be killed before it ends.

    Only with a `remote`, or by `more`, does it get to know more than the fixed environment. Not GitPython, which hands our whole
    environment on to git.
    """
    more = {**(more or {}), **(remote.environment() if remote else {})}
    process = subprocess.Popen(
        ["git", *_options(), *arguments],
        cwd=cwd, env={"PATH": os.environ.get("PATH", os.defpath), **_ENVIRONMENT, **more}, start_new_session=True,
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        pass_fds=() if keep is None else (keep,),
    )  # fmt: skip
    with process:
        try:
            stdout, stderr = process.communicate(stdin or None, timeout=timeout_seconds)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise Unreachable(f"git got no answer within {timeout_seconds:.0f} s") from None
            raise
    if process.returncode == 0:
        return stdout
    message = stderr.decode(errors="replace")
    if any(said in message for said in _FULL):
        raise DiskFull(f"no space left for git in {str(cwd)!r}; free some and run again")
    raise _Failed(arguments, remote.masked(message) if remote else message, stdout)


def _ask(
    remote: Remote, *arguments: str, cwd: Path, keep: int | None = None, timeout_seconds: float = _GIT_SECONDS
) -> bytes:
    """Run host git against a remote. What it says about the other side becomes the error that decides what is next."""
    try:
        return _git(*arguments, cwd=cwd, keep=keep, remote=remote, timeout_seconds=timeout_seconds)
    except _Failed as error:
        raise _remote_error(remote, error.stderr) from None


def _remote_error(remote: Remote, said: str) -> FactoryError:
    git_said = f"git said {_short(said)}"
    if re.search(
        r"(?i)authentication failed|could not read (username|password)|permission denied \(|error: 40[13]", said
    ):
        return AuthFailed(f"{remote.name!r} refuses our credentials; {remote.remedy}: {git_said}")
    if re.search(r"stale info|fetch first|failed to update ref|cannot lock ref", said):
        return Unreachable(f"the branch of {remote.name!r} moved meanwhile, run again: {git_said}")
    if re.search(r"error: 30\d", said):
        return ConfigError(f"{remote.name!r} moved elsewhere; set `remote` to its new address: {git_said}")
    if re.search(r"(?i)host key verification failed", said):
        return ConfigError(f"ssh does not know the host of {remote.name!r} yet; {remote.remedy}: {git_said}")
    if re.search(
        r"(?i)not appear to be a git repos|not found|does not exist|not a git repos|mismatched|rejected", said
    ):
        return ConfigError(f"the git remote {remote.name!r} cannot be used as it is set; correct it: {git_said}")
    return Unreachable(f"the git remote {remote.name!r} cannot be reached: {git_said}")


def _short(text: str) -> str:
    """The last lines of git's message, without passwords in addresses, on one line."""
    lines = [line for line in _redacted(text).splitlines() if line.strip() and not line.startswith("hint:")]
    return repr(" | ".join(lines)[-500:])


def _redacted(text: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def _is_address(source: str) -> bool:
    return "://" in source or (":" in source.split("/", 1)[0] and not Path(source).exists())


def _checked_source(source: str) -> str:
    """A URL as it is, a path made absolute. Raises ConfigError for a path where no repository is."""
    if _is_address(source):
        return source
    path = Path(source).expanduser().absolute()
    if not path.is_dir():
        raise ConfigError(f"there is no folder {str(path)!r}; correct the repository's path")
    if not ((path / ".git").exists() or (path / "HEAD").is_file()):
        raise ConfigError(f"{str(path)!r} is not a git repository; name its top folder, or run `git init` there")
    return str(path)


def _init_bare(path: Path) -> None:
    """Make a bare repository unless a whole one is there; `git init` is complete only when renamed into place."""
    if (path / "HEAD").is_file() and (path / "config").is_file() and (path / "objects").is_dir():
        return
    with naming_a_full_disk("a bare repository"):
        delete(path)
        new = path.with_name(path.name + ".new")
        delete(new)
        _git("init", "--quiet", "--bare", "--template=", "--initial-branch=main", str(new), cwd=path.parent)
        new.rename(path)


def _tree_entry(entry: bytes) -> tuple[str, str, str | None]:
    """Mode, object and path of a line of `ls-tree -z`; the path is None when it is not UTF-8."""
    head, _, path = entry.partition(b"\t")
    mode, _, rest = head.decode().partition(" ")
    try:
        return mode, rest.rpartition(" ")[2], path.decode()
    except UnicodeDecodeError:
        return mode, rest.rpartition(" ")[2], None


def _lines(names: Sequence[str]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def _batched(output: bytes) -> Iterator[bytes]:
    """The contents that `cat-file --batch` wrote: for each a line that ends with its size, then it and a line end."""
    place = 0
    while place < len(output):
        start = output.index(b"\n", place) + 1
        end = start + int(output[place:start].rsplit(b" ", 1)[-1])
        yield output[start:end]
        place = end + 1


_STATUS: dict[str, Literal["added", "modified", "deleted", "renamed", "retyped"]] = {
    "A": "added", "M": "modified", "D": "deleted", "R": "renamed", "T": "retyped",
}  # fmt: skip


def _changed_files(fields: list[str]) -> list[ChangedFile]:
    """Parse `diff-tree -z --raw --numstat`: first all raw entries, then one count for each."""
    rest = iter(fields)
    entries: list[tuple[list[str], str | None, str]] = []
    lines: dict[str, tuple[str, str]] = {}
    for field in rest:
        if field.startswith(":"):
            meta, path = field[1:].split(" "), next(rest)
            previous, path = (path, next(rest)) if meta[4][0] == "R" else (None, path)
            entries.append((meta, previous, path))
        elif field:
            added, removed, path = field.split("\t", 2)
            if not path:  # a rename: the old and the new name follow
                next(rest)
                path = next(rest)
            lines[path] = (added, removed)
    return [
        ChangedFile(
            path=path, previous=previous, status=_STATUS[meta[4][0]], mode=meta[1], previous_mode=meta[0],
            added=int(lines[path][0].replace("-", "0")), removed=int(lines[path][1].replace("-", "0")), binary="-" in lines[path],
        )
        for meta, previous, path in entries
    ]  # fmt: skip


def _file_violations(file: ChangedFile, protected_paths: Sequence[str]) -> Iterator[str]:
    names = [name for name in (file.previous, file.path) if name is not None]
    for name in names:
        rule = next((pattern for pattern in protected_paths if covers(pattern, name)), None)
        if rule is not None:
            yield f"{name!r} is protected (rule {rule!r}) and must not change."
        if any(is_git_name(part) for part in name.split("/")):
            yield f"{name!r} belongs to git itself."
    if file.mode == "120000":
        yield f"{file.path!r} is a symbolic link; links are not accepted."
    if "160000" in (file.mode, file.previous_mode) or names[-1].casefold() == ".gitmodules":
        yield f"{file.path!r} changes a submodule."


def covers(pattern: str, path: str) -> bool:
    """A glob covers a file and all below it, in any case; `*` crosses folders and `**/` may stand for none."""
    plain = pattern.casefold().removeprefix("./").strip("/")
    forms = {plain, plain.removeprefix("**/"), plain.replace("/**/", "/")}
    return any(fnmatch.fnmatchcase(path.casefold(), form + end) for form in forms for end in ("", "/*"))


def _commit_error(output: str) -> InvalidOutput | DiskFull:
    if "No space left on device" in output:
        return DiskFull("no space left for a commit; free some and run again")
    return InvalidOutput(f"the change cannot be committed: {_short(output)}")


def _linked_git_dirs(checkout: Path) -> list[Path]:
    """Where the repository of a linked worktree is; nothing for an ordinary checkout."""
    pointer = checkout / ".git"
    if not pointer.is_file():
        return []
    git_dir = (checkout / pointer.read_text().removeprefix("gitdir:").strip()).resolve()
    common = git_dir / "commondir"
    return [(git_dir / common.read_text().strip()).resolve() if common.is_file() else git_dir]
