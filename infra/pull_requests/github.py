"""Pull requests of one GitHub repository. They are opened as drafts; a person makes them ready and merges them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Literal

from infra.boards.payloads import dig, moment, one_line
from infra.errors import ProviderFault, UnexpectedStatus
from infra.github import (
    Conversation,
    GitHub,
    Missing,
    Payload,
    Refused,
    is_member,
    is_number,
    plain,
    sendable,
    sendable_title,
)
from infra.pull_requests import Check, PullRequest, Review
from infra.sections import GitHubForgeSection

_LONGEST_SUMMARY = 4_000
_MOST_ANNOTATIONS = 20
_VERDICTS: dict[object, Literal["approved", "changes-requested"]] = {
    "APPROVED": "approved",
    "CHANGES_REQUESTED": "changes-requested",
}
_PASSED = ("success", "neutral", "skipped")


class GitHubForge:
    """The pull requests from branches of the repository itself; those of forks are not the factory's."""

    def __init__(self, section: GitHubForgeSection, answers: Path | None = None) -> None:
        self._site = GitHub(section.project, section.url, section.token.get_secret_value(), answers)
        self._pulls = f"{self._site.root}/pulls"

    def find(self, branch: str) -> PullRequest | None:
        """The branch's pull request: the open one, else the newest. Raises ProviderFault for a malformed one."""
        found = self._found(branch)
        return _pull_request(found) if found else None

    def open(self) -> list[PullRequest]:
        """Those of forks are left out. Raises ProviderFault for a malformed one."""
        return [each for each in self.proposed() if not each.fork]

    def proposed(self) -> list[PullRequest]:
        """A fork that is gone is a fork."""
        listed = self._site.pages(self._pulls, state="open", sort="created", direction="asc")
        return [
            _listed(record).model_copy(update={"fork": not self._is_here(dig(record, "head"))}) for record in listed
        ]

    def answer(self, pull_request: PullRequest, body: str, marker: str) -> None:
        """Write, or replace in place, the comment with `marker` on the pull request of this number."""
        self._conversation({"number": pull_request.number}).write(body, marker)

    def merge(self, branch: str, head_sha: str) -> bool:
        """GitHub itself compares the head, and keeps the rules of the repository."""
        found = self._found(branch)
        if found is None or _state(found) == "closed":
            return False
        if _state(found) == "merged":
            return True
        try:
            answer = self._site.record("PUT", f"{self._pulls}/{_number(found)}/merge", {"sha": head_sha})
        except Missing:
            raise
        except UnexpectedStatus:  # 405, 409 and 422: not mergeable now, or the head moved
            return False
        return answer.get("merged") is True

    def publish(
        self, *, branch: str, base: str, head_sha: str, title: str, body: str, draft: bool = True
    ) -> PullRequest:
        """Open it, or update or open again what is there. One that was merged with this very commit is returned as it is;
        after a later commit, which nobody would see there, a new one is opened.

        Two racing calls make one: GitHub refuses a second open one, and the loser updates the winner's.
        """
        wanted = {"title": sendable_title(title), "body": sendable(body), "base": base}
        old = self._found(branch)
        if old and _state(old) == "merged" and _sha(old) == head_sha:
            return _pull_request(old)
        updated = self._updated(old, wanted) if old and _state(old) != "merged" else None
        record = updated or self._opened(branch, wanted, draft)
        return _pull_request(record).model_copy(update={"head_sha": head_sha})

    def comment(self, branch: str, body: str, marker: str) -> None:
        """Write, or replace in place, the comment with `marker`; nothing happens when no pull request is open."""
        found = self._found(branch)
        if found and _state(found) == "open":
            self._conversation(found).write(body, marker)

    def reviews(self, branch: str) -> list[Review]:
        """Reviews, remarks on lines and comments, without the factory's comments."""
        found = self._found(branch)
        if found is None:
            return []
        said = [*self._verdicts(found), *self._remarks(found), *self._comments(found)]
        return sorted(said, key=lambda review: review.at or datetime.min.replace(tzinfo=UTC))

    def checks(self, branch: str) -> list[Check]:
        """Check runs (the newest of each) and commit statuses. Both are asked for: CI systems use one or the other."""
        found = self._found(branch)
        if found is None:
            return []
        commit = f"{self._site.root}/commits/{_sha(found)}"
        runs = [self._check_run(run) for run in self._site.pages(f"{commit}/check-runs", "check_runs")]
        statuses = [_commit_status(status) for status in self._site.pages(f"{commit}/status", "statuses")]
        return sorted([*runs, *statuses], key=lambda check: check.name)

    def _check_run(self, run: object) -> Check:
        check = _check_run(run)
        number, count = dig(run, "id"), dig(run, "output", "annotations_count")
        if check.state != "failed" or not is_number(number) or not is_number(count):
            return check
        notes = self._site.pages(f"{self._site.root}/check-runs/{number}/annotations")
        said = [check.summary, *(_annotation(note) for note in islice(notes, _MOST_ANNOTATIONS))]
        return check.model_copy(update={"summary": "\n".join(filter(None, said))[:_LONGEST_SUMMARY]})

    def close(self, branch: str, reason: str) -> None:
        """Close the branch's open pull request with a comment; nothing happens when none is open."""
        found = self._found(branch)
        if found and _state(found) == "open":
            self._conversation(found).write(reason, "closed")
            self._patch(found, {"state": "closed"})

    def _found(self, branch: str) -> Payload | None:
        """GitHub ignores a `head` it does not understand, so what it lists is looked at again."""
        query = {"head": f"{self._site.project.partition('/')[0]}:{branch}", "state": "all"}
        try:
            listed = list(self._site.pages(self._pulls, sort="created", direction="desc", **query))
        except Missing:
            self._site.check_project()
            raise
        if any(not self._is_here(dig(record, "base")) for record in listed):
            self._site.check_project()
            raise ProviderFault(f"GitHub lists malformed pull requests for {branch!r}; look at them there")
        ours = [r for r in listed if dig(r, "head", "ref") == branch and self._is_here(r.get("head"))]
        return max(ours, key=lambda record: (_state(record) == "open", _number(record)), default=None)

    def _is_here(self, side: object) -> bool:
        return (one_line(dig(side, "repo", "full_name")) or "").casefold() == self._site.project.casefold()

    def _opened(self, branch: str, wanted: Payload, draft: bool) -> Payload:
        payload = {**wanted, "head": branch}
        try:
            return self._created(payload, draft)
        except Refused as error:
            if "already exists" not in error.words:
                raise
            old = self._found(branch)
            if old is None or _state(old) != "open":
                raise
            return self._updated(old, wanted) or old

    def _created(self, payload: Payload, draft: bool) -> Payload:
        try:
            return self._site.record("POST", self._pulls, {**payload, "draft": draft})
        except Refused as error:
            no_drafts = "draft pull requests are not supported" in error.words.lower()  # private ones of a free plan
            if not (draft and no_drafts):
                raise
            return self._site.record("POST", self._pulls, payload)

    def _updated(self, old: Payload, wanted: Payload) -> Payload | None:
        """The open or opened pull request with what is wanted; None when GitHub does not open it again."""
        changes = {name: value for name, value in wanted.items() if _current(old, name) != value}
        if _state(old) == "open":
            return self._patch(old, changes) if changes else old
        try:
            reopened = self._patch(old, {"state": "open"})
        except Refused:  # its branch was written anew since, or another one is open
            return None
        return self._patch(reopened, changes) if changes else reopened

    def _patch(self, record: Payload, changes: Payload) -> Payload:
        return self._site.record("PATCH", f"{self._pulls}/{_number(record)}", changes)

    def _conversation(self, record: Payload) -> Conversation:
        number = _number(record)
        return Conversation(self._site, number, f"{self._site.project}#{number}")

    def _verdicts(self, record: Payload) -> Iterator[Review]:
        """Submitted reviews that say something; the ones that only hold remarks on lines do not."""
        for review in self._site.pages(f"{self._pulls}/{_number(record)}/reviews"):
            verdict, body = _VERDICTS.get(dig(review, "state"), "commented"), plain(dig(review, "body")).strip()
            if dig(review, "state") != "PENDING" and (body or verdict != "commented"):
                at = moment(dig(review, "submitted_at"))
                yield Review(author=_author(review), body=body, at=at, verdict=verdict,
                             head_sha=one_line(dig(review, "commit_id")), member=is_member(review))  # fmt: skip

    def _remarks(self, record: Payload) -> Iterator[Review]:
        for remark in self._site.pages(f"{self._pulls}/{_number(record)}/comments"):
            lines = [dig(remark, "line"), dig(remark, "original_line")]
            yield Review(
                author=_author(remark),
                body=plain(dig(remark, "body")).strip(),
                at=moment(dig(remark, "created_at")),
                path=one_line(dig(remark, "path")),
                line=next((line for line in lines if is_number(line)), None),
                head_sha=one_line(dig(remark, "commit_id")),
                member=is_member(remark),
            )

    def _comments(self, record: Payload) -> list[Review]:
        comments = [comment for comment in self._conversation(record).read() if comment.marker is None]
        return [Review(author=c.author, body=c.body.strip(), at=c.at, member=c.member) for c in comments]


