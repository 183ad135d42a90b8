"""A Jira Cloud site on a port of this machine, for tests: one project, kept in memory.

Every request to it and every answer of its own is checked against Atlassian's OpenAPI document; what breaks it fails the
test at the end of `with`. Only the JQL that the adapter sends is understood; anything else is a violation too.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from openapi_core import Config, OpenAPI
from openapi_core.exceptions import OpenAPIError
from openapi_core.testing import MockRequest, MockResponse
from openapi_core.validation.response.exceptions import MissingData

from infra.boards.adf import to_document
from infra.sections import JiraBoardSection
from tests.fakes.openapi import Names

CONTRACT = Path(__file__).parents[3] / "shared" / "contracts" / "jira" / "rest-v3.openapi.json.gz"
"""Absent outside of our own workplace; requests are then checked by hand only."""
CATEGORIES = {
    "Backlog": "new",
    "To Do": "new",
    "Agent Queue": "new",
    "In Progress": "indeterminate",
    "In Review": "indeterminate",
    "Rejected": "indeterminate",
    "Needs Human": "indeterminate",
    "Cancelled": "indeterminate",
    "Done": "done",
}
PRIORITIES = ("Blocker", "Highest", "Critical", "High", "Major", "Medium", "Minor", "Low", "Lowest")
API = "/rest/api/3"


@dataclass
class Asked:
    """One request. `path` is what follows `/rest/api/3`; `status` is 0 when the line was cut."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    status: int = 0


@dataclass
class Issue:
    """One issue. `raw` replaces fields of the answer, to make malformed records; `key_shown` the key."""

    id: str
    summary: str
    description: Any
    status: str
    labels: list[str]
    priority: str | None
    author: str
    assignee: str | None
    blocked_by: tuple[str, ...]
    created: str
    comments: list[dict[str, Any]] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    key_shown: Any = None


@dataclass
class Injected:
    """An answer in place of Jira's own, to the requests `on` (a part of `METHOD /path`), after letting `after` pass."""

    on: str
    status: int
    body: bytes
    headers: dict[str, str]
    after: int
    times: int


