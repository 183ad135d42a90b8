"""Handing tickets to nodes: what one tick reads, holds back, claims and launches, and what it stops."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from prefect import task

from infra.boards import Board, Ticket
from infra.claims import Claim, is_claimable
from infra.errors import CapacityUnavailable, FactoryError, RateLimited, Unreachable
from infra.fleet import Node
from infra.git import branch_name
from infra.llm import Frozen
from infra.notify import notify
from infra.pauses import BUDGET, DISPATCH
from infra.reloading import is_news, was_told
from infra.sections import AnyBoard
from infra.settings import split_providers
from tasks import services
from tasks.agents import coder_scope
from tasks.attempts import QUESTION
from tasks.checkouts import CALLED_OFF, CLOSED, GONE, MOVED
from tasks.choosing import RunningTicket, batches, by_hand, cycles, order, refusal, room
from tasks.failures import Launch, should_pause
from tasks.holding import again_after_fault
from tasks.intake import CLAIM_MARKER, claim_note
from tasks.launching import ROUND, launch_run
from tasks.questions import MARKER, replies
from tasks.routing import route

PROBE_AFTER_SECONDS = 60.0
"""Time before a dispatch that paused itself lets one run try."""
BOARD_PAUSE_SECONDS = 300.0
CHANGED = "taken by another dispatcher, or changed meanwhile"
MOST_REMARKS = 20
"""Tickets that one tick tells why they are not worked on: a board of thousands is neither flooded nor asked to slow us down."""
NO_ROUTE, IN_A_CIRCLE, SAME_KEY = HELD_BACK = ("not routed: ", "blocked in a circle: ", "shares its key: ")
"""Reasons of tickets that are parked only to say something once; they go on as soon as the cause is gone."""

_log = logging.getLogger(__name__)


class Waiting(Frozen):
    """A ticket that may be worked on, and where."""

    ticket: Ticket
    repository: str


class Remark(Frozen):
    """Why a ticket is not worked on, to be said on it once. `why` is one of HELD_BACK, `marker` that of the comment."""

    ticket: Ticket
    why: str
    text: str
    marker: str


class Launched(Frozen):
    """A run that was handed to a node."""

    board: str
    ticket: str
    node: str
    token: int
    flow_run: str


class Dispatched(Frozen):
    """What one tick did. `skipped` has a reason for every ticket of the queue that was not launched."""

    launched: tuple[Launched, ...] = ()
    stopped: tuple[str, ...] = ()
    skipped: dict[str, str] = {}
    problem: str | None = None
    refilling: bool = False
    """The queue was empty, so the factory looks for work by itself."""


@task(name="reconcile", task_run_name="reconcile")
async def reconcile(only: tuple[str, str] | None = None) -> tuple[str, ...]:
    """Requeue what lost its holder; stop runs whose ticket was closed or taken away (I11). Returns the stopped tickets.

    Boards are read only where something is held (RC5); one that cannot be read keeps all its runs (RC4).
    """
    return await asyncio.to_thread(_reconcile, only)


def _reconcile(only: tuple[str, str] | None) -> tuple[str, ...]:
    claims = services.claims()
    for claim in claims.expired():
        if claim.state == "running" and claims.requeue(
            claim, f"the lease of node {claim.node} ended", only_expired=True
        ):
            _tell(claim, "requeued", f"the lease of node {claim.node} ended")
    _abandon_dead_nodes()
    stopped: list[str] = []
    open_boards = {name for name in services.settings().all_boards if f"board:{name}" not in services.pauses().active()}
    for name in {claim.board for claim in claims.held()} & open_boards:
        if only is None or only[0] == name:
            held = [c for c in claims.held(name) if only is None or c.ticket == only[1]]
            stopped += _stop_what_changed(name, held, settled=only is None)
    return tuple(stopped)


def _abandon_dead_nodes() -> None:
    """Claims that a node which is gone, or drains, never started go back into the queue at once (I10)."""
    fit = {node.name for node in services.fleet().nodes() if node.alive and node.state == "active"}
    for claim in services.claims().in_state("claimed"):
        if claim.node not in fit:
            services.claims().requeue(claim, f"node {claim.node} is gone")


def _stop_what_changed(name: str, held: Sequence[Claim], *, settled: bool) -> list[str]:
    """`settled`: this is a whole tick, so boards have had time to follow what an earlier one saw."""
    section = services.board_section(name)
    try:
        seen = {ticket.key: ticket for ticket in services.board(name).tickets_by_keys([c.ticket for c in held])}
    except FactoryError as error:
        _log.warning("board=%s outcome=kept-all reason=%r", name, str(error))
        return []
    stopped = []
    for claim in held:
        ticket = seen.get(claim.ticket)
        reason = _why_stop(ticket, section, claim.ticket_state) or _reassigned(ticket, claim)
        if reason is not None:
            if not services.claims().forget(claim, reason):  # one that was never started has nothing to stop
                services.claims().ask_stop(claim, f"{CALLED_OFF}{reason}")
            _tell(claim, "stopping", reason)
            stopped.append(claim.ticket)
        elif ticket is not None:
            _see(ticket, claim, section, settled)
    return stopped


def _reassigned(ticket: Ticket | None, claim: Claim) -> str | None:
    """A person took the ticket, or was given it, since it was first seen at work (I11)."""
    if ticket is None or not ticket.assignee or claim.assignee in (None, ticket.assignee):
        return None
    return f"the ticket was assigned to {ticket.assignee!r}"


def _see(ticket: Ticket, claim: Claim, section: AnyBoard, settled: bool) -> None:
    """Remember state and assignee; the latter not before a tick after our own move was seen, on which some boards assign the
    ticket by themselves, and their rules some seconds later."""
    at_work = ticket.state.casefold() == claim.ticket_state.casefold() == section.states.working.casefold()
    settled = settled and claim.state == "running" and at_work
    assignee = (ticket.assignee or "") if settled and claim.assignee is None else None
    if assignee is not None or ticket.state != claim.ticket_state:
        services.claims().see(claim, ticket.state, assignee)


def _why_stop(ticket: Ticket | None, section: AnyBoard, before: str) -> str | None:
    """Why a running ticket must not run on: gone, closed, moved by a person, or no longer opted in.

    `before` is its state when it was claimed: a round on its pull request leaves the ticket where it is, in review.
    """
    if ticket is None:
        return GONE
    if ticket.closed:
        return CLOSED
    states = section.states
    ours = {state.casefold() for state in (*states.queue, states.working)}
    if ticket.state.casefold() not in ours | {before.casefold()}:
        return f"{MOVED} {ticket.state!r}"
    as_queued = ticket.model_copy(update={"state": states.queue[0], "blocked_by": ()})
    return None if by_hand(ticket) else refusal(as_queued, section)


@task(name="resume answered", task_run_name="resume answered")
async def resume_answered() -> tuple[str, ...]:
    """Tickets whose question a trusted person has answered go on (RC7). Returns their keys."""
    return await asyncio.to_thread(_resume_answered)


def _resume_answered() -> tuple[str, ...]:
    waiting = _waiting_for_a_person()
    paused = services.pauses().active()
    resumed: list[str] = []
    for name in {claim.board for claim in waiting} & set(services.settings().all_boards):
        mine = {claim.ticket: claim for claim in waiting if claim.board == name}
        if f"board:{name}" in paused:
            continue
        try:
            tickets = {ticket.key: ticket for ticket in services.board(name).tickets_by_keys(sorted(mine))}
            for key, claim in mine.items():
                resumed += [key] if _resume(claim, tickets.get(key)) else []
        except FactoryError as error:
            _board_failed(name, error)
    return tuple(resumed)


def _waiting_for_a_person() -> list[Claim]:
    """Claims with a question, and those of killed runs that may have asked one."""
    claims = services.claims()
    now = claims.now()
    asked = [claim for claim in claims.in_state("parked") if claim.question]
    queued = claims.in_state("retry-queued")
    return asked + [c for c in queued if c.infra_faults and (c.due_at is None or c.due_at <= now)]


def _resume(claim: Claim, ticket: Ticket | None) -> bool:
    """Let one go on; nothing for a ticket that a person took out of our hands, or that still waits."""
    section, claims = services.board_section(claim.board), services.claims()
    if ticket is None or ticket.closed:
        claims.forget(claim, CLOSED if ticket else GONE)
        return False
    parked = ticket.state.casefold() == section.states.parked.casefold()
    if claim.state == "retry-queued":  # killed between asking and parking: the question holds it on the board alone
        if parked and any(c.marker == f"{MARKER}{claim.token - 1}" for c in ticket.comments):
            services.board(claim.board).move(ticket.key, section.states.queue[0])
        return False
    ours = {state.casefold() for state in (*section.states.queue, section.states.working)}
    if not (parked or ticket.state.casefold() in ours):
        return False
    if claim.question and all(c.marker != f"{MARKER}{claim.token}" for c in ticket.comments):
        services.board(claim.board).comment(ticket.key, QUESTION.format(claim.question), f"{MARKER}{claim.token}")
        services.board(claim.board).move(ticket.key, section.states.parked)  # the board was away when it was asked
        return False
    if not replies(ticket, claim, section):
        return False
    services.board(claim.board).move(ticket.key, section.states.queue[0])
    return claims.resume(claim, "answered")


@task(name="fetch", task_run_name="fetch")
async def fetch(only: tuple[str, str] | None = None) -> tuple[tuple[Waiting, ...], dict[str, str]]:
    """What waits on the boards, in the order of SM4, and why the rest does not. A board that fails leaves the others alone."""
    return await asyncio.to_thread(_fetch, only)


def _fetch(only: tuple[str, str] | None) -> tuple[tuple[Waiting, ...], dict[str, str]]:
    skipped: dict[str, str] = {}
    tickets: list[Ticket] = []
    paused = services.pauses().active()
    for name in services.settings().all_boards:
        if (only and only[0] != name) or f"board:{name}" in paused:
            continue
        try:
            tickets += _read(name, only[1] if only else None)
        except FactoryError as error:
            _board_failed(name, error)
            skipped[f"board {name}"] = str(error)
    waiting, remarks, passed_over = _sort_out(tickets)
    if only is None:
        for delivery in services.deliveries().waiting():  # their events were lost; what they told was just read
            services.deliveries().emitted(delivery.source, delivery.id)
    _say([*remarks, *_cycles([t for t in tickets if t.blocked_by])])
    places = {(w.ticket.board, w.ticket.key): w for w in waiting}
    ordered = order([w.ticket for w in waiting])
    return tuple(places[ticket.board, ticket.key] for ticket in ordered), skipped | passed_over


def _sort_out(tickets: Sequence[Ticket]) -> tuple[list[Waiting], list[Remark], dict[str, str]]:
    """What may be worked on, what has to be said, and why the rest waits. Of several boards with one key, the first has it."""
    now, claims = services.claims().now(), services.claims().with_keys([ticket.key for ticket in tickets])
    waiting, remarks, skipped, owners = list[Waiting](), list[Remark](), dict[str, str](), dict[str, str]()
    for ticket in tickets:
        known, owner = claims.get(ticket.key, ()), owners.setdefault(ticket.key, ticket.board)
        mine = next((claim for claim in known if claim.board == ticket.board), None)
        elsewhere = _elsewhere(ticket, known) or (owner if owner != ticket.board else None)
        found, reason = _consider(ticket, mine, now, elsewhere)
        if isinstance(found, Waiting):
            waiting.append(found)
        elif found is not None:
            remarks.append(found)
        if reason:
            skipped[ticket.key if owner == ticket.board else f"{ticket.board}:{ticket.key}"] = reason
    return waiting, remarks, skipped


def _elsewhere(ticket: Ticket, claims: Sequence[Claim]) -> str | None:
    """The other board on which there is, or was, work under the ticket's key."""
    known = services.settings().all_boards.keys() - {ticket.board}
    others = (claim.board for claim in claims if claim.board in known and not claim.reason.startswith(HELD_BACK))
    return next(others, None)


