"""A board that is one Linear team, over its GraphQL API. A state is a workflow state's name; `author` is the display name.

Display names are unique within a workspace, says Linear's schema. Those of people outside of it are not, so their tickets
have no author. A mark counts only on what the token's own user wrote: whoever copies one out of Linear stays a stranger.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from infra.boards import Comment, Ticket
from infra.boards.limits import Allowance
from infra.boards.markers import seal, signature, unseal
from infra.boards.payloads import dig, folded, items, moment, one_line
from infra.errors import (
    AuthFailed,
    BrokenPagination,
    ConfigError,
    FactoryError,
    ProviderFault,
    RateLimited,
    UnexpectedStatus,
    Unreachable,
)
from infra.reset_times import from_epoch, retry_after
from infra.sections import LinearBoardSection

Payload = dict[str, Any]

CREATED_LABEL = "darkfactory"
"""On every ticket that the factory created; narrows the search for one that is there already."""

_TIMEOUT_SECONDS = 15
_PAGE = 50
_MOST_PAGES = 200
_LONGEST_TITLE = 255
_LONGEST_REASON = 300
_FINISHED = ("completed", "canceled", "duplicate")
"""Types of workflow states, as Linear's schema lists them."""
_AUTHENTICATION = {"authenticationerror", "unauthenticated", "forbidden", "featurenotaccessible"}
_OUTAGE = {"internalerror", "internalservererror", "networkerror", "locktimeout", "bootstraperror"}
_MARKER = re.compile(r"[A-Za-z0-9._:/@-]{1,200}")

_INFO = "pageInfo { hasNextPage endCursor }"
_NODES = {
    "labels": "nodes { id name }",
    "inverseRelations": "nodes { type issue { identifier archivedAt state { name type } } }",
    "comments": "nodes { id body createdAt user { id displayName } externalUser { id } }",
}
_TICKET = f"""
fragment Ticket on Issue {{
  id identifier title description priority url createdAt updatedAt archivedAt trashed
  state {{ name type }} creator {{ id displayName }} externalUserCreator {{ id }} assignee {{ displayName }}
  labels(first: 10) {{ {_NODES["labels"]} {_INFO} }}
  inverseRelations(first: 10) {{ {_NODES["inverseRelations"]} {_INFO} }}
}}"""  # Linear refuses a query of more than 10 000 points; nested lists are multiplied by `first`, so theirs are small
_OPEN = f"""
query OpenTickets($team: String!, $filter: IssueFilter!, $first: Int!, $after: String) {{
  teams(first: 1, filter: {{key: {{eq: $team}}}}) {{ nodes {{ id }} }}
  issues(first: $first, after: $after, filter: $filter) {{ nodes {{ ...Ticket }} {_INFO} }}
}}{_TICKET}"""
_WHOLE = f"""
query WholeTickets($team: String!, $filter: IssueFilter!, $first: Int!, $after: String) {{
  viewer {{ id }}
  teams(first: 1, filter: {{key: {{eq: $team}}}}) {{ nodes {{ id }} }}
  issues(first: $first, after: $after, filter: $filter, includeArchived: true) {{
    nodes {{ ...Ticket comments(first: 15) {{ {_NODES["comments"]} {_INFO} }} }} {_INFO}
  }}
}}{_TICKET}"""
_MORE = {
    name: f"""
query More($id: String!, $after: String!) {{
  issue(id: $id) {{ {name}(first: {_PAGE}, after: $after) {{ {nodes} {_INFO} }} }}
}}"""
    for name, nodes in _NODES.items()
}
_TEAM = """
query Team($team: String!) {
  teams(first: 1, filter: {key: {eq: $team}}) { nodes { id states(first: 100) { nodes { id name } } } }
}"""
_LABELS = f"""
query Labels($filter: IssueLabelFilter!, $after: String) {{
  issueLabels(first: {_PAGE}, after: $after, filter: $filter) {{ nodes {{ id name }} {_INFO} }}
}}"""
_MOVE = """
mutation Move($id: String!, $state: String!) { issueUpdate(id: $id, input: {stateId: $state}) { success } }"""
_COMMENT = """
mutation Comment($id: String!, $body: String!) { commentCreate(input: {issueId: $id, body: $body}) { success } }"""
_REPLACE = """
mutation Replace($id: String!, $body: String!) { commentUpdate(id: $id, input: {body: $body}) { success } }"""
_DELETE = """
mutation Delete($id: String!) { commentDelete(id: $id) { success } }"""
_ADD_LABEL = """
mutation AddLabel($id: String!, $label: String!) { issueAddLabel(id: $id, labelId: $label) { success } }"""
_REMOVE_LABEL = """
mutation RemoveLabel($id: String!, $label: String!) { issueRemoveLabel(id: $id, labelId: $label) { success } }"""
_CREATE_LABEL = """
mutation CreateLabel($name: String!, $team: String!) {
  issueLabelCreate(input: {name: $name, teamId: $team}) { success issueLabel { id } }
}"""
_CREATE = f"""
mutation Create($input: IssueCreateInput!) {{ issueCreate(input: $input) {{ success issue {{ ...Ticket }} }} }}{_TICKET}"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Team:
    """The team's id and its states: name without case -> the name and its id."""

    id: str
    states: dict[str, tuple[str, str]]


