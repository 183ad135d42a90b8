"""A board that is the issues of one GitHub repository. A state is a label with the state's name; closed is closed.

A ticket of which a move died half way has two such labels; the one that is not of the queue counts then, so nothing is
dispatched twice. Moves add the new label before they take the old one away, and touch no other label.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from infra.boards import Ticket
from infra.boards.markers import seal, unseal
from infra.boards.payloads import dig, moment, one_line
from infra.errors import AuthFailed, BrokenPagination, ConfigError, ProviderFault
from infra.github import (
    Conversation,
    GitHub,
    Missing,
    Payload,
    Refused,
    is_number,
    plain,
    segment,
    sendable,
    sendable_title,
)
from infra.sections import GitHubBoardSection

CREATED = "darkfactory"
"""The label of every issue the factory creates: how it finds them again."""
_NEW = "new"
"""What the mark of a created issue is signed for: it has no key yet."""
_OPEN, _CLOSED = "open", "closed"
_PRIORITY = re.compile(r"(?P<named>priority\s*[:/=-]?\s*)?(?P<word>[a-z]+[0-9]?|[1-4])")
_PRIORITIES = {"urgent": 1, "critical": 1, "p1": 1, "p2": 2, "p3": 3, "p4": 4}
_NAMED_PRIORITIES = {**_PRIORITIES, "high": 2, "medium": 3, "normal": 3, "low": 4, "1": 1, "2": 2, "3": 3, "4": 4}

_log = logging.getLogger(__name__)


class GitHubBoard:
    """The issues of one repository. Pull requests, which GitHub lists among them, are no tickets."""

    def __init__(self, name: str, section: GitHubBoardSection, answers: Path | None = None) -> None:
        self.name = name
        self._section = section
        self._site = GitHub(section.project, section.url, section.token.get_secret_value(), answers)
        self._prefix = section.key_prefix or section.project.partition("/")[2]
        self._key = re.compile(rf"{re.escape(self._prefix)}-([1-9][0-9]{{0,14}})")
        states = section.states
        words = (states.rejected, states.parked, states.review, states.working, *states.queue)
        self._words = {_folded(word): word for word in words}
        self._closed = {_CLOSED, *map(_folded, states.closed)}
        self._labels_there: set[str] = set()

    def tickets_in_states(self, states: list[str]) -> list[Ticket]:
        """Open tickets in any of the states, by number; one request per state and 100 issues, one more per blocked ticket."""
        wanted = {_folded(state) for state in states} - {""}
        required = {_folded(label): one_line(label) or "" for label in self._section.required_labels}
        if not wanted or "" in required:
            return []
        asked = [[]] if _OPEN in wanted else [[word] for state, word in self._words.items() if state in wanted]
        records = [record for words in asked for record in self._listed([*words, *required.values()])]
        read = [pair for record in records for pair in self._usable(record)]
        fitting = [
            (t, r) for t, r in read if _folded(t.state) in wanted and required.keys() <= {*map(_folded, t.labels)}
        ]
        found = {ticket.key: (ticket, record) for ticket, record in fitting}
        whole = [ticket for pair in found.values() for ticket in self._unblockable(*pair)]
        return sorted(whole, key=lambda ticket: self._number(ticket.key))

    def tickets_by_keys(self, keys: list[str]) -> list[Ticket]:
        """The named tickets in the order of `keys`. Keys of other repositories are absent without being asked for."""
        asked = {key: found for key in dict.fromkeys(keys) if (found := self._key.fullmatch(key))}
        records = {key: self._record(int(found[1])) for key, found in asked.items()}
        return [self._whole(record) for record in records.values() if record is not None]

    def move(self, key: str, state: str) -> None:
        """Change the state's label, closing or opening the issue when needed. Raises ConfigError with the known states."""
        word = self._known_state(state)
        number, record = self._required(key)
        old = [name for name in _names(record) if _folded(name) in self._words and _folded(name) != _folded(word)]
        if word == _CLOSED:
            self._set_state(number, record, _CLOSED)
        elif word != _OPEN:
            self._add_labels(number, record, [word])
        for name in old:
            self._remove_label(number, name)
        if word != _CLOSED:
            self._set_state(number, record, _OPEN)

    def comment(self, key: str, body: str, marker: str) -> None:
        """Write, or replace in place, the comment with `marker`; the same text again writes nothing."""
        number, _ = self._required(key)
        Conversation(self._site, number, key).write(body, marker)

    def label(self, key: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
        """Add and remove labels, compared without case."""
        number, record = self._required(key)
        gone = {*map(_folded, remove)} - {*map(_folded, add)}
        self._add_labels(number, record, _distinct(add))
        for name in _names(record):
            if _folded(name) in gone:
                self._remove_label(number, name)

    def create(
        self, title: str, body: str, *, marker: str, labels: Sequence[str] = (), priority: int | None = None
    ) -> Ticket:
        """Create an issue in the first queue state, or return the one whose text ends with our mark of `marker`."""
        known = self._created(marker)
        if known is not None:
            return self._whole(known)
        wanted = [CREATED, self._section.states.queue[0], *labels, *([f"p{priority}"] if priority else [])]
        names = _distinct(wanted)
        self._make_labels(names)
        text = seal(self._site.token, _NEW, marker, sendable(body))
        payload = {"title": sendable_title(title), "body": text, "labels": names}
        made = self._site.record("POST", f"{self._site.root}/issues", payload)
        self._check_labelled(names, _names(made))
        return self._ticket(made)

    # Reading

    def _listed(self, labels: Sequence[str]) -> Iterator[object]:
        """Open issues with all of the labels. A comma parts labels there, so one with a comma is left to the caller."""
        query = {"state": "open", "sort": "created", "direction": "asc"}
        if plain_labels := [label for label in labels if "," not in label]:
            query["labels"] = ",".join(plain_labels)
        return self._issues(query)

    def _issues(self, query: dict[str, str]) -> Iterator[object]:
        """Issues without the pull requests among them."""
        try:
            for record in self._site.pages(f"{self._site.root}/issues", **query):
                if self._is_elsewhere(record):
                    self._check_project()
                    raise ProviderFault(f"GitHub lists issues of another repository for {self._section.project!r}")
                if not dig(record, "pull_request"):
                    yield record
        except Missing as error:
            self._check_project()
            raise ProviderFault(f"{self._section.project!r} is there, its list of issues is not: {error}") from error

    def _check_project(self) -> None:
        if self._site.check_project().get("has_issues") is False:
            raise ConfigError(f"{self._section.project!r} has no issues for board {self.name!r}; enable issues there")

    def _record(self, number: int) -> Payload | None:
        """The issue; None when it is gone, went to another repository or is a pull request.

        An absent one costs a look at the repository, because without access to it everything would look gone.
        """
        try:
            record = self._site.record("GET", f"{self._site.root}/issues/{number}")
        except Missing:
            record = None
        if record is None or self._is_elsewhere(record):
            self._check_project()
            return None
        if record.get("number") != number:
            raise ProviderFault(f"GitHub answers for issue {number} with another one; look at it there")
        return None if record.get("pull_request") else record

    def _is_elsewhere(self, record: object) -> bool:
        place = dig(record, "repository_url")
        return isinstance(place, str) and not place.casefold().endswith(self._site.root.casefold())

    def _required(self, key: str) -> tuple[int, Payload]:
        found = self._key.fullmatch(key)
        if not found:
            raise ConfigError(f"{key!r} is no key of board {self.name!r}; use one like {self._prefix}-12")
        record = self._record(int(found[1]))
        if record is None:
            raise ConfigError(f"{self._section.project!r} has no issue {key!r}; look whether it was deleted or moved")
        return int(found[1]), record

    def _usable(self, record: object) -> list[tuple[Ticket, Payload]]:
        """The ticket and its record, or nothing and a log line (TR2)."""
        try:
            return [(self._ticket(record), record)] if isinstance(record, dict) else self._dropped("it is no object")
        except ProviderFault as error:
            return self._dropped(str(error))

    def _unblockable(self, ticket: Ticket, record: Payload) -> list[Ticket]:
        """The ticket with its blockers, or nothing and a log line."""
        try:
            return [self._with_blockers(ticket, record)]
        except BrokenPagination:
            raise
        except (ProviderFault, Missing) as error:
            return self._dropped(str(error))

    def _dropped(self, reason: str) -> list[Any]:
        _log.warning("board=%s outcome=dropped reason=%r", ascii(self.name), reason)
        return []

    def _whole(self, record: Payload) -> Ticket:
        """With blockers and comments."""
        ticket = self._with_blockers(self._ticket(record), record)
        if record.get("comments") == 0:
            return ticket
        comments = Conversation(self._site, self._number(ticket.key), ticket.key).read()
        return ticket.model_copy(update={"comments": tuple(comments)})

    def _ticket(self, record: Payload) -> Ticket:
        """Raises ProviderFault when number, title or state is not usable; anything else that is not is left out (TR3)."""
        number, title, state = record.get("number"), one_line(record.get("title")), record.get("state")
        if not is_number(number) or not self._key.fullmatch(f"{self._prefix}-{number}"):
            raise ProviderFault(f"an issue has the unusable number {ascii(number)[:80]}; look at the repository")
        if self._is_elsewhere(record) or not title or state not in (_OPEN, _CLOSED):
            what = "title" if not title else "state" if state not in (_OPEN, _CLOSED) else "repository"
            raise ProviderFault(
                f"issue {number} of {self._section.project!r} has no usable {what}; look at it on GitHub"
            )
        labels = tuple(dict.fromkeys(" ".join(name.lower().split()) for name in _names(record)))
        return Ticket(
            board=self.name,
            key=f"{self._prefix}-{number}",
            title=title,
            body=unseal(self._site.token, _NEW, plain(record.get("body")))[0],
            state=state if state == _CLOSED else self._state(labels),
            labels=labels,
            priority=_priority(labels),
            author=one_line(dig(record, "user", "login")),
            assignee=one_line(dig(record, "assignee", "login")),
            closed=state == _CLOSED,
            created_at=moment(record.get("created_at")),
            updated_at=moment(record.get("updated_at")),
            url=one_line(record.get("html_url")) or "",
        )

    def _state(self, labels: Sequence[str]) -> str:
        folded = {*map(_folded, labels)}
        return next((word for state, word in self._words.items() if state in folded), _OPEN)

    def _with_blockers(self, ticket: Ticket, record: Payload) -> Ticket:
        """Asks only when the issue says that open ones block it (SM12, TR4)."""
        if not is_number(dig(record, "issue_dependencies_summary", "blocked_by")):
            return ticket
        return ticket.model_copy(update={"blocked_by": self._open_blockers(self._number(ticket.key))})

    def _open_blockers(self, number: int) -> tuple[str, ...]:
        path = f"{self._site.root}/issues/{number}/dependencies/blocked_by"
        open_ones = [blocker for blocker in self._site.pages(path) if dig(blocker, "state") != _CLOSED]
        return tuple(dict.fromkeys(self._blocker_key(blocker, number) for blocker in open_ones))

    def _blocker_key(self, blocker: object, blocked: int) -> str:
        number, place = dig(blocker, "number"), one_line(dig(blocker, "repository_url")) or ""
        found = re.search(r"/repos/([\w.-]+/[\w.-]+)$", place)
        if not is_number(number) or not found:
            raise ProviderFault(f"a blocker of issue {blocked} is malformed; look at it on GitHub")
        here = found[1].casefold() == self._section.project.casefold()
        return f"{self._prefix}-{number}" if here else f"{found[1]}#{number}"

    def _created(self, marker: str) -> Payload | None:
        """The issue that an earlier call made; the newest are looked at first."""
        query = {"labels": CREATED, "state": "all", "sort": "created", "direction": "desc"}
        for record in self._issues(query):
            found = unseal(self._site.token, _NEW, plain(dig(record, "body")))[1]
            if isinstance(record, dict) and found == marker and self._site.is_ours(record.get("user")):
                return record
        return None

    def _number(self, key: str) -> int:
        return int(key.rpartition("-")[2])

    # Writing

    def _known_state(self, state: str) -> str:
        """The configured word, or `open` or `closed`."""
        asked = _folded(state)
        if asked in self._closed:
            return _CLOSED
        known = {**self._words, _OPEN: _OPEN}
        if asked not in known:
            words = ", ".join(repr(word) for word in [*known.values(), *sorted(self._closed)])
            raise ConfigError(f"board {self.name!r} knows no state {state!r}; it has {words}; correct `states`")
        return known[asked]

    def _set_state(self, number: int, record: Payload, state: str) -> None:
        if record.get("state") != state:
            self._site.ask("PATCH", f"{self._site.root}/issues/{number}", {"state": state})

    def _add_labels(self, number: int, record: Payload, names: Sequence[str]) -> None:
        there = {*map(_folded, _names(record))}
        missing = [name for name in names if _folded(name) not in there]
        if missing:
            self._make_labels(missing)
            path = f"{self._site.root}/issues/{number}/labels"
            self._check_labelled(missing, _names({"labels": self._site.ask("POST", path, {"labels": missing})}))

    def _remove_label(self, number: int, name: str) -> None:
        try:
            self._site.ask("DELETE", f"{self._site.root}/issues/{number}/labels/{segment(name)}")
        except Missing:  # somebody was faster
            return

    def _make_labels(self, names: Iterable[str]) -> None:
        """Create in the repository those that it has not. Each is looked up once in the life of the board."""
        for name in names:
            if _folded(name) not in self._labels_there:
                self._make_label(name)
                self._labels_there.add(_folded(name))

    def _make_label(self, name: str) -> None:
        try:
            self._site.ask("GET", f"{self._site.root}/labels/{segment(name)}")
            return
        except Missing:
            pass
        try:
            self._site.ask("POST", f"{self._site.root}/labels", {"name": name})
        except Refused as error:
            if "already_exists" not in error.words:
                raise ConfigError(f"{name!r} cannot be a label on GitHub ({error.words}); use another name") from error

    def _check_labelled(self, names: Sequence[str], there: Sequence[str]) -> None:
        """GitHub drops labels without a word when the token may not set them."""
        if dropped := {*map(_folded, names)} - {*map(_folded, there)}:
            raise AuthFailed(
                f"GitHub did not set the labels {sorted(dropped)}; give `token` write access to the issues of "
                f"{self._section.project!r}"
            )


def _folded(word: str) -> str:
    return (one_line(word) or "").casefold()


def _distinct(labels: Iterable[str]) -> list[str]:
    """Each once, in its first spelling, without blank ones."""
    found: dict[str, str] = {}
    for label in labels:
        found.setdefault(_folded(label), one_line(label) or "")
    return [name for name in found.values() if name]


def _names(record: Payload) -> list[str]:
    """The labels of an issue, as they are written; GitHub allows texts and objects."""
    labels = record.get("labels")
    found = [dig(label, "name") or label for label in labels] if isinstance(labels, list) else []
    return [name for name in found if isinstance(name, str) and one_line(name)]


def _priority(labels: Sequence[str]) -> int | None:
    """The most urgent of labels such as `p2`, `urgent`, `priority: high`."""
    found = [match for label in labels if (match := _PRIORITY.fullmatch(label))]
    known = [(_NAMED_PRIORITIES if match["named"] else _PRIORITIES).get(match["word"]) for match in found]
    return min((number for number in known if number), default=None)