def _read(name: str, key: str | None) -> list[Ticket]:
    """The tickets of a board's queue, and those whose retry is due whatever state a killed run left them in."""
    board, section = services.board(name), services.board_section(name)
    if key is not None:
        return board.tickets_by_keys([key])
    queue = list(section.states.queue)
    found = board.tickets_in_states(queue)
    now = services.claims().now()
    known = {ticket.key for ticket in found}
    due = [
        c
        for c in services.claims().in_state("retry-queued")
        if c.board == name and (c.due_at is None or c.due_at <= now)
    ]
    again = board.tickets_by_keys([claim.ticket for claim in due if claim.ticket not in known])
    there = known | {ticket.key for ticket in again}
    for claim in (claim for claim in due if claim.ticket not in there):
        services.claims().forget(claim, GONE)
    return found + [t.model_copy(update={"state": queue[0]}) if _left_by_us(t, section) else t for t in again]


def _left_by_us(ticket: Ticket, section: AnyBoard) -> bool:
    return ticket.state.casefold() == section.states.working.casefold()


def _board_failed(name: str, error: FactoryError) -> None:
    _log.warning("board=%s outcome=not-read reason=%r", name, str(error))
    if isinstance(error, RateLimited):
        now = services.claims().now()
        until = error.reset_at or now + timedelta(seconds=BOARD_PAUSE_SECONDS)
        services.pauses().pause(f"board:{name}", str(error), until)