def _pull_request(record: Payload) -> PullRequest:
    """Raises ProviderFault when something that every pull request has is missing."""
    title, branch, base = one_line(record.get("title")), dig(record, "head", "ref"), dig(record, "base", "ref")
    url = one_line(record.get("html_url"))
    if not title or not isinstance(branch, str) or not isinstance(base, str) or not url:
        raise ProviderFault(f"pull request {_number(record)} is malformed; look at it on GitHub")
    return PullRequest(
        branch=branch,
        title=title,
        body=plain(record.get("body")),
        base=base,
        head_sha=_sha(record),
        url=url,
        draft=record.get("draft") is True,
        state=_state(record),
    )


def _listed(record: Payload) -> PullRequest:
    names = record.get("labels")
    labels = [one_line(dig(label, "name")) for label in names] if isinstance(names, list) else []
    more = {
        "number": _number(record),
        "labels": tuple(label.casefold() for label in labels if label),
        "updated_at": moment(record.get("updated_at")),
    }
    return _pull_request(record).model_copy(update=more)


def _state(record: Payload) -> Literal["open", "closed", "merged"]:
    if record.get("merged_at"):
        return "merged"
    return "open" if record.get("state") == "open" else "closed"


def _current(record: Payload, name: str) -> object:
    if name == "base":
        return dig(record, "base", "ref")
    return plain(record.get(name))


