"""Handing tickets to nodes: what one tick reads, holds back, claims and launches, and what it stops."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from prefect import task

from infra.boards import Board, Ticket
from infra.claims import Claim, is_claimable
from infra.errors import CapacityUnavailable, FactoryError, RateLimited
from infra.fleet import Node
from infra.git import branch_name
from infra.llm import Frozen
from infra.notify import notify
from infra.pauses import BUDGET, DISPATCH
from infra.sections import AnyBoard, FolderBoardSection
from infra.settings import split_providers
from tasks import services
from tasks.agents import coder_scope
from tasks.attempts import QUESTION
from tasks.choosing import RunningTicket, batches, by_hand, cycles, order, refusal, room
from tasks.failures import Launch, should_pause
from tasks.intake import CLAIM_MARKER, claim_note
from tasks.launching import ROUND, launch_run
from tasks.routing import route

PROBE_AFTER_SECONDS = 60.0
"""Time before a dispatch that paused itself lets one run try."""
BOARD_PAUSE_SECONDS = 300.0
CHANGED = "taken by another dispatcher, or changed meanwhile"
HELD_BACK = ("not routed: ", "blocked in a circle: ")
"""Reasons of tickets that are parked only to say something once; they go on as soon as the cause is gone."""

_log = logging.getLogger(__name__)


class Waiting(Frozen):
    """A ticket that may be worked on, and where."""

    ticket: Ticket
    repository: str


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
            stopped += _stop_what_changed(name, held)
    return tuple(stopped)


def _abandon_dead_nodes() -> None:
    """Claims that a node which is gone, or drains, never started go back into the queue at once (I10)."""
    fit = {node.name for node in services.fleet().nodes() if node.alive and node.state == "active"}
    for claim in services.claims().in_state("claimed"):
        if claim.node not in fit:
            services.claims().requeue(claim, f"node {claim.node} is gone")


def _stop_what_changed(name: str, held: Sequence[Claim]) -> list[str]:
    section = services.board_section(name)
    try:
        seen = {ticket.key: ticket for ticket in services.board(name).tickets_by_keys([c.ticket for c in held])}
    except FactoryError as error:
        _log.warning("board=%s outcome=kept-all reason=%r", name, str(error))
        return []
    stopped = []
    for claim in held:
        ticket = seen.get(claim.ticket)
        reason = _why_stop(ticket, section, claim.ticket_state)
        if reason is not None:
            services.claims().ask_stop(claim, f"cancelled: {reason}")
            _tell(claim, "stopping", reason)
            stopped.append(claim.ticket)
        elif ticket is not None and ticket.state != claim.ticket_state:
            services.claims().see(claim, ticket.state)
    return stopped


def _why_stop(ticket: Ticket | None, section: AnyBoard, before: str) -> str | None:
    """Why a running ticket must not run on: gone, closed, moved by a person, or no longer opted in.

    `before` is its state when it was claimed: a round on its pull request leaves the ticket where it is, in review.
    """
    if ticket is None:
        return "the ticket is gone"
    if ticket.closed:
        return "the ticket is closed"
    states = section.states
    ours = {state.casefold() for state in (*states.queue, states.working)}
    if ticket.state.casefold() not in ours | {before.casefold()}:
        return f"the ticket was moved to {ticket.state!r}"
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
        claims.forget(claim, "the ticket is closed" if ticket else "the ticket is gone")
        return False
    parked = ticket.state.casefold() == section.states.parked.casefold()
    if claim.state == "retry-queued":  # killed between asking and parking: the question holds it on the board alone
        if parked and any(c.marker == f"question-{claim.token - 1}" for c in ticket.comments):
            services.board(claim.board).move(ticket.key, section.states.queue[0])
        return False
    ours = {state.casefold() for state in (*section.states.queue, section.states.working)}
    if not (parked or ticket.state.casefold() in ours):
        return False
    if claim.question and all(c.marker != f"question-{claim.token}" for c in ticket.comments):
        services.board(claim.board).comment(ticket.key, QUESTION.format(claim.question), f"question-{claim.token}")
        services.board(claim.board).move(ticket.key, section.states.parked)  # the board was away when it was asked
        return False
    if not answered(ticket, claim, section):
        return False
    services.board(claim.board).move(ticket.key, section.states.queue[0])
    return claims.resume(claim, "answered")


def answered(ticket: Ticket, claim: Claim, section: AnyBoard) -> bool:
    """Whether a trusted person wrote on the ticket after the question was posted. On a folder board without names, anybody is.

    It rests on the board's word for who wrote: whoever can write a folder board's files can pretend to be anybody.
    """
    names = section.trusted_authors or (*section.allowed_authors, *([ticket.author] if ticket.author else []))
    trusted = {name.casefold() for name in names}
    posted = next((n for n, c in enumerate(ticket.comments) if c.marker == f"question-{claim.token}"), None)
    if posted is None:
        return False
    replies = [c for c in ticket.comments[posted + 1 :] if c.marker is None and c.body.strip()]
    if not trusted:  # people who may write a folder's files are trusted; on a service, everybody may reply
        return bool(replies) and isinstance(section, FolderBoardSection)
    return any(reply.author.casefold() in trusted for reply in replies)


@task(name="fetch", task_run_name="fetch")
async def fetch(only: tuple[str, str] | None = None) -> tuple[tuple[Waiting, ...], dict[str, str]]:
    """What waits on the boards, in the order of SM4, and why the rest does not. A board that fails leaves the others alone."""
    return await asyncio.to_thread(_fetch, only)


def _fetch(only: tuple[str, str] | None) -> tuple[tuple[Waiting, ...], dict[str, str]]:
    waiting: dict[str, Waiting] = {}
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
    now = services.claims().now()
    for name in {ticket.board for ticket in tickets}:
        mine = [ticket for ticket in tickets if ticket.board == name]
        claims = services.claims().of(name, [ticket.key for ticket in mine])
        for ticket in mine:
            found, reason = _consider(ticket, claims.get(ticket.key), now)
            if found is not None:
                waiting[ticket.key] = found
            elif reason:
                skipped[ticket.key] = reason
    if only is None:
        for delivery in services.deliveries().waiting():  # their events were lost; what they told was just read
            services.deliveries().emitted(delivery.source, delivery.id)
    _report_cycles([t for t in tickets if t.blocked_by])
    return tuple(waiting[ticket.key] for ticket in order([w.ticket for w in waiting.values()])), skipped


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
        services.claims().forget(claim, "the ticket is gone")
    return found + [t.model_copy(update={"state": queue[0]}) if _left_by_us(t, section) else t for t in again]


def _left_by_us(ticket: Ticket, section: AnyBoard) -> bool:
    return ticket.state.casefold() == section.states.working.casefold()


def _board_failed(name: str, error: FactoryError) -> None:
    _log.warning("board=%s outcome=not-read reason=%r", name, str(error))
    if isinstance(error, RateLimited):
        now = services.claims().now()
        until = error.reset_at or now + timedelta(seconds=BOARD_PAUSE_SECONDS)
        services.pauses().pause(f"board:{name}", str(error), until)


def _consider(ticket: Ticket, claim: Claim | None, now: datetime) -> tuple[Waiting | None, str | None]:
    """The ticket with its repository, or why it has to wait; no reason for one that is being worked on, or was."""
    settings, section = services.settings(), services.board_section(ticket.board)
    reason = refusal(ticket, section) or by_hand(ticket)
    if claim is not None and _is_out_of_our_hands(ticket, section):
        services.claims().forget(claim, f"the ticket is in {ticket.state!r}")
    if reason is not None:
        return None, reason
    found = route(ticket, settings.repositories, section.repository)
    if found.repository is None:
        if claim is None or not claim.reason.startswith(HELD_BACK[0]):
            hold_back(ticket, HELD_BACK[0], found.reason, marker="route")
        return None, found.reason
    if claim is not None and claim.state == "parked" and claim.reason.startswith(HELD_BACK):
        services.claims().resume(claim, "its cause is gone")
    elif claim is not None and not is_claimable(claim, ticket, now):
        return None, None
    return Waiting(ticket=ticket, repository=found.repository), None


def _is_out_of_our_hands(ticket: Ticket, section: AnyBoard) -> bool:
    """Closed, or in review: also what a run did that was killed before it could release its claim."""
    return ticket.closed or ticket.state.casefold() == section.states.review.casefold()


def _report_cycles(blocked: Sequence[Ticket]) -> None:
    tickets = {ticket.key: ticket for ticket in blocked}
    for cycle in cycles({key: ticket.blocked_by for key, ticket in tickets.items()}):
        text = f"these tickets block each other: {' <- '.join((*cycle, cycle[0]))}; remove one of the relations"
        for ticket in (tickets[key] for key in cycle if key in tickets):
            claim = services.claims().find(ticket.board, ticket.key)
            if claim is None or not claim.reason.startswith(HELD_BACK[1]):
                hold_back(ticket, HELD_BACK[1], text, marker="cycle")


def hold_back(ticket: Ticket, why: str, text: str, *, marker: str) -> None:
    """Say on the ticket, once, why it is not worked on; it is parked until its cause is gone."""
    claim = _claim(
        Waiting(ticket=ticket, repository=""), services.claims().now(), lambda _: services.settings().node_name
    )
    if claim is not None:
        services.board(ticket.board).comment(ticket.key, f"Not worked on: {text}", marker=marker)
        services.claims().park(claim, f"{why}{text}")


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
    slots = await asyncio.to_thread(Slots.now)
    for group in _groups(waiting):
        why = slots.why_not(group[0]) or (gate.probing and launched and "dispatch tries one run first")
        if why:
            skipped |= {w.ticket.key: why for w in group}
            continue
        try:
            done = await _launch_group(group, slots)
        except FactoryError as error:
            skipped |= {w.ticket.key: str(error) for w in group}
            continue
        launched += done
        skipped |= {w.ticket.key: CHANGED for w in group if w.ticket.key not in {d.ticket for d in done}}
    return tuple(launched), skipped


def _groups(waiting: Sequence[Waiting]) -> list[list[Waiting]]:
    """Tickets that share a session (T13); a label that all of a board's tickets must carry relates none of them."""
    repositories = {w.ticket.key: w.repository for w in waiting}
    settings = services.settings()
    ignored = {label for section in settings.all_boards.values() for label in section.required_labels}
    found = batches([(w.ticket, w.repository) for w in waiting], settings.dispatch.batch, ignored_labels=ignored)
    return [[Waiting(ticket=t, repository=repositories[t.key]) for t in group] for group in found]


