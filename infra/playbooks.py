"""Operations that were observed, what people decided about playbooks, and the journal of every run of one.

The journal is written before and after each step, because a process may be killed between any two of them: what it does not
say was finished is never taken for done, and what it says was finished is never done again.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, UniqueConstraint, func, select, text, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from infra.database import SCHEMA, Database, Row, Table
from infra.errors import CapacityUnavailable, ConfigError, FencedOff
from infra.llm import Frozen
from infra.redaction import redact

OUTPUT_CHARS = 2_000
"""Of a step's output that is kept: its end."""
_LOCK = 7_203_792
_log = logging.getLogger(__name__)

RunState = Literal["running", "waiting", "undoing", "succeeded", "undone", "stuck"]
"""`waiting`: for a person's approval. `undone`: every step that can be taken back was. `stuck`: only a person can tell what is
so now, or an undo failed."""
StepState = Literal["started", "finished", "failed", "skipped", "undoing", "undone", "kept", "undo-failed"]
"""`kept`: there is no way to take it back."""


class OperationTable(Table):
    """One operation as somebody carried it out. `shape` is the same for operations that may be of one kind."""

    __tablename__ = "operations"
    __table_args__ = (UniqueConstraint("repository", "source"), Index(None, "repository", "shape"))
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    repository: Mapped[str]
    shape: Mapped[str]
    title: Mapped[str]
    steps: Mapped[list[Any]] = mapped_column(JSONB())
    verify: Mapped[str | None]
    succeeded: Mapped[bool]
    source: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class PlaybookTable(Table):
    """What was decided about a playbook. `digest` is the content that `by` approved; null: nothing was yet."""

    __tablename__ = "playbooks"
    __table_args__ = (CheckConstraint("state in ('proposed', 'approved', 'disabled')", name="state_known"),)
    repository: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    digest: Mapped[str | None]
    by: Mapped[str] = mapped_column(server_default="")
    reason: Mapped[str] = mapped_column(server_default="")
    provenance: Mapped[list[Any]] = mapped_column(JSONB(), server_default=text("'[]'"))
    url: Mapped[str] = mapped_column(server_default="")
    decided_at: Mapped[datetime] = mapped_column(server_default=func.now())


class PlaybookRunTable(Table):
    """One run. `content` is the file's text it was started with, whatever the repository says meanwhile."""

    __tablename__ = "playbook_runs"
    __table_args__ = (
        CheckConstraint(
            "state in ('running', 'waiting', 'undoing', 'succeeded', 'undone', 'stuck')", name="state_known"
        ),
        Index("uq_playbook_runs_ticket", "board", "ticket", unique=True, postgresql_where=text("state <> 'undone'")),
        Index(None, "repository", "name", "started_at"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    repository: Mapped[str]
    name: Mapped[str]
    digest: Mapped[str]
    content: Mapped[str]
    base_sha: Mapped[str]
    parameters: Mapped[dict[str, Any]]
    board: Mapped[str | None]
    ticket: Mapped[str | None]
    state: Mapped[str] = mapped_column(server_default="running")
    step: Mapped[str | None]
    reason: Mapped[str] = mapped_column(server_default="")
    failed: Mapped[bool] = mapped_column(server_default=text("false"))
    approvals: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    flow_run: Mapped[str | None]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]


class PlaybookStepTable(Table):
    """What became of one step of a run."""

    __tablename__ = "playbook_steps"
    __table_args__ = (
        CheckConstraint(
            "state in ('started', 'finished', 'failed', 'skipped', 'undoing', 'undone', 'kept', 'undo-failed')",
            name="state_known",
        ),
    )
    run: Mapped[str] = mapped_column(ForeignKey(f"{SCHEMA}.playbook_runs.id"), primary_key=True)
    step: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]
    state: Mapped[str]
    exit_code: Mapped[int | None]
    output: Mapped[str] = mapped_column(server_default="")
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ObservedStep(Frozen):
    """One command as it was run, and how to take it back where somebody said that."""

    run: str = Field(min_length=1, max_length=1000, pattern=r"^[^\n\r\x00]*$")
    undo: str | None = Field(default=None, min_length=1, max_length=1000, pattern=r"^[^\n\r\x00]*$")


class Operation(Frozen):
    """One operation as it was carried out. `title` is that of the request; `source` names the run or person, once each."""

    title: str = Field(min_length=1, max_length=300)
    steps: tuple[ObservedStep, ...] = Field(min_length=1, max_length=8)
    verify: str | None = Field(default=None, min_length=1, max_length=1000, pattern=r"^[^\n\r\x00]*$")
    succeeded: bool = True
    source: str = ""


