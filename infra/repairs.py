"""Repairs: what the factory did about failures of its own, stage by stage, which release its nodes should run, and whether a
person has to let it go on (L4).

One row per repair, and a journal that is written before and after every stage. Whoever finds a repair after a kill does its
stage again; every stage may be repeated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal

from pydantic import AwareDatetime
from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, Select, func, select, text, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from infra.database import Clock, Database, Row, Table, now
from infra.errors import ConfigError, FencedOff
from infra.ledger import AttemptTable, EventTable, SessionTable
from infra.llm import Frozen
from infra.redaction import redact
from infra.releases import INSTALLED

Stage = Literal[
    "found", "ticket", "work", "gates", "approval", "checks", "merge", "prepare", "switch", "watch",
    "take-back", "revert", "close", "ended",
]  # fmt: skip
RELEASING: tuple[Stage, ...] = ("merge", "prepare", "switch", "watch", "take-back", "revert")
"""One repair at a time is in these: two releases that are watched at once cannot be told apart."""
Ending = Literal["kept", "refused", "failed", "rolled-back"]
LONGEST_COOLDOWN = timedelta(hours=24)
ROLLBACK_WINDOW = timedelta(hours=6)
ROLLBACKS = 3
"""So many rollbacks within the window stop the loop until a person resumes it."""
INTERNAL_ERROR = "internal-error"
"""Kind of the ledger's events that are signals: an exception of our own code that nothing expected."""
_LOCK = 7_203_779
_TOP = 5


class RepairTable(Table):
    """One repair. `stage` is where it stands, `outcome` how it ended; at most one of a signature is open."""

    __tablename__ = "repairs"
    __table_args__ = (
        CheckConstraint("outcome in ('kept', 'refused', 'failed', 'rolled-back')", name="outcome_known"),
        CheckConstraint("(stage = 'ended') = (ended_at is not null)", name="ended_at_the_end"),
        Index("uq_repairs_open_signature", "signature", unique=True, postgresql_where=text("stage <> 'ended'")),
    )
    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    signature: Mapped[str]
    stage: Mapped[str] = mapped_column(server_default="found")
    stage_at: Mapped[datetime] = mapped_column(server_default=func.now())
    outcome: Mapped[str | None]
    reason: Mapped[str] = mapped_column(server_default="")
    error: Mapped[str]
    frames: Mapped[list[str]]
    baseline: Mapped[dict[str, Any]]
    repository: Mapped[str]
    board: Mapped[str]
    ticket: Mapped[str | None]
    branch: Mapped[str | None]
    paths: Mapped[list[str]] = mapped_column(server_default=text("'[]'"))
    effort: Mapped[int | None]
    approved_by: Mapped[str | None]
    base_sha: Mapped[str | None]
    head_sha: Mapped[str | None]
    new_sha: Mapped[str | None]
    old_release: Mapped[str | None]
    watched: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    switched_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    cooldown_until: Mapped[datetime | None]


class RepairJournalTable(Table):
    """What was about to be done and what was done, with the release before and the one it brings. Appended to."""

    __tablename__ = "repair_journal"
    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    repair: Mapped[int] = mapped_column(ForeignKey(RepairTable.id), index=True)
    stage: Mapped[str]
    phase: Mapped[str]
    old_sha: Mapped[str | None]
    new_sha: Mapped[str | None]
    note: Mapped[str] = mapped_column(server_default="")
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class ReleaseStateTable(Table):
    """The one row that says what the nodes should run, what was before it, and why nothing is repaired any more."""

    __tablename__ = "release_state"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    wanted: Mapped[str]
    previous: Mapped[str]
    halted: Mapped[str | None]
    resumed_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class NodeReleaseTable(Table):
    """What each node runs, by its own word. `problem` says why that is not the release that is wanted."""

    __tablename__ = "node_releases"
    node: Mapped[str] = mapped_column(primary_key=True)
    release: Mapped[str]
    problem: Mapped[str] = mapped_column(server_default="")
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class Sample(Frozen):
    """What happened within a time: ended runs, how many of them failed, and how often each signature came."""

    runs: int = 0
    failures: int = 0
    counts: dict[str, int] = {}

    @property
    def failure_rate(self) -> float:
        return self.failures / self.runs if self.runs else 0.0

    def rate(self, signature: str) -> float:
        """How often the signature comes per ended run."""
        return self.counts.get(signature, 0) / self.runs if self.runs else 0.0

    @property
    def top(self) -> tuple[str, ...]:
        """The five most frequent signatures."""
        return tuple(name for name, _ in Counter(self.counts).most_common(_TOP))


