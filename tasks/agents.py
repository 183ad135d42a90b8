"""The coder's work done by a whole agent of the section `agents`: its prompt, its session, and whose fault its end was.

An agent that could not work raises what a failed model call raises, so that no attempt is burnt; one that worked hands
out its diff, however it ended. What a session changed before it was cut off is where the next run goes on (WS3).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from infra.agents import Activity, CodingAgent, Report, Session
from infra.agents.opening import open_agent
from infra.errors import (
    AuthFailed,
    CapacityUnavailable,
    ConfigError,
    FactoryError,
    InfraError,
    ProviderFault,
    QuotaExhausted,
    RateLimited,
    Stopped,
    Unreachable,
)
from infra.git import Worktree
from infra.logs import about
from infra.redaction import redact
from infra.sections import AgentSection, RoleSection
from tasks import progress, services
from tasks.asking import Asker
from tasks.context import SYSTEM, advised
from tasks.edits import coder_checkout, coders_tests, edited_files, laid_files
from tasks.failures import Ending as RunEnding
from tasks.failures import Fault, Kind, classify
from tasks.grants import grant_for, note_grant
from tasks.hooks import prepared
from tasks.models import Brief, Change, Ending, Feedback, Job, Plan, TestChange, WorkUnit

INSTRUCTION = """\
The plan, made by the architect:
{plan}

Your unit of it: {unit}
{must_fix}{red}
You are in a checkout of the repository, in a sandbox without people: nobody answers questions. Look, change the code, run \
the tests{command}. Change only what the unit needs; do not edit or remove existing tests. Do not commit: what lies in the \
folder when you end is your work. When the tests say that the unit is done, end with two sentences: what was wrong and \
what you changed."""
_log = logging.getLogger(__name__)
GO_ON = """

An earlier session of this same work was cut off. What it changed lies in the folder, and `git diff` shows it: look at that \
first, then go on from there."""
SHOWN_RED = 20
EXPLANATION_CHARS = 400
OUTPUT_CHARS = 2_000
"""Of the plain text an agent left, the end that may say why it ended: above it stands what models and programs printed."""

RAISED: Mapping[Kind, type[FactoryError]] = {
    "money": QuotaExhausted,
    "auth": AuthFailed,
    "capacity": CapacityUnavailable,
    "transport": Unreachable,
    "fast-death": Unreachable,
    "host": InfraError,
    "config": ConfigError,
    "cancelled": Stopped,
}
"""What to raise for a fault; `limit` has a time besides. The other kinds are the ticket's own."""
OF_THE_PROVIDER = (RateLimited, AuthFailed, QuotaExhausted, CapacityUnavailable, Unreachable, ProviderFault)


def coder_agent() -> str | None:
    """The agent of `agents` that codes; None: the built-in way."""
    return services.settings().roles.get("coder", RoleSection()).agent


async def agent_edit(
    job: Job,
    brief: Brief,
    plan: Plan,
    unit: WorkUnit,
    asker: Asker,
    tests: tuple[TestChange, ...],
    feedback: Feedback,
    given: tuple[Change, ...],
) -> Change:
    """Let the configured agent work in a worktree of its own. Raises InfraError or ConfigError when it could not work."""
    agent = open_agent(services.settings(), coder_agent() or "")
    _refuse_paused(agent, asker)
    note_grant(job, grant_for(job, "coder", brief.policy, unit, services.settings().agents[agent.name]))
    mirror, sandbox = services.mirror(brief.repository), services.sandbox()
    laid = laid_files(tests, feedback, given)
    told = prompt(brief, plan, unit, tests, feedback)
    session = session_name(asker, plan, unit, laid, feedback)
    async with prepared(coder_checkout(brief, unit, asker, session), brief.policy, sandbox, laid) as worktree:
        told += GO_ON if worktree.begun else ""
        # the same for both commits, so that a session without changes ends where it began
        message = f"{job.ticket.key} {unit.id}"
        start = worktree.begun or worktree.begin(await worktree.commit(sandbox, message))
        report = await _session(agent, asker, told, worktree)
        head = await worktree.commit(sandbox, message)
        if head == start:
            worktree.end()
        ending = ending_of(report, agent, worked=head != start)
    added = coders_tests(mirror, brief.repository.base_sha, feedback, given)
    services.pauses().succeed(scope_of(agent))
    return Change(unit=unit.id, candidate=asker.candidate, round=asker.round, ending=ending, samples=1,
                  files=edited_files(mirror, start, head, laid, added), explanation=report.said[:EXPLANATION_CHARS],
                  passed=ending == "done", usage=report.usage)  # fmt: skip