class _Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class FakeJira:
    """`with FakeJira() as fake:` starts it; leaving the block raises AssertionError when the contract was broken."""

    def __init__(self, project: str = "ENG", page: int = 50) -> None:
        self.project = project
        self.page = page
        self.email, self.token = "bot@factory.example", "jira-token-0123456789"
        self.initial = "To Do"
        self.workflow: dict[str, list[str]] | None = None
        """Which statuses can be reached from which; None: all from all."""
        self.moved: dict[str, str] = {}
        """Keys under which an issue was known before -> its key now."""
        self.issues: dict[str, Issue] = {}
        self.log: list[Asked] = []
        self.violations: list[str] = []
        self._injected: list[Injected] = []
        self._clock = datetime(2026, 1, 1, tzinfo=UTC)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def section(self, **changes: Any) -> JiraBoardSection:
        """The board's section for this site."""
        settings = {"kind": "jira", "project": self.project, "url": self.url, "email": self.email, "token": self.token}
        return JiraBoardSection.model_validate(settings | changes)

    def add_issue(
        self,
        summary: str,
        description: Any = "",
        status: str = "To Do",
        labels: Sequence[str] = (),
        priority: str | None = "Medium",
        author: str = "ada",
        assignee: str | None = None,
        blocked_by: Sequence[str] = (),
        key: str | None = None,
    ) -> str:
        """A new issue; its key. A text as `description` becomes a document, anything else is shown as it is."""
        key = key or f"{self.project}-{1 + sum(k.startswith(f'{self.project}-') for k in self.issues)}"
        described = to_document(description) if isinstance(description, str) else description
        people = (author, assignee)
        number = str(10_001 + len(self.issues))
        self.issues[key] = Issue(
            number, summary, described, status, [*labels], priority, *people, tuple(blocked_by), self.tick()
        )
        return key

    def add_comment(self, key: str, text: str, author: str = "ada", properties: Sequence[Any] = ()) -> dict[str, Any]:
        number = str(20_001 + sum(len(issue.comments) for issue in self.issues.values()))
        comment = {
            "id": number,
            "self": f"{self.url}{API}/issue/{key}/comment/{number}",
            "author": _person(author),
            "body": to_document(text),
            "created": self.tick(),
            "properties": list(properties),
        }
        self.issues[key].comments.append(comment)
        return comment

    def inject(
        self,
        on: str,
        status: int,
        body: Any = b"",
        headers: Mapping[str, str] | None = None,
        after: int = 0,
        times: int = 1,
    ) -> None:
        """Answer the next `times` requests to `on` so (status 0: hang up), once `after` of them have passed."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._injected.append(Injected(on, status, data, dict(headers or {}), after, times))

    def asked(self, on: str) -> list[Asked]:
        """The requests to `on`, a part of `METHOD /path`."""
        return [asked for asked in self.log if on in f"{asked.method} {asked.path}"]

    @property
    def writes(self) -> list[Asked]:
        """The requests that change something."""
        reads = ("/search/jql", "/issue/bulkfetch")
        return [asked for asked in self.log if asked.method != "GET" and asked.path not in reads]

    def __enter__(self) -> FakeJira:
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

    def tick(self) -> str:
        """A time, one second after the last, as Jira writes it."""
        self._clock += timedelta(seconds=1)
        return self._clock.strftime("%Y-%m-%dT%H:%M:%S.000+0000")

    # Answering

    def answer(
        self, method: str, target: str, headers: Mapping[str, str], data: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status (0: hang up), body and headers of the answer to one request, both checked."""
        parts = urlsplit(target)
        asked = Asked(method, parts.path.removeprefix(API), dict(parse_qsl(parts.query)), json.loads(data or b"null"))
        self.log.append(asked)
        request = _request(method, parts.path, asked.query, headers, data)
        self._check(request)
        if injected := self._next_injected(asked):
            asked.status = injected.status
            return injected.status, injected.body, injected.headers
        asked.status, body = self._own(asked, headers)
        answer = b"" if body is None else json.dumps(body).encode()
        self._check(request, MockResponse(answer, asked.status))
        return asked.status, answer, {}

    def _next_injected(self, asked: Asked) -> Injected | None:
        for injected in self._injected:
            if injected.times and injected.on in f"{asked.method} {asked.path}":
                if injected.after:
                    injected.after -= 1
                    return None
                injected.times -= 1
                return injected
        return None

    def _check(self, request: MockRequest, response: MockResponse | None = None) -> None:
        if (contract := _contract()) is None:
            return
        checker, names = contract
        try:
            if response is None:
                query, body = dict(request.parameters.query), json.loads(request.body or b"null")
                strange = names.strange(request.method, request.path, query, body)
                self.violations += [f"request of {request.method} {request.path}: {line}" for line in strange]
                checker.validate_request(request)
            else:
                checker.validate_response(request, response)
        except MissingData:  # the document names a type of content even for 204, which has none
            pass
        except OpenAPIError as error:
            side = "request" if response is None else "answer"
            self.violations.append(f"{side} of {request.method} {request.path}: {error} {error.__cause__ or ''}")

    def _own(self, asked: Asked, headers: Mapping[str, str]) -> tuple[int, Any]:
        good = base64.b64encode(f"{self.email}:{self.token}".encode()).decode()
        if headers.get("Authorization") != f"Basic {good}":
            return 401, {"errorMessages": ["Client must be authenticated"], "errors": {}}
        try:
            return self._route(asked)
        except _Refusal as refusal:
            return refusal.status, {"errorMessages": [str(refusal)], "errors": {}}

    def _route(self, asked: Asked) -> tuple[int, Any]:
        if asked.path == "/search/jql":
            return 200, self._search(asked.body)
        if asked.path == "/issue/bulkfetch":
            return 200, self._bulk(asked.body)
        if (asked.method, asked.path) == ("POST", "/issue"):
            return 201, self._create(asked.body)
        found = re.fullmatch(r"/issue/([A-Z0-9_]+-\d+)(?:/(transitions|comment))?(?:/(\d+))?", asked.path)
        if not found:
            self.violations.append(f"the fake knows no {asked.method} {asked.path}")
            raise _Refusal(404, "no such resource")
        key, part, number = found.groups()
        if key not in self.issues:
            raise _Refusal(404, "Issue does not exist or you do not have permission to see it.")
        match asked.method, part, number:
            case "GET", None, None:
                return 200, self._shown(key, asked.query["fields"].split(","))
            case "PUT", None, None:
                return self._edit(key, asked.body)
            case "GET", "transitions", None:
                return 200, {"expand": "transitions", "transitions": self._ways(key)}
            case "POST", "transitions", None:
                return self._transit(key, asked.body)
            case "GET", "comment", None:
                return 200, self._comments(key, asked.query)
            case "POST", "comment", None:
                self._check_document(asked.body["body"])
                return 201, self.add_comment(key, "", "bot") | self._overwritten(key, -1, asked.body)
            case "PUT", "comment", str():
                self._check_document(asked.body["body"])
                ids = [comment["id"] for comment in self.issues[key].comments]
                if number not in ids:
                    raise _Refusal(404, "no such comment")
                return 200, self._overwritten(key, ids.index(number), asked.body)
            case "DELETE", "comment", str():
                there = self.issues[key].comments
                kept = [comment for comment in there if comment["id"] != number]
                if len(kept) == len(there):
                    raise _Refusal(404, "no such comment")
                self.issues[key].comments = kept
                return 204, None
        self.violations.append(f"the fake knows no {asked.method} {asked.path}")
        raise _Refusal(405, "not allowed")

    def _search(self, body: dict[str, Any]) -> dict[str, Any]:
        if "fields" not in body:
            self.violations.append("a search without `fields` gets ids only")
        keys = [key for key, issue in self.issues.items() if self._fits(key, issue, body["jql"])]
        start = int(base64.b64decode(body.get("nextPageToken", "")).decode() or 0)
        end = start + min(body.get("maxResults", 50), self.page)
        page: dict[str, Any] = {"issues": [self._shown(key, body["fields"]) for key in keys[start:end]]}
        if end >= len(keys):
            return page | {"isLast": True}
        return page | {"isLast": False, "nextPageToken": base64.b64encode(str(end).encode()).decode()}

    def _fits(self, key: str, issue: Issue, query: str) -> bool:
        try:
            clauses = parse_jql(query)
        except ValueError as error:
            self.violations.append(f"JQL {query!r}: {error}")
            raise _Refusal(400, "Error in the JQL Query") from None
        for name, values in clauses:
            known = {"project": [self.project], "status": list(CATEGORIES)}.get(name)
            for value in values:
                if known is not None and value.casefold() not in {word.casefold() for word in known}:
                    raise _Refusal(400, f"The value '{value}' does not exist for the field '{name}'.")
            there = {"project": [key.rpartition("-")[0]], "status": [issue.status], "labels": issue.labels}[name]
            if not {word.casefold() for word in there} & {value.casefold() for value in values}:
                return False
        return True

    def _bulk(self, body: dict[str, Any]) -> dict[str, Any]:
        keys = [self.moved.get(key, key) for key in body["issueIdsOrKeys"]]
        if not 0 < len(keys) <= 100:
            raise _Refusal(400, "between 1 and 100 issues")
        known = sorted((key for key in keys if key in self.issues), key=lambda key: self.issues[key].id)
        return {"issues": [self._shown(key, body["fields"]) for key in known], "issueErrors": []}

    def _shown(self, key: str, fields: Sequence[str]) -> dict[str, Any]:
        issue = self.issues[key]
        everything = {
            "summary": issue.summary,
            "description": issue.description,
            "status": _status(issue.status),
            "labels": issue.labels,
            "priority": issue.priority and {"name": issue.priority, "id": "3"},
            "creator": _person(issue.author),
            "assignee": issue.assignee and _person(issue.assignee),
            "issuelinks": [self.link(blocker) for blocker in issue.blocked_by],
            "created": issue.created,
            "updated": issue.created,
        } | issue.raw
        shown = {name: value for name, value in everything.items() if name in fields}
        place = f"{self.url}{API}/issue/{issue.id}"
        return {"id": issue.id, "key": issue.key_shown or key, "self": place, "fields": shown}

    def link(self, blocker: str) -> dict[str, Any]:
        """One of the `issuelinks` of an issue that `blocker` blocks."""
        kind = {"name": "Blocks", "inward": "is blocked by", "outward": "blocks"}
        return {
            "type": kind,
            "inwardIssue": {"key": blocker, "fields": {"status": _status(self.issues[blocker].status)}},
        }

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        fields = body["fields"]
        if fields["project"] != {"key": self.project}:
            raise _Refusal(400, "valid project is required")
        if fields["issuetype"]["name"] not in ("Task", "Bug"):
            raise _Refusal(400, "Specify a valid issue type")
        if len(fields["summary"]) > 255 or not fields["summary"].isprintable():
            raise _Refusal(400, "The summary is invalid")
        if fields.get("priority", {"name": "Low"})["name"] not in PRIORITIES:
            raise _Refusal(400, "The priority selected is invalid.")
        self._check_document(fields["description"])
        self._check_labels(fields["labels"])
        priority = fields.get("priority", {}).get("name")
        key = self.add_issue(
            fields["summary"], fields["description"], self.initial, fields["labels"], priority, author="bot"
        )
        number = self.issues[key].id
        return {"id": number, "key": key, "self": f"{self.url}{API}/issue/{number}"}

    def _edit(self, key: str, body: dict[str, Any]) -> tuple[int, None]:
        if set(body) != {"update"} or set(body["update"]) != {"labels"}:
            self.violations.append(f"the fake only edits labels, not {body!r}")
        labels = self.issues[key].labels
        for change in body["update"]["labels"]:
            self._check_labels(list(change.values()))
            if "add" in change and change["add"] not in labels:
                labels.append(change["add"])
            if "remove" in change and change["remove"] in labels:
                labels.remove(change["remove"])
        return 204, None

    def _ways(self, key: str) -> list[dict[str, Any]]:
        """Transitions, whose names say nothing about the status they lead to."""
        there = self.issues[key].status
        reachable = list(CATEGORIES) if self.workflow is None else self.workflow.get(there, [])
        numbers = list(CATEGORIES)
        return [
            {"id": str(11 + numbers.index(name)), "name": f"Step {numbers.index(name)}", "to": _status(name)}
            for name in reachable
            if name != there
        ]

    def _transit(self, key: str, body: dict[str, Any]) -> tuple[int, None]:
        way = next((way for way in self._ways(key) if way["id"] == body["transition"]["id"]), None)
        if way is None:
            raise _Refusal(400, "It seems that you have tried to perform an illegal workflow operation")
        self.issues[key].status = way["to"]["name"]
        return 204, None

    def _comments(self, key: str, query: dict[str, str]) -> dict[str, Any]:
        comments = self.issues[key].comments
        if query.get("orderBy") != "created":  # whoever asks for no order gets one that they do not want
            comments = comments[::-1]
        start, most = int(query.get("startAt", 0)), min(int(query.get("maxResults", 50)), self.page)
        hidden = () if query.get("expand") == "properties" else ("properties",)
        page = [{k: v for k, v in c.items() if k not in hidden} for c in comments[start : start + most]]
        return {"comments": page, "startAt": start, "maxResults": most, "total": len(comments)}

    def _overwritten(self, key: str, at: int, body: dict[str, Any]) -> dict[str, Any]:
        self.issues[key].comments[at] |= body
        return self.issues[key].comments[at]

    def _check_document(self, document: Any) -> None:
        self.violations += [f"not an ADF document: {mistake}" for mistake in adf_mistakes(document)]

    def _check_labels(self, labels: Sequence[str]) -> None:
        for label in labels:
            if re.search(r"\s", label):
                raise _Refusal(400, f"The label '{label}' contains spaces which is invalid.")