def _consider(
    ticket: Ticket, claim: Claim | None, now: datetime, elsewhere: str | None = None
) -> tuple[Waiting | Remark | None, str | None]:
    """The ticket with its repository, or why it has to wait; no reason for one that is being worked on, or was.

    `elsewhere` is another board with a ticket of this key: branches, worktrees and pull requests are named by key alone.
    """
    settings, section = services.settings(), services.board_section(ticket.board)
    reason = refusal(ticket, section) or by_hand(ticket)
    if claim is not None and _is_out_of_our_hands(ticket, section):
        services.claims().forget(claim, f"the ticket is in {ticket.state!r}")
    if reason is not None:
        return None, reason
    found = route(ticket, settings.repositories, section.repository)
    if elsewhere is not None and (claim is None or claim.state != "running"):
        text = f"the board {elsewhere!r} has a ticket {ticket.key!r}, too, and a key names one branch; give one of them another"
        return _remark(ticket, claim, now, SAME_KEY, text, "key"), text
    if found.repository is None:
        return _remark(ticket, claim, now, NO_ROUTE, found.reason, "route"), found.reason
    if claim is not None and claim.state == "parked" and claim.reason.startswith(HELD_BACK):
        services.claims().resume(claim, "its cause is gone")
    elif claim is not None and not is_claimable(claim, ticket, now):
        return None, None
    return Waiting(ticket=ticket, repository=found.repository), None