class LinearBoard:
    """The issues of one team. Keeps only the ids of its states, so that nodes may share a team; every call asks Linear."""

    def __init__(self, name: str, section: LinearBoardSection) -> None:
        self.name = name
        self._section = section
        self._token = section.token.get_secret_value()
        self._api = _Api(section.url, self._token)
        self._closed = folded(section.states.closed)
        self._key = re.compile(rf"{re.escape(section.team)}-([1-9][0-9]{{0,8}})")
        self._team: _Team | None = None

    def tickets_in_states(self, states: list[str]) -> list[Ticket]:
        """Open tickets in any of the states, by number; one request per 50. A state the team does not have holds none."""
        wanted = {state.strip().casefold(): state.strip() for state in states if state.strip()}
        required = {label.casefold(): label for label in (" ".join(x.split()) for x in self._section.required_labels)}
        if not wanted or "" in required:
            return []
        issues = self._open_issues(list(wanted.values()), list(required.values()))
        found = [ticket for issue in issues for ticket in self._usable(issue) if not ticket.closed]
        fitting = [t for t in found if t.state.casefold() in wanted and required.keys() <= folded(t.labels)]
        return sorted({ticket.key: ticket for ticket in fitting}.values(), key=_number)

    def tickets_by_keys(self, keys: list[str]) -> list[Ticket]:
        """The named tickets in the order of `keys`. Keys of other teams are absent without being asked for."""
        asked = [key for key in dict.fromkeys(keys) if self._key.fullmatch(key)]
        found: dict[str, Ticket] = {}
        for at in range(0, len(asked), _PAGE):
            me, issues = self._named(asked[at : at + _PAGE])
            found |= {ticket.key: ticket for ticket in (self._whole(issue, me) for issue in issues)}
        return [found[key] for key in asked if key in found]

    def move(self, key: str, state: str) -> None:
        """Set the ticket's state; none when it is there already. Raises ConfigError that lists the team's states."""
        _, issue = self._one(key)
        if (one_line(dig(issue, "state", "name")) or "").casefold() == state.strip().casefold():
            return
        try:
            self._write(_MOVE, "issueUpdate", id=_id(issue), state=self._state(state))
        except _Refused:
            self._team = None  # the state may have been replaced since it was read
            raise

    def comment(self, key: str, body: str, marker: str) -> None:
        """Write, or replace in place, the comment with `marker`; the same text again writes nothing."""
        me, issue = self._one(key)
        sealed = seal(self._token, key, _usable_marker(marker), _storable(body))
        ours = self._ours(issue, key, marker, me)
        if not ours:
            self._write(_COMMENT, "commentCreate", id=_id(issue), body=sealed)
            me, issue = self._one(key)  # another process may have written it in the same moment
            ours = self._ours(issue, key, marker, me)
        elif self._comment(key, ours[0], me).body != unseal(self._token, key, sealed)[0]:
            self._write(_REPLACE, "commentUpdate", id=_id(ours[0]), body=sealed)
        for twin in ours[1:]:
            with suppress(_Refused):  # the other process was faster
                self._write(_DELETE, "commentDelete", id=_id(twin))

    def _ours(self, issue: Payload, key: str, marker: str, me: str) -> list[Payload]:
        """The comments with the mark, oldest first."""
        return [c for c in self._raw_comments(issue) if self._comment(key, c, me).marker == marker]

    def label(self, key: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
        """Add and remove labels, compared without case. A label that neither team nor workspace has is made in the team."""
        wanted = _distinct(add)
        _, issue = self._one(key)
        there = {name.casefold(): _id(label) for label in self._all(issue, "labels") if (name := _label_name(label))}
        for label in self._labels([name for name in wanted if name.casefold() not in there]):
            self._write(_ADD_LABEL, "issueAddLabel", id=_id(issue), label=label)
        for name in _distinct(remove):
            if name.casefold() in there and name.casefold() not in folded(wanted):
                self._write(_REMOVE_LABEL, "issueRemoveLabel", id=_id(issue), label=there[name.casefold()])

    def create(
        self, title: str, body: str, *, marker: str, labels: Sequence[str] = (), priority: int | None = None
    ) -> Ticket:
        """Create an issue with the label `darkfactory`, or return the oldest of ours whose description has the mark."""
        known = self._created(_usable_marker(marker))
        if known:
            return min(known, key=_number)
        wanted: Payload = {
            "teamId": self._known_team().id,
            "stateId": self._state(self._section.states.queue[0]),
            "title": (one_line(title) or "Untitled")[:_LONGEST_TITLE],
            "description": seal(self._token, "new", marker, _storable(body)),
            "labelIds": self._labels(_distinct([*labels, CREATED_LABEL])),
        }
        if priority in (1, 2, 3, 4):
            wanted["priority"] = priority
        return self._ticket(self._write(_CREATE, "issueCreate", input=wanted).get("issue"))

    # Reading

    def _open_issues(self, states: list[str], labels: list[str]) -> Iterator[Any]:
        """The raw unfinished issues of the team that are in any of the states and have all of the labels."""
        in_state = {"type": {"nin": _FINISHED}, "or": [{"name": {"eqIgnoreCase": name}} for name in states]}
        labelled = [{"labels": {"some": {"name": {"eqIgnoreCase": name}}}} for name in labels]
        with_labels = {"and": labelled} if labelled else {}
        variables = {"filter": {**self._of_team(), "state": in_state, **with_labels}, "first": _PAGE}
        return self._issues(_OPEN, self._team_answer(_OPEN, **variables), variables)

    def _of_team(self) -> Payload:
        return {"team": {"key": {"eq": self._section.team}}}

    def _issues(self, query: str, answer: Payload, variables: Payload) -> Iterator[Any]:
        """The raw issues of `answer` and of the pages after it."""
        return _pages(
            answer.get("issues"), lambda after: self._team_answer(query, **variables, after=after).get("issues")
        )

    def _team_answer(self, query: str, **variables: Any) -> Payload:
        """Raises ConfigError when the team is not there: Linear itself then only answers with nothing."""
        answer = self._api.ask(query, team=self._section.team, **variables)
        if not _list(dig(answer, "teams"), "teams"):
            raise ConfigError(
                f"Linear has no team {self._section.team!r} that the token of board {self.name!r} may see; correct "
                "`team` or give the token's user access"
            )
        return answer

    def _matching(self, filter_: Payload, first: int) -> tuple[str, list[Any]]:
        """The id of the token's user, and the raw issues with comments, archived ones too but not those in the trash."""
        answer = self._team_answer(_WHOLE, filter=filter_, first=first)
        issues = self._issues(_WHOLE, answer, {"filter": filter_, "first": first})
        return _id(answer.get("viewer")), [issue for issue in issues if dig(issue, "trashed") is not True]

    def _named(self, keys: list[str]) -> tuple[str, list[Any]]:
        numbers = [int(key.rpartition("-")[2]) for key in keys]
        return self._matching({**self._of_team(), "number": {"in": numbers}}, len(keys))

    def _one(self, key: str) -> tuple[str, Payload]:
        """The id of the token's user and the raw issue. Writes go to its id, since a key may lead to another team (WS7)."""
        if not self._key.fullmatch(key):
            team = self._section.team
            raise ConfigError(f"{key!r} is no key of Linear's team {team!r}; use one like {team}-12")
        me, issues = self._named([key])
        issue = next((issue for issue in issues if dig(issue, "identifier") == key), None)
        if issue is None:
            raise ConfigError(
                f"Linear has no issue {key!r} that the token of board {self.name!r} may see; look whether it was deleted"
            )
        return me, issue

    def _created(self, marker: str) -> list[Ticket]:
        """The issues that `create` made for `marker`. People may have edited them: the mark may stand anywhere."""
        mark = signature(self._token, "new", marker)
        labelled = {"some": {"name": {"eqIgnoreCase": CREATED_LABEL}}}
        me, issues = self._matching({**self._of_team(), "labels": labelled, "description": {"contains": mark}}, 10)
        marked = [issue for issue in issues if mark in _text(dig(issue, "description"))]
        ours = [issue for issue in marked if not _by_another(issue, me, "creator", "externalUserCreator")]
        return [self._whole(issue, me) for issue in ours]

    def _usable(self, issue: object) -> list[Ticket]:
        """The ticket, or nothing and a log line (TR2)."""
        try:
            return [self._ticket(issue)]
        except BrokenPagination:  # is a ProviderFault too, and no fault of this record
            raise
        except ProviderFault as error:
            _log.warning("board=%s outcome=dropped reason=%r", ascii(self.name), str(error))
            return []

    def _ticket(self, issue: object) -> Ticket:
        """Raises ProviderFault when key, title, state or a blocker is not usable; anything else is left out (TR3)."""
        key = dig(issue, "identifier")
        if not isinstance(issue, dict) or not isinstance(key, str) or not self._key.fullmatch(key):
            raise ProviderFault(
                f"an issue of Linear has the unusable key {ascii(key)[:80]}; look at the team in Linear"
            )
        title, state = one_line(issue.get("title")), one_line(dig(issue, "state", "name"))
        if not title or not state:
            raise ProviderFault(f"issue {key!r} of Linear has no usable {'state' if title else 'title'}; look at it")
        names = [_label_name(label) for label in self._all(issue, "labels")]
        return Ticket(
            board=self.name,
            key=key,
            title=title,
            body=unseal(self._token, "new", _text(issue.get("description")))[0],
            state=state,
            labels=tuple(dict.fromkeys(name.lower() for name in names if name)),
            priority=_priority(issue.get("priority")),
            author=one_line(dig(issue, "creator", "displayName")),
            assignee=one_line(dig(issue, "assignee", "displayName")),
            blocked_by=self._blockers(key, issue),
            closed=self._is_closed(issue),
            created_at=moment(issue.get("createdAt")),
            updated_at=moment(issue.get("updatedAt")),
            url=one_line(issue.get("url")) or "",
        )

    def _blockers(self, key: str, issue: Payload) -> tuple[str, ...]:
        """Issues that block this one and are not finished, those of other teams too (SM12)."""
        blocks = [r for r in self._all(issue, "inverseRelations") if dig(r, "type") == "blocks"]
        keys = [one_line(dig(r, "issue", "identifier")) for r in blocks if not self._is_closed(dig(r, "issue"))]
        if None in keys:
            raise ProviderFault(f"a blocker of issue {key!r} of Linear has no usable key; look at its relations")
        return tuple(dict.fromkeys(key for key in keys if key))

    def _is_closed(self, issue: object) -> bool:
        """An archived issue is on no board any more."""
        name = one_line(dig(issue, "state", "name")) or ""
        archived = dig(issue, "archivedAt") is not None
        return archived or dig(issue, "state", "type") in _FINISHED or name.casefold() in self._closed

    def _whole(self, issue: Payload, me: str) -> Ticket:
        ticket = self._ticket(issue)
        comments = tuple(self._comment(ticket.key, comment, me) for comment in self._raw_comments(issue))
        return ticket.model_copy(update={"comments": comments})

    def _raw_comments(self, issue: Payload) -> list[Payload]:
        """All comments, each once, oldest first."""
        comments = {_id(comment): comment for comment in self._all(issue, "comments")}
        last = datetime.max.replace(tzinfo=UTC)
        return sorted(comments.values(), key=lambda c: (moment(c.get("createdAt")) or last, _id(c)))

    def _comment(self, key: str, comment: Payload, me: str) -> Comment:
        """The mark of a comment counts only when nobody else wrote it."""
        text = _text(comment.get("body"))
        own = not _by_another(comment, me, "user", "externalUser")
        body, marker = unseal(self._token, key, text) if own else (text, None)
        author = one_line(dig(comment, "user", "displayName")) or "unknown"
        return Comment(author=author, at=moment(comment.get("createdAt")), body=body, marker=marker)

    def _all(self, issue: Payload, name: str) -> Iterator[Any]:
        """The nodes of one of an issue's connections, on all pages."""

        def following(after: str) -> object:
            return dig(self._api.ask(_MORE[name], id=_id(issue), after=after), "issue", name)

        return _pages(issue.get(name), following)

    # Writing

    def _write(self, query: str, field: str, **variables: Any) -> Payload:
        answer = self._api.ask(query, **variables).get(field)
        if not isinstance(answer, dict) or not isinstance(answer.get("success"), bool):
            raise ProviderFault(f"Linear's answer to {field} does not say whether it succeeded; check `url`")
        if not answer["success"]:
            raise UnexpectedStatus(f"Linear did not do {field} and gives no reason; look at the issue and try again")
        return answer

    def _known_team(self, state: str = "") -> _Team:
        """The team as it was read before, or now when nothing was, or when it had no such state."""
        if self._team is None or (state and state not in self._team.states):
            self._team = self._read_team()
        return self._team

    def _read_team(self) -> _Team:
        [team, *_] = self._team_answer(_TEAM)["teams"]["nodes"]
        states = _list(dig(team, "states"), "states")
        named = [(name, _id(state)) for state in states if (name := one_line(dig(state, "name")))]
        return _Team(_id(team), {name.casefold(): (name, number) for name, number in reversed(named)})

    def _state(self, name: str) -> str:
        """The id of a state. Raises ConfigError that lists those there are."""
        wanted = name.strip().casefold()
        states = self._known_team(wanted).states
        if wanted not in states:
            there = ", ".join(sorted(repr(known) for known, _ in states.values())) or "none"
            raise ConfigError(
                f"Linear's team {self._section.team!r} has no state {name!r}, only {there}; correct `states` of board "
                f"{self.name!r}, or add it to the team's workflow"
            )
        return states[wanted][1]

    def _labels(self, names: list[str]) -> list[str]:
        """The ids of labels; those that are missing are made."""
        there = self._labels_there(names) if names else {}
        return [there.get(name.casefold()) or self._made_label(name) for name in names]

    def _labels_there(self, names: list[str]) -> dict[str, str]:
        """Name without case -> id, of the team's own labels and of those of the whole workspace."""
        named = [{"name": {"eqIgnoreCase": name}} for name in names]
        query = {"and": [{"or": named}, {"or": [self._of_team(), {"team": {"null": True}}]}]}
        found = _pages(
            self._api.ask(_LABELS, filter=query).get("issueLabels"),
            lambda after: self._api.ask(_LABELS, filter=query, after=after).get("issueLabels"),
        )
        return {name.casefold(): _id(label) for label in found if (name := _label_name(label))}

    def _made_label(self, name: str) -> str:
        try:
            made = self._write(_CREATE_LABEL, "issueLabelCreate", name=name, team=self._known_team().id)
        except _Refused:
            there = self._labels_there([name]).get(name.casefold())
            if there is None:
                raise
            return there  # another node was first
        return _id(made.get("issueLabel"))


class _Refused(UnexpectedStatus):
    """Linear understood and says no."""


class _Api:
    """Requests to Linear, each on a connection of its own; the one place where its errors are translated."""

    def __init__(self, url: str, token: str) -> None:
        if not re.fullmatch(r"[!-~]+", token):
            raise ConfigError("the `token` of a Linear board has characters that no token has; copy it once more")
        self._allowance = Allowance("Linear")
        self._token = token
        bearer = token.startswith("lin_oauth_")  # API keys go without
        try:
            self._url = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"the `url` of a Linear board is not valid ({error}); correct it or remove it") from error
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {token}" if bearer else token, "Content-Type": "application/json"},
            timeout=_TIMEOUT_SECONDS,
            limits=httpx.Limits(max_keepalive_connections=0),  # nobody closes a board
        )

    def ask(self, query: str, **variables: Any) -> Payload:
        """The `data` of the answer. Raises what the board protocol names, and _Refused."""
        asked = query.split("(", 1)[0].split()[-1]
        content = json.dumps({"query": query, "variables": variables}).encode()
        self._allowance.check()
        try:
            answer = self._http.post(self._url, content=content)
        except httpx.UnsupportedProtocol as error:
            raise ConfigError(
                "the `url` of a Linear board must begin with https://; correct it or remove it"
            ) from error
        except httpx.DecodingError as error:
            raise ProviderFault(f"Linear's answer to {asked} is damaged; try again later") from error
        except httpx.TransportError as error:
            why = type(error).__name__
            raise Unreachable(f"Linear did not answer {asked} ({why}); check the network and `url`") from error
        self._allowance.note(answer.headers.get("x-ratelimit-requests-remaining"), _window_end(answer.headers))
        return self._data(answer, asked)

    def _data(self, answer: httpx.Response, asked: str) -> Payload:
        """Errors come with any status, 200 included, and a rate limit with 400."""
        said = _json(answer.content)
        errors = dig(said, "errors")
        self._check(answer, [error for error in items(errors) if isinstance(error, dict)], asked)
        data = dig(said, "data")
        if errors or not isinstance(data, dict):
            raise ProviderFault(f"Linear's answer to {asked} has no usable `data`; check `url`")
        return data

    def _check(self, answer: httpx.Response, errors: list[Payload], asked: str) -> None:
        status, kinds = answer.status_code, {kind for error in errors for kind in _kinds(error)}
        words = self._harmless("; ".join(_reason(error) for error in errors))
        if status == 429 or "ratelimited" in kinds:
            raise RateLimited(f"Linear asks to wait before {asked} again", _reset_at(answer.headers))
        if status in (401, 403) or kinds & _AUTHENTICATION:
            raise AuthFailed(f"Linear refused {asked} ({status}: {words}); check `token` and what its user may do")
        if status >= 500 or kinds & _OUTAGE:
            raise Unreachable(f"Linear answered {asked} with {status}: {words}; try again later")
        if errors:
            raise _Refused(f"Linear refused {asked} ({status}): {words}")
        if not answer.is_success:
            raise UnexpectedStatus(f"Linear answered {asked} with {status}; check `url`")

    def _harmless(self, text: str) -> str:
        """Foreign words for a message: short, printable and without our token."""
        return (one_line(text.replace(self._token, "***")) or "no reason given")[:_LONGEST_REASON]


