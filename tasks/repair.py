"""The factory's repair of itself, stage by stage (L4): signal, ticket, ordinary work, gates, checks, merge, release, watch; and
back again when the release did not help. One step function per stage; each may be repeated after a kill.
"""

from __future__ import annotations

import asyncio
import glob
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from prefect import task

from infra.boards import Board, Ticket
from infra.errors import FactoryError, Unreachable, WorkFailed
from infra.git import Mirror, branch_name, covers
from infra.llm import Frozen
from infra.notify import notify
from infra.releases import Releases
from infra.repairs import RELEASING, Ending, Repair, Sample, Stage, sharing
from infra.sections import RepairSection
from infra.slots import sole
from infra.test_runners import detect_policy
from tasks import services
from tasks.evidence import run_tests
from tasks.hooks import prepared
from tasks.models import TestReport
from tasks.policy import read_policy
from tasks.releasing import factory_repository, fetched, follow, refusal

GATES = (
    "repair", "repairs", "releases", "releasing", "bugs", "grants", "evidence", "judging", "measuring", "redaction",
    "sandbox", "containers", "egress", "git", "sections", "settings", "policy", "exemptions", "test_runners", "scanners",
)  # fmt: skip
"""Modules that decide what may pass, or keep it in its place; with their tests."""
BLOCKED = (
    "*secret*", "*credential*", "*password*", "*auth*", "*login*", "*.env", "*.env.*", "*.pem", "*.key", "*.p12",
    "deployments/**", "*compose*.y*ml", "*dockerfile*", "*.service", "*.plist", "infra/setup/**", "infra/units/**",
    "infra/migrations/**", ".git*", ".github/**", ".ci/**", "makefile", "*.lock", "*requirements*.txt",
    "package-lock.json", "*pyproject.toml", "setup.py", "*setup.cfg", "*pytest.ini", "*pytest.toml", "*tox.ini",
    "conftest.py", "*/conftest.py", "*.gitattributes", "sitecustomize*", "usercustomize*", "workflow.md",
    "*agents.md", "*claude.md", "contributing.md", "tests/repairs.py", "tests/faults/*",
    *(f"{layer}/{name}{end}" for layer in ("infra", "tasks", "flows") for name in GATES for end in ("", ".*")),
    *(f"tests/*/test_{name}.py" for name in GATES),
)  # fmt: skip
"""What no repair may touch: secrets, auth, deployment, CI, dependencies, rules, the schema (a release that migrated it could
not be rolled back), and the gates themselves with their tests, also as packages, which Python prefers to modules. A blocked
link blocks what it points at, too."""
GOING_BACK: tuple[Stage, ...] = ("take-back", "revert", "close")
"""Stages that are tried until they are done: there is nothing behind them to fall back to."""
WORK_TIME = timedelta(hours=24)
SWITCH_TIME = timedelta(minutes=10)
BEST_RATIO = 0.5
"""The signal has to come less than half as often as before."""
REFUSALS = 5
"""More of them within six hours are told to people."""
_LABELS = ("bug", "self-repair")
_SHOWN_CHARS = 2_000
_UNCOUNTED = re.compile(rb"\0|\r(?!\n)")
"""Python ends a line at a lone carriage return; git does not."""
_log = logging.getLogger(__name__)

Due = Literal["keep", "roll-back", "wait"]


class Step(Frozen):
    """Where a repair goes next, and what is written about it on the way."""

    stage: Stage
    note: str = ""
    changes: dict[str, Any] = {}


class Repaired(Frozen):
    """What one look came to: the repairs that were begun, where each open or just ended one stands, and the halt."""

    begun: tuple[int, ...] = ()
    stages: dict[int, str] = {}
    halted: str | None = None


class Refused(WorkFailed):
    """A gate does not let the change through."""


# ---- signals ----------------------------------------------------------------------------------------------------


