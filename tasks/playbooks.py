"""Carrying out one run of a playbook: each step in the sandbox, journaled before and after, and taken back when one fails.

Prefect's transactions take back what this process did; the journal tells a process that comes after a kill what was done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.transactions import Transaction

from infra.egress import Egress
from infra.errors import ConfigError, FactoryError, InfraError
from infra.git import Mirror, Worktree, directory_name
from infra.notify import notify
from infra.playbook_files import FOLDER, Playbook, Step, condition_holds, digest_of, parse_playbook, shown
from infra.playbooks import Decision, PlaybookRun, RunState, StepEntry
from infra.redaction import MASK, redact
from infra.sandbox import Bind, CommandResult, Sandbox
from infra.sections import OperationsSection
from tasks import progress, services
from tasks.models import Frozen, Repository

FAILURES, OF_RUNS = 2, 5
"""So many failures in so many runs disable a playbook."""
MOUNTED = "/folders"
"""Where a command in the sandbox finds the folders that factory.yaml grants."""
_log = logging.getLogger(__name__)


class StepFailed(FactoryError):
    """A step ended badly, or a person said no: everything before it is taken back."""


class GateClosed(FactoryError):
    """A step waits for a person."""


class Stuck(FactoryError):
    """Nobody knows whether a step was done, and there is no way to take it back: only a person can tell."""


class Ran(Frozen):
    """How a run of a playbook stands. `command` is what the step that it waits for would run; `undone` are in the order in which
    they were taken back; `kept` have no undo."""

    run: str
    playbook: str
    state: RunState
    reason: str = ""
    step: str | None = None
    command: str | None = None
    ticket: str | None = None
    done: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    undone: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    undo_failed: tuple[str, ...] = ()

    def sentence(self) -> str:
        """For people, in one line."""
        said = {
            "running": f"goes on{f' with ticket {self.ticket!r}' if self.ticket else ''}",
            "undoing": f"is taken back{f'; it goes on with ticket {self.ticket!r}' if self.ticket else ''}",
            "succeeded": f"did {', '.join(self.done)}",
            "waiting": f"waits for approval of step {self.step!r}, which wants to run `{self.command}`: "
            f"`darkfactory playbook approve {self.run}`, or `reject`",
            "undone": f"was rolled back ({self.reason}); taken back: {', '.join(self.undone) or 'nothing'}",
            "stuck": f"needs a person: {self.reason}; `darkfactory playbook settle {self.run}` goes on",
        }.get(self.state, self.reason)
        kept = f"; no undo for: {', '.join(self.kept)}" if self.kept else ""
        failed = f"; UNDO FAILED for: {', '.join(self.undo_failed)}" if self.undo_failed else ""
        return f"Playbook {self.playbook!r}, run {self.run}: {said}{kept}{failed}"


class Shelf(Frozen):
    """A playbook of a repository's base branch and what was decided about it. `problem`: why the file cannot be used."""

    name: str
    path: str
    digest: str
    content: str
    playbook: Playbook | None = None
    problem: str = ""
    decision: Decision | None = None

    @property
    def state(self) -> str:
        """`active`, or why it is not."""
        if self.playbook is None:
            return "broken"
        if self.decision is not None and self.decision.state == "disabled":  # whatever became of the file
            return "disabled"
        if self.decision is not None and self.decision.digest == self.digest and self.decision.state == "approved":
            return "active"
        if services.settings().playbooks.auto_approve and not self.playbook.destructive:
            return "active"
        return "changed since it was approved" if self.decision and self.decision.digest else "waits for approval"


# --- which there are --------------------------------------------------------------------------------------------------


def shelf_of(repository: Repository) -> list[Shelf]:
    """The playbooks on the base branch, broken ones too. Never those of another branch: anybody may push one."""
    mirror, sha = services.mirror(repository), repository.base_sha
    paths = [p for p in mirror.paths(sha) if p.startswith(f"{FOLDER}/") and p.endswith((".yaml", ".yml"))]
    decided = services.playbooks().decisions(repository.name)
    return [_shelved(path, data, decided) for path, data in sorted(mirror.read_all(sha, paths).items())]


