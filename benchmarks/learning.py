"""Does the factory learn? Tickets whose failures repeat, with memory and lessons on and with them off.

    python -m benchmarks.learning                      # 18 tickets twice, whatever model is configured
    python -m benchmarks.learning --part full          # every role, as `darkfactory run` does; several times as long
    python -m benchmarks.learning --model scripted     # written answers: shows that the path works, nothing about a model

Every arm has a home of its own, the same tickets in the same order, the same seed, one round and one sample, so that the
first try decides. A ticket is solved when the judge's rule accepts: its examples turn green and no test breaks. The first
three tickets of a rule come before anything about it can have been learned. Results are appended to
`<folder>/<arm>/results.jsonl`; tickets that are there already are not run again, so a stopped measurement goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from benchmarks.mini_swe import bench_home
from benchmarks.repeating import RULES, Repeating, files, in_order
from benchmarks.run import read_rows
from benchmarks.tickets import commit_all
from deployments.engine import choose_engine
from infra.lessons import EQUAL_FAILURES
from infra.llm.local import stop_server
from infra.llm.opening import open_model
from infra.llm.scripted import Rule, ScriptedModel, on
from infra.memory.client import open_memory
from infra.postgres import stop_postgres
from infra.settings import Settings, load_settings

Arm = Literal["off", "on"]
ARMS: tuple[Arm, ...] = get_args(Arm)
SCRIPTED = "scripted"
ARM_SECONDS = 4 * 3600.0
"""Longest one arm may take."""


# ---- one arm, in this process's home -----------------------------------------------------------------------------


async def work_through(
    tickets: Iterable[Repeating], folder: Path, arm: Arm, part: str, mixed: bool = False
) -> list[dict[str, Any]]:
    """Work the tickets one after the other; one row each, also appended to `results.jsonl` in `folder`."""
    from tasks import services

    folder.mkdir(parents=True, exist_ok=True)
    repository, results = _repository(folder), folder / "results.jsonl"
    board = services.settings().board or services.settings().root / "board"
    board.mkdir(parents=True, exist_ok=True)
    for ticket in tickets:
        key = f"{arm}-{ticket.name.replace('_', '-')}"
        if key not in {row["ticket"] for row in read_rows(results)}:
            (board / f"{key}.md").write_text(ticket.text(mixed))
            row = {"arm": arm, **await _worked(ticket, key, repository, part)}
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), file=sys.stderr, flush=True)
    return read_rows(results)


def _repository(folder: Path) -> Path:
    """The repository that all tickets of an arm start from. Beside its place first: a killed run leaves no half of it."""
    place, draft = folder / "shop", folder / f"shop.{os.getpid()}"
    if not place.exists():
        for path, text in files().items():
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            (draft / path).write_text(text)
        commit_all(draft, "Open the shop")
        draft.rename(place)
    return place


async def _worked(ticket: Repeating, key: str, repository: Path, part: str) -> dict[str, Any]:
    from flows.ticket import work_ticket
    from tasks import services

    before, started = await asyncio.to_thread(_told), time.monotonic()
    outcome = await (work_ticket if part == "full" else coding_part())(key, str(repository))
    usage = await asyncio.to_thread(services.ledger().usage_of, key)
    broken = outcome.evidence.broken if outcome.evidence else ()
    return {
        "ticket": key,
        "rule": ticket.rule.test,
        "position": ticket.position,
        "solved": outcome.decision == "ACCEPT",
        "kept_rule": not any(name.endswith(f"::{ticket.rule.test}") for name in broken),
        "reasons": list(outcome.reasons)[:3],
        "corrections_told": await asyncio.to_thread(_told) - before,
        "seconds": round(time.monotonic() - started, 1),
        "calls": usage.calls,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }


def _told() -> int:
    from tasks import services

    return sum(each.applied for each in services.lessons().corrections())


def coding_part() -> Callable[[str, str], Any]:
    """A flow like `work_ticket` without the roles that only advise: brief (with memory), corrections, coder, evidence, the
    judge's rule, and what is learned. The plan is the ticket itself, of effort 1; the ticket's examples are the tests."""
    from prefect import flow

    from flows.ticket import code
    from tasks.attempts import close
    from tasks.collecting import collect
    from tasks.holding import holding, take_hold
    from tasks.intake import alone, find_repository, find_ticket, take_in, write_brief
    from tasks.judging import decide
    from tasks.lessons import learn, learning_from_failure, settle, with_corrections
    from tasks.measuring import measure
    from tasks.memory import remember
    from tasks.models import Brief, Feedback, Job, Outcome, Plan, Result, Review, WorkUnit

    @flow(name="benchmark-learning", flow_run_name="{key}")
    async def work(key: str, repository: str) -> Outcome:
        found = find_ticket(key)
        with alone(found):
            claim = take_hold(found, find_repository(found, repository)[0], None)
            async with holding(claim):
                job = await take_in(found, repository, claim, False)
                brief = await write_brief(job)
                plan = Plan(summary=job.ticket.title, effort=1, units=(WorkUnit(id="u1", title=job.ticket.title),))
                brief = await with_corrections(job, brief, plan)
                async with learning_from_failure(job, plan):
                    result = await one_try(job, brief, plan)
                await settle(job, result)
                outcome = Outcome(ticket=key, decision=result.verdict.decision, reasons=result.verdict.reasons,
                                  evidence=result.evidence, rounds=1)  # fmt: skip
                await close(job, outcome)
                await remember(job, outcome)
                return outcome

    async def one_try(job: Job, brief: Brief, plan: Plan) -> Result:
        tests = (brief.ticket_tests,) if brief.ticket_tests else ()
        (changes,) = await code(job, brief, plan, 1, 1, tests, Feedback())
        candidate = await collect(job, 1, 1, changes, tests)
        evidence = await measure(job, brief, candidate, 1)
        await learn(job, plan, evidence)
        verdict = decide(evidence, candidate, None, capable=False, last_round=True)
        return Result(candidate=candidate, evidence=evidence, review=Review(), verdict=verdict, rounds=1)

    return work


def run_arm(tickets: Sequence[Repeating], folder: Path, arm: Arm, part: str, mixed: bool) -> None:
    """The arm as a process of its own runs it: engine, tickets, and every server of this home ended."""
    settings = load_settings()
    open_model(settings)
    atexit.register(_stop_all, settings)  # before Prefect's own, which still talks to its server when it ends
    engine = choose_engine(settings)
    atexit.register(engine.stop)
    engine.start()
    engine.wait()
    asyncio.run(work_through(tickets, folder, arm, part, mixed))


def _stop_all(settings: Settings) -> None:
    stop_server(settings.root)
    if settings.memory.enabled:
        open_memory(settings).stop()
    stop_postgres(settings.root)


# ---- both arms ---------------------------------------------------------------------------------------------------


def arm_environment(folder: Path, arm: Arm, seed: int, more: dict[str, str]) -> dict[str, str]:
    """What an arm's process is started with. Only memory and corrections differ."""
    is_on = arm == "on"
    return {
        **os.environ,
        "DARKFACTORY_HOME": str(folder / arm / "home"),
        "DARKFACTORY_BOARD": str(folder / arm / "board"),
        "DARKFACTORY_MEMORY": json.dumps({"enabled": is_on}),
        "DARKFACTORY_LEARNING": json.dumps({"corrections": is_on}),
        "DARKFACTORY_MAX_ROUNDS": "1",
        "DARKFACTORY_MAX_SAMPLES": "1",
        "DARKFACTORY_SEED": str(seed),
        **more,
    }


