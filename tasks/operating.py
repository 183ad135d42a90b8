"""A ticket that asks for an operation: which playbook fits, what a capable model does where none does, and what people are told.

An operation changes no code and opens no pull request. What a model did well is kept as an observation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from prefect import task
from pydantic import Field

from infra.egress import Egress
from infra.errors import NeedsHuman
from infra.playbook_files import MAX_STEPS, is_destructive, words_of
from infra.playbooks import ObservedStep, Operation
from infra.redaction import redact
from infra.sandbox import Bind, CommandResult, Sandbox
from infra.sections import OperationsSection
from tasks import progress, services
from tasks.agent import AgentEvent, AgentLimits, Toolbox, run_agent
from tasks.approvals import hand_over
from tasks.asking import RecordedModel, asker_for
from tasks.context import fenced, nonce_for
from tasks.grants import ASK, READING, Grant, note_grant
from tasks.holding import fence
from tasks.intents import intent_of
from tasks.models import Frozen, Job, Outcome, Policy, Ticket
from tasks.operations import note_operation
from tasks.playbooks import Ran, Reach, begin, operations_of, shelf_of
from tasks.publishing import move
from tasks.seats import seat

PROMPT_VERSION = "operator-1"
SYSTEM = (
    "You carry out one operation that a ticket asks for, with shell commands in a checkout of the repository. You change no code: "
    "what you write into the checkout is thrown away. Do only what the ticket asks, with as few commands as there are steps, one "
    "step a command, and look whether it worked. Hand in with finish."
)
LOOKING = frozenset(
    "ls cat head tail grep find pwd which wc stat file test echo printf env ps date id tree du df less true sleep".split()
)
"""Programs that look and change nothing, unless their output goes into a file."""
_LIMITS = AgentLimits(steps=40, tokens=400_000, seconds=1800)
_BEGUN, _ENDED = "operation-begun", "operation-ended"


class OperationAnswer(Frozen):
    """What the model says at the end."""

    done: bool
    """The operation was carried out, and you saw that it worked."""
    summary: str = Field(max_length=1000)


def is_labelled(ticket: Ticket) -> bool:
    """The ticket says itself that it is an operation."""
    label = services.settings().playbooks.label.strip().casefold()
    return bool(label) and label in (each.strip().casefold() for each in ticket.labels)


def may_be_operation(job: Job) -> bool:
    """Whether to look for a playbook. Without the label a title alone never keeps a ticket from the coders: see `choose`."""
    asked = is_labelled(job.ticket) or intent_of(job.ticket) == "operation"
    return services.settings().playbooks.enabled and job.greenfield is None and asked


@task(name="choose playbook", task_run_name="choose playbook")
async def choose(job: Job) -> str | None:
    """The run that works the ticket: the one it has, else a new one of the active playbook that fits. None: none fits."""
    return await asyncio.to_thread(_choose, job)


def _choose(job: Job) -> str | None:
    ticket = job.ticket
    if (known := services.playbooks().of_ticket(ticket.board, ticket.key)) is not None:
        return known.id
    fitting = [
        (len(values), each, values)
        for each in shelf_of(job.repository)
        if each.playbook is not None and each.state == "active"
        and (values := each.playbook.taken_from(ticket.title)) is not None and values.keys() == each.playbook.parameters.keys()
    ]  # fmt: skip
    if not fitting:
        return None
    fewest = min(number for number, _, _ in fitting)
    best = [(each, values) for number, each, values in fitting if number == fewest]
    if len(best) > 1:
        names = ", ".join(each.name for each, _ in best)
        raise NeedsHuman(f"Several playbooks fit this title: {names}. Reword the title, or disable all but one.")
    with fence(job):
        return begin(job.repository, *best[0], ticket.board, ticket.key).id


async def report(job: Job, ran: Ran, started: float) -> Outcome:
    """The ticket's side of a run that ended well. Raises NeedsHuman for one that waits, was rolled back, or is stuck."""
    if ran.state == "succeeded":
        return await _finish(job, ran.sentence(), f"playbook-{ran.run}", started)
    if ran.state == "waiting":
        await hand_over(services.playbooks().run(ran.run))
        how = f"`darkfactory playbook approve {ran.run}` lets it begin, `darkfactory playbook reject {ran.run}` takes all back."
        wants = f"Step {ran.step!r} of playbook {ran.playbook!r} wants to run `{ran.command}` and waits for a person."
        raise NeedsHuman(f"{wants} {how}")
    if ran.state == "undone":
        raise NeedsHuman(f"{ran.sentence()}. Reply here once it may be tried again.")
    raise NeedsHuman(f"{ran.sentence()}.")