def _remark(ticket: Ticket, claim: Claim | None, now: datetime, why: str, text: str, marker: str) -> Remark | None:
    """None when it was made before, or when the ticket is held, done or waits: each look would cost a transaction."""
    if claim is not None and (claim.reason.startswith(why) or not is_claimable(claim, ticket, now)):
        return None
    return Remark(ticket=ticket, why=why, text=text, marker=marker)


def _is_out_of_our_hands(ticket: Ticket, section: AnyBoard) -> bool:
    """Closed, or in review: also what a run did that was killed before it could release its claim."""
    return ticket.closed or ticket.state.casefold() == section.states.review.casefold()


def _cycles(blocked: Sequence[Ticket]) -> Iterator[Remark]:
    tickets, now = {ticket.key: ticket for ticket in blocked}, services.claims().now()
    for cycle in cycles({key: ticket.blocked_by for key, ticket in tickets.items()}):
        text = f"these tickets block each other: {' <- '.join((*cycle, cycle[0]))}; remove one of the relations"
        for ticket in (tickets[key] for key in cycle if key in tickets):
            remark = _remark(ticket, services.claims().find(ticket.board, ticket.key), now, IN_A_CIRCLE, text, "cycle")
            if remark is not None:
                yield remark


def _say(remarks: Sequence[Remark]) -> None:
    """Hold the first few back; the next ticks say the rest, and what a board does not take now."""
    said = 0
    for remark in remarks:
        if said == MOST_REMARKS:
            return
        try:
            said += hold_back(remark)
        except FactoryError as error:
            said += 1
            _board_failed(remark.ticket.board, error)