@task(name="look for failures of our own", task_run_name="look for failures of our own")
async def find_signals() -> tuple[int, ...]:
    """Begin a repair for each failure of our own code that came often enough. Nothing while the loop is halted."""
    return await asyncio.to_thread(_find_signals)


def _find_signals() -> tuple[int, ...]:
    section, repairs = services.settings().repair, services.repairs()
    name, _ = factory_repository(services.settings())
    if (halted := repairs.halt_after_rollbacks()) is not None:
        notify(services.settings().notify, "The factory repairs nothing more", halted, key="repair:halted")
        return ()
    since = repairs.now() - timedelta(hours=section.window_hours)
    baseline = repairs.sample(since)
    found = repairs.signals(since, section.signals)
    begun = [repairs.begin(signal, baseline, name, _board_name(), since) for signal in found]
    return tuple(repair.id for repair in begun if repair is not None)


def _board_name() -> str:
    named, boards = services.settings().repair.board, services.settings().all_boards
    return named or next(iter(boards))


# ---- the machine ------------------------------------------------------------------------------------------------


@task(name="advance repairs", task_run_name="advance repairs")
async def advance_repairs() -> Repaired:
    """Take every open repair as far as it goes now. One look at a time on this machine."""
    with sole(services.settings().root / "run" / "repair", "the factory's repairs"):
        stages: dict[int, str] = {}
        found = await asyncio.to_thread(services.repairs().open)
        for repair in sorted(
            found, key=lambda each: each.stage not in RELEASING
        ):  # what may have to go back comes first
            after = await advance(repair)
            stages[after.id] = f"{after.stage}: {after.outcome or ''} {after.reason}".strip()
        return Repaired(stages=stages, halted=services.repairs().halt_after_rollbacks())


async def advance(repair: Repair) -> Repair:
    """Do stage after stage until the repair ended or waits; what waits, or cannot be done now, says why."""
    repairs = services.repairs()
    while repair.stage != "ended":
        repairs.enter(repair)
        try:
            step = await STAGES[repair.stage](repair)
        except FactoryError as error:
            if not isinstance(error, WorkFailed) or repair.stage in GOING_BACK:
                return _stuck(repair, error)
            step = _giving_up(repair, error)
        if isinstance(step, str):
            return repairs.say(repair, step)
        repair = repairs.advance(repair, step.stage, step.note, **step.changes)
        _log.info("repair=%d stage=%s note=%r", repair.id, repair.stage, step.note)
    return repair


def _giving_up(repair: Repair, error: WorkFailed) -> Step:
    """Before anything was merged there is only a pull request to close; after that, all of it is taken back."""
    outcome: Ending = "refused" if isinstance(error, Refused) else "failed"
    changes = {"outcome": outcome, "reason": str(error)}
    if repair.stage in ("prepare", "switch", "watch"):
        return Step(stage="take-back", note=str(error), changes=changes | {"outcome": "rolled-back"})
    return Step(stage="close", note=str(error), changes=changes)


def _stuck(repair: Repair, error: FactoryError) -> Repair:
    """A fault of machines or services: the stage is tried again. People hear at once of a rollback that does not get on."""
    _log.warning("repair=%d stage=%s outcome=stuck reason=%r", repair.id, repair.stage, str(error))
    if repair.stage in GOING_BACK:
        _tell(repair, f"Rolling back repair {repair.id} does not get on", str(error))
    return services.repairs().say(repair, str(error))


def _tell(repair: Repair, title: str, text: str) -> None:
    notify(services.settings().notify, title, f"{text}\n{repair.signature}", key=f"repair:{repair.id}:{repair.stage}")


# ---- ticket and work ----------------------------------------------------------------------------------------------


async def _found(repair: Repair) -> Step:
    return Step(stage="ticket", note=f"{repair.baseline.counts.get(repair.signature, 0)} time(s)")


async def _ticket(repair: Repair) -> Step:
    """The marker makes it one ticket, however often this is done."""
    ticket = await asyncio.to_thread(_create, repair)
    return Step(stage="work", note=ticket.key, changes={"ticket": ticket.key, "branch": branch_name(ticket.key)})