_INLINE = {"text", "hardBreak"}
_LISTS = {"bulletList", "orderedList"}
_CHILDREN = {
    "doc": {"paragraph", "heading", "codeBlock", *_LISTS},
    "paragraph": _INLINE,
    "heading": _INLINE,
    "codeBlock": {"text"},
    "bulletList": {"listItem"},
    "orderedList": {"listItem"},
    "listItem": {"paragraph", "codeBlock", *_LISTS},
    "hardBreak": set[str](),
    "text": set[str](),
}
_MARKS = {"code", "strong", "link"}


def adf_mistakes(document: Any) -> Iterator[str]:
    """What in a document would be refused by Jira, as far as we write documents."""
    if not isinstance(document, dict) or document.get("type") != "doc" or document.get("version") != 1:
        yield f"{document!r:.200} is no document of version 1"
    else:
        yield from _node_mistakes(document)


def _node_mistakes(node: dict[str, Any]) -> Iterator[str]:
    kind, children = node["type"], node.get("content", [])
    for child in children:
        if child.get("type") not in _CHILDREN[kind]:
            yield f"a {child.get('type')} in a {kind}"
        elif kind == "codeBlock" and child.get("marks"):
            yield "marks in code"
        else:
            yield from _node_mistakes(child)
    if kind == "text" and (not isinstance(node.get("text"), str) or not node["text"]):
        yield "a text without text"
    if not {mark["type"] for mark in node.get("marks", [])} <= _MARKS:
        yield f"unknown marks {node['marks']!r}"
    if kind == "heading" and node["attrs"]["level"] not in range(1, 7):
        yield f"a heading with {node['attrs']!r}"
    if kind in {"listItem", *_LISTS} and not children:
        yield f"an empty {kind}"
    if kind == "listItem" and children and children[0]["type"] not in ("paragraph", "codeBlock"):
        yield "a list item that starts with a list"


