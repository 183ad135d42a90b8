"""A forge in a folder: a pull request is one Markdown file, named like its branch with `--` for `/`.

People read it, and may set `draft: false` or `state: merged` in its front matter; publishing keeps their `draft`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import AwareDatetime, Field, ValidationError

from infra.errors import ConfigError
from infra.files import write_atomically
from infra.git import Mirror
from infra.llm import Frozen
from infra.pull_requests import Check, PullRequest, Review
from infra.slots import file_lock

_BRANCH = re.compile(r"(?![.-])[^\s\x00-\x1f\x7f~^:?*\[\\]{1,200}")
_COMMENT = re.compile(r"^<!-- df:(\S{1,200}) -->\n.*?^<!-- /df:\1 -->\n", re.S | re.M)
_FRONT_MATTER = re.compile(r"---\r?\n(.*?)^---\r?(?:\n|\Z)", re.S | re.M)


class _Head(Frozen):
    """The front matter of a pull request's file."""

    branch: str
    base: str
    head_sha: str
    title: str
    draft: bool = True
    state: Literal["open", "closed", "merged"] = "open"
    closed_because: str = ""
    opened: AwareDatetime
    updated: AwareDatetime


class _Saved(Frozen):
    head: _Head
    body: str = Field(repr=False)


class FolderForge:
    """Pull requests as files of `folder`: one per branch for ever, so it can never be opened twice.

    `bare` is the repository that holds the branches; without it nothing can be merged.
    """

    def __init__(self, folder: Path, bare: Path | None = None) -> None:
        self.folder, self._bare = folder, bare

    def find(self, branch: str) -> PullRequest | None:
        """The branch's pull request in whatever state. Raises ConfigError for a file that cannot be understood."""
        saved = self._load(branch)
        return self._pull_request(saved) if saved else None

    def open(self) -> list[PullRequest]:
        """The files whose pull request is open, by name."""
        saved = [found for path in sorted(self.folder.glob("*.md")) if (found := _saved(path))]
        return [
            self._pull_request(each).model_copy(update={"updated_at": each.head.updated})
            for each in saved
            if each.head.state == "open"
        ]

    def proposed(self) -> list[PullRequest]:
        """A folder has no forks."""
        return self.open()

    def answer(self, pull_request: PullRequest, body: str, marker: str) -> None:
        """Write, or replace in place, the one comment with `marker`."""
        self.comment(pull_request.branch, body, marker)

    def publish(
        self, *, branch: str, base: str, head_sha: str, title: str, body: str, draft: bool = True
    ) -> PullRequest:
        """Open it, or bring the file up to date and open again what was closed, or merged without this commit.

        The same again writes nothing.
        """
        with self._alone():
            return self._publish(branch, base, head_sha, title, body, draft)

    def _publish(self, branch: str, base: str, head_sha: str, title: str, body: str, draft: bool) -> PullRequest:
        old = self._load(branch)
        if old and (old.head.state, old.head.head_sha) == ("merged", head_sha):
            return self._pull_request(old)
        now = datetime.now(UTC).replace(microsecond=0)
        head = _Head(
            branch=branch,
            base=base,
            head_sha=head_sha,
            title=" ".join(_storable(title).split()),
            draft=old.head.draft if old else draft,
            opened=old.head.opened if old else now,
            updated=old.head.updated if old else now,
        )
        new = _Saved(head=head, body=_unmarked(body) + (_comments(old.body) if old else ""))
        if new != old:
            new = _Saved(head=head.model_copy(update={"updated": now}), body=new.body)
            self._save(new)
        return self._pull_request(new)

    def close(self, branch: str, reason: str) -> None:
        """Close the branch's open pull request; nothing happens when there is none or it is not open."""
        with self._alone():
            saved = self._load(branch)
            if saved is None or saved.head.state != "open":
                return
            now = datetime.now(UTC).replace(microsecond=0)
            because = " ".join(_storable(reason).split())
            head = saved.head.model_copy(update={"state": "closed", "closed_because": because, "updated": now})
            self._save(_Saved(head=head, body=saved.body))

    def merge(self, branch: str, head_sha: str) -> bool:
        """Merge into the base branch of the bare repository, when it can be done without a conflict. A draft is merged when
        its commit got into the base branch in another way, as GitHub has it."""
        with self._alone():
            return self._merged(branch, head_sha)

    def _merged(self, branch: str, head_sha: str) -> bool:
        saved = self._load(branch)
        if saved is None or self._bare is None or saved.head.state == "closed":
            return False
        if saved.head.draft and not _is_in_base(Mirror(self._bare), saved.head, head_sha):
            return False
        if saved.head.state == "open":
            if not _merge(Mirror(self._bare), saved.head, head_sha):
                return False
            now = datetime.now(UTC).replace(microsecond=0)
            head = saved.head.model_copy(update={"state": "merged", "head_sha": head_sha, "updated": now})
            self._save(_Saved(head=head, body=saved.body))
        return True

    def comment(self, branch: str, body: str, marker: str) -> None:
        """Write, or replace in place, the section with `marker` at the end of the file, if the branch has one."""
        with self._alone():
            self._comment(branch, body, marker)

    def _comment(self, branch: str, body: str, marker: str) -> None:
        saved = self._load(branch)
        if saved is None:
            return
        begin, end = f"<!-- df:{marker} -->\n", f"\n<!-- /df:{marker} -->\n"
        said = f"{begin}{_unmarked(body).strip()}{end}"
        start, stop = saved.body.find(begin), saved.body.find(end)
        text = (
            saved.body[:start] + said + saved.body[stop + len(end) :] if 0 <= start < stop else f"{saved.body}\n{said}"
        )
        if text != saved.body:
            self._save(_Saved(head=saved.head, body=text))

    def reviews(self, branch: str) -> list[Review]:
        """None: people who review a folder's branch do it where they read it."""
        return []

    def checks(self, branch: str) -> list[Check]:
        """None: nothing runs CI on a folder."""
        return []

    def _path(self, branch: str) -> Path:
        if not _BRANCH.fullmatch(branch) or ".." in branch:
            raise ConfigError(f"{branch!r} is not a branch name that can be published")
        return self.folder / f"{branch.replace('/', '--')}.md"

    def _load(self, branch: str) -> _Saved | None:
        path = self._path(branch)
        saved = _saved(path)
        if saved is not None and saved.head.branch != branch:
            raise ConfigError(
                f"{str(path)!r} belongs to branch {saved.head.branch!r}, not {branch!r}; rename one of them"
            )
        return saved

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One writer at a time, of all processes: none takes back what another has just written."""
        with file_lock(self.folder.with_name(f"{self.folder.name}.lock")):
            yield

    def _save(self, saved: _Saved) -> None:
        """Values are quoted by YAML on one line each, so no title can end the front matter."""
        head = saved.head.model_dump(exclude=set() if saved.head.closed_because else {"closed_because"})
        front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=1_000_000)
        write_atomically(self._path(saved.head.branch), f"---\n{front}---\n{saved.body}".encode())

    def _pull_request(self, saved: _Saved) -> PullRequest:
        head: dict[str, Any] = saved.head.model_dump(include={"branch", "base", "head_sha", "title", "draft", "state"})
        return PullRequest(**head, body=saved.body, url=self._path(saved.head.branch).absolute().as_uri())


def _saved(path: Path) -> _Saved | None:
    """The pull request in a file; None when it is not there. Raises ConfigError that names it."""
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the pull request {str(path)!r} cannot be read: {error}; mend or remove it") from error
    return _parse(path, text)


def _parse(path: Path, text: str) -> _Saved:
    found = _FRONT_MATTER.match(text)
    try:
        head = _Head.model_validate(yaml.safe_load(found.group(1)) if found else {})
    except (yaml.YAMLError, ValidationError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"the pull request {str(path)!r} cannot be understood: {reason}; mend or remove it"
        ) from error
    return _Saved(head=head, body=text[found.end() :] if found else "")


def _merge(bare: Mirror, head: _Head, head_sha: str) -> bool:
    """Put the branch's commit onto the base branch; nothing when either moved, or they collide."""
    tips = bare.tips(str(bare.path), [head.branch, head.base])
    base = tips.get(head.base)
    if base is None or tips.get(head.branch) != head_sha:
        return False
    if bare.contains(base, head_sha):
        return True
    merged = bare.merge(base, head_sha)
    if merged.conflicts:
        return False
    commit = bare.commit_tree(merged.tree, (base, head_sha), f"Merge branch {head.branch!r}\n\n{head.title}")
    bare.advance(str(bare.path), head.base, commit, base)
    return True


def _is_in_base(bare: Mirror, head: _Head, head_sha: str) -> bool:
    base = bare.tips(str(bare.path), [head.base]).get(head.base)
    return base is not None and bare.contains(base, head_sha)


def _comments(body: str) -> str:
    """The comments below a pull request's own text; they stay when the text is written anew."""
    return "".join(f"\n{found[0]}" for found in _COMMENT.finditer(body))


def _unmarked(text: str) -> str:
    """A text that may quote anybody, without what would begin or end a comment of the factory."""
    return re.sub(r"<!-- (?=/?df:)", "&lt;!-- ", _storable(text))


def _storable(text: str) -> str:
    """UTF-8 has no lone surrogates, which text decoded from hostile bytes may hold."""
    return text.encode("utf-8", "replace").decode()