def session_name(asker: Asker, plan: Plan, unit: WorkUnit, laid: Mapping[str, str | None], feedback: Feedback) -> str:
    """The same for the same work on the same base, ticket and attempt: only then half of it is worth going on with."""
    begun = [
        asker.thought,
        plan.model_dump_json(exclude={"usage"}),
        unit.model_dump_json(),
        feedback.must_fix,
        sorted(laid.items()),
    ]
    return hashlib.sha256(json.dumps(begun).encode()).hexdigest()[:32]


def prompt(brief: Brief, plan: Plan, unit: WorkUnit, tests: tuple[TestChange, ...], feedback: Feedback) -> str:
    """All an agent is told: what every role is told (the ticket fenced by the nonce), then its unit of the plan."""
    fixes = "".join(f"- {fix}\n" for fix in feedback.must_fix)
    red = [name for test in tests for name in test.red][:SHOWN_RED]
    instruction = INSTRUCTION.format(
        plan=plan.model_dump_json(exclude={"usage", "units"}),
        unit=unit.model_dump_json(),
        must_fix=f"The judge wants this fixed:\n{fixes}" if fixes else "",
        red=f"These tests are red and should turn green: {', '.join(red)}\n" if red else "",
        command=f" with `{brief.policy.test}`" if brief.policy.test else "",
    )
    return f"{SYSTEM}\n\n{brief.prefix}\n\n---\n{advised(brief, instruction)}"


# --- one session ------------------------------------------------------------------------------------------------------


async def _session(agent: CodingAgent, asker: Asker, told: str, worktree: Worktree) -> Report:
    """Reserve, run, settle and write down. Every start is a call of its own: one that a kill cut off may be billed."""
    section = services.settings().agents[agent.name]
    key = f"agent-{asker.attempt_id}-{asker.candidate}-{asker.round}-{secrets.token_hex(8)}"
    await asyncio.to_thread(_reserve, key, asker, section)
    try:
        with about(session=key, role=asker.label):
            await agent.check(services.sandbox(), worktree.path)
            report = await agent.run(
                Session(
                    prompt=told, max_seconds=section.max_seconds, max_turns=section.max_turns, max_usd=section.max_usd
                ),
                worktree=worktree.path,
                sandbox=services.sandbox(),
                binds=tuple(worktree.git_binds()),
                on_activity=lambda activity: _tell(asker, activity),
            )
            _log.info("agent=%s outcome=%s seconds=%.0f usd=%.6f", agent.name, report.ran_out or report.exit_code, report.seconds, report.usage.cost_usd)  # fmt: skip
    except (ConfigError, InfraError) as error:  # it was not started
        services.budgets().release(key)
        if isinstance(error, OF_THE_PROVIDER):
            error.service = scope_of(agent)
        raise
    await asyncio.to_thread(_write_down, key, asker, agent, section, told, report)
    return report


def _reserve(key: str, asker: Asker, section: AgentSection) -> None:
    if section.max_usd is None and services.settings().budgets.in_usd:
        raise ConfigError(
            "`budgets` has caps in USD, so every agent needs its own: set `max_usd` of the section `agents`"
        )
    services.budgets().reserve(
        key, board=asker.board, ticket=asker.ticket, role=asker.role, usd=section.max_usd or 0.0, agent=True
    )