def _pages(connection: object, following: Callable[[str], object]) -> Iterator[Any]:
    """The nodes of a connection and of all that follow. Raises BrokenPagination when one fails or leads in a circle."""
    seen: set[str] = set()
    nodes, after = _page(connection)
    while True:
        yield from nodes
        if after is None:
            return
        if after in seen or len(seen) >= _MOST_PAGES:
            raise BrokenPagination(f"Linear's answer does not end after {len(seen) + 1} page(s); read everything again")
        seen.add(after)
        nodes, after = _later(following, after)


def _later(following: Callable[[str], object], after: str) -> tuple[list[Any], str | None]:
    """A page after the first. A rate limit keeps its own error: it says when to come back."""
    try:
        return _page(following(after))
    except RateLimited:
        raise
    except FactoryError as error:
        raise BrokenPagination(f"a later page of Linear's answer failed: {error}; read everything again") from error


def _page(connection: object) -> tuple[list[Any], str | None]:
    """Nodes, and the cursor of the page after them."""
    nodes, more = _list(connection, "a list"), dig(connection, "pageInfo", "hasNextPage")
    if not isinstance(more, bool):
        raise ProviderFault("Linear's answer does not say whether a list goes on; check `url`")
    cursor = dig(connection, "pageInfo", "endCursor") if more else None
    if more and (not isinstance(cursor, str) or not cursor):
        raise BrokenPagination("Linear's answer does not say where a list goes on; read everything again")
    return nodes, cursor


