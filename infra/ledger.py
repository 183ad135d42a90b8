"""The ledger: what happened to every ticket, in PostgreSQL, and what it cost. Tables, writes that may be repeated, reads.

Every write is one short transaction, so a process may die between any two. Texts are stored without secrets.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import computed_field
from pydantic_core import to_jsonable_python
from sqlalchemy import (
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Numeric,
    Select,
    UniqueConstraint,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from infra.boards import Ticket
from infra.database import SCHEMA, Database, Row, Table, now, open_database
from infra.errors import ConfigError
from infra.llm import Usage
from infra.pull_requests import PullRequest
from infra.redaction import redact
from infra.settings import Settings

AttemptOutcome = Literal["accepted", "rejected", "infra_failed", "work_failed", "cancelled"]
BURNING: tuple[AttemptOutcome, ...] = ("work_failed", "rejected")
"""Ends that the ticket caused. Faults of machines and providers, and cancelling, never burn an attempt (RB8)."""


class TicketTable(Table):
    """A ticket as it was last seen on its board. `state` is the board's word."""

    __tablename__ = "tickets"
    board: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    repository: Mapped[str]
    title: Mapped[str]
    state: Mapped[str]
    revision: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class AttemptTable(Table):
    """One try at one revision of a ticket on one base commit; open while `ended_at` is null."""

    __tablename__ = "attempts"
    __table_args__ = (
        ForeignKeyConstraint(["board", "ticket"], [TicketTable.board, TicketTable.key]),
        UniqueConstraint("board", "ticket", "number"),
        CheckConstraint(
            "outcome in ('accepted', 'rejected', 'infra_failed', 'work_failed', 'cancelled')", name="outcome_known"
        ),
        CheckConstraint("(outcome is null) = (ended_at is null)", name="ended_with_outcome"),
    )
    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    board: Mapped[str]
    ticket: Mapped[str]
    number: Mapped[int]
    revision: Mapped[str]
    base_sha: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    failure_class: Mapped[str | None]
    error: Mapped[str | None]


