"""A Linear workspace on a port of this machine, for tests: two teams, kept in memory.

Every operation is validated and executed against Linear's own GraphQL schema, so that a wrong field, variable or answer, and
a query that costs more than Linear allows, fails the test at the end of `with`.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from graphql import (
    DocumentNode,
    ExecutionResult,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLObjectType,
    GraphQLSchema,
    IntValueNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    VariableNode,
    build_schema,
    execute_sync,
    get_named_type,
    parse,
    validate,
)

from infra.sections import LinearBoardSection

SCHEMA = Path(__file__).parents[3] / "shared" / "contracts" / "linear" / "schema.graphql.gz"
"""Absent outside of our own workplace; there is no fake without it."""
STATES = {
    "Backlog": "backlog",
    "Todo": "unstarted",
    "Agent Queue": "unstarted",
    "In Progress": "started",
    "In Review": "started",
    "Needs Human": "started",
    "Rejected": "started",
    "Shipped": "started",
    "Done": "completed",
    "Canceled": "canceled",
    "Duplicate": "duplicate",
}
ME = "factory"
"""The display name of the token's user."""
MOST_POINTS = 10_000
"""A query that costs more is always refused, say Linear's pages on rate limits: 0.1 for a value, 1 for an object, and what
is below a connection as often as it asks for."""

Record = dict[str, Any]


@dataclass
class Asked:
    """One request; `status` is 0 when the line was cut."""

    name: str
    kind: str
    variables: Record
    points: float
    status: int = 0


@dataclass
class Issue:
    """One issue. `relations` are (type, the other issue's key); `outsider` names an author from outside."""

    id: str
    team: str
    number: int
    title: str
    description: str | None
    state: str
    labels: list[str]
    priority: float
    author: str | None
    assignee: str | None
    created: str
    relations: list[tuple[str, str]] = field(default_factory=list)
    comments: list[Record] = field(default_factory=list)
    archived: str | None = None
    trashed: bool = False
    outsider: str | None = None

    @property
    def key(self) -> str:
        return f"{self.team}-{self.number}"


@dataclass
class Injected:
    """An answer in place of Linear's own (`status`), or a change to it, after letting `after` requests pass."""

    on: str
    after: int
    times: int
    status: int = 0
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    change: Callable[[Record], None] | None = None


class Nodes(list[Record]):
    """A connection: a list for filters, and what the executor calls for pages."""

    def __call__(self, info: Any, first: int | None = None, after: str | None = None, **_: Any) -> Record:
        fake: FakeLinear = info.context
        if first is None or not 0 < first <= 250:
            fake.violations.append(f"{info.field_name} asks for {first} nodes")
        start = int((after or "c0")[1:])
        end = start + min(first or 50, fake.page)
        more = end < len(self)
        return {"nodes": self[start:end], "pageInfo": {"hasNextPage": more, "endCursor": f"c{end}" if more else None}}