def hold_back(remark: Remark) -> bool:
    """Say on the ticket, once, why it is not worked on; it is parked until its cause is gone. False when it is held or done,
    and nothing was said."""
    ticket = remark.ticket
    claim = _claim(
        Waiting(ticket=ticket, repository=""), services.claims().now(), lambda _: services.settings().node_name
    )
    if claim is None:
        return False
    try:
        services.board(ticket.board).comment(ticket.key, f"Not worked on: {remark.text}", marker=remark.marker)
    except (RateLimited, Unreachable):
        services.claims().forget(claim, "the board was away")
        raise
    except FactoryError as error:  # its conversation is locked, or the like: `darkfactory status` has the reason
        _log.warning("board=%s ticket=%s outcome=not-told reason=%r", ticket.board, ticket.key, str(error))
    services.claims().park(claim, f"{remark.why}{remark.text}")
    return True


@task(name="launch", task_run_name="launch")
async def launch(waiting: tuple[Waiting, ...]) -> tuple[tuple[Launched, ...], dict[str, str]]:
    """Claim and launch in order while slots last. Returns what was launched, and why the rest was not."""
    launched: list[Launched] = []
    skipped: dict[str, str] = {}
    if not waiting:
        return (), {}
    gate = await asyncio.to_thread(dispatch_gate)
    if gate.closed is not None:
        return (), {w.ticket.key: gate.closed for w in waiting}
    slots, away = await asyncio.to_thread(Slots.now), dict[str, str]()
    for group in _groups(waiting):
        board = group[0].ticket.board
        why = away.get(board) or slots.why_not(group[0])
        if why is None and gate.probing and launched:
            why = "dispatch tries one run first"
        if why is not None:
            skipped |= {w.ticket.key: why for w in group}
            continue
        try:
            done = await _launch_group(group, slots)
        except FactoryError as error:
            skipped |= {w.ticket.key: str(error) for w in group}
            if isinstance(error, RateLimited | Unreachable):  # thousands of others would hear the same
                away[board] = str(error)
                await asyncio.to_thread(_board_failed, board, error)
            continue
        launched += done
        skipped |= {w.ticket.key: CHANGED for w in group if w.ticket.key not in {d.ticket for d in done}}
    return tuple(launched), skipped


def _groups(waiting: Sequence[Waiting]) -> list[list[Waiting]]:
    """Tickets that share a session (T13); a label that all of a board's tickets must carry relates none of them."""
    repositories = {(w.ticket.board, w.ticket.key): w.repository for w in waiting}
    settings = services.settings()
    ignored = {label for section in settings.all_boards.values() for label in section.required_labels}
    found = batches([(w.ticket, w.repository) for w in waiting], settings.dispatch.batch, ignored_labels=ignored)
    return [[Waiting(ticket=t, repository=repositories[t.board, t.key]) for t in group] for group in found]