def scripted_rules(tickets: Iterable[Repeating]) -> list[Rule]:
    """A model that does what comes naturally, unless its prompt quotes the rule: it stands for no model in the world."""
    rules = []
    for ticket in tickets:
        asked, quoted = re.escape(ticket.signature), re.escape(ticket.rule.says)
        kept, natural = (f" its body.\n```python\n{ticket.source(body)}```" for body in (ticket.kept, ticket.natural))
        rules += [on(f"{asked}.*{quoted}", kept, regex=True), on(asked, natural, regex=True)]
    return rules


def table(rows: Sequence[dict[str, Any]], said: str) -> str:
    """Markdown: solved by arm and position, then by rule, then what it took."""
    lines = [
        said,
        "",
        f"| memory and lessons | tickets | solved | 1st-{EQUAL_FAILURES}rd of a rule | from the {EQUAL_FAILURES + 1}th on | rule kept from the {EQUAL_FAILURES + 1}th on | corrections told | calls | seconds per ticket |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        late = [row for row in own if row["position"] > EQUAL_FAILURES]
        early = [row for row in own if row["position"] <= EQUAL_FAILURES]
        lines.append(
            f"| {arm} | {len(own)} | {_share(own)} | {_share(early)} | {_share(late)} | {_share(late, 'kept_rule')} "
            f"| {sum(row['corrections_told'] for row in own)} | {sum(row['calls'] for row in own)} "
            f"| {sum(row['seconds'] for row in own) / max(len(own), 1):.0f} |"
        )
    lines += ["", f"| rule, from the {EQUAL_FAILURES + 1}th ticket on | off | on |", "|---|---|---|"]
    for rule in dict.fromkeys(row["rule"] for row in rows):
        late = [row for row in rows if row["rule"] == rule and row["position"] > EQUAL_FAILURES]
        lines.append(f"| {rule} | " + " | ".join(_share([r for r in late if r["arm"] == arm]) for arm in ARMS) + " |")
    return "\n".join(lines)


def _share(rows: Sequence[dict[str, Any]], what: str = "solved") -> str:
    yes = sum(bool(row[what]) for row in rows)
    return f"{yes}/{len(rows)} ({yes / len(rows):.0%})" if rows else "-"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["configured", SCRIPTED], default="configured")
    parser.add_argument("--part", choices=["coding", "full"], default="coding")
    parser.add_argument("--each", type=int, default=6, metavar="N", help="tickets of each rule, 1 to 6")
    parser.add_argument("--rules", type=int, default=len(RULES), metavar="N", help=f"rules, 1 to {len(RULES)}")
    parser.add_argument(
        "--mixed", action="store_true", help="one label for all, so that a prompt quotes every correction"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=bench_home() / "learning")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all rows")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    tickets, folder = in_order(given.each, given.rules), given.folder.absolute()
    if given.arm:
        run_arm(tickets, folder / given.arm, given.arm, given.part, given.mixed)
        return 0
    if given.model == SCRIPTED:
        with ScriptedModel(scripted_rules(tickets)) as model:
            endpoint = {"MODEL": f"openai/{SCRIPTED}", "MODEL_URL": model.openai_url, "MODEL_TIER": "small"}
            both(given, folder, {f"DARKFACTORY_{name}": value for name, value in endpoint.items()})
    else:
        both(given, folder, {})
    rows = [row for arm in ARMS for row in read_rows(folder / arm / "results.jsonl")]
    name = SCRIPTED if given.model == SCRIPTED else load_settings().model
    said = f"Model {name}, part {given.part}, seed {given.seed}{', mixed' if given.mixed else ''}; solved of tried."
    print(json.dumps({"run": said, "rows": rows}) if given.json else table(rows, said))
    return 0


def both(given: argparse.Namespace, folder: Path, more: dict[str, str]) -> None:
    """Each arm in a process of its own, so that nothing that one has open or cached reaches the other."""
    command = [sys.executable, "-m", "benchmarks.learning", "--folder", str(folder), "--part", given.part]
    command += ["--each", str(given.each), "--rules", str(given.rules), *(["--mixed"] if given.mixed else [])]
    for arm in ARMS:
        environment = arm_environment(folder, arm, given.seed, more)
        subprocess.run([*command, "--arm", arm], env=environment, check=True, timeout=ARM_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