class SessionTable(Table):
    """One model call or agent session with the provider's own usage numbers. `call_key` makes it count once (OB3)."""

    __tablename__ = "sessions"
    __table_args__ = (Index(None, "at"),)
    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    call_key: Mapped[str] = mapped_column(unique=True)
    attempt: Mapped[int] = mapped_column(ForeignKey(AttemptTable.id), index=True)
    role: Mapped[str]
    candidate: Mapped[int | None]
    round: Mapped[int]
    model: Mapped[str]
    provider: Mapped[str | None]
    effort: Mapped[int | None]
    node: Mapped[str]
    prompt_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    calls: Mapped[int]
    seconds: Mapped[float]
    cost_usd: Mapped[float] = mapped_column(Numeric(18, 9, asdecimal=False))
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class EventTable(Table):
    """Something that happened, in the order it was told. Appended to, never changed."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "board", "ticket", "id"),)
    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    attempt: Mapped[int | None] = mapped_column(ForeignKey(AttemptTable.id))
    board: Mapped[str]
    ticket: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    kind: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any]]


class VerdictTable(Table):
    """The judge's decision of one round with the evidence it stands on."""

    __tablename__ = "verdicts"
    attempt: Mapped[int] = mapped_column(ForeignKey(AttemptTable.id), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    candidate_sha: Mapped[str]
    decision: Mapped[str]
    reasons: Mapped[list[str]]
    evidence: Mapped[dict[str, Any]]
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class PullRequestTable(Table):
    """Where a ticket's branch was published."""

    __tablename__ = "pull_requests"
    __table_args__ = (ForeignKeyConstraint(["board", "ticket"], [TicketTable.board, TicketTable.key]),)
    board: Mapped[str] = mapped_column(primary_key=True)
    ticket: Mapped[str] = mapped_column(primary_key=True)
    branch: Mapped[str] = mapped_column(primary_key=True)
    url: Mapped[str]
    head_sha: Mapped[str]
    state: Mapped[str]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Attempt(Row):
    id: int
    ticket: str
    number: int
    revision: str
    base_sha: str
    started_at: datetime
    ended_at: datetime | None = None
    outcome: AttemptOutcome | None = None
    failure_class: str | None = None
    error: str | None = None


class RecordedVerdict(Row):
    attempt: int
    round: int
    candidate_sha: str
    decision: str
    reasons: tuple[str, ...]
    evidence: dict[str, Any]
    at: datetime


class Event(Row):
    attempt: int | None
    at: datetime
    kind: str
    message: str
    data: dict[str, Any]


class RecordedPullRequest(Row):
    branch: str
    url: str
    head_sha: str
    state: str


class TicketRow(Row):
    """One line of `darkfactory status`. `decision` is the judge's last; `updated_at` the time of the last thing told."""

    key: str
    title: str
    repository: str
    state: str
    attempts: int
    decision: str | None = None
    pull_request: str | None = None
    tokens: int
    cached_share: float
    """Part of the prompt tokens that the provider did not read again, 0 to 1."""
    seconds: float
    cost_usd: float
    last_event: str | None = None
    updated_at: datetime


class Work(Row):
    """What was done for one ticket, all attempts together. `turns` are model calls, those of agent sessions one by one;
    `error` is that of the last attempt, where one ended it."""

    attempts: int = 0
    turns: int = 0
    tokens: int = 0
    cost_usd: float = 0.0
    error: str | None = None
    last_event: str | None = None
    last_event_at: datetime | None = None


class Totals(Row):
    """What was done for all tickets of all boards. `seconds` is the time of ended attempts, `model_seconds` that of models."""

    tickets: int = 0
    attempts: int = 0
    accepted: int = 0
    turns: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    seconds: float = 0.0
    model_seconds: float = 0.0


CostGroup = Literal["ticket", "role", "model", "node", "day"]


class CostRow(Row):
    """What the model calls of one group used and cost. `group` is a ticket as `board:key`, or a day (UTC) as 2026-11-01."""

    group: str
    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    usd: float = 0.0

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own order of the two
    @property
    def cached_share(self) -> float:
        """Part of the prompt tokens that the provider did not read again, 0 to 1."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


class SeatUsage(Row):
    """What one member of a role took on a ticket, by who answered. `candidate` tells the members of a role apart."""

    role: str
    candidate: int | None
    model: str
    provider: str | None
    usage: Usage


class TicketHistory(Row):
    """Everything about one ticket, oldest first, for `darkfactory show`."""

    key: str
    title: str
    repository: str
    state: str
    attempts: tuple[Attempt, ...] = ()
    usage_by_role: dict[str, Usage] = {}
    verdicts: tuple[RecordedVerdict, ...] = ()
    events: tuple[Event, ...] = ()
    pull_request: RecordedPullRequest | None = None


def open_ledger(settings: Settings, board: str = "folder") -> Ledger:
    """The ledger for the tickets of `board`. Close it, or use it in a `with`. Raises what `open_database` raises."""
    return Ledger(open_database(settings), board)


class Ledger:
    """Reads and writes for the tickets of one board. All methods block; they may be called from several threads.

    Raises Unreachable when the database does not answer; a later call connects anew.
    """

    def __init__(self, database: Database, board: str = "folder") -> None:
        self.board = board
        self._database = database
        self._transaction = database.transaction

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def record_ticket(self, ticket: Ticket, repository: str) -> None:
        """Remember the ticket as it is now; `updated_at` moves only when something changed."""
        seen = {
            "repository": repository,
            "title": _clean(ticket.title),
            "state": _clean(ticket.state),
            "revision": ticket.revision,
        }
        new = insert(TicketTable).values(board=self.board, key=ticket.key, **seen)
        changed = new.on_conflict_do_update(
            index_elements=["board", "key"],
            set_={**seen, "updated_at": func.now()},
            where=func.row(*(getattr(TicketTable, name) for name in seen)).is_distinct_from(func.row(*seen.values())),
        )
        with self._transaction() as session:
            session.execute(changed)

    def recorded_state(self, ticket_key: str) -> str | None:
        """The ticket's state as it was last recorded, or None for one never recorded."""
        with self._transaction() as session:
            ticket = session.get(TicketTable, (self.board, ticket_key))
            return ticket.state if ticket is not None else None

    def start_attempt(self, ticket_key: str, base_sha: str, revision: str) -> Attempt:
        """The open attempt at this revision on this base (a resumed run), else a new one with the next number.

        An open attempt at an older revision or base is ended as cancelled. Raises ConfigError for an unknown ticket.
        """
        with self._transaction() as session:
            self._lock_ticket(session, ticket_key)
            last = session.scalars(self._attempts(ticket_key).order_by(AttemptTable.number.desc()).limit(1)).first()
            if last and last.ended_at is None:
                if (last.base_sha, last.revision) == (base_sha, revision):
                    return Attempt.model_validate(last)
                last.ended_at, last.outcome, last.error = now(session), "cancelled", "the ticket or its base changed"
            fresh = AttemptTable(
                board=self.board,
                ticket=ticket_key,
                number=last.number + 1 if last else 1,
                base_sha=base_sha,
                revision=revision,
            )
            session.add(fresh)
            session.flush()
            session.refresh(fresh)
            return Attempt.model_validate(fresh)

    def end_attempt(
        self, attempt_id: int, outcome: AttemptOutcome, failure_class: str | None = None, error: str | None = None
    ) -> None:
        """Close the attempt. The first end stays: a process that comes back late changes nothing."""
        ended = update(AttemptTable).where(AttemptTable.id == attempt_id, AttemptTable.ended_at.is_(None))
        with self._transaction() as session:
            session.execute(
                ended.values(
                    ended_at=func.now(),
                    outcome=outcome,
                    failure_class=failure_class,
                    error=None if error is None else _clean(error),
                )
            )

    def burnt_attempts(self, ticket_key: str) -> int:
        """Attempts that failed because of the ticket (RB8)."""
        burnt = self._attempts(ticket_key).where(AttemptTable.outcome.in_(BURNING))
        with self._transaction() as session:
            return len(session.scalars(burnt).all())

    def ended_attempts(self, since: datetime) -> list[tuple[datetime, float, bool]]:
        """Attempts of all boards that ended after `since`: when, after how many seconds, and whether they failed."""
        query = select(AttemptTable).where(AttemptTable.ended_at > since, AttemptTable.outcome != "cancelled")
        with self._transaction() as session:
            return [
                (row.ended_at, (row.ended_at - row.started_at).total_seconds(), row.outcome.endswith("_failed"))
                for row in session.scalars(query.order_by(AttemptTable.ended_at))
                if row.ended_at is not None and row.outcome is not None
            ]

    def record_session(
        self,
        attempt_id: int,
        call_key: str,
        role: str,
        usage: Usage,
        model: str,
        candidate: int | None = None,
        round: int = 0,
        provider: str | None = None,
        effort: int | None = None,
    ) -> None:
        """Count one call's usage. The same `call_key` counts once, whoever repeats it (OB3).

        `provider` is who answered, as pauses name it; `effort` the plan's, 1 to 5.
        """
        new = insert(SessionTable).values(
            attempt=attempt_id,
            call_key=call_key,
            role=role,
            model=model,
            candidate=candidate,
            round=round,
            provider=provider,
            effort=effort,
            node=platform.node(),
            **usage.model_dump(),
        )
        with self._transaction() as session:
            session.execute(new.on_conflict_do_nothing(index_elements=["call_key"]))

    def record_event(
        self, attempt_id: int | None, ticket_key: str, kind: str, message: str, data: Mapping[str, Any] | None = None
    ) -> None:
        """Append to the event log. Repeating appends again, because it did happen again."""
        with self._transaction() as session:
            session.execute(
                insert(EventTable).values(
                    attempt=attempt_id,
                    board=self.board,
                    ticket=ticket_key,
                    kind=kind,
                    message=_clean(message),
                    data=_clean_json(dict(data or {})),
                )
            )

    def record_verdict(
        self,
        attempt_id: int,
        round: int,
        candidate_sha: str,
        decision: str,
        reasons: Sequence[str],
        evidence: Mapping[str, Any],
    ) -> None:
        """The verdict of a round; a repeated round replaces its verdict."""
        values = {
            "candidate_sha": candidate_sha,
            "decision": decision,
            "reasons": [_clean(reason) for reason in reasons],
            "evidence": _clean_json(dict(evidence)),
        }
        new = insert(VerdictTable).values(attempt=attempt_id, round=round, **values)
        with self._transaction() as session:
            session.execute(new.on_conflict_do_update(index_elements=["attempt", "round"], set_=values))

    def record_pull_request(self, ticket_key: str, pull_request: PullRequest) -> None:
        """Where the ticket's branch is published now."""
        values = {"url": pull_request.url, "head_sha": pull_request.head_sha, "state": pull_request.state}
        new = insert(PullRequestTable).values(board=self.board, ticket=ticket_key, branch=pull_request.branch, **values)
        with self._transaction() as session:
            session.execute(
                new.on_conflict_do_update(
                    index_elements=["board", "ticket", "branch"], set_={**values, "updated_at": func.now()}
                )
            )

    def usage_of(self, ticket_key: str) -> Usage:
        """Sum over all attempts and roles."""
        return sum(self.usage_by_role(ticket_key).values(), Usage())

    def usage_by_role(self, ticket_key: str) -> dict[str, Usage]:
        """Sum over all attempts, per role."""
        names = tuple(Usage.model_fields)
        sums = [func.sum(getattr(SessionTable, name)).label(name) for name in names]
        query = (
            select(SessionTable.role, *sums)
            .join(AttemptTable, AttemptTable.id == SessionTable.attempt)
            .where(AttemptTable.board == self.board, AttemptTable.ticket == ticket_key)
            .group_by(SessionTable.role)
            .order_by(func.min(SessionTable.id))
        )
        with self._transaction() as session:
            return {
                row.role: Usage.model_validate({n: getattr(row, n) for n in names}) for row in session.execute(query)
            }

    def usage_by_seat(self, ticket_key: str) -> list[SeatUsage]:
        """Sum over all attempts, per role, candidate, provider and model, in the order of first use."""
        names = tuple(Usage.model_fields)
        seat = (SessionTable.role, SessionTable.candidate, SessionTable.model, SessionTable.provider)
        query = (
            select(*seat, *(func.sum(getattr(SessionTable, name)).label(name) for name in names))
            .join(AttemptTable, AttemptTable.id == SessionTable.attempt)
            .where(AttemptTable.board == self.board, AttemptTable.ticket == ticket_key)
            .group_by(*seat)
            .order_by(func.min(SessionTable.id))
        )
        with self._transaction() as session:
            return [
                SeatUsage(role=row.role, candidate=row.candidate, model=row.model, provider=row.provider,
                          usage=Usage.model_validate({n: getattr(row, n) for n in names}))
                for row in session.execute(query)
            ]  # fmt: skip

    def costs(self, group: CostGroup, since: datetime | None = None) -> list[CostRow]:
        """What the calls of all boards since then used, the dearest group first; days in their order."""
        label = _LABELS[group]
        names = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens", "seconds")
        sums = [func.sum(getattr(SessionTable, name)).label(name) for name in names]
        usd = func.sum(SessionTable.cost_usd).label("usd")
        query = select(label.label("group"), *sums, usd).join(AttemptTable, AttemptTable.id == SessionTable.attempt)
        if since is not None:
            query = query.where(SessionTable.at >= since)
        order = (label,) if group == "day" else (usd.desc(), label)
        with self._transaction() as session:
            rows = session.execute(query.group_by(label).order_by(*order))
            return [CostRow.model_validate(dict(row)) for row in rows.mappings()]

    def overview(self, limit: int = 50) -> list[TicketRow]:
        """The tickets that something happened to last, newest first."""
        with self._transaction() as session:
            rows = session.execute(text(_OVERVIEW), {"board": self.board, "limit": limit})
            return [TicketRow.model_validate(dict(row)) for row in rows.mappings()]

    def work(self, tickets: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Work]:
        """What was done for these tickets (board, key), in one query; those never recorded are absent."""
        with self._transaction() as session:
            named = {"boards": [board for board, _ in tickets], "keys": [key for _, key in tickets]}
            rows = session.execute(text(_WORK), named).mappings()
            return {(row["board"], row["ticket"]): Work.model_validate(dict(row)) for row in rows}

    def totals(self) -> Totals:
        """Of all boards since the beginning."""
        with self._transaction() as session:
            return Totals.model_validate(dict(session.execute(text(_TOTALS)).mappings().one()))

    def history(self, ticket_key: str) -> TicketHistory:
        """Everything known about the ticket. Raises ConfigError for one that was never recorded."""
        usage = self.usage_by_role(ticket_key)
        with self._transaction() as session:
            ticket = session.get(TicketTable, (self.board, ticket_key))
            if ticket is None:
                raise ConfigError(
                    f"ticket {ticket_key!r} was never worked on; `darkfactory status` lists those that were"
                )
            attempts = session.scalars(self._attempts(ticket_key).order_by(AttemptTable.number)).all()
            verdicts = session.scalars(
                select(VerdictTable)
                .where(VerdictTable.attempt.in_([attempt.id for attempt in attempts]))
                .order_by(VerdictTable.attempt, VerdictTable.round)
            )
            events = session.scalars(
                select(EventTable)
                .where(EventTable.board == self.board, EventTable.ticket == ticket_key)
                .order_by(EventTable.id)
            )
            pull_request = session.scalars(
                select(PullRequestTable)
                .where(PullRequestTable.board == self.board, PullRequestTable.ticket == ticket_key)
                .order_by(PullRequestTable.updated_at.desc())
            ).first()
            return TicketHistory(
                key=ticket.key,
                title=ticket.title,
                repository=ticket.repository,
                state=ticket.state,
                attempts=tuple(map(Attempt.model_validate, attempts)),
                usage_by_role=usage,
                verdicts=tuple(map(RecordedVerdict.model_validate, verdicts)),
                events=tuple(map(Event.model_validate, events)),
                pull_request=RecordedPullRequest.model_validate(pull_request) if pull_request else None,
            )

    def _attempts(self, ticket_key: str) -> Select[tuple[AttemptTable]]:
        return select(AttemptTable).where(AttemptTable.board == self.board, AttemptTable.ticket == ticket_key)

    def _lock_ticket(self, session: Session, ticket_key: str) -> None:
        """Two starters of the same ticket wait for each other here, so both get the same attempt."""
        if session.get(TicketTable, (self.board, ticket_key), with_for_update=True) is None:
            raise ConfigError(f"ticket {ticket_key!r} is not in the ledger; record it before an attempt is started")


_LABELS: dict[CostGroup, ColumnElement[str]] = {
    "ticket": AttemptTable.board + ":" + AttemptTable.ticket,
    "role": SessionTable.role.expression,
    "model": SessionTable.model.expression,
    "node": SessionTable.node.expression,
    "day": func.to_char(func.timezone("UTC", SessionTable.at), "YYYY-MM-DD"),
}


def _clean(value: str) -> str:
    """Without secrets, and without what PostgreSQL cannot hold (NUL, lone surrogates)."""
    return redact(value).replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _clean_json(value: Any) -> Any:
    """`value` as JSON with every text cleaned; models, times and paths become text, NaN and infinity become null."""
    return _clean_texts(to_jsonable_python(value, inf_nan_mode="null", fallback=str))


def _clean_texts(value: Any) -> Any:
    match value:
        case str():
            return _clean(value)
        case dict():
            return {_clean(key): _clean_texts(each) for key, each in value.items()}
        case list():
            return [_clean_texts(each) for each in value]
        case float() if value != value or value in (float("inf"), float("-inf")):
            return None
        case _:
            return value


_OVERVIEW = f"""
select ticket.key, ticket.title, ticket.repository, ticket.state,
       tried.attempts, verdict.decision, published.url as pull_request,
       used.tokens, used.cached_share, used.seconds, used.cost_usd, event.message as last_event,
       greatest(ticket.updated_at, tried.at, used.at, event.at, verdict.at, published.updated_at) as updated_at
from {SCHEMA}.tickets ticket
cross join lateral (
    select count(*) as attempts, max(coalesce(ended_at, started_at)) as at
    from {SCHEMA}.attempts where board = ticket.board and ticket = ticket.key
) tried
cross join lateral (
    select coalesce(sum(prompt_tokens + completion_tokens), 0) as tokens,
           coalesce(sum(cached_tokens)::float / nullif(sum(prompt_tokens), 0), 0) as cached_share,
           coalesce(sum(seconds), 0) as seconds, coalesce(sum(cost_usd), 0) as cost_usd, max(session.at) as at
    from {SCHEMA}.sessions session join {SCHEMA}.attempts attempt on attempt.id = session.attempt
    where attempt.board = ticket.board and attempt.ticket = ticket.key
) used
left join lateral (
    select verdict.decision, verdict.at
    from {SCHEMA}.verdicts verdict join {SCHEMA}.attempts attempt on attempt.id = verdict.attempt
    where attempt.board = ticket.board and attempt.ticket = ticket.key
    order by attempt.number desc, verdict.round desc limit 1
) verdict on true
left join lateral (
    select url, updated_at from {SCHEMA}.pull_requests
    where board = ticket.board and ticket = ticket.key order by updated_at desc limit 1
) published on true
left join lateral (
    select message, at from {SCHEMA}.events
    where board = ticket.board and ticket = ticket.key order by id desc limit 1
) event on true
where ticket.board = :board
order by updated_at desc, ticket.key
limit :limit
"""  # noqa: S608 - only the constant schema is put in

_WORK = f"""
select named.board, named.ticket, tried.attempts, used.turns, used.tokens, used.cost_usd, failed.error,
       event.message as last_event, event.at as last_event_at
from unnest(cast(:boards as text[]), cast(:keys as text[])) named(board, ticket)
join {SCHEMA}.tickets ticket on ticket.board = named.board and ticket.key = named.ticket
cross join lateral (
    select count(*) as attempts from {SCHEMA}.attempts where board = named.board and ticket = named.ticket
) tried
cross join lateral (
    select coalesce(sum(calls), 0) as turns, coalesce(sum(prompt_tokens + completion_tokens), 0) as tokens,
           coalesce(sum(cost_usd), 0) as cost_usd
    from {SCHEMA}.sessions session join {SCHEMA}.attempts attempt on attempt.id = session.attempt
    where attempt.board = named.board and attempt.ticket = named.ticket
) used
left join lateral (
    select error from {SCHEMA}.attempts
    where board = named.board and ticket = named.ticket order by number desc limit 1
) failed on true
left join lateral (
    select message, at from {SCHEMA}.events
    where board = named.board and ticket = named.ticket order by id desc limit 1
) event on true
"""  # noqa: S608 - only the constant schema is put in

_TOTALS = f"""
select (select count(*) from {SCHEMA}.tickets) as tickets, tried.*, used.*
from (
    select count(*) as attempts, count(*) filter (where outcome = 'accepted') as accepted,
           coalesce(extract(epoch from sum(ended_at - started_at)), 0) as seconds
    from {SCHEMA}.attempts
) tried
cross join (
    select coalesce(sum(calls), 0) as turns, coalesce(sum(prompt_tokens), 0) as prompt_tokens,
           coalesce(sum(cached_tokens), 0) as cached_tokens, coalesce(sum(completion_tokens), 0) as completion_tokens,
           coalesce(sum(cost_usd), 0) as cost_usd, coalesce(sum(seconds), 0) as model_seconds
    from {SCHEMA}.sessions
) used
"""  # noqa: S608 - only the constant schema is put in