class Slots:
    """Where there is room, as it was when the tick began and with what it launched since. Claiming looks again, for sure."""

    def __init__(self, held: Sequence[Claim], nodes: Sequence[Node], paused: Iterable[str]) -> None:
        self.held, self._nodes, self._paused = list(held), tuple(nodes), frozenset(paused)

    @classmethod
    def now(cls) -> Slots:
        return cls(services.claims().held(), services.fleet().nodes(), services.pauses().active())

    def has_room(self) -> bool:
        """Whether a node could take any ticket at all."""
        used = _places(self.held)
        free = any(node.slots > used[node.name] for node in self._nodes if self._is_open(node))
        return free and len(self.held) < services.settings().dispatch.max_running

    def node_for(self, waiting: Waiting, held: Sequence[Claim], only: str | None = None) -> str | None:
        """The node with the most free slots that has what the repository needs and whose provider is not paused."""
        if self._is_capped(waiting, held) or any(_is_twin(claim, waiting.ticket) for claim in held):
            return None
        fit = [node for node in self._fit(waiting) if only in (None, node.name)]
        used = _places(held)
        free = {node.name: node.slots - used[node.name] for node in fit}
        best = max(sorted(free), key=lambda name: free[name], default=None)
        return best if best is not None and (free[best] > 0 or only is not None) else None

    def why_not(self, waiting: Waiting) -> str | None:
        """Why there is no room for the ticket, or None when there seems to be. A claim of its own that was never started takes none."""
        others = [c for c in self.held if (c.board, c.ticket) != (waiting.ticket.board, waiting.ticket.key)]
        if self.node_for(waiting, others) is not None:
            return None
        needed = services.settings().repositories[waiting.repository].node_labels
        if self._is_capped(waiting, others) or self._fit(waiting):
            return "no slots"
        wanted = f" with the labels {', '.join(needed)}" if needed else ""
        closed = [scope for scope in sorted(self._paused) if scope.startswith(("provider:", "node:"))]
        return f"no node{wanted} is there" + (f" (paused: {', '.join(closed)})" if closed else "")

    def take(self, claim: Claim) -> None:
        """Count a claim that was just made, or handed on."""
        self.held = [c for c in self.held if (c.board, c.ticket) != (claim.board, claim.ticket)] + [claim]

    def _is_capped(self, waiting: Waiting, held: Sequence[Claim]) -> bool:
        settings = services.settings()
        running = [
            RunningTicket(board=c.board, key=c.ticket, repository=c.repository, state=c.ticket_state) for c in held
        ]
        space = room(running, settings.dispatch, settings.repositories)
        return not space.takes(waiting.ticket.state, waiting.repository)

    def _fit(self, waiting: Waiting) -> list[Node]:
        needed = {label.lower() for label in services.settings().repositories[waiting.repository].node_labels}
        return [node for node in self._nodes if self._is_open(node) and needed <= set(node.labels)]

    def _is_open(self, node: Node) -> bool:
        answering = {f"provider:{name}" for name in split_providers(node.provider)} - self._paused
        return node.alive and node.state == "active" and bool(answering) and f"node:{node.name}" not in self._paused


def _places(held: Iterable[Claim]) -> Counter[str]:
    """Places that are taken on each node. The tickets of one session share a process, and so one place (T13)."""
    return Counter(node for node, _ in {(c.node, c.flow_run or f"{c.board}:{c.ticket}") for c in held})


def _is_twin(claim: Claim, ticket: Ticket) -> bool:
    """Whether a ticket of another board with the same key, and so the same branch, is being worked on."""
    return claim.ticket == ticket.key and claim.board != ticket.board


class Gate(Frozen):
    """Whether anything may be launched now. `closed` says why not; `probing`: one run, to see whether it works again."""

    closed: str | None = None
    probing: bool = False