_TOKEN = re.compile(
    r'\s*(?:(?P<string>"(?:[^"\\\x00-\x1f\x7f-\x9f]|\\(?:["\\]|u[0-9a-f]{4}))*")|(?P<word>[A-Za-z]+)|(?P<sign>[=(),]))'
)


def parse_jql(query: str) -> list[tuple[str, list[str]]]:
    """`name = "x" AND name IN ("x", "y") ORDER BY …` as names and values. Raises ValueError for anything else."""
    conditions, _, order = query.partition(" ORDER BY ")
    if not re.fullmatch(r"(?:key|created) ASC(?:, key ASC)?", order):
        raise ValueError(f"order {order!r}")
    tokens = _tokens(conditions)
    clauses = []
    while tokens:
        clause, tokens = _clause(tokens)
        clauses.append(clause)
        if tokens and tokens.pop(0) != "AND":
            raise ValueError("only AND joins clauses")
    return clauses


def _tokens(text: str) -> list[str]:
    tokens = []
    at = 0
    while at < len(text):
        if not (found := _TOKEN.match(text, at)):
            raise ValueError(f"unreadable at {text[at : at + 20]!r}")
        tokens.append(found[0].strip())
        at = found.end()
    return tokens


def _clause(tokens: list[str]) -> tuple[tuple[str, list[str]], list[str]]:
    name, sign, *rest = tokens
    if name not in ("project", "status", "labels"):
        raise ValueError(f"field {name!r}")
    if sign == "=":
        return (name, [_unquoted(rest[0])]), rest[1:]
    if sign != "IN" or rest[0] != "(":
        raise ValueError(f"operator {sign!r}")
    end = rest.index(")")
    if any(comma != "," for comma in rest[2:end:2]):
        raise ValueError("a list without commas")
    return (name, [_unquoted(value) for value in rest[1:end:2]]), rest[end + 1 :]


