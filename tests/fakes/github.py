"""GitHub's REST interface on a port of this machine, for tests: one repository, kept in memory.

Every request to it and every answer of its own is checked against GitHub's OpenAPI document; what breaks it fails the test
at the end of `with`. A list is checked once for each shape its items have, so that 10 000 issues are quick.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from openapi_core import Config, OpenAPI
from openapi_core.exceptions import OpenAPIError
from openapi_core.templating.responses.exceptions import ResponseNotFound
from openapi_core.testing import MockRequest, MockResponse
from openapi_core.validation.response.exceptions import MissingData

from infra.sections import GitHubBoardSection, GitHubForgeSection
from tests.fakes.openapi import Names

_REST = Path(__file__).parents[3] / "shared" / "contracts" / "github" / "rest"
CONTRACT = _REST / "api.github.com.subset147.openapi.json.gz"
"""Absent outside of our own workplace; requests are then not checked."""
HOST = "https://api.github.com"
BUDGET = 5000


@dataclass
class Asked:
    """One request. `path` is what follows `/repos/OWNER/NAME`, or the whole; `status` is 0 when the line was cut."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    status: int = 0


@dataclass
class Issue:
    """`raw` replaces fields of the answer, to make malformed records. `blockers` are (project, number)."""

    number: int
    title: str
    body: str | None
    labels: list[str]
    author: str
    assignee: str | None
    created: str
    updated: str
    state: str = "open"
    comments: list[dict[str, Any]] = field(default_factory=list)
    blockers: list[tuple[str, int]] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)


@dataclass
class Pull:
    """`repository` is where its branch is; None: a fork that was deleted."""

    number: int
    branch: str
    base: str
    title: str
    body: str
    author: str
    sha: str
    created: str
    repository: str | None
    draft: bool = True
    state: str = "open"
    merged: bool = False
    comments: list[dict[str, Any]] = field(default_factory=list)
    reviews: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[dict[str, Any]] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    updated: str | None = None


@dataclass
class Injected:
    """An answer in place of GitHub's own, to requests that `on` is found in, after letting `after` of them pass."""

    on: re.Pattern[str]
    status: int
    body: bytes
    headers: dict[str, str]
    after: int
    times: int
    delay_seconds: float


@dataclass
class Answer:
    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