def _number(record: Payload) -> int:
    number = record.get("number")
    if not is_number(number):
        raise ProviderFault(f"a pull request has the unusable number {ascii(number)[:80]}; look at the repository")
    return number


def _sha(record: Payload) -> str:
    sha = dig(record, "head", "sha")
    if not isinstance(sha, str) or not re.fullmatch(r"[0-9a-f]{40,64}", sha):
        raise ProviderFault(f"pull request {_number(record)} has no usable head commit; look at it on GitHub")
    return sha


def _author(record: object) -> str:
    return one_line(dig(record, "user", "login")) or "unknown"


def _check_run(run: object) -> Check:
    texts = [plain(dig(run, "output", name)).strip() for name in ("title", "summary", "text")]
    return Check(
        name=one_line(dig(run, "name")) or "unnamed",
        state=_outcome(dig(run, "conclusion")) if dig(run, "status") == "completed" else "pending",
        url=one_line(dig(run, "html_url")) or one_line(dig(run, "details_url")) or "",
        summary="\n\n".join(filter(None, texts))[:_LONGEST_SUMMARY],
    )


def _annotation(note: object) -> str:
    place = f"{one_line(dig(note, 'path')) or '?'}:{dig(note, 'start_line')}"
    return f"{place}: {plain(dig(note, 'message')).strip()}"


def _commit_status(status: object) -> Check:
    state = dig(status, "state")
    return Check(
        name=one_line(dig(status, "context")) or "unnamed",
        state="pending" if state == "pending" else _outcome(state),
        url=one_line(dig(status, "target_url")) or "",
        summary=plain(dig(status, "description")).strip()[:_LONGEST_SUMMARY],
    )


def _outcome(conclusion: object) -> Literal["passed", "failed"]:
    """Unknown words fail: nothing passes by a word that nobody knows."""
    return "passed" if conclusion in _PASSED else "failed"