def _create(repair: Repair) -> Ticket:
    labels = (*_LABELS, f"repo:{repair.repository}", *services.board_section(repair.board).required_labels)
    title = f"Failure {repair.id} of our own code: {repair.error.partition(':')[0][:60]}"  # tests are named after it
    return _board(repair).create(title, ticket_text(repair), marker=f"repair-{repair.id}", labels=labels)


def ticket_text(repair: Repair) -> str:
    """What agents are told, written by code. The error's own words are data, in a fence that nothing in them can end."""
    times = repair.baseline.counts.get(repair.signature, 0)
    data = "\n".join([repair.error[:_SHOWN_CHARS], "", *(line[:300] for line in repair.frames)])
    fence = "`" * (max((len(run) for run in re.findall(r"`+", data)), default=2) + 1)
    where = repair.frames[-1].partition(": ")[0] if repair.frames else "our own code"
    return (
        f"This error of our own code came {times} time(s) in {repair.baseline.runs} run(s): an exception that nothing expected, "
        f"raised at `{where}`.\n\nFix its cause where it is raised, or where the bad value comes from, and add a test that fails "
        f"without the fix. Do not catch the error to hide it. Keep the change small.\n\nError and our own lines of its traceback, "
        f"as data:\n\n{fence}text\n{data}\n{fence}\n"
    )


async def _work(repair: Repair) -> Step | str:
    """The dispatcher hands the ticket out like any other; here it is only seen how that ends."""
    return await asyncio.to_thread(_worked, repair)


def _worked(repair: Repair) -> Step | str:
    claim = services.claims().find(repair.board, _known(repair.ticket))
    if claim is not None and claim.state in ("claimed", "running"):
        return "its ticket is being worked on"
    pull = services.forge(repair.repository).find(_known(repair.branch))
    if pull is not None and pull.state == "open":
        effort = services.repairs().effort(repair.board, _known(repair.ticket))
        return Step(stage="gates", note=pull.url, changes={"effort": effort})
    if pull is not None:
        raise WorkFailed(f"its pull request was {pull.state} by somebody else")
    states = services.board_section(repair.board).states
    found = _board(repair).tickets_by_keys([_known(repair.ticket)])
    if not found or found[0].closed or found[0].state.casefold() == states.rejected.casefold():
        raise WorkFailed("the agents found no change that holds")
    if services.repairs().now() - repair.stage_at > WORK_TIME:
        raise WorkFailed(f"there is no pull request after {WORK_TIME.total_seconds() / 3600:.0f} hours")
    return "its ticket waits to be worked on"


# ---- gates --------------------------------------------------------------------------------------------------------


async def _gates(repair: Repair) -> Step | str:
    return await asyncio.to_thread(_passed, repair)


def _passed(repair: Repair) -> Step | str:
    """The computed diff of the branch against where it left the base branch, and the very commit that would be released."""
    mirror, remote, base_branch = fetched(services.settings())
    branch = _known(repair.branch)
    tips = mirror.take(remote, [base_branch, branch])
    if branch not in tips:
        raise WorkFailed(f"the branch {branch!r} is gone")
    base, head = tips[base_branch], tips[branch]
    start = mirror.merge_base(base, head)
    if start is None:
        raise Refused("the branch has nothing in common with the base branch")
    paths, reasons = gate(mirror, start, head, services.settings().repair)
    if reasons:
        raise Refused(" ".join(reasons))
    other = sharing(paths, services.repairs().open(), repair.id)
    if other is not None:
        return f"repair {other.id} changes one of its files, too, and comes first"
    merged = mirror.merge(base, head)
    if merged.conflicts:
        said = f"it collides with the base branch in {', '.join(merged.conflicts[:3])}"
        if services.repairs().now() - repair.stage_at > WORK_TIME:
            raise WorkFailed(said)
        return said
    new = mirror.commit_tree(merged.tree, (base, head), f"Merge branch {branch!r}\n\nRepairs {repair.signature}"[:500])
    landed, reasons = gate(
        mirror, base, new, services.settings().repair
    )  # merging follows what the base branch renamed
    if landed and reasons:
        raise Refused(" ".join(reasons))
    paths = tuple(sorted({*paths, *landed}))
    changes: dict[str, Any] = {"paths": paths, "base_sha": base, "head_sha": head, "new_sha": new}
    if head != repair.head_sha:  # what a person approved is another change
        changes["approved_by"] = None
    return Step(stage="approval", note=f"{len(paths)} file(s)", changes=changes)