def _write_down(key: str, asker: Asker, agent: CodingAgent, section: AgentSection, told: str, report: Report) -> None:
    """Usage into budget and ledger (OB3), and all that was said, secrets masked, beside the ticket's other papers."""
    services.budgets().settle(key, report.usage.cost_usd)
    services.ledger().record_session(
        asker.attempt_id, key, asker.role, report.usage, section.model or section.kind, asker.candidate, asker.round,
        agent.provider, asker.effort,
    )  # fmt: skip
    said: dict[str, Any] = {"asker": asker.model_dump(mode="json"), "agent": agent.name, "prompt": told}
    said["report"] = report.model_dump(mode="json")
    name = f"{asker.ticket}/transcripts/{asker.role}-{asker.candidate}-{asker.round}-{key[-16:]}.json"
    services.objects().put(name, redact(json.dumps(said, indent=1)).encode())


def _tell(asker: Asker, activity: Activity) -> None:
    if activity.kind != "usage":
        message = f"{activity.kind}: {activity.text}" if activity.text else activity.kind
        progress.report(asker.ticket, phase="code", role=asker.label, message=message)


# --- how it ended -----------------------------------------------------------------------------------------------------


def scope_of(agent: CodingAgent) -> str:
    """The name under which an agent's provider is paused."""
    return f"provider:{agent.provider}"


def coder_scope() -> str | None:
    """The same of the agent that codes, for those who ask before a run is started; None: none does."""
    name = coder_agent()
    return scope_of(open_agent(services.settings(), name)) if name is not None else None


def _refuse_paused(agent: CodingAgent, asker: Asker) -> None:
    """Raises as the fault that paused its provider did, while that rests. After the pause one session goes first."""
    seconds = services.settings().agents[agent.name].max_seconds
    pause = services.pauses().enter([scope_of(agent)], f"agent-{asker.attempt_id}", seconds)
    if pause is None:
        return
    said = pause.reason.rpartition(": ")[2]
    error = RateLimited(said, pause.until) if pause.until else QuotaExhausted(said)
    error.service = scope_of(agent)
    raise error


def ending_of(report: Report, agent: CodingAgent, *, worked: bool) -> Ending:
    """What the coder's change is to be called. `worked`: the files differ. Raises for every fault that is not the ticket's.

    A session that ended by itself and left the files alone is `unchanged`, unless it is known by its exit code only: such a
    command may have printed why it could not work.
    """
    if report.finished and (worked or report.events):
        return "done" if worked else "unchanged"
    if report.ran_out in ("turns", "usd", "output"):
        return "limit"
    fault = blame(report, agent, worked)
    if report.finished and fault.kind in ("ticket", "fast-death"):
        return "unchanged"
    if worked and fault.kind == "fast-death":
        return "invalid"
    if fault.kind == "limit" or fault.kind in RAISED:
        raise error_of(fault, agent)
    return "limit" if report.ran_out or fault.kind != "ticket" else "invalid"


def blame(report: Report, agent: CodingAgent, worked: bool) -> Fault:
    """Whose fault an unfinished session was. One that never got an answer in all its time was kept waiting."""
    settings = services.settings()
    silent = (
        not worked
        and not report.tool_calls
        and not report.usage.calls
        and settings.agents[agent.name].kind != "command"
    )
    ending = RunEnding(
        exit_code=report.exit_code if report.ran_out is None else None,
        seconds=report.seconds,
        text=report.output[-OUTPUT_CHARS:],
        events=report.events,
        commits=int(worked),
        killed="timeout" if report.ran_out == "time" else None,
        provider=agent.provider,
        node=settings.node_name,
    )
    here = datetime.now().astimezone()  # agents print the clock of their machine, often without its zone
    fault = classify(ending, here, fail_fast_seconds=settings.dispatch.fail_fast_seconds)
    if silent and fault.kind == "timeout":
        reason = f"{agent.provider}: no answer within {report.seconds:.0f} s"
        return fault.model_copy(update={"kind": "transport", "scope": "provider", "burns": False, "reason": reason})
    return fault


def error_of(fault: Fault, agent: CodingAgent) -> FactoryError:
    """The error that a fault is raised as; what the provider is to blame for rests under the agent's own name."""
    error = RateLimited(fault.reason, fault.reset_at) if fault.kind == "limit" else RAISED[fault.kind](fault.reason)
    if fault.scope == "provider" or fault.kind == "fast-death":
        error.service = scope_of(agent)
    return error