class _Refusal(Exception):
    def __init__(self, status: int, message: str, errors: Sequence[Mapping[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"message": message, "documentation_url": "https://docs.github.com/rest", "status": str(status)}
        if errors:
            self.body |= {"errors": list(errors)}  # type: ignore[dict-item] # texts and one list


class FakeGitHub:
    """`with FakeGitHub() as fake:` starts it; leaving the block raises AssertionError when the contract was broken."""

    contract: Path = CONTRACT

    def __init__(self, project: str = "acme/shop", page: int = 100) -> None:
        self.project = project
        self.page = page
        """The most items of one page."""
        self.token = "ghp_token0123456789"
        self.login = "factory"
        """Whose token it is; a name that ends with `[bot]` is an app, which may not ask for its own name."""
        self.labels: dict[str, str] = {}
        """Name without case -> name."""
        self.may_label = True
        """False: labels are dropped without a word, as for a token without write access."""
        self.drafts = True
        """False: a repository that has no drafts."""
        self.reopens = True
        """False: closed pull requests cannot be opened again."""
        self.issues: dict[int, Issue] = {}
        self.pulls: dict[int, Pull] = {}
        self.branches: dict[str, str] = {}
        """Branch -> commit. A branch that is not here has a commit made from its name."""
        self.git: Path | None = None
        """A bare repository that holds the branches; merging writes there."""
        self.members: set[str] = set()
        """Who belongs to the repository."""
        self.annotations: dict[int, list[dict[str, Any]]] = {}
        """Check run -> its annotations."""
        self.runs: dict[str, list[dict[str, Any]]] = {}
        self.statuses: dict[str, list[dict[str, Any]]] = {}
        self.elsewhere: dict[tuple[str, int], str] = {}
        """(project, number) of an issue of another repository -> its state."""
        self.has_issues = True
        """False: a repository without an issue list (410)."""
        self.moved: dict[str, str] = {}
        """Path below the repository -> where it is now (301)."""
        self.most_at_once = 0
        """The most requests that were in the server at the same time."""
        self.log: list[Asked] = []
        self.violations: list[str] = []
        self._injected: list[Injected] = []
        self._checked: set[str] = set()
        self._lock = threading.Lock()
        self._clock = datetime(2026, 1, 1, tzinfo=UTC)
        self._last = 0
        self._inside = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def root(self) -> str:
        return f"/repos/{self.project}"

    def section(self, **changes: Any) -> GitHubBoardSection:
        """The section of this repository as a board."""
        settings = {"kind": "github", "project": self.project, "url": self.url, "token": self.token}
        return GitHubBoardSection.model_validate(settings | changes)

    def forge_section(self, **changes: Any) -> GitHubForgeSection:
        """The section of this repository as a forge."""
        settings = {"project": self.project, "url": self.url, "token": self.token}
        return GitHubForgeSection.model_validate(settings | changes)

    def add_issue(
        self,
        title: str,
        body: str | None = "",
        labels: Sequence[str] = (),
        author: str = "ada",
        assignee: str | None = None,
        state: str = "open",
    ) -> int:
        """A new issue; its number."""
        number, now = self._next(), self.tick()
        self.issues[number] = Issue(number, title, body, [*labels], author, assignee, now, now, state)
        self.labels |= {label.casefold(): label for label in labels}
        return number

    def add_pull(
        self, branch: str, base: str = "main", title: str = "A change", body: str = "", author: str = "ada", **more: Any
    ) -> int:
        """A new pull request; its number."""
        number, sha = self._next(), self.commit_of(branch)
        more = {"repository": self.project} | more
        self.pulls[number] = Pull(number, branch, base, title, body, author, sha, self.tick(), **more)
        return number

    def add_comment(self, number: int, body: str, author: str = "ada", **raw: Any) -> dict[str, Any]:
        """A comment below an issue or a pull request, as it is shown; the same object is shown later."""
        identifier, now = self._next(), self.tick()
        place = f"{self.url}{self.root}/issues"
        comment = {
            "id": identifier,
            "node_id": f"IC_{identifier}",
            "url": f"{place}/comments/{identifier}",
            "html_url": f"https://github.com/{self.project}/issues/{number}#issuecomment-{identifier}",
            "issue_url": f"{place}/{number}",
            "user": self.person(author),
            "body": body,
            "created_at": now,
            "updated_at": now,
            "author_association": self._association(author),
            **raw,
        }
        self._thread_of(number).append(comment)
        self._touch(number)
        return comment

    def add_review(self, number: int, state: str, body: str = "", author: str = "ada") -> None:
        identifier, pull = self._next(), self.pulls[number]
        place = f"{self.url}{self.root}/pulls/{number}"
        pull.reviews.append({
            "id": identifier,
            "node_id": f"PRR_{identifier}",
            "user": self.person(author),
            "body": body,
            "state": state,
            "html_url": f"https://github.com/{self.project}/pull/{number}#pullrequestreview-{identifier}",
            "pull_request_url": place,
            "_links": {"html": {"href": "https://github.com"}, "pull_request": {"href": place}},
            "submitted_at": self.tick(),
            "commit_id": self.commit_of(pull.branch) if self.git else pull.sha,
            "author_association": self._association(author),
        })  # fmt: skip
        self._touch(number)

    def add_remark(self, number: int, body: str, path: str, line: int | None, author: str = "ada") -> None:
        """A remark on a line; `line` None: the line was changed since, and only `original_line` (7) is known."""
        identifier, pull, now = self._next(), self.pulls[number], self.tick()
        place = f"{self.url}{self.root}/pulls/{number}"
        pull.remarks.append({
            "id": identifier,
            "node_id": f"PRRC_{identifier}",
            "pull_request_review_id": None,
            "url": f"{self.url}{self.root}/pulls/comments/{identifier}",
            "html_url": f"https://github.com/{self.project}/pull/{number}#discussion_r{identifier}",
            "pull_request_url": place,
            "diff_hunk": "@@ -1 +1 @@",
            "path": path,
            **({} if line is None else {"line": line}),
            "original_line": line or 7,
            "commit_id": pull.sha,
            "original_commit_id": pull.sha,
            "user": self.person(author),
            "body": body,
            "created_at": now,
            "updated_at": now,
            "author_association": self._association(author),
            "_links": {name: {"href": place} for name in ("self", "html", "pull_request")},
        })  # fmt: skip
        self._touch(number)

    def add_run(self, sha: str, name: str, status: str = "completed", conclusion: str | None = "success") -> None:
        """A check run."""
        identifier = self._next()
        place = f"{self.url}{self.root}/check-runs/{identifier}"
        self.runs.setdefault(sha, []).append({
            "id": identifier,
            "node_id": f"CR_{identifier}",
            "external_id": "",
            "head_sha": sha,
            "name": name,
            "url": place,
            "html_url": f"https://github.com/{self.project}/runs/{identifier}",
            "details_url": None,
            "status": status,
            "conclusion": conclusion,
            "started_at": self.tick(),
            "completed_at": self.tick() if conclusion else None,
            "output": {
                "title": f"{name} ran", "summary": None, "text": None,
                "annotations_count": 0, "annotations_url": f"{place}/annotations",
            },
            "check_suite": None,
            "app": None,
            "pull_requests": [],
        })  # fmt: skip

    def add_status(self, sha: str, context: str, state: str, description: str | None = None) -> None:
        """A commit status, as older CI systems set it."""
        identifier, now = self._next(), self.tick()
        self.statuses.setdefault(sha, []).append({
            "id": identifier,
            "node_id": f"SC_{identifier}",
            "url": f"{self.url}{self.root}/statuses/{sha}",
            "avatar_url": None,
            "state": state,
            "context": context,
            "description": description,
            "target_url": "https://ci.example/7",
            "created_at": now,
            "updated_at": now,
        })  # fmt: skip

    def block(self, number: int, by: int, project: str | None = None) -> None:
        """Let an issue be blocked by another one, of `project` (with its state in `elsewhere`) or of the repository."""
        self.issues[number].blockers.append((project or self.project, by))

    def inject(
        self,
        on: str,
        status: int,
        body: Any = b"",
        headers: Mapping[str, str] | None = None,
        after: int = 0,
        times: int = 1,
        delay_seconds: float = 0,
    ) -> None:
        """Answer the next `times` requests so (status 0: hang up), once `after` of them have passed.

        `on` is a pattern that is searched for in `METHOD /path`.
        """
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._injected.append(Injected(re.compile(on), status, data, dict(headers or {}), after, times, delay_seconds))

    def asked(self, on: str) -> list[Asked]:
        """The requests in which the pattern is found in `METHOD /path`."""
        return [asked for asked in self.log if re.search(on, f"{asked.method} {asked.path}")]

    @property
    def writes(self) -> list[Asked]:
        return [asked for asked in self.log if asked.method != "GET"]

    def _association(self, author: str) -> str:
        return "MEMBER" if author in self.members else "NONE"

    def annotate(self, sha: str, name: str, path: str, line: int, message: str) -> None:
        """A note on a line, which the check run `name` of the commit left."""
        run = next(run for run in self.runs[sha] if run["name"] == name)
        note = {
            "path": path, "start_line": line, "end_line": line, "start_column": None, "end_column": None,
            "annotation_level": "failure", "title": None, "message": message, "raw_details": None, "blob_href": "",
        }  # fmt: skip
        self.annotations.setdefault(run["id"], []).append(note)
        run["output"]["annotations_count"] += 1

    def commit_of(self, branch: str) -> str:
        if self.git is not None and (found := self._git("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}")):
            return found
        return self.branches.get(branch) or hashlib.sha1(branch.encode(), usedforsecurity=False).hexdigest()

    def tick(self) -> str:
        """A time, one second after the last, as GitHub writes it."""
        self._clock += timedelta(seconds=1)
        return self._clock.strftime("%Y-%m-%dT%H:%M:%SZ")

    def __enter__(self) -> FakeGitHub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(timeout=10)
        self._server.server_close()
        if kind is None:
            assert not self.violations, "\n".join(self.violations)

    # Answering

    def answer(
        self, method: str, target: str, headers: Mapping[str, str], data: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status (0: hang up), body and headers of the answer to one request, both checked."""
        with self._lock:
            self._inside += 1
            self.most_at_once = max(self.most_at_once, self._inside)
        try:
            return self._answer(method, target, headers, data)
        finally:
            with self._lock:
                self._inside -= 1

    def _answer(
        self, method: str, target: str, headers: Mapping[str, str], data: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        parts = urlsplit(target)
        path = re.sub(r"^/repositories/1(?=/|$)", lambda _: self.root, parts.path)
        query = dict(parse_qsl(parts.query))
        asked = Asked(method, path.removeprefix(self.root), query, json.loads(data or b"null"))
        request = _request(method, path, query, headers, data)
        with self._lock:
            self.log.append(asked)
            self._check(request, f"{data!r}")
            injected = self._next_injected(asked)
        if injected:
            time.sleep(injected.delay_seconds)
            asked.status = injected.status
            return injected.status, injected.body, self._budget() | injected.headers
        with self._lock:
            answer = self._own(asked, headers)
            asked.status = answer.status
            self._check_answer(request, answer)
        body = b"" if answer.body is None else json.dumps(answer.body).encode()
        if method == "GET" and answer.status == 200:
            etag = f'W/"{hashlib.sha256(body).hexdigest()}"'  # of the body alone; and a 304 says nothing of other pages
            answer.headers["ETag"] = etag
            if headers.get("If-None-Match") == etag:
                asked.status, body, answer.headers = 304, b"", {"ETag": etag}
        return asked.status, body, self._budget() | answer.headers

    @property
    def spent(self) -> int:
        """The calls that count against the hourly budget: all but those that changed nothing (304), says GitHub."""
        return sum(asked.status != 304 for asked in self.log)

    def _budget(self) -> dict[str, str]:
        return {"X-RateLimit-Limit": str(BUDGET), "X-RateLimit-Remaining": str(BUDGET - self.spent)}

    def _next_injected(self, asked: Asked) -> Injected | None:
        for injected in self._injected:
            if injected.times and injected.on.search(f"{asked.method} {asked.path}"):
                if injected.after:
                    injected.after -= 1
                    return None
                injected.times -= 1
                return injected
        return None

    def _check(self, request: MockRequest, shown: str, response: MockResponse | None = None) -> None:
        side = "request" if response is None else f"answer {response.status_code}"
        query = sorted((name, value) for name, value in dict(request.parameters.query).items() if name != "page")
        seen = f"{side} {request.method} {re.sub(r'[0-9]+', 'N', request.path)} {query} {shown}"
        contract = _contract(self.contract)
        if contract is None or seen in self._checked:
            return
        self._checked.add(seen)
        checker, names = contract
        try:
            _against_contract(checker, request, response)
        except OpenAPIError as error:
            self.violations.append(f"{side} of {request.method} {request.path}: {_mistakes(error)}")
        if response is None:
            query, body = dict(request.parameters.query), json.loads(request.body or b"null")
            strange = names.strange(request.method, request.path, query, body)
            self.violations += [f"request of {request.method} {request.path}: {line}" for line in strange]

    def _check_answer(self, request: MockRequest, answer: Answer) -> None:
        """Of a list only items of new shapes. Their malformed parts are the test's own."""
        if any(thing.raw for thing in self._things()):
            return
        body = answer.body
        if isinstance(body, list):
            body = list({_shape(item): item for item in body}.values())
        data = b"" if body is None else json.dumps(body).encode()
        self._check(request, _shape(body), MockResponse(data, answer.status))

    def _own(self, asked: Asked, headers: Mapping[str, str]) -> Answer:
        if headers.get("Authorization") not in (f"token {self.token}", f"Bearer {self.token}"):
            return Answer(401, _Refusal(401, "Bad credentials").body)
        if asked.path in self.moved:
            return Answer(301, {"message": "Moved Permanently"}, {"Location": self.url + self.moved[asked.path]})
        try:
            for pattern, handler in _ROUTES:
                if found := re.fullmatch(pattern, f"{asked.method} {asked.path}"):
                    return handler(self, asked, *map(unquote, found.groups()))
        except _Refusal as refusal:
            return Answer(refusal.status, refusal.body)
        return Answer(404, _Refusal(404, "Not Found").body)

    def _paged(self, asked: Asked, items: Sequence[Any], show: Callable[[Any], Any] = lambda item: item) -> Answer:
        size = min(int(asked.query.get("per_page", 30)), self.page)
        page = int(asked.query.get("page", 1))
        shown = [show(item) for item in items[(page - 1) * size : page * size]]
        if page * size >= len(items):
            return Answer(200, shown)
        following = urlencode({**asked.query, "page": page + 1})
        link = f'<{self.url}/repositories/1{asked.path}?{following}>; rel="next"'
        return Answer(200, shown, {"Link": f'{link}, <{self.url}/repositories/1{asked.path}?page=99>; rel="last"'})

    # Issues

    def _list_issues(self, asked: Asked) -> Answer:
        self._check_enabled()
        state = asked.query.get("state", "open")
        wanted = {label.casefold() for label in asked.query.get("labels", "").split(",") if label}
        found: list[Issue | Pull] = [
            issue
            for issue in self.issues.values()
            if state in ("all", issue.state) and wanted <= {label.casefold() for label in issue.labels}
        ]
        found += [pull for pull in self.pulls.values() if not wanted and state in ("all", pull.state)]
        found.sort(key=lambda thing: thing.number, reverse=asked.query.get("direction", "desc") == "desc")
        return self._paged(asked, found, self._shown)

    def _shown(self, thing: Issue | Pull) -> Any:
        return self.issue_record(thing) if isinstance(thing, Issue) else self._pull_as_issue(thing)

    def issue_record(self, issue: Issue) -> dict[str, Any]:
        """An issue as GitHub shows it."""
        open_ones = [blocker for blocker in issue.blockers if self._state_of(blocker) == "open"]
        place = f"{self.url}{self.root}/issues/{issue.number}"
        return {
            "id": 1000 + issue.number,
            "node_id": f"I_{issue.number}",
            "url": place,
            "repository_url": f"{self.url}{self.root}",
            "labels_url": f"{place}/labels{{/name}}",
            "comments_url": f"{place}/comments",
            "events_url": f"{place}/events",
            "html_url": f"https://github.com/{self.project}/issues/{issue.number}",
            "number": issue.number,
            "state": issue.state,
            "title": issue.title,
            "body": issue.body,
            "user": self.person(issue.author),
            "labels": [self._label(name) for name in issue.labels],
            "assignee": self.person(issue.assignee) if issue.assignee else None,
            "milestone": None,
            "locked": False,
            "comments": len(issue.comments),
            "closed_at": None if issue.state == "open" else issue.updated,
            "created_at": issue.created,
            "updated_at": issue.updated,
            "author_association": "NONE",
            "issue_dependencies_summary": {
                "blocked_by": len(open_ones),
                "total_blocked_by": len(issue.blockers),
                "blocking": 0,
                "total_blocking": 0,
            },
        } | issue.raw

    def _pull_as_issue(self, pull: Pull) -> dict[str, Any]:
        issue = Issue(pull.number, pull.title, pull.body, [], pull.author, None, pull.created, pull.created)
        place = f"{self.url}{self.root}/pulls/{pull.number}"
        links = {"url": place, "html_url": place, "diff_url": place, "patch_url": place}
        return self.issue_record(issue) | {"pull_request": links}

    def _state_of(self, blocker: tuple[str, int]) -> str:
        project, number = blocker
        return self.issues[number].state if project == self.project else self.elsewhere[blocker]

    def _get_issue(self, asked: Asked, number: str) -> Answer:
        self._check_enabled()
        thing = self.issues.get(int(number)) or self.pulls.get(int(number))
        if thing is None:
            raise _Refusal(404, "Not Found")
        return Answer(200, self._shown(thing))

    def _check_enabled(self) -> None:
        if not self.has_issues:
            raise _Refusal(410, "Issues are disabled for this repo")

    def _issue(self, number: str) -> Issue:
        if int(number) not in self.issues:
            raise _Refusal(404, "Not Found")
        return self.issues[int(number)]

    def _create_issue(self, asked: Asked) -> Answer:
        names = asked.body.get("labels", [])
        self._check_labels(names)
        kept = [self.labels[name.casefold()] for name in names] if self.may_label else []
        number = self.add_issue(asked.body["title"], asked.body.get("body"), kept, self.login)
        return Answer(201, self.issue_record(self.issues[number]))

    def _edit_issue(self, asked: Asked, number: str) -> Answer:
        issue = self._issue(number)
        issue.state = asked.body.get("state", issue.state)
        issue.updated = self.tick()
        return Answer(200, self.issue_record(issue))

    def _list_blockers(self, asked: Asked, number: str) -> Answer:
        return self._paged(asked, self._issue(number).blockers, self._blocker_record)

    def _blocker_record(self, blocker: tuple[str, int]) -> dict[str, Any]:
        project, number = blocker
        if project == self.project:
            return self.issue_record(self.issues[number])
        then = "2025-01-01T00:00:00Z"
        issue = Issue(number, "foreign", "", [], "eve", None, then, then, self.elsewhere[blocker])
        return self.issue_record(issue) | {"repository_url": f"{self.url}/repos/{project}"}

    # Labels

    def _label(self, name: str) -> dict[str, Any]:
        url = f"{self.url}{self.root}/labels/{quote(name, safe='')}"
        return {
            "id": 1 + sum(name.encode()), "node_id": f"LA_{name}", "url": url, "name": name,
            "description": None, "color": "ededed", "default": False,
        }  # fmt: skip

    def _get_label(self, asked: Asked, name: str) -> Answer:
        if name.casefold() not in self.labels:
            raise _Refusal(404, "Not Found")
        return Answer(200, self._label(self.labels[name.casefold()]))

    def _create_label(self, asked: Asked) -> Answer:
        name = asked.body["name"]
        if name.casefold() in self.labels:
            raise _Refusal(422, "Validation Failed", [{"resource": "Label", "code": "already_exists", "field": "name"}])
        if len(name) > 50:
            too_long = {"resource": "Label", "code": "invalid", "field": "name", "message": "name is too long"}
            raise _Refusal(422, "Validation Failed", [too_long])
        self.labels[name.casefold()] = name
        return Answer(201, self._label(name))

    def _check_labels(self, names: Sequence[str]) -> None:
        """GitHub makes unknown labels by itself, the older servers do not."""
        if unknown := [name for name in names if name.casefold() not in self.labels]:
            raise _Refusal(422, "Validation Failed", [{"field": "labels", "code": f"unknown {unknown}"}])

    def _add_labels(self, asked: Asked, number: str) -> Answer:
        issue = self._issue(number)
        names = asked.body["labels"]
        self._check_labels(names)
        there = {label.casefold() for label in issue.labels}
        new = [self.labels[name.casefold()] for name in names if name.casefold() not in there]
        issue.labels += new if self.may_label else []
        issue.updated = self.tick()
        return Answer(200, [self._label(name) for name in issue.labels])

    def _remove_label(self, asked: Asked, number: str, name: str) -> Answer:
        issue = self._issue(number)
        kept = [label for label in issue.labels if label.casefold() != name.casefold()]
        if len(kept) == len(issue.labels):
            raise _Refusal(404, "Label does not exist")
        issue.labels = kept
        issue.updated = self.tick()
        return Answer(200, [self._label(name) for name in issue.labels])

    # Comments

    def _thread_of(self, number: int) -> list[dict[str, Any]]:
        thing = self.issues.get(number) or self.pulls.get(number)
        if thing is None:
            raise _Refusal(404, "Not Found")
        return thing.comments

    def _list_comments(self, asked: Asked, number: str) -> Answer:
        return self._paged(asked, self._thread_of(int(number)))

    def _create_comment(self, asked: Asked, number: str) -> Answer:
        self._thread_of(int(number))
        return Answer(201, self.add_comment(int(number), asked.body["body"], self.login))

    def _edit_comment(self, asked: Asked, number: str) -> Answer:
        comments = [comment for thing in self._things() for comment in thing.comments]
        for comment in (comment for comment in comments if comment["id"] == int(number)):
            if comment["user"]["login"] != self.login:
                raise _Refusal(403, "Must have admin rights to Repository.")
            comment |= {"body": asked.body["body"], "updated_at": self.tick()}
            return Answer(200, comment)
        raise _Refusal(404, "Not Found")

    def _delete_comment(self, asked: Asked, number: str) -> Answer:
        for thing in self._things():
            for comment in (comment for comment in thing.comments if comment["id"] == int(number)):
                if comment["user"]["login"] != self.login:
                    raise _Refusal(403, "Must have admin rights to Repository.")
                thing.comments.remove(comment)
                return Answer(204)
        raise _Refusal(404, "Not Found")

    # Pull requests

    def _git(self, *arguments: str) -> str:
        """Git in the repository of the branches; "" when it fails."""
        who = {
            f"GIT_{role}_{what}": "github@example.invalid"
            for role in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull, **who}
        done = subprocess.run(
            ["git", *arguments], cwd=self.git, env=environment, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def _touch(self, number: int) -> None:
        if number in self.pulls:
            self.pulls[number].updated = self.tick()

    def _list_annotations(self, asked: Asked, run: str) -> Answer:
        return self._paged(asked, self.annotations.get(int(run), []))

    def _merge(self, asked: Asked, number: str) -> Answer:
        pull = self.pulls[int(number)]
        sha = self.commit_of(pull.branch)
        if pull.draft or pull.state != "open":
            raise _Refusal(405, "Pull Request is not mergeable")
        if asked.body.get("sha") not in (None, sha):
            raise _Refusal(409, "Head branch was modified. Review and try the merge again.")
        base = self.commit_of(pull.base)
        tree = self._git("merge-tree", "--write-tree", base, sha)
        commit = tree and self._git("commit-tree", tree, "-p", base, "-p", sha, "-m", f"Merge {pull.branch}")
        if not commit:
            raise _Refusal(405, "Pull Request is not mergeable")
        self._git("update-ref", f"refs/heads/{pull.base}", commit, base)
        pull.state, pull.merged, pull.updated = "closed", True, self.tick()
        return Answer(200, {"sha": commit, "merged": True, "message": "Pull Request successfully merged"})

    def _list_pulls(self, asked: Asked) -> Answer:
        state, head = asked.query.get("state", "open"), asked.query.get("head", "")
        found = [pull for pull in self.pulls.values() if state in ("all", pull.state)]
        if ":" in head:  # anything else is ignored
            found = [p for p in found if f"{(p.repository or 'ghost/x').partition('/')[0]}:{p.branch}" == head]
        found.sort(key=lambda pull: pull.number, reverse=True)
        return self._paged(asked, found, self.pull_record)

    def pull_record(self, pull: Pull) -> dict[str, Any]:
        """A pull request as GitHub lists it."""
        place = f"{self.url}{self.root}/pulls/{pull.number}"
        base, head = self._side(self.project, pull.base), self._side(pull.repository, pull.branch)
        closed = None if pull.state == "open" else pull.created
        links = ["comments", "commits", "statuses", "html", "issue", "review_comments", "review_comment", "self"]
        return {
            "id": 5000 + pull.number,
            "node_id": f"PR_{pull.number}",
            "url": place,
            "html_url": f"https://github.com/{self.project}/pull/{pull.number}",
            **{f"{name}_url": place for name in ("diff", "patch", "issue", "commits", "review_comments")},
            **{f"{name}_url": place for name in ("review_comment", "comments", "statuses")},
            "number": pull.number,
            "state": pull.state,
            "locked": False,
            "title": pull.title,
            "body": pull.body,
            "user": self.person(pull.author),
            "labels": [self._label(name) | {"description": ""} for name in pull.labels],
            "milestone": None,
            "created_at": pull.created,
            "updated_at": pull.updated or pull.created,
            "closed_at": closed,
            "merged_at": pull.created if pull.merged else None,
            "merge_commit_sha": None,
            "assignee": None,
            "head": head | {"sha": self.commit_of(pull.branch) if self.git else pull.sha},
            "base": base,
            "_links": {name: {"href": place} for name in links},
            "author_association": "NONE",
            "auto_merge": None,
            "draft": pull.draft,
        } | pull.raw

    def _whole_pull(self, pull: Pull) -> dict[str, Any]:
        """With the fields that only the single one has."""
        counts = ("comments", "review_comments", "commits", "additions", "deletions", "changed_files")
        return {
            **self.pull_record(pull),
            **dict.fromkeys(counts, 0),
            "merged": pull.merged,
            "mergeable": None,
            "mergeable_state": "unknown",
            "merged_by": None,
            "maintainer_can_modify": False,
        }

    def _side(self, project: str | None, branch: str) -> dict[str, Any]:
        owner = self.person((project or "ghost/x").partition("/")[0])
        side = {"label": f"{owner['login']}:{branch}", "ref": branch, "sha": self.commit_of(branch), "user": owner}
        return side | {"repo": self.repository_record(project) if project else None}

    def _create_pull(self, asked: Asked) -> Answer:
        branch, base = asked.body["head"], asked.body["base"]
        same = [p for p in self.pulls.values() if (p.state, p.branch, p.repository) == ("open", branch, self.project)]
        if same:
            said = f"A pull request already exists for {self.project.partition('/')[0]}:{branch}."
            error = {"resource": "PullRequest", "code": "custom", "message": said}
            raise _Refusal(422, "Validation Failed", [error])
        if asked.body.get("draft") and not self.drafts:
            raise _Refusal(422, "Draft pull requests are not supported in this repository.")
        title, body, draft = asked.body["title"], asked.body.get("body", ""), asked.body.get("draft", False)
        number = self.add_pull(branch, base, title, body, self.login, draft=draft)
        return Answer(201, self._whole_pull(self.pulls[number]))

    def _edit_pull(self, asked: Asked, number: str) -> Answer:
        pull = self.pulls[int(number)]
        if asked.body.get("state") == "open" and pull.state == "closed" and not self.reopens:
            error = {
                "resource": "PullRequest",
                "code": "invalid",
                "field": "state",
                "message": "state cannot be changed.",
            }
            raise _Refusal(422, "Validation Failed", [error])
        for name in ("title", "body", "base", "state"):
            setattr(pull, name, asked.body.get(name, getattr(pull, name)))
        pull.updated = self.tick()
        return Answer(200, self._whole_pull(pull))

    def _list_reviews(self, asked: Asked, number: str) -> Answer:
        return self._paged(asked, self.pulls[int(number)].reviews)

    def _list_remarks(self, asked: Asked, number: str) -> Answer:
        return self._paged(asked, self.pulls[int(number)].remarks)

    def _list_runs(self, asked: Asked, sha: str) -> Answer:
        runs = self.runs.get(sha, [])
        page = self._paged(asked, runs)
        return Answer(200, {"total_count": len(runs), "check_runs": page.body}, page.headers)

    def _list_statuses(self, asked: Asked, sha: str) -> Answer:
        statuses = self.statuses.get(sha, [])
        page = self._paged(asked, statuses)
        repository = self.repository_record(self.project)
        place = f"{self.url}{self.root}/commits/{sha}"
        combined = {"state": "pending", "sha": sha, "total_count": len(statuses), "statuses": page.body}
        return Answer(200, combined | {"repository": repository, "commit_url": place, "url": place}, page.headers)

    # The repository and people

    def _get_repository(self, asked: Asked) -> Answer:
        return Answer(200, self.repository_record(self.project))

    def _get_user(self, asked: Asked) -> Answer:
        if self.login.endswith("[bot]"):
            raise _Refusal(403, "Resource not accessible by integration")
        counts = dict.fromkeys(("public_repos", "public_gists", "followers", "following"), 0)
        texts = dict.fromkeys(("name", "company", "location", "email", "hireable", "bio"), None)
        times = dict.fromkeys(("created_at", "updated_at"), "2025-01-01T00:00:00Z")
        rest = {"blog": "", "user_view_type": "public"}
        return Answer(200, {**self.person(self.login), **counts, **texts, **times, **rest})

    def person(self, login: str) -> dict[str, Any]:
        url = f"{self.url}/users/{quote(login)}"
        links = ("followers", "following", "gists", "starred", "subscriptions", "organizations", "repos", "events")
        return {
            "login": login,
            "id": 1 + sum(login.encode()),
            "node_id": f"U_{login}",
            "avatar_url": url,
            "gravatar_id": "",
            "url": url,
            "html_url": f"https://github.com/{quote(login)}",
            **{f"{name}_url": url for name in links},
            "received_events_url": url,
            "type": "Bot" if login.endswith("[bot]") else "User",
            "site_admin": False,
        }

    def repository_record(self, project: str) -> dict[str, Any]:
        owner, _, name = project.partition("/")
        url = f"{self.url}/repos/{project}"
        links = (
            "archive assignees blobs branches collaborators comments commits compare contents contributors deployments "
            "downloads events forks git_commits git_refs git_tags git ssh clone svn hooks issue_comment issue_events "
            "issues keys labels languages merges milestones mirror notifications pulls releases stargazers statuses "
            "subscribers subscription tags teams trees"
        ).split()
        flags = ("private", "fork", "disabled", "archived", "is_template")
        counts = ("forks_count", "stargazers_count", "watchers_count", "size", "open_issues_count", "forks")
        return {
            "id": 1,
            "node_id": "R_1",
            "name": name,
            "full_name": project,
            "owner": self.person(owner),
            "url": url,
            "html_url": f"https://github.com/{project}",
            "description": None,
            **{f"{link}_url": url for link in links},
            **dict.fromkeys(flags, False),
            "permissions": {
                "admin": False,
                "maintain": False,
                "push": self.may_label,
                "triage": self.may_label,
                "pull": True,
            },
            **dict.fromkeys((*counts, "open_issues", "watchers", "network_count", "subscribers_count"), 0),
            **{f"has_{thing}": True for thing in ("projects", "wiki", "pages", "downloads", "discussions")},
            **{f"{moment}_at": "2025-01-01T00:00:00Z" for moment in ("pushed", "created", "updated")},
            "has_issues": self.has_issues,
            "homepage": None,
            "language": None,
            "license": None,
            "default_branch": "main",
        }

    def _things(self) -> list[Issue | Pull]:
        return [*self.issues.values(), *self.pulls.values()]

    def _next(self) -> int:
        self._last += 1
        return self._last


_ROUTES: list[tuple[str, Callable[..., Answer]]] = [
    (r"GET ", FakeGitHub._get_repository),
    (r"GET /user", FakeGitHub._get_user),
    (r"GET /issues", FakeGitHub._list_issues),
    (r"POST /issues", FakeGitHub._create_issue),
    (r"GET /issues/(\d+)", FakeGitHub._get_issue),
    (r"PATCH /issues/(\d+)", FakeGitHub._edit_issue),
    (r"GET /issues/(\d+)/dependencies/blocked_by", FakeGitHub._list_blockers),
    (r"GET /issues/(\d+)/comments", FakeGitHub._list_comments),
    (r"POST /issues/(\d+)/comments", FakeGitHub._create_comment),
    (r"PATCH /issues/comments/(\d+)", FakeGitHub._edit_comment),
    (r"DELETE /issues/comments/(\d+)", FakeGitHub._delete_comment),
    (r"POST /issues/(\d+)/labels", FakeGitHub._add_labels),
    (r"DELETE /issues/(\d+)/labels/([^/]+)", FakeGitHub._remove_label),
    (r"POST /labels", FakeGitHub._create_label),
    (r"GET /labels/([^/]+)", FakeGitHub._get_label),
    (r"GET /pulls", FakeGitHub._list_pulls),
    (r"POST /pulls", FakeGitHub._create_pull),
    (r"PATCH /pulls/(\d+)", FakeGitHub._edit_pull),
    (r"GET /pulls/(\d+)/reviews", FakeGitHub._list_reviews),
    (r"GET /pulls/(\d+)/comments", FakeGitHub._list_remarks),
    (r"PUT /pulls/(\d+)/merge", FakeGitHub._merge),
    (r"GET /check-runs/(\d+)/annotations", FakeGitHub._list_annotations),
    (r"GET /commits/([0-9a-f]+)/check-runs", FakeGitHub._list_runs),
    (r"GET /commits/([0-9a-f]+)/status", FakeGitHub._list_statuses),
]


def _shape(value: Any, name: str = "") -> str:
    """Names and kinds of a value, and the words of closed sets."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_shape(item, key)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{'|'.join(sorted({_shape(item) for item in value}))}]"
    closed = ("state", "type", "status", "conclusion", "author_association")
    return repr(value) if name in closed else type(value).__name__


def _mistakes(error: OpenAPIError) -> str:
    found = [*getattr(error.__cause__, "schema_errors", ()), *getattr(error, "schema_errors", ())]
    return "; ".join(f"{list(e.absolute_path)}: {e.message[:300]}" for e in found) or f"{error} {error.__cause__ or ''}"


def _against_contract(contract: OpenAPI, request: MockRequest, response: MockResponse | None) -> None:
    try:
        if response is None:
            contract.validate_request(request)
        else:
            contract.validate_response(request, response)
    except MissingData:  # an answer without a body, for which the document names a type of content
        if response is None or response.data:
            raise
    except ResponseNotFound:  # it names only some of the ways in which GitHub refuses
        if response is None or response.status_code not in (301, 401, 403, 404, 410, 422):
            raise


@cache
def _contract(path: Path) -> tuple[OpenAPI, Names] | None:
    if not path.is_file():
        return None
    with gzip.open(path, "rt", encoding="utf-8") as file:
        document = json.load(file, object_hook=_with_null)
    config = Config(spec_validator_cls=None)  # type: ignore[arg-type] # its way to say: do not
    return OpenAPI.from_dict(document, config=config), Names(document)


def _with_null(node: dict[str, Any]) -> dict[str, Any]:
    """The document calls words of closed sets nullable and then forgets null among them, which GitHub sends."""
    if node.get("nullable") is True and isinstance(node.get("enum"), list):
        return node | {"enum": [*node["enum"], None]}
    return node


def _request(method: str, path: str, query: dict[str, str], headers: Mapping[str, str], data: bytes) -> MockRequest:
    kind = headers.get("Content-Type", "application/json")
    return MockRequest(HOST, method.lower(), path, args=query, data=data or None, content_type=kind)


def _handler_of(fake: FakeGitHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                status, body, headers = fake.answer(self.command, self.path, dict(self.headers), data)
            except Exception as error:
                fake.violations.append(f"{self.command} {self.path} broke the fake: {error!r}")
                status, body, headers = 500, b"", {}
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in ({"Content-Type": "application/json; charset=utf-8"} | headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: `fake.log` holds the requests."""

    return Handler