class Slots:
    """Where there is room, as it was when the tick began and with what it launched since. Claiming looks again, for sure."""

    def __init__(self, held: Sequence[Claim], nodes: Sequence[Node], paused: Iterable[str]) -> None:
        self.held, self._nodes, self._paused = list(held), tuple(nodes), frozenset(paused)

    @classmethod
    def now(cls) -> Slots:
        return cls(services.claims().held(), services.fleet().nodes(), services.pauses().active())

    def has_room(self) -> bool:
        """Whether a node could take any ticket at all."""
        used = Counter(claim.node for claim in self.held)
        free = any(node.slots > used[node.name] for node in self._nodes if self._is_open(node))
        return free and len(self.held) < services.settings().dispatch.max_running

    def node_for(self, waiting: Waiting, held: Sequence[Claim], only: str | None = None) -> str | None:
        """The node with the most free slots that has what the repository needs and whose provider is not paused."""
        if self._is_capped(waiting, held):
            return None
        fit = [node for node in self._fit(waiting) if only in (None, node.name)]
        free = {node.name: node.slots - sum(claim.node == node.name for claim in held) for node in fit}
        best = max(sorted(free), key=lambda name: free[name], default=None)
        return best if best is not None and (free[best] > 0 or only is not None) else None

    def why_not(self, waiting: Waiting) -> str | None:
        """Why there is no room for the ticket, or None when there seems to be."""
        if self.node_for(waiting, self.held) is not None:
            return None
        needed = services.settings().repositories[waiting.repository].node_labels
        if self._is_capped(waiting, self.held) or self._fit(waiting):
            return "no slots"
        wanted = f" with the labels {', '.join(needed)}" if needed else ""
        closed = [scope for scope in sorted(self._paused) if scope.startswith(("provider:", "node:"))]
        return f"no node{wanted} is there" + (f" (paused: {', '.join(closed)})" if closed else "")

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
        claim = await asyncio.to_thread(_claim_for_launch, waiting, slots, node)
        if claim is not None and node in (
            None,
            claim.node,
        ):  # one that was handed on keeps its own node and waits its turn
            claimed.append((claim, waiting))
            slots.held.append(claim)
    if not claimed:
        return []
    try:
        run = await launch_run([(claim, w.repository) for claim, w in claimed])
    except CapacityUnavailable as error:  # anything else may have started the run: its claims' leases decide
        for claim, _ in claimed:
            await asyncio.to_thread(services.claims().requeue, claim, str(error))
        raise
    done = []
    for claim, _ in claimed:
        await asyncio.to_thread(services.claims().launched, claim, run)
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
    if _published_before(fresh, claim):
        return None
    pauses = services.pauses()
    if DISPATCH in pauses.active() and not pauses.take_probe(DISPATCH, claim.key):
        services.claims().retry(claim, "dispatch is paused", PROBE_AFTER_SECONDS, None)
        return None
    board.comment(claim.ticket, claim_note(claim, claim.failures + 1), marker=CLAIM_MARKER)
    return claim


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
    if claim.token > 1 or claim.failures:
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
    problem = await asyncio.to_thread(services.config_problem)
    if problem is not None:
        notify(services.settings().notify, "factory.yaml is not valid", problem, key=f"config:{problem}")
    return problem