def dispatch_gate() -> Gate:
    """Open, unless the money is used up, the agent that codes rests, or dispatch paused itself or has to (RB9)."""
    pauses, now = services.pauses(), services.claims().now()
    active = pauses.active()
    for scope in (BUDGET, coder_scope()):
        if scope in active:
            return Gate(closed=active[scope].reason)
    pause = active.get(DISPATCH)
    if pause is None:
        why = _why_pause(now)
        if why is not None and pauses.pause(DISPATCH, why, None):
            notify(services.settings().notify, "dispatch paused itself", why, key="pause:dispatch")
        return Gate(closed=why)
    if pause.by_hand:
        return Gate(closed=f"dispatch is paused: {pause.reason}")
    probing = pause.probe is not None and any(c.key == pause.probe for c in services.claims().held())
    if not probing and pause.probe is not None:
        pauses.drop_probe(DISPATCH, pause.probe)
    if probing or now < pause.since + timedelta(seconds=PROBE_AFTER_SECONDS):
        return Gate(closed=f"dispatch is paused: {pause.reason}")
    return Gate(probing=True)


def _why_pause(now: datetime) -> str | None:
    settings = services.settings().dispatch
    since = now - timedelta(seconds=settings.fail_fast_window_seconds)
    since = max(since, services.pauses().last_end(DISPATCH) or since)
    return should_pause(
        _launches(since, settings.fail_fast_seconds),
        now,
        window_seconds=settings.fail_fast_window_seconds,
        share=settings.fail_fast_share,
        min_launches=settings.fail_fast_min_launches,
    )


def _launches(since: datetime, fast_seconds: float) -> list[Launch]:
    ended = services.ledger().ended_attempts(since)
    return [
        Launch(ended_at=at, seconds=seconds, fast_failure=failed and seconds < fast_seconds)
        for at, seconds, failed in ended
    ]


async def _launch_group(group: Sequence[Waiting], slots: Slots) -> list[Launched]:
    """Claim every ticket of the group for the same node, say so on it, and start one run for them."""
    claimed: list[tuple[Claim, Waiting]] = []
    for waiting in group:
        node = claimed[0][0].node if claimed else None
        try:
            claim = await asyncio.to_thread(_claim_for_launch, waiting, slots, node)
        except FactoryError as error:
            if not claimed:
                raise
            _log.warning("ticket=%s outcome=left-out reason=%r", waiting.ticket.key, str(error))
            continue
        if claim is not None and node in (
            None,
            claim.node,
        ):  # one that was handed on keeps its own node and waits its turn
            claimed.append((claim, waiting))
            slots.take(claim)
    if not claimed:
        return []
    try:
        run = await launch_run([(claim, w.repository) for claim, w in claimed])
    except CapacityUnavailable as error:  # anything else may have started the run: its claims' leases decide
        for claim, _ in claimed:
            await asyncio.to_thread(again_after_fault, claim, str(error))
        raise
    done = []
    for claim, _ in claimed:
        await asyncio.to_thread(services.claims().launched, claim, run)
        slots.take(claim.model_copy(update={"flow_run": run}))
        _log.info(
            "board=%s ticket=%s outcome=launched node=%s token=%s", claim.board, claim.ticket, claim.node, claim.token
        )
        done.append(Launched(board=claim.board, ticket=claim.ticket, node=claim.node, token=claim.token, flow_run=run))
    return done


async def launch_round(waiting: Waiting) -> Launched | None:
    """Hand one round on a pull request to a node, under its ticket's claim; None when somebody works on the ticket, or
    there is no room. Raises what `launch_run` raises.
    """
    if (await asyncio.to_thread(dispatch_gate)).closed is not None:
        return None
    slots, read_at = await asyncio.to_thread(Slots.now), await asyncio.to_thread(services.claims().now)
    claim = await asyncio.to_thread(_claim, waiting, read_at, lambda held: slots.node_for(waiting, held))
    if claim is None:
        return None
    if not await asyncio.to_thread(_may_go, claim):
        await asyncio.to_thread(services.claims().forget, claim, "dispatch is paused")
        return None
    try:
        run = await launch_run([(claim, waiting.repository)], flow=ROUND)
    except CapacityUnavailable as error:
        await asyncio.to_thread(services.claims().forget, claim, str(error))
        raise
    await asyncio.to_thread(services.claims().launched, claim, run)
    _log.info("board=%s ticket=%s outcome=round node=%s token=%s", claim.board, claim.ticket, claim.node, claim.token)
    return Launched(board=claim.board, ticket=claim.ticket, node=claim.node, token=claim.token, flow_run=run)