def _list(connection: object, name: str) -> list[Any]:
    if not isinstance(nodes := dig(connection, "nodes"), list):
        raise ProviderFault(f"Linear's answer has no nodes for {name}; check `url`")
    return nodes


def _id(node: object) -> str:
    if not isinstance(number := dig(node, "id"), str) or not number:
        raise ProviderFault(f"something in Linear's answer has the unusable id {ascii(number)[:80]}; check `url`")
    return number


def _by_another(record: Payload, me: str, person: str, outsider: str) -> bool:
    """Somebody other than the token's user wrote it. What an application wrote may be without a person."""
    author = record.get(person)
    return (author is not None and dig(author, "id") != me) or record.get(outsider) is not None


def _json(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _kinds(error: Payload) -> list[str]:
    """`type` and `code` of an error, in letters only: Linear writes both `authentication error` and AUTHENTICATION_ERROR."""
    names = [dig(error, "extensions", "type"), dig(error, "extensions", "code")]
    return [re.sub(r"[^a-z]", "", name.lower()) for name in names if isinstance(name, str)]


def _reason(error: Payload) -> str:
    said = dig(error, "extensions", "userPresentableMessage") or error.get("message")
    return said if isinstance(said, str) else ""


def _reset_at(headers: httpx.Headers) -> datetime | None:
    """When to come back: retry-after, else the end of the window."""
    return retry_after(headers.get("retry-after"), datetime.now(UTC)) or _window_end(headers)


def _window_end(headers: httpx.Headers) -> datetime | None:
    """When the window of the request limit ends: a Unix time, in milliseconds."""
    reset = headers.get("x-ratelimit-requests-reset", "").strip()
    return from_epoch(float(reset), datetime.now(UTC)) if re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,9})?", reset) else None


def _priority(value: object) -> int | None:
    """1 (urgent) to 4 (low). Linear's number for none is 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value in (1, 2, 3, 4) else None


def _usable_marker(marker: str) -> str:
    if not _MARKER.fullmatch(marker):
        raise ConfigError(f"the marker {marker!r} is not usable; use letters, digits and . _ : / @ - only")
    return marker


def _storable(text: str) -> str:
    """Without what no database keeps: half characters and NUL."""
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def _text(value: object) -> str:
    return _storable(value) if isinstance(value, str) else ""


def _label_name(label: object) -> str | None:
    return one_line(dig(label, "name"))


def _distinct(labels: Iterable[str]) -> list[str]:
    """In one line each, without blank and repeated ones, in the first spelling."""
    named: dict[str, str] = {}
    for name in filter(None, map(one_line, labels)):
        named.setdefault(name.casefold(), name)
    return [*named.values()]


def _number(ticket: Ticket) -> int:
    return int(ticket.key.rpartition("-")[2])
