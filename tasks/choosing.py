"""Which tickets are worked on and in which order: eligibility (SM3), order (SM4), room (SM5), cycles (SM12), batches (T13).

Pure functions over tickets and configuration; who holds a ticket already is the ledger's to say.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from types import EllipsisType

from infra.boards import Ticket
from infra.llm import Frozen
from infra.sections import AnyBoard, DispatchSection, RepositorySection
from tasks.routing import KINDS, ROUTING_LABEL

MOST_CYCLES = 100
"""Cycles that are listed; tickets that block one another crosswise form more of them than anybody can count."""

BUILD_LABEL = "darkfactory-build"
"""On the tracking ticket of a build: its repository and limits are known to the command that made it, not to a dispatcher."""

_SMALL_CHARS = 2_000
_SIMILAR = 0.3
"""Share of the words of two titles that both have. Of real reports of one project, more than a third of those that people
called duplicates reach it and about one in a thousand random pairs (tests/tasks/test_choosing.py measures both)."""
_NO_DATE = datetime.max.replace(tzinfo=UTC)
_DIGITS = re.compile(r"([0-9]+)")
_WORDS = re.compile(r"[^\W\d_]{3,}")


class RunningTicket(Frozen):
    """A ticket that a node works on now. `state` is what its board says now, not what it was when the work began."""

    board: str
    key: str
    repository: str
    state: str


class Room(Frozen):
    """How many more tickets may start: of all, and of the states (casefolded) and repositories that have a cap."""

    free: int
    free_by_state: dict[str, int] = {}
    free_by_repository: dict[str, int] = {}

    def takes(self, state: str, repository: str) -> bool:
        """Whether a ticket in this tracker state of this repository may start."""
        by_state = self.free_by_state.get(_folded(state), 1)
        return min(self.free, by_state, self.free_by_repository.get(repository, 1)) > 0

    def take(self, state: str, repository: str) -> Room:
        """The room that is left when such a ticket starts. Raises ValueError when it may not."""
        if not self.takes(state, repository):
            raise ValueError(f"no room for a ticket in state {state!r} of {repository!r}; ask `takes` first")
        return Room(
            free=self.free - 1,
            free_by_state=_less(self.free_by_state, [_folded(state)]),
            free_by_repository=_less(self.free_by_repository, [repository]),
        )


def refusal(ticket: Ticket, board: AnyBoard, *, repository: str | EllipsisType | None = ...) -> str | None:
    """Why this ticket is not dispatched (SM3), in one line; None when it may be.

    `repository` is where it was routed, None for nowhere; leave it out to ask before routing.
    """
    for reason in (_missing, _not_queued, _no_work, _not_asked_for, _blocked):
        if found := reason(ticket, board):
            return found
    return "it is routed to no repository" if repository is None else None


def by_hand(ticket: Ticket) -> str | None:
    """Why a ticket is left to the person who started its work, in one line; None when it is not."""
    return f"`darkfactory build` works on it (label {BUILD_LABEL!r})" if BUILD_LABEL in ticket.labels else None


def _missing(ticket: Ticket, board: AnyBoard) -> str | None:
    blank = [name for name in ("key", "title", "state") if not getattr(ticket, name).strip()]
    return f"it has no {' and no '.join(blank)}" if blank else None


def _not_queued(ticket: Ticket, board: AnyBoard) -> str | None:
    if ticket.closed or _folded(ticket.state) in map(_folded, board.states.closed):
        return f"it is closed (state {ticket.state!r:.80})"
    if _folded(ticket.state) not in map(_folded, board.states.queue):
        return f"its state {ticket.state!r:.80} is none of the queue's ({', '.join(map(repr, board.states.queue))})"
    return None


def _no_work(ticket: Ticket, board: AnyBoard) -> str | None:
    """A command line that went wrong leaves tickets titled `--help`."""
    words = [word for word in ticket.title.split() if not word.startswith("-")]
    if any(character.isalnum() for word in words for character in word):
        return None
    return f"its title {ticket.title!r:.80} says nothing: it is only options or punctuation"


def _not_asked_for(ticket: Ticket, board: AnyBoard) -> str | None:
    there = {_spaceless(label) for label in ticket.labels}
    for label in board.required_labels:
        if not _spaceless(label):
            return (
                "a required label of the board is blank, which no ticket has; correct `required_labels` in factory.yaml"
            )
        if _spaceless(label) not in there:
            return f"the required label {label!r} is missing"
    allowed = {person(author) for author in board.allowed_authors} - {""}
    if board.allowed_authors and person(ticket.author or "") not in allowed:
        return f"its author {ticket.author!r:.80} is none of the board's allowed authors"
    return None


def _blocked(ticket: Ticket, board: AnyBoard) -> str | None:
    if not ticket.blocked_by:
        return None
    more = f" and {len(ticket.blocked_by) - 5} more" if len(ticket.blocked_by) > 5 else ""
    return f"it is blocked by {', '.join(map(repr, ticket.blocked_by[:5]))}{more}"


def order(tickets: Iterable[Ticket]) -> list[Ticket]:
    """Tickets in the order in which they start (SM4): priority 1 to 4 and then the rest, the oldest first and those without
    a date last, then by key (`T-9` before `T-10`). The order of the input, and so the paging of a board, has no effect."""
    return sorted(tickets, key=_rank)


def _rank(ticket: Ticket) -> tuple[int, datetime, list[tuple[str, int, str]], str, str]:
    priority = ticket.priority if ticket.priority in (1, 2, 3, 4) else 5
    created = ticket.created_at or _NO_DATE
    created = created if created.tzinfo else created.replace(tzinfo=UTC)
    return priority, created, _natural(ticket.key), ticket.key, ticket.board


def _natural(key: str) -> list[tuple[str, int, str]]:
    """Text and number by turns. A number is its length without zeros and its digits: it may be too long for an int."""
    parts = [*_DIGITS.split(key.casefold()), ""]
    numbers = [digits.lstrip("0") for digits in parts[1::2]]
    return [(text, len(number), number) for text, number in zip(parts[::2], numbers, strict=True)]


def room(
    running: Sequence[RunningTicket], dispatch: DispatchSection, repositories: Mapping[str, RepositorySection]
) -> Room:
    """What the caps leave (SM5): of all, by the current tracker state (without case) and by repository."""
    by_state: dict[str, int] = {}
    for state, cap in dispatch.max_running_by_state.items():
        by_state[_folded(state)] = min(cap, by_state.get(_folded(state), cap))
    by_repository = {name: section.max_running for name, section in repositories.items() if section.max_running}
    return Room(
        free=dispatch.max_running - len(running),
        free_by_state=_less(by_state, [_folded(ticket.state) for ticket in running]),
        free_by_repository=_less(by_repository, [ticket.repository for ticket in running]),
    )


def _less(caps: Mapping[str, int], used: Sequence[str]) -> dict[str, int]:
    count = Counter(used)
    return {name: cap - count[name] for name, cap in caps.items()}


def cycles(blocked_by: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """Tickets that wait for one another and so for ever (SM12): each waits for the next, and the last for the first.

    Every cycle once, beginning with its smallest key, at most MOST_CYCLES of them. This is Johnson's algorithm
    (Finding All the Elementary Circuits of a Directed Graph, 1975) without recursion: O(tickets + edges) for each cycle.
    """
    found: list[tuple[str, ...]] = []
    knots = _knots({key: list(dict.fromkeys(each)) for key, each in blocked_by.items()})
    while knots and len(found) < MOST_CYCLES:
        knot = knots.pop()
        first = min(knot)
        found += islice(_cycles_through(first, knot), MOST_CYCLES - len(found))
        knots += _knots({key: each for key, each in knot.items() if key != first})
    return sorted(found)


def _knots(edges: Mapping[str, Sequence[str]]) -> list[dict[str, list[str]]]:
    """The parts in which every ticket waits for every other, or one for itself, with the edges inside of them.

    Kosaraju's algorithm: whoever reaches a ticket backwards, in the reverse order of finishing, is in its part.
    """
    backwards: dict[str, list[str]] = {key: [] for key in edges}
    for key, blockers in edges.items():
        for blocker in backwards.keys() & blockers:
            backwards[blocker].append(key)
    reached: set[str] = set()
    finished: set[str] = set()
    order_of_finishing = [key for start in edges for key in _visited(start, edges, finished)]
    parts = [set(_visited(start, backwards, reached)) for start in reversed(order_of_finishing)]
    inside = [{key: [b for b in edges[key] if b in part] for key in sorted(part)} for part in parts]
    return [knot for knot in inside if any(knot.values())]


def _visited(start: str, edges: Mapping[str, Sequence[str]], seen: set[str]) -> Iterator[str]:
    """Depth first, the unseen tickets that `start` leads to, each after all it leads to. Adds them to `seen`."""
    path = [] if start in seen else [(start, iter(edges[start]))]
    seen.add(start)
    while path:
        key, onward = path[-1]
        following = next((each for each in onward if each in edges and each not in seen), None)
        if following is None:
            yield key
            path.pop()
        else:
            seen.add(following)
            path.append((following, iter(edges[following])))


def _cycles_through(first: str, knot: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, ...]]:
    """A ticket is `barred` while it is on the path, and after that until a way from it to `first` opens again."""
    path, barred, on_cycle = [first], {first}, set[str]()
    dependants: dict[str, set[str]] = {}
    onward = [iter(knot[first])]
    while path:
        following = next((each for each in onward[-1] if each == first or each not in barred), None)
        if following == first:
            yield tuple(path)
            on_cycle.update(path)
        elif following is not None:
            path.append(following)
            barred.add(following)
            on_cycle.discard(following)
            onward.append(iter(knot[following]))
        else:
            onward.pop()
            left = path.pop()
            _free(left, barred, dependants) if left in on_cycle else _bar(left, knot[left], dependants)


def _free(key: str, barred: set[str], dependants: dict[str, set[str]]) -> None:
    freed = [key]
    while freed:
        each = freed.pop()
        if each in barred:
            barred.discard(each)
            freed += dependants.pop(each, ())


def _bar(key: str, blockers: Iterable[str], dependants: dict[str, set[str]]) -> None:
    for blocker in blockers:
        dependants.setdefault(blocker, set()).add(key)


def batches(
    tickets: Sequence[tuple[Ticket, str]], limit: int, *, ignored_labels: Collection[str] = ()
) -> list[tuple[Ticket, ...]]:
    """Tickets with their repositories, grouped into sessions of up to `limit` (T13). The order is kept.

    A ticket joins the session before it when all are small (title and body under 2,000 characters, priority not 1, no
    comments, so they have to be read by key), of one board and one repository, and every two are related: by a label, or by
    titles that share three in ten of their words. A kind (`bug`), the repository, the state and `ignored_labels` relate
    nothing; the board's required labels belong into those, because every ticket has them.
    """
    ignored = KINDS | {_folded(label) for label in ignored_labels}
    sessions: list[list[tuple[Ticket, str]]] = []
    for each in tickets:
        if sessions and len(sessions[-1]) < limit and all(_together(each, other, ignored) for other in sessions[-1]):
            sessions[-1].append(each)
        else:
            sessions.append([each])
    return [tuple(ticket for ticket, _ in session) for session in sessions]


def _together(one: tuple[Ticket, str], other: tuple[Ticket, str], ignored: Collection[str]) -> bool:
    (ticket, repository), (second, second_repository) = one, other
    if (ticket.board, repository) != (second.board, second_repository) or not (_small(ticket) and _small(second)):
        return False
    return bool(_topics(one, ignored) & _topics(other, ignored)) or alike(ticket.title, second.title)


def _small(ticket: Ticket) -> bool:
    return len(ticket.title) + len(ticket.body) < _SMALL_CHARS and ticket.priority != 1 and not ticket.comments


def _topics(one: tuple[Ticket, str], ignored: Collection[str]) -> set[str]:
    ticket, repository = one
    labels = {_folded(label) for label in ticket.labels if not ROUTING_LABEL.fullmatch(label)}
    return labels.difference(ignored, ("", _folded(ticket.state), _folded(repository)))


def alike(title: str, other: str) -> bool:
    """Whether two titles share so many words that they are about one thing."""
    words, others = set(_WORDS.findall(title.casefold())), set(_WORDS.findall(other.casefold()))
    return bool(words) and len(words & others) >= _SIMILAR * len(words | others)


def person(name: str) -> str:
    """A name to compare. Only ASCII has no case: a Kelvin sign is a small k for Unicode, and `\u212aate` another person than kate."""
    return name.strip().lower() if name.isascii() else unicodedata.normalize("NFC", name.strip())


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _spaceless(text: str) -> str:
    return "".join(_folded(text).split())