class Signal(Frozen):
    """A failure of the factory's own that came several times. `frames` are lines of our own code, innermost last."""

    signature: str
    count: int
    error: str
    frames: tuple[str, ...] = ()


class Repair(Row):
    """A repair as it was read. `old_release` was recorded before the switch to `new_sha`, which is base and change merged."""

    id: int
    signature: str
    stage: Stage = "found"
    stage_at: AwareDatetime
    outcome: Ending | None = None
    reason: str = ""
    error: str = ""
    frames: tuple[str, ...] = ()
    baseline: Sample
    repository: str
    board: str
    ticket: str | None = None
    branch: str | None = None
    paths: tuple[str, ...] = ()
    effort: int | None = None
    approved_by: str | None = None
    base_sha: str | None = None
    head_sha: str | None = None
    new_sha: str | None = None
    old_release: str | None = None
    watched: Sample | None = None
    started_at: AwareDatetime
    switched_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None
    cooldown_until: AwareDatetime | None = None


class JournalLine(Row):
    repair: int
    stage: Stage
    phase: Literal["before", "after"]
    old_sha: str | None
    new_sha: str | None
    note: str
    at: AwareDatetime


class ReleaseState(Row):
    wanted: str = INSTALLED
    previous: str = INSTALLED
    halted: str | None = None
    resumed_at: AwareDatetime | None = None


class NodeRelease(Row):
    node: str
    release: str
    problem: str = ""
    at: AwareDatetime