def _shelved(path: str, data: bytes, decided: Mapping[str, Decision]) -> Shelf:
    name = path.removeprefix(f"{FOLDER}/").rpartition(".")[0]
    found = Shelf(
        name=name, path=path, digest=digest_of(data), content=data.decode(errors="replace"), decision=decided.get(name)
    )
    try:
        return found.model_copy(update={"playbook": parse_playbook(data, path)})
    except ConfigError as error:
        return found.model_copy(update={"problem": str(error)})


def find_playbook(repository: Repository, name: str) -> Shelf:
    """Raises ConfigError when there is none, or when its file is broken."""
    shelf = shelf_of(repository)
    found = next((each for each in shelf if each.name == name), None)
    if found is None:
        names = ", ".join(each.name for each in shelf) or "none"
        branch = f"{repository.base_branch!r} of {repository.name!r}"
        raise ConfigError(
            f"there is no playbook {name!r} on the branch {branch} (there: {names}); merge its pull request first"
        )
    if found.playbook is None:
        raise ConfigError(found.problem)
    return found


def begin(
    repository: Repository, found: Shelf, given: Mapping[str, str], board: str | None = None, ticket: str | None = None
) -> PlaybookRun:
    """Note that a run is to be made. For a ticket that has one already, which was not rolled back, that one comes back.

    Raises ConfigError when the playbook may not run, or for parameters that are unknown, missing or not allowed.
    """
    if found.playbook is None or found.state != "active":
        why = found.decision.reason if found.decision and found.state == "disabled" else ""
        raise ConfigError(
            f"playbook {found.name!r} may not run: {found.state}{f' ({why})' if why else ''}; look at it with `darkfactory "
            f"playbook show {found.name}`, then `darkfactory playbook approve {found.name}`"
        )
    _granted(found.playbook, operations_of(repository.name))
    return services.playbooks().begin(
        repository=repository.name, name=found.name, digest=found.digest, content=found.content,
        base_sha=repository.base_sha, parameters=found.playbook.values(given), board=board, ticket=ticket,
    )  # fmt: skip


def operations_of(repository: str) -> OperationsSection:
    """What operations on this repository may reach."""
    section = services.settings().repositories.get(repository)
    return section.operations if section else OperationsSection()


def _granted(playbook: Playbook, section: OperationsSection) -> None:
    if missing := sorted(set(playbook.secrets) - set(section.secrets)):
        raise ConfigError(
            f"playbook {playbook.name!r} names the secrets {missing}, which are not in `operations.secrets` of its repository "
            "in factory.yaml; add them there, or leave them out"
        )


def dry_run(playbook: Playbook, given: Mapping[str, str]) -> list[str]:
    """The commands as a person could type them, with what is special about each. Raises ConfigError."""
    values = playbook.values(given)
    lines = []
    for step in playbook.all_steps:
        notes = [*([f"only when {step.when}"] if step.when else []), *(["after approval"] if step.gated else [])]
        lines.append(f"{step.id}: {shown(step.run, values)}" + (f"  # {', '.join(notes)}" if notes else ""))
        if step.undo:
            lines.append(f"  undo: {shown(step.undo, values)}")
    return lines


# --- one run ----------------------------------------------------------------------------------------------------------