def _unquoted(token: str) -> str:
    if not token.startswith('"'):
        raise ValueError(f"{token!r} is not quoted")
    plain = re.sub(r"\\(u([0-9a-f]{4})|.)", lambda m: chr(int(m[2], 16)) if m[2] else m[1], token[1:-1])
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _status(name: str) -> dict[str, Any]:
    category = CATEGORIES[name]
    kinds = {"new": (2, "To Do"), "indeterminate": (4, "In Progress"), "done": (3, "Done")}
    number, shown = kinds[category]
    number_of_status = str(10_000 + list(CATEGORIES).index(name))
    return {"name": name, "id": number_of_status, "statusCategory": {"id": number, "key": category, "name": shown}}


def _person(name: str) -> dict[str, Any]:
    """The account id is what cannot be changed; anybody may show any name."""
    return {"accountId": name, "displayName": f"{name.title()} Example", "active": True}


@cache
def _contract() -> tuple[OpenAPI, Names] | None:
    """Jira sends times that the document's own format `date-time` forbids: formats are not checked."""
    if not CONTRACT.is_file():
        return None
    with gzip.open(CONTRACT, "rt", encoding="utf-8") as file:
        document = _without_formats(json.load(file))
    config = Config(spec_validator_cls=None)  # type: ignore[arg-type] # its way to say: do not
    return OpenAPI.from_dict(document, config=config), Names(document)


def _without_formats(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_formats(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {k: _without_formats(v) for k, v in node.items() if k != "format" or not isinstance(v, str)}


def _request(method: str, path: str, query: dict[str, str], headers: Mapping[str, str], data: bytes) -> MockRequest:
    kind = headers.get("Content-Type", "")
    credentials = {"Authorization": headers.get("Authorization", "")}
    host = "https://your-domain.atlassian.net"
    return MockRequest(
        host, method.lower(), path, args=query, headers=credentials, data=data or None, content_type=kind
    )


def _handler_of(fake: FakeJira) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                status, body, headers = fake.answer(self.command, self.path, dict(self.headers), data)
            except Exception as error:
                fake.violations.append(f"{self.command} {self.path} broke the fake: {error!r}")
                status, body, headers = 500, b"", {}
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in ({"Content-Type": "application/json"} | headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: `fake.log` holds the requests."""

    return Handler