def gate(mirror: Mirror, base: str, head: str, section: RepairSection) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The paths a change touches, old names too, and why it may not be merged, one sentence each (none: it may)."""
    files = mirror.changed(base, head)
    blocked = _with_linked((*BLOCKED, *section.blocked_paths), {**mirror.links(base), **mirror.links(head)})
    reasons = list(
        mirror.violations(base, head, protected_paths=blocked, max_files=section.max_files, max_lines=section.max_lines)
    )
    for file in files:
        if "120000" in (file.mode, file.previous_mode) and file.mode != "120000":
            reasons.append(f"{file.path!r} was a symbolic link.")
        elif file.status in ("modified", "renamed", "retyped") and file.mode != file.previous_mode:
            reasons.append(f"{file.path!r} changes its mode.")
        elif file.mode == "100755" and file.status == "added":
            reasons.append(f"{file.path!r} is a new program.")
        elif file.binary or _UNCOUNTED.search(mirror.read(head, file.path) or b""):
            reasons.append(
                f"{file.path!r} is binary, too large or has bare carriage returns: its lines cannot be counted."
            )
    if not files:
        reasons.append("The change is empty.")
    names = {name for file in files for name in (file.previous, file.path) if name}
    return tuple(sorted(names)), tuple(reasons)


def _with_linked(blocked: Sequence[str], links: Mapping[str, str]) -> list[str]:
    """The patterns, and what links under them point at, link by link."""
    patterns = list(blocked)
    for pattern in patterns:
        for link, target in links.items():
            if covers(pattern, link) or covers(pattern, f"{link}/"):
                patterns += [each for each in [glob.escape(target)] if each not in patterns]
    return patterns


async def _approval(repair: Repair) -> Step | str:
    """Effort that is not known counts as high."""
    limit = services.settings().repair.approve_from_effort
    if repair.approved_by is None and (repair.effort is None or repair.effort >= limit):
        said = f"its effort ({repair.effort or 'not known'}) needs a person: `darkfactory repair approve {repair.id}`"
        _tell(repair, f"Repair {repair.id} waits for approval", said)
        return said
    return Step(stage="checks", note=f"approved by {repair.approved_by}" if repair.approved_by else "")


# ---- checks and merge ---------------------------------------------------------------------------------------------


async def _checks(repair: Repair) -> Step | str:
    """The forge's checks where it has any, else the repository's own test command on the merged commit."""
    checks = await asyncio.to_thread(services.forge(repair.repository).checks, _known(repair.branch))
    if any(check.state == "failed" for check in checks):
        raise WorkFailed(f"the check {next(c.name for c in checks if c.state == 'failed')!r} failed")
    if any(check.state == "pending" for check in checks):
        return "its checks run"
    if checks:
        return Step(stage="merge", note=f"{len(checks)} check(s) of the forge passed")
    report = await _run_checks(repair)
    if report.error or report.exit_code != 0:
        raise WorkFailed(f"the repository's own checks fail on it: {report.error or report.output[-500:]}")
    return Step(stage="merge", note=f"{report.command}: {len(report.ids('passed'))} passed")


async def _run_checks(repair: Repair) -> TestReport:
    """In a fresh checkout of the very commit that becomes the release, by the policy of the commit before it."""
    mirror = (await asyncio.to_thread(fetched, services.settings()))[0]
    policy = read_policy(mirror, _known(repair.base_sha), detect_policy)
    checkout = mirror.worktree(services.worktrees(), f"repair-{repair.id}", "checks", _known(repair.new_sha))
    async with prepared(checkout, policy, services.sandbox()) as worktree:
        return await run_tests(services.sandbox(), worktree.path, policy)


async def _merge(repair: Repair) -> Step | str:
    return await asyncio.to_thread(_merged, repair)


def _merged(repair: Repair) -> Step | str:
    """Put the commit that was checked onto the base branch. When base or branch moved, everything is gated anew."""
    mirror, remote, base_branch = fetched(services.settings())
    tips = mirror.take(remote, [base_branch, _known(repair.branch)])
    base, new = tips[base_branch], _known(repair.new_sha)
    if not mirror.contains(base, new):
        if (base, tips.get(_known(repair.branch))) != (repair.base_sha, repair.head_sha):
            return Step(stage="gates", note="the base branch or the branch moved on")
        if (halted := services.repairs().halt_after_rollbacks()) is not None:
            return halted
        busy = next((r.id for r in services.repairs().open() if r.id < repair.id and r.stage in RELEASING), None)
        busy = busy or next(
            (r.id for r in services.repairs().open() if r.id != repair.id and r.stage in RELEASING[1:]), None
        )
        if busy is not None:
            return f"repair {busy} is being released; one at a time"
        mirror.advance(remote, base_branch, new, base)
    services.forge(repair.repository).merge(_known(repair.branch), _known(repair.head_sha))
    return Step(stage="prepare", note=f"{base_branch} is {new[:12]}")


# ---- release --------------------------------------------------------------------------------------------------------


async def _prepare(repair: Repair) -> Step:
    """The release is whole and proved on this machine, and the one before it is written down, before anything is switched."""
    return await asyncio.to_thread(_made_ready, repair)


def _made_ready(repair: Repair) -> Step:
    settings, repairs, new = services.settings(), services.repairs(), _known(repair.new_sha)
    mirror, _, _ = fetched(settings)
    Releases(settings.root).add(new, lambda: mirror.tar(new, new), settings.repair.smoke)
    known = repairs.sample(repairs.now() - timedelta(hours=settings.repair.window_hours)).counts  # since it began, too
    baseline = repair.baseline.model_copy(update={"counts": known | repair.baseline.counts})
    return Step(stage="switch", changes={"old_release": repairs.state().wanted, "baseline": baseline})


async def _switch(repair: Repair) -> Step | str:
    return await asyncio.to_thread(_switched, repair)


def _switched(repair: Repair) -> Step | str:
    """Every node that lives takes its new runs from the release; what runs ends on the one before."""
    repairs, new, old = services.repairs(), _known(repair.new_sha), _known(repair.old_release)
    if repairs.state().wanted != new:
        repairs.want(new, previous=old)
    problem = follow(services.settings(), repairs.state())
    behind = _behind(new)
    if not behind and not problem:
        return Step(
            stage="watch", note=f"{old[:12]} -> {new[:12]}", changes={"switched_at": repairs.now(), "reason": ""}
        )
    if refusal(new) in (problem, *behind.values()):
        raise WorkFailed(f"somebody, or a machine on which it does not start, said no: {refusal(new)}")
    problem = problem or f"node(s) {', '.join(behind)} are not on it: {'; '.join(behind.values())}"
    if repairs.now() - repair.stage_at > SWITCH_TIME:
        raise WorkFailed(f"it was not taken everywhere in ten minutes: {problem}")
    return problem


def _behind(release: str) -> dict[str, str]:
    """The nodes that live and do not run the release yet, with what they say about it."""
    told = {each.node: each for each in services.repairs().nodes()}
    living = [node.name for node in services.fleet().nodes() if node.alive and node.state == "active"]
    return {
        name: told[name].problem if name in told else "it has not said"
        for name in living
        if name not in told or told[name].release != release
    }


async def _watch(repair: Repair) -> Step | str:
    return await asyncio.to_thread(_watched, repair)


def _watched(repair: Repair) -> Step | str:
    repairs, new = services.repairs(), _known(repair.new_sha)
    switched: datetime = _known(repair.switched_at)
    if new in Releases(services.settings().root).book.refused or repairs.state().wanted != new:
        raise WorkFailed("somebody, or a machine on which it does not start, went back to the release before")
    if behind := {name: said for name, said in _behind(new).items() if said}:
        raise WorkFailed(f"node(s) {', '.join(behind)} left it: {'; '.join(behind.values())}")
    after = repairs.sample(switched, new)
    seconds = (repairs.now() - switched).total_seconds()
    due, reason = judge_release(repair.signature, repair.baseline, after, seconds, services.settings().repair)
    if due == "wait":
        return reason
    if due == "keep":
        return Step(stage="close", note=reason, changes={"outcome": "kept", "reason": reason, "watched": after})
    changes = {"outcome": "rolled-back", "reason": reason, "watched": after}
    return Step(stage="take-back", note=reason, changes=changes)


def judge_release(
    signature: str, before: Sample, after: Sample, seconds: float, section: RepairSection
) -> tuple[Due, str]:
    """Whether a release helped. `seconds` is how long it has run. Knows nothing but its arguments.

    Kept only on proof: nothing ended, so nothing is known, so it is rolled back. A failure that comes as often as one that
    is worth a repair decides at once.
    """
    fresh = [name for name in after.top if name not in before.counts]
    for name in (*fresh, signature):
        if after.counts.get(name, 0) >= section.signals:
            return "roll-back", f"{name!r} came {after.counts[name]} times in {after.runs} run(s)"
    if seconds < section.watch_seconds and after.runs < section.watch_runs:
        return "wait", f"watched for {seconds:.0f} s, {after.runs} run(s) ended"
    if after.runs == 0:
        return "roll-back", "no run ended on it, so nothing is proved"
    if fresh:
        return "roll-back", f"{fresh[0]!r} is new"
    if after.rate(signature) >= BEST_RATIO * before.rate(signature):
        return (
            "roll-back",
            f"the failure still comes in {after.rate(signature):.0%} of the runs ({before.rate(signature):.0%} before)",
        )
    if after.failure_rate > before.failure_rate:
        return "roll-back", f"{after.failure_rate:.0%} of all runs fail, {before.failure_rate:.0%} did before"
    said = (
        f"{after.rate(signature):.0%} of {after.runs} run(s) fail so, {before.rate(signature):.0%} of {before.runs} did"
    )
    return "keep", said


# ---- back again, and the end ----------------------------------------------------------------------------------------


async def _take_back(repair: Repair) -> Step | str:
    return await asyncio.to_thread(_taken_back, repair)


def _taken_back(repair: Repair) -> Step | str:
    """Every node goes back; one that does not say so is not waited for longer than ten minutes: it hears when it can."""
    repairs, old = services.repairs(), repair.old_release
    if old is None:  # it never got as far as a switch
        return Step(stage="revert")
    if repairs.state().wanted == repair.new_sha:
        repairs.want(old, previous=old)
    wanted = repairs.state()
    problem = follow(services.settings(), wanted)
    behind = _behind(wanted.wanted)
    if problem:
        raise Unreachable(problem)
    if behind and repairs.now() - repair.stage_at < SWITCH_TIME:
        return f"node(s) {', '.join(behind)} are not back yet"
    return Step(stage="revert", note=f"{_known(repair.new_sha)[:12]} -> {wanted.wanted[:12]}")


async def _revert(repair: Repair) -> Step:
    note = await asyncio.to_thread(_reverted, repair)
    return Step(stage="close", note=note)


def _reverted(repair: Repair) -> str:
    """A commit on the base branch that undoes the change; what came after it stays. The same again changes nothing."""
    mirror, remote, base_branch = fetched(services.settings())
    tip, new, before = mirror.take(remote, [base_branch])[base_branch], _known(repair.new_sha), _known(repair.base_sha)
    undo = mirror.commit_tree(before, (new,), f"Revert repair {repair.id}\n\n{repair.reason}"[:500])
    if mirror.contains(tip, undo) or not mirror.contains(tip, new):
        return "nothing to revert"
    if tip != new:
        merged = mirror.merge(tip, undo)
        if merged.conflicts:
            _tell(
                repair, f"Repair {repair.id} has to be reverted by hand", f"{new} collides in {merged.conflicts[0]!r}"
            )
            return f"it has to be reverted by hand: later commits collide in {merged.conflicts[0]!r}"
        undo = mirror.commit_tree(merged.tree, (tip, undo), f"Merge the revert of repair {repair.id}")
    mirror.advance(remote, base_branch, undo, tip)
    return f"{base_branch} is {undo[:12]}"


async def _close(repair: Repair) -> Step:
    await asyncio.to_thread(_closed, repair)
    changes: dict[str, Any] = {}
    if repair.outcome != "kept":
        first = services.settings().repair.cooldown_seconds
        changes["cooldown_until"] = services.repairs().cooldown(repair.signature, first)
    return Step(stage="ended", note=repair.reason, changes=changes)


def _closed(repair: Repair) -> None:
    """Tell pull request, ticket and people how it ended."""
    if repair.ticket is not None:
        text = f"Repair {repair.id} was {repair.outcome}: {repair.reason}"
        if repair.outcome != "kept":
            services.forge(repair.repository).close(_known(repair.branch), text)
        _say_on_ticket(repair, text)
    _tell(repair, f"Repair {repair.id}: {repair.outcome}", repair.reason)
    since = services.repairs().now() - timedelta(hours=6)
    if repair.outcome == "refused" and (number := services.repairs().ended_so("refused", since) + 1) > REFUSALS:
        _tell(
            repair,
            "Repairs are refused again and again",
            f"{number} within six hours; look at `darkfactory repair status`",
        )


def _say_on_ticket(repair: Repair, text: str) -> None:
    board, key = _board(repair), _known(repair.ticket)
    if not board.tickets_by_keys([key]):
        return
    board.comment(key, text, marker=f"repair-{repair.id}-ended")
    if repair.outcome != "kept":
        board.move(key, services.board_section(repair.board).states.rejected)


def _board(repair: Repair) -> Board:
    return services.board(repair.board)


def _known(value: Any) -> Any:
    """A field that an earlier stage filled in."""
    if value is None:
        raise WorkFailed("this repair lacks what an earlier stage writes; look at its journal")
    return value


STAGES: dict[Stage, Callable[[Repair], Awaitable[Step | str]]] = {
    "found": _found, "ticket": _ticket, "work": _work, "gates": _gates, "approval": _approval, "checks": _checks,
    "merge": _merge, "prepare": _prepare, "switch": _switch, "watch": _watch, "take-back": _take_back,
    "revert": _revert, "close": _close,
}  # fmt: skip
"""What is done in each stage. A text instead of a step says why it waits; `WorkFailed` ends or takes back; every other
error is tried again at the next look."""


# ---- by hand --------------------------------------------------------------------------------------------------------


def waiting_work() -> list[Repair]:
    """The repairs whose tickets nobody works on."""
    held = {(claim.board, claim.ticket) for claim in services.claims().held()}
    return [r for r in services.repairs().open() if r.stage == "work" and (r.board, r.ticket) not in held]


def note_failure(repair: Repair, error: FactoryError) -> None:
    """How the work on a repair's ticket failed in this process: it ends with that, unless a machine or service was at fault."""
    if isinstance(error, WorkFailed):
        step = _giving_up(repair, error)
        services.repairs().advance(repair, step.stage, step.note, **step.changes)
    else:
        services.repairs().say(repair, str(error))


def is_enabled() -> bool:
    return services.settings().repair.enabled