class Reach:
    """A sandbox with what operations on one repository may reach, and nothing else; secrets only those named."""

    def __init__(self, sandbox: Sandbox, section: OperationsSection, secrets: tuple[str, ...] = ()) -> None:
        self._sandbox, self._section = sandbox, section
        self._secrets = {name: section.secrets[name].get_secret_value() for name in secrets}

    async def run(
        self, command: str, worktree: Path, timeout_seconds: float, values: Mapping[str, str]
    ) -> CommandResult:
        """As `Sandbox.run`; the output is without the secrets."""
        result = await self._sandbox.run(
            command, worktree=worktree, timeout_seconds=timeout_seconds, binds=self.binds, egress=self.egress,
            environment={**values, **self.folders, **self._secrets},
        )  # fmt: skip
        said = result.output
        for secret in sorted(self._secrets.values(), key=len, reverse=True):
            said = said.replace(secret, MASK)
        return result.model_copy(update={"output": said})

    @property
    def binds(self) -> tuple[Bind, ...]:
        """Raises ConfigError for a folder that is not there."""
        folders = {name: path.expanduser().absolute() for name, path in self._section.folders.items()}
        if missing := [str(path) for path in folders.values() if not path.is_dir()]:
            raise ConfigError(f"`operations.folders` in factory.yaml names {missing[0]!r}, which is no folder; make it")
        return tuple(Bind(source=p, target=f"{MOUNTED}/{name}", writable=True) for name, p in folders.items())

    @property
    def folders(self) -> dict[str, str]:
        """Where a command finds each folder; without a sandbox that is its own place."""
        bare = self._sandbox.name == "none"
        return {b.target.rpartition("/")[2]: str(b.source) if bare else b.target for b in self.binds}

    @property
    def egress(self) -> Egress | None:
        return Egress(hosts=self._section.hosts) if self._section.hosts else None


class Work:
    """A run in the hands of this process. `trouble`: what kept a step from being taken back now; it is tried again later."""

    def __init__(self, run: PlaybookRun, playbook: Playbook, worktree: Worktree, reach: Reach) -> None:
        self.id, self.playbook, self.values = run.id, playbook, run.parameters
        self.repository = run.repository
        self._worktree, self._reach = worktree, reach
        self.trouble: FactoryError | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.playbook.all_steps

    def now(self) -> PlaybookRun:
        return services.playbooks().run(self.id)

    def position(self, step: Step) -> int:
        return self.steps.index(step)

    async def execute(self, step: Step, command: str) -> CommandResult:
        """Run a command of the step. Raises what `Sandbox.run` raises, before the command was started."""
        progress.report(self.id, role=step.id, message=shown(command, self.values))
        return await self._reach.run(command, self._worktree.path, step.timeout, self.values)


@asynccontextmanager
async def at_work(run_id: str) -> AsyncIterator[Work]:
    """Take a run in hand, alone on all machines, in a fresh checkout of the commit that its playbook was read from.

    Raises CapacityUnavailable when somebody else has it, ConfigError when the repository is not configured any more.
    """
    with services.playbooks().alone(run_id):
        run = services.playbooks().run(run_id)
        playbook = parse_playbook(run.content.encode(), f"{FOLDER}/{run.name}.yaml")
        section = operations_of(run.repository)
        _granted(playbook, section)
        mirror = Mirror(services.settings().root / "repos" / f"{directory_name(run.repository)}.git")
        if not mirror.path.is_dir() or not mirror.contains(run.base_sha, run.base_sha):
            mirror = await asyncio.to_thread(_fetched, run.repository)
        with mirror.worktree(services.worktrees(), f"playbook-{run_id}", "checkout", run.base_sha) as worktree:
            yield Work(run, playbook, worktree, Reach(services.sandbox(), section, playbook.secrets))


def _fetched(repository: str) -> Mirror:
    """The mirror of a configured repository on a machine that has none yet, or has not looked since the run was begun."""
    from tasks.intake import named_repository, pin  # it stands on much that a run does not need

    name, configured = named_repository(repository)
    return services.mirror(pin(name, configured))


async def perform(work: Work, step: Step) -> None:
    """One step as a box in Prefect's pages, whose rollback is the step's undo. A finished one is not done again."""
    box = _step.with_options(name=step.id, task_run_name=step.id)
    box.on_rollback(partial(_roll_back, work, step))  # type: ignore[arg-type]  # Prefect awaits a coroutine function
    await box(work, step)