class FakeLinear:
    """`with FakeLinear() as fake:` starts it; leaving the block raises AssertionError when the contract was broken."""

    def __init__(self, token: str = "lin_api_0123456789abcdef", page: int = 250) -> None:
        self.token = token
        self.page = page
        self.issues: dict[str, Issue] = {}
        self.labels: dict[str, str | None] = {}
        """Name -> the team's key, or None for a label of the whole workspace."""
        self.states = dict(STATES)
        self.budget: int | None = None
        """What the header with the remaining requests says."""
        self.log: list[Asked] = []
        self.violations: list[str] = []
        self._injected: list[Injected] = []
        self._clock = datetime(2026, 1, 1, tzinfo=UTC)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/graphql"

    def section(self, **changes: Any) -> LinearBoardSection:
        """The board's section for team ENG of this workspace."""
        settings = {"kind": "linear", "team": "ENG", "url": self.url, "token": self.token}
        return LinearBoardSection.model_validate(settings | changes)

    def add_issue(
        self,
        title: str,
        description: str | None = "",
        state: str = "Todo",
        labels: Sequence[str] = (),
        priority: float = 0,
        author: str | None = "ada",
        assignee: str | None = None,
        blocked_by: Sequence[str] = (),
        team: str = "ENG",
    ) -> str:
        """A new issue; its key. Labels that are not there are made."""
        number = 1 + sum(issue.team == team for issue in self.issues.values())
        for name in labels:
            self.labels.setdefault(name, team)
        content = (title, description, state, [*labels], priority, author, assignee, self.tick())
        issue = Issue(f"issue-{len(self.issues) + 1}", team, number, *content, [("blocks", k) for k in blocked_by])
        self.issues[issue.key] = issue
        return issue.key

    def add_comment(self, key: str, body: str, author: str | None = "ada", outsider: str | None = None) -> Record:
        """A new comment: by a user, by somebody from outside, or by neither."""
        number = f"comment-{sum(len(issue.comments) for issue in self.issues.values()) + 1}"
        comment = {"id": number, "body": body, "createdAt": self.tick(), "user": author and _user(author)}
        self.issues[key].comments.append(comment | {"externalUser": outsider and _outsider(outsider)})
        return self.issues[key].comments[-1]

    def inject(
        self,
        on: str,
        status: int,
        body: Any = b"",
        headers: Mapping[str, str] | None = None,
        after: int = 0,
        times: int = 1,
    ) -> None:
        """Answer the next `times` operations whose name has `on` in it so (status 0: hang up), once `after` have passed."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._injected.append(Injected(on, after, times, status, data, dict(headers or {})))

    def refuse(self, on: str, kind: str, status: int = 200, message: str = "no", times: int = 1) -> None:
        """Answer with Linear's form of an error."""
        error = {"message": message, "extensions": {"type": kind, "userPresentableMessage": message}}
        self.inject(on, status, {"data": None, "errors": [error]}, times=times)

    def alter(self, on: str, change: Callable[[Record], None], after: int = 0, times: int = 1) -> None:
        """Let `change` edit the `data` of the next `times` answers, to make records that the schema forbids."""
        self._injected.append(Injected(on, after, times, change=change))

    def asked(self, on: str) -> list[Asked]:
        """The requests whose operation's name has `on` in it."""
        return [asked for asked in self.log if on in asked.name]

    @property
    def writes(self) -> list[str]:
        """The names of the mutations."""
        return [asked.name for asked in self.log if asked.kind == "mutation"]

    def __enter__(self) -> FakeLinear:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(timeout=10)
        self._server.server_close()
        if error is None:
            assert not self.violations, "\n".join(self.violations)
        else:
            error.add_note("\n".join(self.violations))

    def tick(self) -> str:
        """A time, one second after the last, as Linear writes it."""
        self._clock += timedelta(seconds=1)
        return self._clock.strftime("%Y-%m-%dT%H:%M:%S.000Z")

    # Answering

    def answer(self, headers: Mapping[str, str], data: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Status (0: hang up), body and headers of the answer to one request."""
        budget = {} if self.budget is None else {"X-RateLimit-Requests-Remaining": str(self.budget)}
        bearer = "Bearer " if self.token.startswith("lin_oauth_") else ""
        if headers.get("Authorization") != f"{bearer}{self.token}":
            return 401, _failure("authentication error", "Authentication required, not authenticated"), budget
        if headers.get("Content-Type") != "application/json":
            self.violations.append(f"the content type is {headers.get('Content-Type')!r}")
        asked = json.loads(data)
        document, mistakes = _read(asked["query"])
        if document is None or mistakes:
            self.violations += mistakes
            return 400, _failure("graphql error", "; ".join(mistakes)), budget
        return self._answer(document, asked["variables"], budget)

    def _answer(
        self, document: DocumentNode, variables: Record, headers: dict[str, str]
    ) -> tuple[int, bytes, dict[str, str]]:
        asked = self._noted(document, variables)
        injected = self._next_injected(asked.name)
        if injected and injected.change is None:
            asked.status = injected.status
            return injected.status, injected.body, headers | injected.headers
        result = execute_sync(_schema(), document, variable_values=variables, context_value=self)
        assert isinstance(result, ExecutionResult)
        self.violations += [
            f"{asked.name}: {error}" for error in result.errors or () if not isinstance(error.original_error, _Refusal)
        ]
        asked.status = 400 if result.errors else 200
        answer = json.loads(json.dumps(result.formatted))
        if injected and injected.change:
            injected.change(answer["data"])
        return asked.status, json.dumps(answer).encode(), headers

    def _noted(self, document: DocumentNode, variables: Record) -> Asked:
        operation = next(d for d in document.definitions if isinstance(d, OperationDefinitionNode))
        points = _points(document, operation, variables)
        if points > MOST_POINTS:
            self.violations.append(f"an operation of {points:.0f} points")
        asked = Asked(operation.name.value if operation.name else "", operation.operation.value, variables, points)
        self.log.append(asked)
        return asked

    def _next_injected(self, name: str) -> Injected | None:
        for injected in self._injected:
            if injected.times and injected.on in name:
                if injected.after:
                    injected.after -= 1
                    return None
                injected.times -= 1
                return injected
        return None

    # What resolvers read

    def issue(self, id_: str) -> Issue:
        found = next((issue for issue in self.issues.values() if issue.id == id_), None)
        if found is None:
            raise _refusal("invalid input", "Entity not found: Issue")
        return found

    def shown(self, issue: Issue) -> Record:
        """The issue as the schema has it. Lists come newest first."""
        return {
            **{"id": issue.id, "identifier": issue.key, "number": issue.number, "title": issue.title},
            **{"description": issue.description, "priority": issue.priority, "url": f"{self.url}/{issue.key}"},
            **{"createdAt": issue.created, "updatedAt": issue.created, "archivedAt": issue.archived},
            "trashed": issue.trashed or None,
            "team": self.team(issue.team),
            "state": self.state(issue.team, issue.state),
            "creator": issue.author and _user(issue.author),
            "externalUserCreator": issue.outsider and _outsider(issue.outsider),
            "assignee": issue.assignee and _user(issue.assignee),
            "labels": Nodes(self.label(name) for name in issue.labels),
            "comments": Nodes(reversed(issue.comments)),
            "inverseRelations": Nodes({"type": kind, "issue": self.related(key)} for kind, key in issue.relations),
        }

    def related(self, key: str) -> Record:
        """The other end of a relation. Its own relations are left out: they may lead back."""
        other = self.issues[key]
        return {"identifier": key, "archivedAt": other.archived, "state": self.state(other.team, other.state)}

    def team(self, key: str) -> Record:
        states = Nodes({"id": f"state-{key}-{name}", "name": name, "type": kind} for name, kind in self.states.items())
        return {"id": f"team-{key}", "key": key, "name": key.title(), "states": states}

    def state(self, team: str, name: str) -> Record:
        return {"id": f"state-{team}-{name}", "name": name, "type": self.states.get(name, "started")}

    def label(self, name: str) -> Record:
        team = self.labels[name]
        return {"id": f"label-{name}", "name": name, "team": team and {"id": f"team-{team}", "key": team}}

    def label_named(self, id_: str) -> str:
        name = id_.removeprefix("label-")
        if name not in self.labels:
            raise _refusal("invalid input", "Entity not found: IssueLabel")
        return name

    def state_named(self, team: str, id_: str) -> str:
        name = id_.removeprefix(f"state-{team}-")
        if name not in self.states:
            raise _refusal("invalid input", "Entity not found: WorkflowState")
        return name


# Resolvers: what Linear does with an operation


def _issues(_: Any, info: Any, filter: Record | None = None, includeArchived: bool = False, **page: Any) -> Record:  # noqa: N803
    fake: FakeLinear = info.context
    shown = [fake.shown(issue) for issue in reversed(fake.issues.values())]
    return Nodes(r for r in shown if (includeArchived or not r["archivedAt"]) and _fits(r, filter or {}))(info, **page)


def _issue(_: Any, info: Any, id: str) -> Record:
    fake: FakeLinear = info.context
    return fake.shown(fake.issue(id))


def _teams(_: Any, info: Any, filter: Record | None = None, **page: Any) -> Record:
    return Nodes(t for t in map(info.context.team, ("ENG", "OPS")) if _fits(t, filter or {}))(info, **page)


def _issue_labels(_: Any, info: Any, filter: Record | None = None, **page: Any) -> Record:
    labels = map(info.context.label, info.context.labels)
    return Nodes(label for label in labels if _fits(label, filter or {}))(info, **page)


def _viewer(_: Any, info: Any) -> Record:
    return _user(ME)


def _create(_: Any, info: Any, input: Record) -> Record:
    fake: FakeLinear = info.context
    unknown = input.keys() - {"teamId", "stateId", "title", "description", "labelIds", "priority"}
    if unknown:
        fake.violations.append(f"the fake cannot create an issue with {unknown}")
    team = input["teamId"].removeprefix("team-")
    if not input["title"].isprintable() or len(input["title"]) > 255:
        raise _refusal("invalid input", "title must be shorter than or equal to 255 characters")
    state = fake.state_named(team, input["stateId"])
    labels = [fake.label_named(label) for label in input["labelIds"]]
    text, priority = _kept(input["description"]), input.get("priority", 0)
    key = fake.add_issue(input["title"], text, state, labels, priority, author=ME, team=team)
    return _done(issue=fake.shown(fake.issues[key]))


def _update(_: Any, info: Any, id: str, input: Record) -> Record:
    fake: FakeLinear = info.context
    issue = fake.issue(id)
    if input.keys() != {"stateId"}:
        fake.violations.append(f"the fake only changes the state, not {input!r}")
    issue.state = fake.state_named(issue.team, input["stateId"])
    return _done(issue=fake.shown(issue))


def _add_label(_: Any, info: Any, id: str, labelId: str) -> Record:  # noqa: N803
    issue, name = info.context.issue(id), info.context.label_named(labelId)
    if name in issue.labels:
        info.context.violations.append(f"label {name!r} is on {issue.key} already")
    issue.labels.append(name)
    return _done(issue=info.context.shown(issue))


def _remove_label(_: Any, info: Any, id: str, labelId: str) -> Record:  # noqa: N803
    issue, name = info.context.issue(id), info.context.label_named(labelId)
    issue.labels.remove(name)
    return _done(issue=info.context.shown(issue))


def _create_label(_: Any, info: Any, input: Record, **_more: Any) -> Record:
    fake: FakeLinear = info.context
    if input["name"].casefold() in {name.casefold() for name in fake.labels}:
        raise _refusal("invalid input", "Duplicate label name")
    fake.labels[input["name"]] = input["teamId"].removeprefix("team-")
    return _done(issueLabel=fake.label(input["name"]))


def _comment(_: Any, info: Any, input: Record) -> Record:
    issue = info.context.issue(input["issueId"])
    return _done(comment=info.context.add_comment(issue.key, _kept(input["body"]), ME))


def _replace(_: Any, info: Any, id: str, input: Record, **_more: Any) -> Record:
    comments = [c for issue in info.context.issues.values() for c in issue.comments if c["id"] == id]
    if not comments:
        raise _refusal("invalid input", "Entity not found: Comment")
    if comments[0]["user"] not in (None, _user(ME)):
        raise _refusal("forbidden", "You can only edit your own comments")
    comments[0]["body"] = _kept(input["body"])
    return _done(comment=comments[0])


def _delete(_: Any, info: Any, id: str) -> Record:
    for issue in info.context.issues.values():
        for comment in (comment for comment in issue.comments if comment["id"] == id):
            issue.comments.remove(comment)
            return _done(entityId=id)
    raise _refusal("invalid input", "Entity not found: Comment")


_RESOLVERS: dict[str, dict[str, Callable[..., Record]]] = {
    "Query": {
        **{"issues": _issues, "issue": _issue, "teams": _teams},
        **{"issueLabels": _issue_labels, "viewer": _viewer},
    },
    "Mutation": {
        **{"issueCreate": _create, "issueUpdate": _update, "issueAddLabel": _add_label},
        **{"issueRemoveLabel": _remove_label, "issueLabelCreate": _create_label},
        **{"commentCreate": _comment, "commentUpdate": _replace, "commentDelete": _delete},
    },
}


def _done(**made: Record) -> Record:
    return {"success": True, "lastSyncId": 1, **made}


class _Refusal(GraphQLError):
    """Linear understood and says no; any other error is one of the adapter or of this fake."""


def _refusal(kind: str, message: str) -> _Refusal:
    return _Refusal(message, extensions={"type": kind, "userPresentableMessage": message})


def _failure(kind: str, message: str) -> bytes:
    error = {"message": message, "extensions": {"type": kind, "code": kind.upper().replace(" ", "_")}}
    return json.dumps({"errors": [error]}).encode()


def _kept(text: str) -> str:
    """Linear's database takes neither NUL nor half characters."""
    if "\0" in text:
        raise _refusal("internal error", "invalid byte sequence")
    text.encode()
    return text


def _user(name: str) -> Record:
    return {"id": f"user-{name}", "displayName": name, "name": f"{name.title()} Example"}


def _outsider(name: str) -> Record:
    return {"id": f"outsider-{name}", "displayName": name, "name": name}


def _fits(value: Any, wanted: Record) -> bool:
    """Linear's filters, as far as the adapter uses them; another comparator is an error of the operation."""
    return all(_satisfies(value, name, condition) for name, condition in wanted.items())


def _satisfies(value: Any, name: str, condition: Any) -> bool:
    match name:
        case "and":
            return all(_fits(value, part) for part in condition)
        case "or":
            return any(_fits(value, part) for part in condition)
        case "some":
            return any(_fits(item, condition) for item in value)
        case "null":
            return bool((value is None) == condition)
        case "eq":
            return bool(value == condition)
        case "in":
            return value in condition
        case "nin":
            return value not in condition
        case "eqIgnoreCase":
            return bool(value.lower() == condition.lower())
        case "contains":
            return condition in (value or "")
    return value is not None and _fits(value[name], condition)


# The schema


@cache
def _schema() -> GraphQLSchema:
    with gzip.open(SCHEMA, "rt", encoding="utf-8") as file:
        schema = build_schema(file.read(), assume_valid=True, no_location=True)
    for kind, resolvers in _RESOLVERS.items():
        of = schema.type_map[kind]
        assert isinstance(of, GraphQLObjectType)
        for name, resolver in resolvers.items():
            of.fields[name].resolve = resolver
    return schema


@cache
def _read(query: str) -> tuple[DocumentNode | None, list[str]]:
    """The operation, and what the schema has against it."""
    try:
        document = parse(query)
    except GraphQLError as error:
        return None, [str(error)]
    return document, [str(error) for error in validate(_schema(), document)]


def _points(document: DocumentNode, operation: OperationDefinitionNode, variables: Record) -> float:
    root = _schema().query_type if operation.operation is OperationType.QUERY else _schema().mutation_type
    fragments = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
    return _cost(operation.selection_set, root, fragments, variables)


def _cost(of: SelectionSetNode, parent: Any, fragments: dict[str, FragmentDefinitionNode], variables: Record) -> float:
    total = 0.0
    for node in of.selections:
        if isinstance(node, FragmentSpreadNode):
            total += _cost(fragments[node.name.value].selection_set, parent, fragments, variables)
        elif isinstance(node, FieldNode) and node.selection_set is None:
            total += 0.1
        elif isinstance(node, FieldNode) and node.selection_set is not None:
            child = get_named_type(parent.fields[node.name.value].type)
            total += 1 + _times(node, child.name, variables) * _cost(node.selection_set, child, fragments, variables)
    return total


def _times(node: FieldNode, kind: str, variables: Record) -> int:
    """How often what is below counts: as `first` says, 50 without it, and once when this is no connection."""
    first = next((a.value for a in node.arguments or () if a.name.value == "first"), None)
    if isinstance(first, VariableNode):
        return int(variables[first.name.value])
    if isinstance(first, IntValueNode):
        return int(first.value)
    return 50 if kind.endswith("Connection") else 1


def _handler_of(fake: FakeLinear) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                status, body, headers = fake.answer(dict(self.headers), data)
            except Exception as error:
                fake.violations.append(f"a request broke the fake: {error!r}")
                status, body, headers = 500, b"", {}
            self.close_connection = True
            if not status:
                return
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Tests print nothing."""

    return Handler