class Repairs:
    """Reads and writes of the repairs. All methods block and raise Unreachable when the database does not answer."""

    def __init__(self, database: Database, clock: Clock | None = None) -> None:
        self._transaction = database.transaction
        self._now = partial(now, clock=clock)

    def now(self) -> datetime:
        with self._transaction() as session:
            return self._now(session)

    # ---- failures ---------------------------------------------------------------------------------------------------

    def sample(self, since: datetime, release: str | None = None) -> Sample:
        """What happened since then; with `release` only the errors that its own code raised count.

        A run that ended by an error of our own has no end in the ledger (it is tried again), so those come on top.
        """
        ended = select(AttemptTable.outcome, func.count()).where(
            AttemptTable.started_at >= since, AttemptTable.ended_at.is_not(None), AttemptTable.outcome != "cancelled"
        )
        errors = _errors(since, release).with_only_columns(EventTable.data["signature"].astext)
        with self._transaction() as session:
            outcomes = dict(session.execute(ended.group_by(AttemptTable.outcome)).tuples().all())
            counts = Counter(filter(None, session.scalars(errors)))
        failed = sum(number for outcome, number in outcomes.items() if outcome and outcome.endswith("_failed"))
        return Sample(
            runs=sum(outcomes.values()) + counts.total(), failures=failed + counts.total(), counts=dict(counts)
        )

    def signals(self, since: datetime, at_least: int) -> list[Signal]:
        """The signatures that came so often since then, the most frequent first, each with its newest error."""
        with self._transaction() as session:
            rows = session.execute(
                _errors(since, None).with_only_columns(EventTable.message, EventTable.data).order_by(EventTable.id)
            ).all()
        counts = Counter(row.data.get("signature", "") for row in rows)
        newest = {row.data.get("signature", ""): row for row in rows}
        return [
            Signal(
                signature=name,
                count=number,
                error=newest[name].message,
                frames=tuple(map(str, newest[name].data.get("frames", ()))),
            )
            for name, number in counts.most_common()
            if name and number >= at_least
        ]

    def effort(self, board: str, ticket: str) -> int | None:
        """The highest effort a plan of the ticket had, as its calls were recorded with."""
        query = select(func.max(SessionTable.effort)).join(AttemptTable, AttemptTable.id == SessionTable.attempt)
        with self._transaction() as session:
            return session.scalar(query.where(AttemptTable.board == board, AttemptTable.ticket == ticket))

    # ---- repairs ----------------------------------------------------------------------------------------------------

    def begin(self, signal: Signal, baseline: Sample, repository: str, board: str, since: datetime) -> Repair | None:
        """Start a repair, with what hurts now as its baseline. None while one of its class and place is open or cools
        down, or one of this signature was kept after `since`: then its failures are older than its release."""
        with self._transaction() as session:
            session.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            if self._rests(session, signal.signature, since):
                return None
            row = RepairTable(
                signature=signal.signature, error=redact(signal.error), frames=list(signal.frames),
                baseline=baseline.model_dump(mode="json"), repository=repository, board=board,
            )  # fmt: skip
            session.add(row)
            session.flush()
            session.refresh(row)
            return Repair.model_validate(row)

    def _rests(self, session: Session, signature: str, since: datetime) -> bool:
        """Open and cooling repairs count for all failures of their class and place: the message may be a stranger's words."""
        place = RepairTable.signature.startswith(f"{signature.partition(':')[0]}:", autoescape=True)
        rows = session.scalars(select(RepairTable).where(place | (RepairTable.signature == signature))).all()
        moment = self._now(session)
        return any(
            row.stage != "ended"
            or (row.cooldown_until is not None and row.cooldown_until > moment)
            or (
                row.signature == signature
                and row.outcome == "kept"
                and row.switched_at is not None
                and row.switched_at > since
            )
            for row in rows
        )

    def open(self) -> list[Repair]:
        """All that have not ended, the oldest first."""
        return self._read(select(RepairTable).where(RepairTable.stage != "ended").order_by(RepairTable.id))

    def newest(self, limit: int = 20) -> list[Repair]:
        return self._read(select(RepairTable).order_by(RepairTable.id.desc()).limit(limit))

    def find(self, number: int) -> Repair:
        """Raises ConfigError for a number that there is not."""
        found = self._read(select(RepairTable).where(RepairTable.id == number))
        if not found:
            raise ConfigError(f"there is no repair {number}; see `darkfactory repair status`")
        return found[0]

    def enter(self, repair: Repair) -> None:
        """Note that the stage is about to be done; once, however often it is tried."""
        with self._transaction() as session:
            last = session.scalars(_journal(repair.id).order_by(RepairJournalTable.id.desc()).limit(1)).first()
            if last is None or (last.stage, last.phase) != (repair.stage, "before"):
                session.add(_line(repair, "before", ""))

    def advance(self, repair: Repair, stage: Stage, note: str = "", **changes: Any) -> Repair:
        """The stage is done: write what it found and go on to the next, all or nothing.

        Raises FencedOff when somebody else moved the repair on meanwhile.
        """
        if "reason" in changes:
            changes["reason"] = redact(changes["reason"])
        plain = {k: v.model_dump(mode="json") if isinstance(v, Frozen) else v for k, v in changes.items()}
        with self._transaction() as session:
            row = session.get(RepairTable, repair.id, with_for_update=True)
            if row is None or row.stage != repair.stage:
                raise FencedOff(f"repair {repair.id} is at another stage than {repair.stage!r} by now; run again")
            moment = self._now(session)
            for name, value in {**plain, "stage": stage, "stage_at": moment}.items():
                setattr(row, name, list(value) if isinstance(value, tuple) else value)
            if stage == "ended":
                row.ended_at = moment
            session.flush()
            session.add(_line(Repair.model_validate(row).model_copy(update={"stage": repair.stage}), "after", note))
            return Repair.model_validate(row)

    def say(self, repair: Repair, reason: str) -> Repair:
        """Why it does not go on now; it stays where it is."""
        if reason == repair.reason:
            return repair
        with self._transaction() as session:
            session.execute(update(RepairTable).where(RepairTable.id == repair.id).values(reason=redact(reason)))
        return repair.model_copy(update={"reason": reason})

    def approve(self, number: int, by: str) -> Repair:
        """Raises ConfigError for a repair that waits for nobody."""
        with self._transaction() as session:
            row = session.get(RepairTable, number, with_for_update=True)
            if row is None or row.stage != "approval":
                raise ConfigError(f"repair {number} does not wait for approval; see `darkfactory repair status`")
            row.approved_by = by
            session.flush()
            return Repair.model_validate(row)

    def cooldown(self, signature: str, first_seconds: float) -> datetime:
        """Until when a signature rests after one more failed attempt: doubled with each one since the last that helped."""
        with self._transaction() as session:
            rows = session.scalars(
                select(RepairTable)
                .where(RepairTable.signature == signature, RepairTable.stage == "ended")
                .order_by(RepairTable.id.desc())
            ).all()
            failed = next((n for n, row in enumerate(rows) if row.outcome == "kept"), len(rows))
            rest = timedelta(seconds=first_seconds * 2 ** min(failed, 10))
            return self._now(session) + min(rest, LONGEST_COOLDOWN)

    def ended_so(self, outcome: Ending, since: datetime) -> int:
        """How many ended in that way since then."""
        query = select(func.count()).where(RepairTable.outcome == outcome, RepairTable.ended_at > since)
        with self._transaction() as session:
            return session.scalar(query) or 0

    def journal(self, number: int) -> list[JournalLine]:
        """Of one repair, oldest first."""
        with self._transaction() as session:
            found = session.scalars(_journal(number).order_by(RepairJournalTable.id))
            return [JournalLine.model_validate(row) for row in found]

    # ---- releases -----------------------------------------------------------------------------------------------------

    def state(self) -> ReleaseState:
        with self._transaction() as session:
            row = session.get(ReleaseStateTable, 1)
            return ReleaseState.model_validate(row) if row else ReleaseState()

    def want(self, release: str, previous: str) -> None:
        """What every node should run from its next look on, and what it goes back to by hand."""
        self._set(wanted=release, previous=previous)

    def halt_after_rollbacks(self) -> str | None:
        """Stop the loop when there were too many rollbacks since it was last resumed. Returns why it is stopped, if it is."""
        with self._transaction() as session:
            moment, row = self._now(session), session.get(ReleaseStateTable, 1)
            since = max(filter(None, (moment - ROLLBACK_WINDOW, row.resumed_at if row else None)))
            query = select(func.count()).where(RepairTable.outcome == "rolled-back", RepairTable.ended_at > since)
            number = session.scalar(query) or 0
        if row is not None and row.halted:
            return row.halted
        if number < ROLLBACKS:
            return None
        reason = f"{number} repairs were rolled back within six hours; `darkfactory repair resume` goes on"
        self._set(halted=reason)
        return reason

    def resume(self) -> bool:
        """Go on after a halt; False when there was none."""
        halted = self.state().halted is not None
        self._set(halted=None, resumed_at=self.now())
        return halted

    def runs(self, node: str, release: str, problem: str = "") -> None:
        """A node says what its next run comes from."""
        values = {"release": release, "problem": redact(problem)}
        new = insert(NodeReleaseTable).values(node=node, **values)
        with self._transaction() as session:
            session.execute(new.on_conflict_do_update(index_elements=["node"], set_={**values, "at": func.now()}))

    def nodes(self) -> list[NodeRelease]:
        with self._transaction() as session:
            found = session.scalars(select(NodeReleaseTable).order_by(NodeReleaseTable.node))
            return [NodeRelease.model_validate(row) for row in found]

    def _set(self, **values: Any) -> None:
        first = {"wanted": INSTALLED, "previous": INSTALLED, **values}
        new = insert(ReleaseStateTable).values(id=1, **first)
        with self._transaction() as session:
            session.execute(new.on_conflict_do_update(index_elements=["id"], set_={**values, "updated_at": func.now()}))

    def _read(self, query: Select[tuple[RepairTable]]) -> list[Repair]:
        with self._transaction() as session:
            return [Repair.model_validate(row) for row in session.scalars(query)]