def _claim_for_launch(waiting: Waiting, slots: Slots, node: str | None) -> Claim | None:
    """The claim, made and visible on the ticket (SM11), of a ticket that was read again just now (SM6)."""
    board, read_at = services.board(waiting.ticket.board), services.claims().now()
    fresh = _reread(board, waiting)
    if fresh is None:
        return None
    claim = _claim(fresh, read_at, lambda held: slots.node_for(fresh, held, only=node))
    if claim is None:
        return None
    try:
        if _published_before(fresh, claim):
            return None
        if not _may_go(claim):
            services.claims().retry(claim, "dispatch is paused", PROBE_AFTER_SECONDS, None)
            return None
        board.comment(claim.ticket, claim_note(claim, claim.failures + 1), marker=CLAIM_MARKER)
    except FactoryError as error:  # nobody is told of the claim, so nothing starts (SM11), and its slot is free again
        services.claims().retry(claim, str(error), BOARD_PAUSE_SECONDS, None)
        raise
    return claim


def _may_go(claim: Claim) -> bool:
    """While dispatch is paused, one run may try (RB9)."""
    pauses = services.pauses()
    return DISPATCH not in pauses.active() or pauses.take_probe(DISPATCH, claim.key)


def _reread(board: Board, waiting: Waiting) -> Waiting | None:
    section = services.board_section(waiting.ticket.board)
    found = board.tickets_by_keys([waiting.ticket.key])
    if not found:
        return None
    ticket = found[0]
    if _left_by_us(ticket, section):
        ticket = ticket.model_copy(update={"state": section.states.queue[0]})
    where = route(ticket, services.settings().repositories, section.repository).repository
    if refusal(ticket, section) or by_hand(ticket) or where is None:
        return None
    return Waiting(ticket=ticket, repository=where)


def _claim(waiting: Waiting, read_at: datetime, choose: Callable[[Sequence[Claim]], str | None]) -> Claim | None:
    settings = services.settings()
    return services.claims().claim(
        waiting.ticket,
        holder=f"{settings.node_name}:{os.getpid()}",
        machine=settings.machine,
        repository=waiting.repository,
        lease_seconds=settings.dispatch.lease_seconds,
        read_at=read_at,
        choose_node=choose,
    )


def _published_before(waiting: Waiting, claim: Claim) -> bool:
    """A pull request of this ticket is there although the ledger knows of no work on it: it is shown, never made again."""
    if claim.token > 1 and services.ledger(claim.board).recorded_state(claim.ticket) is not None:
        return False
    found = services.forge(waiting.repository).find(branch_name(waiting.ticket.key))
    if found is None or found.state == "closed":
        return False
    board, states = services.board(claim.board), services.board_section(claim.board).states
    board.comment(claim.ticket, f"There is a pull request already: {found.url}", marker=f"pull-request-{claim.ticket}")
    board.move(claim.ticket, states.review)
    services.claims().release(claim, "a pull request was there", moved=False)
    return True


def _tell(claim: Claim, kind: str, message: str) -> None:
    services.ledger(claim.board).record_event(None, claim.ticket, kind, message)


@task(name="check configuration", task_run_name="check configuration")
async def check_configuration() -> str | None:
    """What is wrong with factory.yaml now, told to people once; None when all is well. Bad configuration skips launches (SM2)."""
    return await asyncio.to_thread(_told_configuration)


def _told_configuration() -> str | None:
    settings, problem = services.settings(), services.config_problem()
    is_new = is_news(settings, problem)
    if problem is None:
        return None
    _log.warning("outcome=not-launched reason=%r", problem)
    if is_new and notify(settings.notify, "factory.yaml is not valid", problem, key="config"):
        was_told(settings, problem)
    return problem