@task(name="step", cache_policy=NO_CACHE, persist_result=False)
async def _step(work: Work, step: Step) -> None:
    run = work.now()
    entry = next((line for line in run.journal if line.step == step.id), None)
    if entry is not None and entry.state in ("finished", "skipped"):
        return
    if entry is not None and entry.state == "failed":  # killed before it could say so of the whole run
        await _fail(work, step, f"exit code {entry.exit_code}")
    if entry is not None:
        await _take_up(work, step, entry)
    journal, place = services.playbooks(), work.position(step)
    if not condition_holds(step, work.values, _facts(run)):
        journal.write(work.id, step.id, place, "skipped", before=())
        return
    if step.gated and step.id not in run.approvals:
        journal.move(work.id, "waiting", expected=("running",), step=step.id)
        raise GateClosed(f"step {step.id!r} waits for approval")
    journal.write(work.id, step.id, place, "started", before=())
    await _carry_out(work, step)


async def _take_up(work: Work, step: Step, entry: StepEntry) -> None:
    """What an earlier process began and did not finish: taken back, so that it can be done anew; without an undo, a person's."""
    if step.undo is None:
        raise Stuck(f"step {step.id!r} was begun by a process that died, and nothing says whether it was done")
    if not await take_back(work, step, entry):
        raise Stuck(f"step {step.id!r} was begun by a process that died, and could not be taken back")
    services.playbooks().strike(work.id, step.id)


async def _carry_out(work: Work, step: Step) -> None:
    journal, place = services.playbooks(), work.position(step)
    try:
        result = await work.execute(step, step.run)
    except InfraError:  # it did not begin
        journal.strike(work.id, step.id)
        raise
    except FactoryError as error:
        journal.write(work.id, step.id, place, "failed", before=("started",), output=str(error))
        await _fail(work, step, str(error))
        return
    ended_well = result.exit_code in step.accept and not result.timed_out and not result.flooded
    said = {"exit_code": result.exit_code, "output": result.output}
    journal.write(work.id, step.id, place, "finished" if ended_well else "failed", before=("started",), **said)  # type: ignore[arg-type]  # as the columns
    if not ended_well:
        await _fail(work, step, how_it_ended(result))


async def _fail(work: Work, step: Step, how: str) -> None:
    """The step's own undo comes first; those of the steps before it follow as the transaction is rolled back."""
    reason = f"step {step.id!r} failed: {how}"
    services.playbooks().move(work.id, "undoing", expected=("running",), reason=reason, failed=True)
    await _roll_back(work, step, None)
    raise StepFailed(reason)


def how_it_ended(result: CommandResult) -> str:
    ending = (
        "it took too long"
        if result.timed_out
        else "it wrote too much"
        if result.flooded
        else f"exit code {result.exit_code}"
    )
    last = " ".join(redact(result.output).split())[-300:]
    return f"{ending}{f': {last}' if last else ''}"


def _facts(run: PlaybookRun) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for line in run.journal:
        found[f"steps.{line.step}.outcome"] = line.state
        if line.exit_code is not None:
            found[f"steps.{line.step}.exit"] = line.exit_code
    return found


# --- taking back ------------------------------------------------------------------------------------------------------


async def _roll_back(work: Work, step: Step, _transaction: Transaction | None) -> None:
    """Prefect's rollback hook. Only a run that is being undone is: a transaction also ends when a run waits, or is cancelled.

    Never raises: an error here would keep the steps before it from being taken back.
    """
    try:
        run = work.now()
        entry = next((line for line in run.journal if line.step == step.id), None)
        if run.state == "undoing" and entry is not None:
            await take_back(work, step, entry)
    except FactoryError as error:
        _log.error("playbook-run=%s step=%s outcome=not-taken-back reason=%r", work.id, step.id, str(error))
        work.trouble = error