class Observed(Row):
    """An operation of the ledger."""

    id: int
    repository: str
    title: str
    steps: tuple[ObservedStep, ...]
    verify: str | None = None
    succeeded: bool
    source: str
    at: datetime


class Decision(Row):
    """What was decided about a playbook."""

    repository: str
    name: str
    state: Literal["proposed", "approved", "disabled"]
    digest: str | None = None
    by: str = ""
    reason: str = ""
    provenance: tuple[int, ...] = ()
    url: str = ""
    decided_at: datetime


class StepEntry(Row):
    """A line of a run's journal."""

    step: str
    state: StepState
    exit_code: int | None = None
    output: str = ""


class PlaybookRun(Row):
    """A run as it was read. `step` is the one that it waits for; `approvals` says who approved which steps; `failed`: a step
    failed, nobody called it off."""

    id: str
    repository: str
    name: str
    digest: str
    content: str
    base_sha: str
    parameters: dict[str, str]
    board: str | None = None
    ticket: str | None = None
    state: RunState
    step: str | None = None
    reason: str = ""
    failed: bool = False
    approvals: dict[str, str] = {}
    flow_run: str | None = None
    started_at: datetime
    ended_at: datetime | None = None
    journal: tuple[StepEntry, ...] = ()


class Playbooks:
    """Reads and writes. All methods block and raise Unreachable when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._transaction = database.transaction

    # --- operations ---

    def observe(self, repository: str, shape: str, operation: Operation) -> int | None:
        """Keep an operation. Returns its number, or None when this source told it before."""
        values = operation.model_dump(mode="json") | {"repository": repository, "shape": shape}
        values["title"] = redact(operation.title)
        values["steps"] = [
            {name: redact(said) if said else said for name, said in each.items()} for each in values["steps"]
        ]
        values["verify"] = redact(operation.verify) if operation.verify else None
        new = insert(OperationTable).values(**values).on_conflict_do_nothing().returning(OperationTable.id)
        with self._transaction() as session:
            return session.scalars(new).one_or_none()

    def alike(self, repository: str, shape: str) -> list[Observed]:
        """The successful operations of a shape, newest first; at most 50."""
        query = (
            select(OperationTable)
            .where(OperationTable.repository == repository, OperationTable.shape == shape, OperationTable.succeeded)
            .order_by(OperationTable.id.desc())
            .limit(50)
        )
        with self._transaction() as session:
            return [Observed.model_validate(row) for row in session.scalars(query)]

    # --- decisions ---

    def decisions(self, repository: str) -> dict[str, Decision]:
        """What was decided about the playbooks of a repository, by name."""
        query = select(PlaybookTable).where(PlaybookTable.repository == repository)
        with self._transaction() as session:
            return {row.name: Decision.model_validate(row) for row in session.scalars(query)}

    def decide(self, repository: str, name: str, state: str, **values: Any) -> None:
        """Set `state`, and of `digest`, `by`, `reason`, `provenance`, `url` what is given."""
        if "reason" in values:
            values["reason"] = redact(values["reason"])
        row = {"state": state, "decided_at": func.now(), **values}
        new = insert(PlaybookTable).values(repository=repository, name=name, **row)
        with self._transaction() as session:
            session.execute(new.on_conflict_do_update(index_elements=["repository", "name"], set_=row))

    # --- runs ---

    def begin(self, **values: Any) -> PlaybookRun:
        """A new run with the columns of `PlaybookRun`; for a ticket that has one that was not undone, that one (exactly once)."""
        new = insert(PlaybookRunTable).values(id=secrets.token_hex(6), **values).on_conflict_do_nothing()
        with self._transaction() as session:
            made = session.scalars(new.returning(PlaybookRunTable)).one_or_none()
            if made is not None:
                return self._read(session, made)
        found = self.of_ticket(values["board"], values["ticket"])
        if found is None:  # it was undone in between
            raise CapacityUnavailable(f"another run for ticket {values['ticket']!r} ended just now; run it again")
        return found

    def run(self, run: str) -> PlaybookRun:
        """Raises ConfigError when there is none."""
        found = self.find(run)
        if found is None:
            raise ConfigError(f"there is no playbook run {run!r}; `darkfactory playbook list` shows them")
        return found

    def find(self, run: str) -> PlaybookRun | None:
        with self._transaction() as session:
            row = session.get(PlaybookRunTable, run)
            return self._read(session, row) if row else None

    def of_ticket(self, board: str, ticket: str) -> PlaybookRun | None:
        """The ticket's run that was not undone, if there is one."""
        mine = select(PlaybookRunTable).where(PlaybookRunTable.board == board, PlaybookRunTable.ticket == ticket)
        with self._transaction() as session:
            row = session.scalars(mine.where(PlaybookRunTable.state != "undone")).one_or_none()
            return self._read(session, row) if row else None

    def recent(self, repository: str, name: str | None = None, limit: int = 20) -> list[PlaybookRun]:
        """The newest runs, newest first, without their journals."""
        query = select(PlaybookRunTable).where(PlaybookRunTable.repository == repository)
        if name is not None:
            query = query.where(PlaybookRunTable.name == name)
        with self._transaction() as session:
            rows = session.scalars(query.order_by(PlaybookRunTable.started_at.desc()).limit(limit))
            return [PlaybookRun.model_validate({**_columns(row)}) for row in rows]

    def move(self, run: str, state: RunState, *, expected: Sequence[RunState], **values: Any) -> None:
        """Change a run's state. Raises FencedOff when it is in none of the `expected` any more."""
        if "reason" in values:
            values["reason"] = redact(values["reason"])
        if state in ("succeeded", "undone"):
            values["ended_at"] = func.now()
        mine = update(PlaybookRunTable).where(PlaybookRunTable.id == run, PlaybookRunTable.state.in_(expected))
        with self._transaction() as session:
            if not session.execute(mine.values(state=state, **values)).rowcount:  # type: ignore[attr-defined]  # an update's result has it
                raise FencedOff(f"playbook run {run!r} is not {' or '.join(expected)} any more; somebody else moved it")

    def note(self, run: str, **values: Any) -> None:
        """Change columns that are no state."""
        with self._transaction() as session:
            session.execute(update(PlaybookRunTable).where(PlaybookRunTable.id == run).values(**values))

    def approve(self, run: str, step: str, by: str) -> None:
        """A person lets the step that the run waits for begin. The same again changes nothing."""
        approved = PlaybookRunTable.approvals.op("||")(func.jsonb_build_object(step, by))
        mine = update(PlaybookRunTable).where(PlaybookRunTable.id == run, PlaybookRunTable.step == step)
        with self._transaction() as session:
            session.execute(
                mine.where(PlaybookRunTable.state == "waiting").values(approvals=approved, state="running", step=None)
            )

    @contextmanager
    def alone(self, run: str) -> Iterator[None]:
        """Be the only one on any machine that works on this run. Raises CapacityUnavailable at once when somebody else is."""
        with self._transaction() as session:
            session.execute(text("set local idle_in_transaction_session_timeout = 0"))
            mine = func.pg_try_advisory_xact_lock(func.hashtextextended(run, _LOCK))
            if not session.scalar(select(mine)):
                raise CapacityUnavailable(f"another process is at work on playbook run {run!r}; wait for it to end")
            yield

    # --- the journal of a run ---

    def entry(self, run: str, step: str) -> StepEntry | None:
        with self._transaction() as session:
            row = session.get(PlaybookStepTable, (run, step))
            return StepEntry.model_validate(row) if row else None

    def write(
        self,
        run: str,
        step: str,
        position: int,
        state: StepState,
        *,
        before: Sequence[StepState],
        exit_code: int | None = None,
        output: str | None = None,
    ) -> None:
        """One line of the journal, in place of one of the states `before` (empty: there must be none yet).

        Raises FencedOff when the line says something else: then somebody else is at work.
        """
        said = {} if output is None else {"output": redact(output)[-OUTPUT_CHARS:]}
        values: dict[str, Any] = {"state": state, "updated_at": func.now(), **said}
        if exit_code is not None:
            values["exit_code"] = exit_code
        with self._transaction() as session:
            if before:
                mine = update(PlaybookStepTable).where(PlaybookStepTable.run == run, PlaybookStepTable.step == step)
                done = session.execute(mine.where(PlaybookStepTable.state.in_(before)).values(**values))
            else:
                new = insert(PlaybookStepTable).values(run=run, step=step, position=position, **values)
                done = session.execute(new.on_conflict_do_nothing())
            if not done.rowcount:  # type: ignore[attr-defined]  # an update's or insert's result has it
                raise FencedOff(f"step {step!r} of playbook run {run!r} was moved by somebody else")

    def strike(self, run: str, step: str) -> None:
        """Take a line out: the step did not begin, or was taken back so that it can be done again."""
        with self._transaction() as session:
            row = session.get(PlaybookStepTable, (run, step))
            if row is not None:
                session.delete(row)

    def _read(self, session: Session, row: PlaybookRunTable) -> PlaybookRun:
        lines = select(PlaybookStepTable).where(PlaybookStepTable.run == row.id).order_by(PlaybookStepTable.position)
        journal = [StepEntry.model_validate(line) for line in session.scalars(lines)]
        return PlaybookRun.model_validate({**_columns(row), "journal": journal})


def _columns(row: PlaybookRunTable) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in PlaybookRunTable.__table__.columns}
