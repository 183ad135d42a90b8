"""A board that is one Jira Cloud project, over REST v3. A state is a status' name; `author` is the account id.

People may change their display name to anybody's, so only the account id says who wrote something. The mark of a comment
by the factory is a property of the comment (people do not see it), signed with the token as in `infra.boards.markers`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import httpx

from infra.boards import Comment, Ticket
from infra.boards.adf import to_document, to_text
from infra.boards.limits import Allowance
from infra.boards.markers import signature
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
from infra.reset_times import retry_after, soon
from infra.sections import JiraBoardSection

Payload = dict[str, Any]

_TIMEOUT_SECONDS = 15
_PAGE = 100
_MOST_PAGES = 200
_KEYS_AT_ONCE = 50
_LONGEST_TITLE = 255
"""Jira refuses a longer summary."""
_LONGEST_LABEL = 255
_LONGEST_TEXT = 25_000
"""Jira refuses texts of more than 32 767 characters, counted with markup of its own."""
_PROPERTY = "darkfactory"
_FIELDS = [
    *("summary", "description", "status", "labels", "priority"),
    *("creator", "assignee", "issuelinks", "created", "updated"),
]
_PRIORITIES = {
    **dict.fromkeys(("highest", "blocker"), 1),
    **dict.fromkeys(("high", "critical"), 2),
    **dict.fromkeys(("medium", "major"), 3),
    **dict.fromkeys(("low", "lowest", "minor"), 4),
}
_PRIORITY_NAMES = {1: "Highest", 2: "High", 3: "Medium", 4: "Low"}
_ANY_KEY = re.compile(r"[A-Z][A-Z0-9_]+-[1-9][0-9]*")

_log = logging.getLogger(__name__)


class JiraBoard:
    """The issues of one project. Keeps no tickets, so that nodes may share a project; every call asks Jira."""

    def __init__(self, name: str, section: JiraBoardSection) -> None:
        self.name = name
        self._section = section
        self._token = section.token.get_secret_value()
        self._site = _Site(section.url, section.email, self._token)
        self._closed = {state.casefold() for state in section.states.closed}
        self._key = re.compile(rf"{re.escape(section.project)}-[1-9][0-9]{{0,15}}")

    def tickets_in_states(self, states: list[str]) -> list[Ticket]:
        """Open tickets in any of the states, by number; one request per 100. Raises ConfigError for a state Jira does not know."""
        wanted = {state.strip().casefold(): state.strip() for state in states if state.strip()}
        required = {label.casefold(): label for label in (" ".join(x.split()) for x in self._section.required_labels)}
        if not wanted or "" in required:
            return []
        found = self._search(self._query(list(wanted.values()), list(required.values())))
        tickets = {ticket.key: ticket for issue in found for ticket in self._usable(issue) if not ticket.closed}
        fitting = [t for t in tickets.values() if t.state.casefold() in wanted and required.keys() <= folded(t.labels)]
        return sorted(fitting, key=lambda t: int(t.key.rpartition("-")[2]))

    def tickets_by_keys(self, keys: list[str]) -> list[Ticket]:
        """The named tickets in the order of `keys`. Keys of other projects are absent without being asked for."""
        asked = [key for key in dict.fromkeys(keys) if self._key.fullmatch(key)]
        found: dict[str, Ticket] = {}
        for at in range(0, len(asked), _KEYS_AT_ONCE):
            found |= {ticket.key: ticket for ticket in self._fetched(asked[at : at + _KEYS_AT_ONCE])}
        return [whole for key in asked if key in found for whole in self._with_comments(found[key])]

    def move(self, key: str, state: str) -> None:
        """Take the transition that leads to `state`. Raises ConfigError that lists what can be reached from where it is."""
        with self._named(key):
            try:
                self._transit(key, state)
            except _Conflict:  # somebody changed it in between: look again, once
                self._transit(key, state)

    def comment(self, key: str, body: str, marker: str) -> None:
        """Write, or replace in place, the comment with `marker`; the same text again writes nothing."""
        path = f"{self._path(key)}/comment"
        document = to_document(_shortened(body))
        with self._named(key):
            ours = self._ours(key, marker)
            if not ours:
                self._site.ask("POST", path, self._sealed(key, document, marker))
                ours = self._ours(key, marker)  # another process may have written it in the same moment
            elif to_text(ours[0].get("body")) != to_text(document):
                self._site.ask("PUT", f"{path}/{_number(ours[0].get('id'))}", self._sealed(key, document, marker))
            for twin in ours[1:]:
                with suppress(_Missing, AuthFailed):  # the other process was faster, or the account may not
                    self._site.ask("DELETE", f"{path}/{_number(twin.get('id'))}")

    def _ours(self, key: str, marker: str) -> list[Payload]:
        """The comments with the mark, oldest first, which for all processes is the same one."""
        ours = [comment for comment in self._raw_comments(key) if self._marker(key, comment) == marker]
        return sorted(ours, key=lambda comment: int(_number(comment.get("id"))))

    def label(self, key: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
        """Add and remove labels, compared without case. Raises ConfigError for one with spaces, which Jira cannot keep."""
        path, wanted = self._path(key), _plain_labels(add)
        with self._named(key):
            there = _labels(self._site.ask("GET", path, fields="labels").get("fields"))
            gone = folded(label.strip() for label in remove) - folded(wanted)
            changes = [{"add": label} for label in wanted if label.casefold() not in folded(there)]
            changes += [{"remove": label} for label in there if label.casefold() in gone]
            if changes:
                self._site.ask("PUT", path, {"update": {"labels": changes}})

    def create(
        self, title: str, body: str, *, marker: str, labels: Sequence[str] = (), priority: int | None = None
    ) -> Ticket:
        """Create an issue, or return the oldest that carries the label made from `marker`.

        Jira's search lags a moment behind: when an earlier call died within that moment, a second issue is made.
        """
        label = f"df-{hashlib.sha256(marker.encode()).hexdigest()[:16]}"
        query = f"project = {_quoted(self._section.project)} AND labels = {_quoted(label)}"
        known = next((self._ticket(issue) for issue in self._search(f"{query} ORDER BY created ASC, key ASC")), None)
        key = known.key if known else self._created(title, body, [*_plain_labels(labels), label], priority)
        if known is None or self._is_unplaced(known):
            self.move(key, self._section.states.queue[0])
        made = self.tickets_by_keys([key])
        if not made:
            raise ProviderFault(f"Jira has {key!r} and does not show it; check that the account may browse the project")
        return made[0]

    # Reading

    def _query(self, states: list[str], labels: list[str]) -> str:
        clauses = [f"project = {_quoted(self._section.project)}", f"status IN ({', '.join(map(_quoted, states))})"]
        clauses += [f"labels = {_quoted(label)}" for label in labels]
        return " AND ".join(clauses) + " ORDER BY key ASC"

    def _search(self, query: str) -> Iterator[Any]:
        """The raw issues of all pages. A query that Jira refuses names something of factory.yaml that it does not know."""
        payload: Payload = {"jql": query, "fields": _FIELDS, "maxResults": _PAGE}
        try:
            page = self._site.ask("POST", "/search/jql", payload)
        except _Refused as error:
            raise ConfigError(
                f"Jira cannot search project {self._section.project!r}: {error.words}; correct `url`, `project`, "
                f"`states` or `required_labels` of board {self.name!r}"
            ) from error
        yield from _list(page, "issues")
        seen: set[str] = set()
        while token := _next_token(page, seen):
            seen.add(token)
            page = self._later("issues", "POST", "/search/jql", {**payload, "nextPageToken": token})
            yield from page["issues"]

    def _later(self, name: str, method: str, path: str, payload: Payload | None = None, **query: str | int) -> Payload:
        """A page after the first, with its list `name`. A rate limit keeps its own error: it says when to come back."""
        try:
            page = self._site.ask(method, path, payload, **query)
            _list(page, name)
        except RateLimited:
            raise
        except FactoryError as error:
            raise BrokenPagination(f"a later page of Jira's answer failed: {error}; read everything again") from error
        return page

    def _fetched(self, keys: list[str]) -> list[Ticket]:
        """Those of the keys that are there. An issue that went to another project answers to its old key: here it is gone."""
        answer = self._site.ask("POST", "/issue/bulkfetch", {"issueIdsOrKeys": keys, "fields": _FIELDS})
        if failed := answer.get("issueErrors"):  # never those that do not exist, says Jira's document
            raise ProviderFault(f"Jira failed to fetch some issues: {self._site.harmless(failed)}; read them again")
        return [self._ticket(issue) for issue in _list(answer, "issues") if not self._is_elsewhere(issue)]

    def _is_elsewhere(self, issue: object) -> bool:
        key = dig(issue, "key")
        return isinstance(key, str) and bool(_ANY_KEY.fullmatch(key)) and not self._key.fullmatch(key)

    def _usable(self, issue: object) -> list[Ticket]:
        """The ticket, or nothing and a log line (TR2)."""
        try:
            return [self._ticket(issue)]
        except ProviderFault as error:
            _log.warning("board=%s outcome=dropped reason=%r", ascii(self.name), str(error))
            return []

    def _ticket(self, issue: object) -> Ticket:
        """Raises ProviderFault when key, title, state or a blocker is not usable; anything else is left out (TR3)."""
        key, fields = dig(issue, "key"), dig(issue, "fields")
        if not isinstance(key, str) or not self._key.fullmatch(key):
            raise ProviderFault(f"an issue of Jira has the unusable key {ascii(key)[:80]}; look at the project in Jira")
        title, state = one_line(dig(fields, "summary")), one_line(dig(fields, "status", "name"))
        if not title or not state:
            what = "status" if title else "summary"
            raise ProviderFault(f"issue {key!r} of Jira has no usable {what}; look at it in Jira")
        return Ticket(
            board=self.name,
            key=key,
            title=title,
            body=to_text(dig(fields, "description")),
            state=state,
            labels=tuple(dict.fromkeys(label.lower() for label in _labels(fields))),
            priority=_PRIORITIES.get((one_line(dig(fields, "priority", "name")) or "").casefold()),
            author=one_line(dig(fields, "creator", "accountId")),
            assignee=one_line(dig(fields, "assignee", "accountId")),
            blocked_by=self._blockers(issue),
            closed=self._is_closed(dig(fields, "status")),
            created_at=moment(dig(fields, "created")),
            updated_at=moment(dig(fields, "updated")),
            url=f"{self._section.url.rstrip('/')}/browse/{key}",
        )

    def _blockers(self, issue: object) -> tuple[str, ...]:
        """Issues that block this one and are not done, those of other projects too (SM12)."""
        links = [link for link in items(dig(issue, "fields", "issuelinks")) if dig(link, "type", "name") == "Blocks"]
        inward = [link["inwardIssue"] for link in links if link.get("inwardIssue") is not None]
        keys = [one_line(dig(x, "key")) for x in inward if not self._is_closed(dig(x, "fields", "status"))]
        if None in keys:
            raise ProviderFault(
                f"a blocker of issue {dig(issue, 'key')!r} of Jira has no usable key; look at its links"
            )
        return tuple(dict.fromkeys(key for key in keys if key))

    def _is_closed(self, status: object) -> bool:
        name = one_line(dig(status, "name")) or ""
        return dig(status, "statusCategory", "key") == "done" or name.casefold() in self._closed

    def _with_comments(self, ticket: Ticket) -> list[Ticket]:
        """The ticket as a whole, or nothing when it was deleted since it was fetched."""
        try:
            comments = tuple(self._comment(ticket.key, comment) for comment in self._raw_comments(ticket.key))
        except _Missing:
            return []
        return [ticket.model_copy(update={"comments": comments})]

    def _comment(self, key: str, comment: Payload) -> Comment:
        return Comment(
            author=one_line(dig(comment, "author", "accountId")) or "unknown",
            at=moment(comment.get("created")),
            body=to_text(comment.get("body")),
            marker=self._marker(key, comment),
        )

    def _raw_comments(self, key: str) -> list[Payload]:
        """All comments, each once, oldest first, with their properties."""
        path = f"{self._path(key)}/comment"
        query: dict[str, str | int] = {"maxResults": _PAGE, "orderBy": "created", "expand": "properties"}
        page = self._site.ask("GET", path, None, **query)
        found = [*_list(page, "comments")]
        total = page.get("total")
        if not isinstance(total, int):
            raise ProviderFault(
                f"Jira does not say how many comments {key!r} has; check that `url` is a Jira Cloud site"
            )
        while len(found) < total:
            more = self._later("comments", "GET", path, None, **query, startAt=len(found))["comments"]
            if not more or len(found) >= _PAGE * _MOST_PAGES:
                raise BrokenPagination(f"Jira says {key!r} has {total} comments, shows {len(found)}; read it again")
            found += more
        if not all(isinstance(comment, dict) for comment in found):
            raise ProviderFault(f"a comment of {key!r} is not an object; look at the issue in Jira")
        return list({str(comment.get("id")): comment for comment in found}.values())

    def _marker(self, key: str, comment: Payload) -> str | None:
        """The marker of a comment by the factory: its property is signed for this very issue."""
        values = [dig(p, "value") for p in items(comment.get("properties")) if dig(p, "key") == _PROPERTY]
        for marker, signed in ((dig(value, "marker"), dig(value, "signature")) for value in values):
            if isinstance(marker, str) and isinstance(signed, str) and self._is_ours(key, marker, signed):
                return marker
        return None

    def _is_ours(self, key: str, marker: str, signed: str) -> bool:
        try:
            return hmac.compare_digest(signature(self._token, key, marker).encode(), signed.encode())
        except UnicodeEncodeError:  # half a character, which nobody can sign
            return False

    # Writing

    def _transit(self, key: str, state: str) -> None:
        """One look and one step. Raises _Conflict when the issue changed in between."""
        path, wanted = self._path(key), state.strip().casefold()
        there = one_line(dig(self._site.ask("GET", path, fields="status"), "fields", "status", "name"))
        if there and there.casefold() == wanted:
            return
        ways = self._ways(f"{path}/transitions")
        if wanted not in ways:
            reachable = ", ".join(sorted(repr(name) for name, _ in ways.values())) or "no other state"
            raise ConfigError(
                f"{key!r} cannot be moved to {state!r}: from {there!r} Jira's workflow leads to {reachable}; correct "
                f"`states` of board {self.name!r}, or the workflow"
            )
        self._site.ask("POST", f"{path}/transitions", {"transition": {"id": ways[wanted][1]}})

    def _ways(self, path: str) -> dict[str, tuple[str, str]]:
        """Status without case -> its name and the transition that leads to it, whose own name may be anything."""
        ways: dict[str, tuple[str, str]] = {}
        for way in _list(self._site.ask("GET", path), "transitions"):
            name, number = one_line(dig(way, "to", "name")), dig(way, "id")
            if name and isinstance(number, str) and dig(way, "isAvailable") is not False:
                ways.setdefault(name.casefold(), (name, number))
        return ways

    def _sealed(self, key: str, document: Payload, marker: str) -> Payload:
        mark = {"marker": marker, "signature": signature(self._token, key, marker)}
        return {"body": document, "properties": [{"key": _PROPERTY, "value": mark}]}

    def _created(self, title: str, body: str, labels: list[str], priority: int | None) -> str:
        fields: Payload = {
            "project": {"key": self._section.project},
            "issuetype": {"name": self._section.issue_type},
            "summary": (one_line(title) or "Untitled")[:_LONGEST_TITLE],
            "description": to_document(_shortened(body)),
            "labels": labels,
        }
        if priority in _PRIORITY_NAMES:
            fields["priority"] = {"name": _PRIORITY_NAMES[priority]}
        try:
            key = self._site.ask("POST", "/issue", {"fields": fields}).get("key")
        except _Refused as error:
            raise ConfigError(
                f"Jira cannot create an issue in project {self._section.project!r}: {error.words}; correct `project` or "
                f"`issue_type` of board {self.name!r}, or the fields that the project requires"
            ) from error
        if not isinstance(key, str) or not self._key.fullmatch(key):
            raise ProviderFault(f"Jira created an issue with the unusable key {ascii(key)[:80]}; look at the project")
        return key

    def _is_unplaced(self, ticket: Ticket) -> bool:
        """A creation died before its last step: the factory has no word for the state in which the workflow starts."""
        states = self._section.states
        known = (*states.queue, states.working, states.review, states.rejected, states.parked)
        return not ticket.closed and ticket.state.casefold() not in folded(known)

    def _path(self, key: str) -> str:
        if not self._key.fullmatch(key):
            project = self._section.project
            raise ConfigError(f"{key!r} is no key of Jira's project {project!r}; use one like {project}-12")
        return f"/issue/{key}"

    @contextmanager
    def _named(self, key: str) -> Iterator[None]:
        """Says which ticket is not there."""
        try:
            yield
        except _Missing as error:
            raise ConfigError(
                f"Jira has no issue {key!r} that the account of board {self.name!r} may see; look whether it was deleted"
            ) from error


class _Refused(UnexpectedStatus):
    """Jira understood and says no (400, 404). `words` is its reason."""

    def __init__(self, message: str, words: str) -> None:
        super().__init__(message)
        self.words = words


class _Missing(_Refused):
    """404."""


class _Conflict(UnexpectedStatus):
    """409: somebody else is changing the issue."""


class _Site:
    """Requests to one Jira site, each on a connection of its own; the one place where its errors are translated."""

    def __init__(self, url: str, email: str, token: str) -> None:
        self._allowance = Allowance("Jira")
        credentials = base64.b64encode(f"{email}:{token}".encode()).decode()
        self._secrets = [secret for secret in (credentials, token, email) if secret]
        try:
            self._http = httpx.Client(
                base_url=f"{url.rstrip('/')}/rest/api/3",
                auth=(email, token),
                timeout=_TIMEOUT_SECONDS,
                limits=httpx.Limits(max_keepalive_connections=0),  # nobody closes a board
            )
        except httpx.InvalidURL as error:
            raise ConfigError(
                f"the `url` of a Jira board is not valid ({error}); use https://SITE.atlassian.net"
            ) from error

    def ask(self, method: str, path: str, payload: Payload | None = None, **query: str | int) -> Payload:
        """The JSON object of the answer; {} for 204. Raises what the board protocol names, and the private ones above."""
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if payload is not None else {})
        content = None if payload is None else json.dumps(payload).encode()
        self._allowance.check()
        try:
            answer = self._http.request(method, path, params=query or None, content=content, headers=headers)
        except httpx.UnsupportedProtocol as error:
            raise ConfigError(
                "the `url` of a Jira board must begin with https://; correct it in factory.yaml"
            ) from error
        except httpx.DecodingError as error:
            raise ProviderFault(f"Jira's answer to {method} {path} is damaged; try again later") from error
        except httpx.TransportError as error:
            why = type(error).__name__
            raise Unreachable(f"Jira did not answer {method} {path} ({why}); check the network and `url`") from error
        self._allowance.note(answer.headers.get("X-RateLimit-Remaining"), _window_end(answer.headers))
        self._check(answer, f"{method} {path}")
        return {} if answer.status_code == httpx.codes.NO_CONTENT else _object(answer, f"{method} {path}")

    def harmless(self, value: object) -> str:
        """Foreign words for a message: short, printable and without our credentials."""
        text = str(value)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return (one_line(text) or "no reason given")[:300]

    def _check(self, answer: httpx.Response, asked: str) -> None:
        """Nothing, for a success. An expired token is not always a 401: Jira may answer as to a stranger, with nothing."""
        status = answer.status_code
        login = answer.headers.get("X-Seraph-LoginReason", "")
        if status in (401, 403) or "AUTHENTICATED_FAILED" in login or "AUTHENTICATION_DENIED" in login:
            raise AuthFailed(f"Jira refused {asked} ({status}); check `email`, `token` and the account's permissions")
        if status == 429:
            raise RateLimited(f"Jira asks to wait before {asked} again", _reset_at(answer.headers))
        if status >= 500:
            raise Unreachable(f"Jira answered {asked} with {status}; try again later")
        if not answer.is_success:
            raise self._refusal(answer, asked)

    def _refusal(self, answer: httpx.Response, asked: str) -> UnexpectedStatus:
        words = self.harmless(_reasons(answer))
        message = f"Jira answered {asked} with {answer.status_code}: {words}"
        match answer.status_code:
            case 400:
                return _Refused(message, words)
            case 404:
                return _Missing(message, words)
            case 409:
                return _Conflict(f"{message}; try again")
            case _:
                return UnexpectedStatus(f"{message}; check `url`")


def _object(answer: httpx.Response, asked: str) -> Payload:
    try:
        value = json.loads(answer.content)
    except (ValueError, RecursionError) as error:
        raise ProviderFault(f"Jira's answer to {asked} is not JSON; check `url`") from error
    if not isinstance(value, dict):
        raise ProviderFault(f"Jira's answer to {asked} is not a JSON object; check `url`")
    return value


def _reasons(answer: httpx.Response) -> str:
    """What Jira says in `errorMessages` and `errors`."""
    try:
        said = _object(answer, "it")
    except ProviderFault:
        return ""
    errors = said.get("errors")
    fields = [f"{name}: {why}" for name, why in errors.items()] if isinstance(errors, dict) else []
    return "; ".join([*map(str, items(said.get("errorMessages"))), *fields])


def _reset_at(headers: httpx.Headers) -> datetime | None:
    """When to come back: Retry-After, else the end of the window."""
    return retry_after(headers.get("Retry-After"), datetime.now(UTC)) or _window_end(headers)


def _window_end(headers: httpx.Headers) -> datetime | None:
    """When the window of the request limit ends: X-RateLimit-Reset, in ISO 8601."""
    found = moment(headers.get("X-RateLimit-Reset"))
    return soon(found, datetime.now(UTC)) if found else None


def _next_token(page: Payload, seen: set[str]) -> str | None:
    """The token of the page after this one. Raises BrokenPagination when it leads nowhere or in a circle."""
    token = page.get("nextPageToken")
    if page.get("isLast") is True or (not token and page.get("isLast") is not False):
        return None
    if not isinstance(token, str) or not token or token in seen or len(seen) >= _MOST_PAGES:
        raise BrokenPagination(f"Jira's search does not end after {len(seen) + 1} page(s); read everything again")
    return token


def _quoted(value: str) -> str:
    """`value` as one JQL string, whatever is in it: quotes, backslashes and what cannot be printed are escaped."""
    return f'"{"".join(map(_escaped, value))}"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _list(page: Payload, name: str) -> list[Any]:
    if not isinstance(found := page.get(name), list):
        raise ProviderFault(f"Jira's answer has no list {name!r}; check that `url` is a Jira Cloud site")
    return found


def _labels(fields: object) -> list[str]:
    """Trimmed, in Jira's spelling."""
    return [label for label in map(one_line, items(dig(fields, "labels"))) if label]


def _plain_labels(labels: Sequence[str]) -> list[str]:
    """Without blank and repeated ones. Raises ConfigError for one Jira cannot keep."""
    plain = list(dict.fromkeys(label.strip() for label in labels if label.strip()))
    for label in plain:
        if len(label.split()) > 1 or not label.isprintable() or len(label) > _LONGEST_LABEL:
            raise ConfigError(
                f"Jira cannot keep the label {label!r}; use up to {_LONGEST_LABEL} letters without spaces"
            )
    return plain


def _number(value: object) -> str:
    """An id that may be put into a path."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,20}", value):
        raise ProviderFault(f"a comment of Jira has the unusable id {ascii(value)[:80]}; look at the issue in Jira")
    return value


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}\n\n(shortened)"