async def take_back(work: Work, step: Step, entry: StepEntry) -> bool:
    """Run the undo of a step that was begun, and say so in the journal. False when the undo failed, which people are told."""
    journal, place = services.playbooks(), work.position(step)
    if entry.state in ("skipped", "undone", "kept", "undo-failed"):
        return entry.state != "undo-failed"
    if step.undo is None:
        journal.write(work.id, step.id, place, "kept", before=("started", "finished", "failed"))
        return True
    journal.write(work.id, step.id, place, "undoing", before=("started", "finished", "failed", "undoing"))
    try:
        result = await work.execute(step, step.undo)
        clean, how = result.exit_code == 0 and not result.timed_out and not result.flooded, how_it_ended(result)
    except InfraError:
        raise
    except FactoryError as error:
        clean, how = False, str(error)
    journal.write(work.id, step.id, place, "undone" if clean else "undo-failed", before=("undoing",), output=how)
    if not clean:
        _cry_out(work, step, how)
    return clean


def _cry_out(work: Work, step: Step, how: str) -> None:
    said = f"run {work.id} of playbook {work.playbook.name!r}: the undo of step {step.id!r} failed: {how}"
    _log.error("playbook-run=%s step=%s outcome=undo-failed reason=%r", work.id, step.id, how)
    notify(services.settings().notify, "an undo failed", said, key=f"undo:{work.id}:{step.id}")


async def unwind(work: Work) -> None:
    """Take back all that the journal says was done, last first; for a run whose transaction died with its process."""
    for step in reversed(work.steps):
        await _roll_back(work, step, None)


# --- the end ----------------------------------------------------------------------------------------------------------


def conclude(work: Work) -> Ran:
    """The end of a rollback. Raises InfraError when something could not be taken back now; the run is taken up again then."""
    if work.trouble is not None:
        raise work.trouble
    run = work.now()
    failed = [line.step for line in run.journal if line.state == "undo-failed"]
    if failed:
        reason = f"{run.reason}; the undo of {', '.join(failed)} failed, so look at what is left and put it right"
        services.playbooks().move(work.id, "stuck", expected=("undoing",), reason=reason)
    else:
        services.playbooks().move(work.id, "undone", expected=("undoing",))
    _disable_if_it_fails_often(run)
    return ran(work.id)


def succeed(work: Work) -> Ran:
    services.playbooks().move(work.id, "succeeded", expected=("running",))
    return ran(work.id)


def be_stuck(work: Work, error: Stuck) -> Ran:
    services.playbooks().move(work.id, "stuck", expected=("running",), reason=str(error))
    return ran(work.id)


def ran(run_id: str) -> Ran:
    """How the run stands now, as the journal says."""
    run = services.playbooks().run(run_id)
    named = {state: tuple(e.step for e in run.journal if e.state == state) for state in ("finished", "skipped", "kept")}
    taken = tuple(e.step for e in reversed(run.journal) if e.state == "undone")
    broken = tuple(e.step for e in run.journal if e.state == "undo-failed")
    return Ran(run=run.id, playbook=run.name, state=run.state, reason=run.reason, step=run.step, command=_wanted(run), ticket=run.ticket,
               done=named["finished"], skipped=named["skipped"], undone=taken, kept=named["kept"], undo_failed=broken)  # fmt: skip


def _wanted(run: PlaybookRun) -> str | None:
    """What the step that a run waits for would run, as a person could type it."""
    if run.state != "waiting":
        return None
    steps = parse_playbook(run.content.encode(), f"{FOLDER}/{run.name}.yaml").all_steps
    return next(shown(step.run, run.parameters) for step in steps if step.id == run.step)