def _errors(since: datetime, release: str | None) -> Select[tuple[EventTable]]:
    """What a release raised; without one, what all code raised but that of releases which are watched or were taken back:
    the watch is there for those, and nothing is left of them to repair."""
    query = select(EventTable).where(EventTable.kind == INTERNAL_ERROR, EventTable.at >= since)
    raised_by = func.coalesce(EventTable.data["release"].astext, INSTALLED)
    if release is not None:
        return query.where(raised_by == release)
    undecided = RepairTable.stage.in_(RELEASING) | (func.coalesce(RepairTable.outcome, "") == "rolled-back")
    gone = select(RepairTable.new_sha).where(RepairTable.new_sha.is_not(None), undecided)
    return query.where(raised_by.not_in(gone))


def _journal(number: int) -> Select[tuple[RepairJournalTable]]:
    return select(RepairJournalTable).where(RepairJournalTable.repair == number)


def _line(repair: Repair, phase: Literal["before", "after"], note: str) -> RepairJournalTable:
    return RepairJournalTable(
        repair=repair.id, stage=repair.stage, phase=phase, note=redact(note),
        old_sha=repair.old_release, new_sha=repair.new_sha,
    )  # fmt: skip


def sharing(paths: Sequence[str], others: Sequence[Repair], own: int) -> Repair | None:
    """The open repair that changes one of these paths already, if there is one."""
    return next((r for r in others if r.id != own and set(paths) & set(r.paths)), None)