async def _finish(job: Job, said: str, marker: str, started: float) -> Outcome:
    text = redact(said)

    def write() -> None:
        with fence(job):
            services.board(job.ticket.board).comment(job.ticket.key, text, marker=marker)
            move(job, services.board_section(job.ticket.board).states.review)

    await asyncio.to_thread(write)
    seconds = time.monotonic() - started
    return Outcome(ticket=job.ticket.key, decision="ACCEPT", reasons=(text,), seconds=seconds, warnings=job.warnings)


# --- without a playbook -----------------------------------------------------------------------------------------------


class OperatorsSandbox:
    """The sandbox as an agent gets it for an operation: what factory.yaml grants to agents, never a secret, and no command
    with a destructive word where it could reach anything. Keeps what was run."""

    def __init__(self, sandbox: Sandbox, section: OperationsSection) -> None:
        self.name = sandbox.name
        self._sandbox, self._reach = sandbox, Reach(sandbox, section if section.agent else OperationsSection())
        self.ran: list[tuple[str, int]] = []
        """Shell commands with their exit codes, in order."""

    async def run(
        self,
        command: Sequence[str] | str,
        *,
        worktree: Path,
        timeout_seconds: float | None = None,
        network: bool = False,
        environment: Mapping[str, str] = {},
        binds: Sequence[Bind] = (),
        stdin: bytes = b"",
        egress: Egress | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> CommandResult:
        """As `Sandbox.run`."""
        reachable = bool(self._reach.binds or self._reach.egress)
        if isinstance(command, str) and reachable and is_destructive(command):
            said = f"refused: a destructive command needs a person, or a playbook that one approved; use {ASK}"
            return CommandResult(exit_code=126, output=said, seconds=0.0)
        result = await self._sandbox.run(
            command, worktree=worktree, timeout_seconds=timeout_seconds, network=network, stdin=stdin, on_output=on_output,
            environment={**environment, **self._reach.folders}, binds=(*binds, *self._reach.binds),
            egress=egress or self._reach.egress,
        )  # fmt: skip
        if isinstance(command, str):
            self.ran.append((command, result.exit_code))
        return result

    @property
    def folders(self) -> dict[str, str]:
        """Where the folders are that it may change, by the variables that name them."""
        return self._reach.folders

    def did(self) -> tuple[ObservedStep, ...] | None:
        """The steps of the operation: what succeeded and did not only look. None when that is nothing, or too much to tell."""
        commands = [command for command, exit_code in self.ran if exit_code == 0 and not only_looks(command)]
        usable = 0 < len(commands) <= MAX_STEPS and all("\n" not in c and len(c) <= 1000 for c in commands)
        return tuple(ObservedStep(run=command) for command in commands) if usable else None


def only_looks(command: str) -> bool:
    """Whether a command is one program that changes nothing."""
    words = command.split()
    return (
        bool(words)
        and words[0] in LOOKING
        and not any(mark in command for mark in (">", ";", "&", "|", "`", "$(", "-exec", "-delete"))
    )


async def operate(job: Job, started: float) -> Outcome:
    """No playbook fits: a capable model carries the operation out. Raises NeedsHuman when it is small, or could not."""
    place = seat(job, "coder")
    if place.tier == "small":
        raise NeedsHuman(
            f"No active playbook fits this operation, and the model {place.model!r} is too small to be let loose on it. Carry it out "
            "by hand, tell the factory with `darkfactory playbook observe`, and close the ticket."
        )
    operator = OperatorsSandbox(services.sandbox(), operations_of(job.repository.name))
    await asyncio.to_thread(_refuse_second_try, job)
    answer = await _let_loose(job, operator, place.model)
    if not answer.done:
        _note_end(job, answer)
        raise NeedsHuman(f"The operation was not carried out: {answer.summary}")
    if (steps := operator.did()) is not None and words_of(job.ticket.title):
        source = f"{job.ticket.board}:{job.ticket.key}:{job.attempt_id}"
        await note_operation(job.repository, Operation(title=job.ticket.title[:300], steps=steps, source=source))
    ran = "\n".join(
        f"    {command}" for command, exit_code in operator.ran if exit_code == 0 and not only_looks(command)
    )
    outcome = await _finish(
        job,
        f"{answer.summary}\n\nCommands that were run:\n\n{ran or '    none'}",
        f"operation-{job.attempt_id}",
        started,
    )
    _note_end(job, answer)  # not before: a run that was killed until here would do it all again
    return outcome


def _note_end(job: Job, answer: OperationAnswer) -> None:
    services.ledger(job.ticket.board).record_event(job.attempt_id, job.ticket.key, _ENDED, answer.summary)


def _refuse_second_try(job: Job) -> None:
    """What a model did before it was killed is in no journal, so nobody may do it a second time without a look."""
    ledger = services.ledger(job.ticket.board)
    mine = [event.kind for event in ledger.history(job.ticket.key).events if event.kind in (_BEGUN, _ENDED)]
    if mine and mine[-1] == _BEGUN and operations_of(job.repository.name).agent:
        ledger.record_event(job.attempt_id, job.ticket.key, _ENDED, "left to a person")
        raise NeedsHuman(
            "A model was at work on this operation when its process died. Look what it did, and reply to begin anew."
        )
    ledger.record_event(job.attempt_id, job.ticket.key, _BEGUN, PROMPT_VERSION)


async def _let_loose(job: Job, operator: OperatorsSandbox, model: str) -> OperationAnswer:
    nonce = nonce_for(services.home_secret(), job.ticket)
    grant = Grant(role="coder", tools=READING - {"find_symbol", "search_code"} | {"run", ASK})
    note_grant(job, grant)
    asker = asker_for(job, "operator", PROMPT_VERSION)
    with services.mirror(job.repository).worktree(
        services.worktrees(), job.ticket.key, "operator", job.repository.base_sha
    ) as worktree:
        toolbox = Toolbox(worktree, operator, Policy(), grant, answer=OperationAnswer)
        said = fenced(f"{job.ticket.title}\n\n{job.ticket.body}", nonce)
        folders = ", ".join(f"${name}" for name in operator.folders) or "none"
        prompt = f"The operation, as the ticket asks for it:\n{said}\n\nFolders that you may change: {folders}."
        result = await run_agent(
            RecordedModel(asker, await services.model_named(model)), SYSTEM, prompt, toolbox, _LIMITS, _watch(job),
            seed=job.seed, nonce=nonce,
        )  # fmt: skip
    if result.answer is None:
        return OperationAnswer(
            done=False, summary=f"the model ended with {result.ending!r}: {result.explanation}"[:1000]
        )
    return OperationAnswer.model_validate(result.answer)


def _watch(job: Job) -> Callable[[AgentEvent], None]:
    def on_event(event: AgentEvent) -> None:
        if event.kind == "tool":
            progress.report(job.ticket.key, role="operator", message=f"step {event.step}: {event.name}")

    return on_event