def _disable_if_it_fails_often(run: PlaybookRun) -> None:
    playbooks = services.playbooks()
    decision = playbooks.decisions(run.repository).get(run.name)
    since: datetime | None = decision.decided_at if decision else None
    recent = [r for r in playbooks.recent(run.repository, run.name, OF_RUNS) if since is None or r.started_at >= since]
    if sum(each.failed for each in recent) < FAILURES or (decision and decision.state == "disabled"):
        return
    reason = f"{FAILURES} of its last {min(len(recent), OF_RUNS)} runs failed, the last one because {run.reason}"
    playbooks.decide(run.repository, run.name, "disabled", digest=run.digest, reason=reason, by="the factory")
    text = f"playbook {run.name!r} of {run.repository!r} is disabled: {reason}; `darkfactory playbook approve {run.name}` turns it on"
    _log.warning("playbook=%s outcome=disabled reason=%r", run.name, reason)
    notify(
        services.settings().notify, "a playbook is disabled", text, key=f"playbook:{run.repository}:{run.name}:{run.id}"
    )


# --- what people say --------------------------------------------------------------------------------------------------


def approve_step(run_id: str, by: str) -> PlaybookRun:
    """Let the step that a run waits for begin. Raises ConfigError when it waits for nothing."""
    run = services.playbooks().run(run_id)
    if run.state != "waiting" or run.step is None:
        raise ConfigError(f"playbook run {run_id!r} does not wait for approval, it is {run.state}")
    services.playbooks().approve(run_id, run.step, by)
    return services.playbooks().run(run_id)


def reject_step(run_id: str, by: str) -> PlaybookRun:
    """Refuse the step that a run waits for: what was done before is taken back."""
    run = services.playbooks().run(run_id)
    reason = f"step {run.step!r} was rejected by {by}"
    services.playbooks().move(run_id, "undoing", expected=("waiting",), reason=reason, step=None)
    return services.playbooks().run(run_id)


def settle(run_id: str, how: str) -> PlaybookRun:
    """A person says what became of what nobody knows: a step was `done`, is to be done `again`, or all is to be taken back
    (`undo`, once more also where an undo failed), or the person did (`clean`). Raises ConfigError."""
    playbooks = services.playbooks()
    with playbooks.alone(run_id):
        run = playbooks.run(run_id)
        if run.state not in ("stuck", "running"):
            raise ConfigError(
                f"playbook run {run_id!r} is {run.state}; only one that is stuck, or whose process died, is settled"
            )
        begun = next((e for e in run.journal if e.state == "started"), None)
        broken = [e for e in run.journal if e.state == "undo-failed"]
        if how in ("done", "again") and (begun is None or broken):
            raise ConfigError(f"no step of playbook run {run_id!r} is in doubt; settle it with undo or clean")
        if how == "done" and begun is not None:
            playbooks.write(run_id, begun.step, 0, "finished", before=("started",))
        elif how == "again" and begun is not None:
            playbooks.strike(run_id, begun.step)
        for entry in broken if how == "undo" else ():
            playbooks.write(run_id, entry.step, 0, "undoing", before=("undo-failed",))
        for entry in run.journal if how == "clean" else ():
            if entry.state not in ("skipped", "kept"):
                playbooks.write(run_id, entry.step, 0, "undone", before=(entry.state,))
        if how in ("done", "again"):
            playbooks.move(run_id, "running", expected=("stuck", "running"), reason="")
        else:
            playbooks.move(
                run_id, "undoing", expected=("stuck", "running"), reason=run.reason or "called off by a person"
            )
    return playbooks.run(run_id)


def wake_ticket(run_id: str) -> bool:
    """Let the parked ticket that a run belongs to go on with it, under a claim. False when there is none, or it is
    closed, and for a run that waits or was undone: there a person speaks first."""
    run = services.playbooks().run(run_id)
    if run.board is None or run.ticket is None or run.state in ("waiting", "undone"):
        return False
    claim = services.claims().find(run.board, run.ticket)
    if claim is None or claim.state != "parked":
        return False
    if all(ticket.closed for ticket in services.board(run.board).tickets_by_keys([run.ticket])):
        return False
    services.board(run.board).move(run.ticket, services.board_section(run.board).states.queue[0])
    return services.claims().resume(claim, f"playbook run {run.id} went on")
