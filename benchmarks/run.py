"""Measure the factory on the benchmark tickets, beside mini-swe-agent on the same model, endpoint and tickets.

    python -m benchmarks.run                    # all tickets, Darkfactory and mini-swe-agent, whatever model is configured
    python -m benchmarks.run --only waypost-01 --only timespan-03 --mini-every 0
    python -m benchmarks.run --part coding      # without plan, threats, review and the judge's opinion

Results are appended to `<folder>/results.jsonl` as they come, and tickets that are there already are not run again, so a
stopped measurement goes on. The table is printed from that file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.mini_swe import STEP_LIMIT, bench_home, install_mini, run_mini
from benchmarks.tickets import BenchTicket, judge, load_tickets, materialise, passes
from deployments.engine import choose_engine
from infra.git import Mirror
from infra.llm import Usage
from infra.llm.opening import open_model
from infra.sandbox import open_sandbox
from infra.settings import Settings, load_settings


async def run_factory(ticket: BenchTicket, folder: Path, part: str) -> dict[str, Any]:
    """Work one ticket as `darkfactory run` does. `part` `coding` leaves out the roles that only advise."""
    from flows.ticket import work_ticket
    from tasks import services

    checkout = materialise(ticket, folder / "repository")
    board = services.settings().board
    assert board is not None
    board.mkdir(parents=True, exist_ok=True)
    (board / f"{ticket.key}.md").write_text(ticket.text)
    started = time.monotonic()
    decision: str
    if part == "full":
        outcome = await work_ticket(ticket.key, str(checkout))
        decision, head, rounds = outcome.decision, outcome.evidence.head_sha if outcome.evidence else "", outcome.rounds
    else:
        decision, head, rounds = await code_only(ticket.key, str(checkout))
    seconds = time.monotonic() - started
    usage = await asyncio.to_thread(services.ledger().usage_of, ticket.key)
    solved = await _judged(ticket, checkout, head, folder)
    return _row("darkfactory", ticket, solved, usage, seconds, f"{decision} in round {rounds}")


async def code_only(key: str, repository: str) -> tuple[str, str, int]:
    """The coding half of `work_ticket`: brief, tests, code, evidence and the judge's rule, in rounds."""
    from prefect import flow

    from flows.ticket import work
    from tasks.attempts import close
    from tasks.collecting import collect
    from tasks.holding import holding, take_hold
    from tasks.intake import alone, find_repository, find_ticket, take_in, write_brief
    from tasks.judging import decide
    from tasks.measuring import measure, rank
    from tasks.models import Audit, Feedback, Job, Outcome, Plan, TestChange, WorkUnit
    from tasks.testing import credible_tests

    @flow(name="benchmark-ticket", flow_run_name=key)
    async def benchmark_ticket() -> tuple[str, str, int]:
        found = find_ticket(key)
        with alone(found):
            claim = take_hold(found, find_repository(found, repository)[0], None)
            async with holding(claim):
                job = await take_in(found, repository, claim, False)
                return await coding_rounds(job)

    async def coding_rounds(job: Job) -> tuple[str, str, int]:
        brief = await write_brief(job)
        plan = Plan(summary=job.ticket.title, effort=1, units=(WorkUnit(id="u1", title=job.ticket.title),))
        tests: tuple[TestChange, ...] = (brief.ticket_tests,) if brief.ticket_tests else ()
        measured = []
        for number in range(1, job.max_rounds + 1):
            changes, tests, _ = await work(job, brief, plan, number, tests, Feedback(), (Audit(auditor=1),))
            candidate = await collect(job, 1, number, changes[0], tests)
            measured.append((candidate, await measure(job, brief, candidate, number)))
            candidate, evidence = max(measured, key=lambda pair: rank(*pair))
            last = number == job.max_rounds
            tests = credible_tests(tests, evidence, last_round=last)
            if tests != candidate.tests:
                candidate = await collect(job, 1, number, candidate.changes, tests)
                evidence = await measure(job, brief, candidate, number)
            verdict = decide(evidence, candidate, None, capable=False, last_round=last)
            if verdict.decision != "REVISE":
                break
        await close(job, Outcome(ticket=key, decision=verdict.decision, reasons=verdict.reasons))
        return verdict.decision, candidate.head_sha, number

    return await benchmark_ticket()


async def _judged(ticket: BenchTicket, checkout: Path, head: str, folder: Path) -> bool:
    """Whether the candidate commit passes the hidden tests, whatever the factory's own verdict was."""
    from tasks import services
    from tasks.intake import repository_name

    if not head:
        return False
    mirror = Mirror(services.settings().root / "repos" / f"{repository_name(checkout)}.git")
    with mirror.worktree(folder / "judged", ticket.key, "judged", head) as worktree:
        return passes(await judge(ticket, worktree.path, services.sandbox()), ticket)


async def run_peer(ticket: BenchTicket, folder: Path, url: str, wall_seconds: float) -> dict[str, Any]:
    """mini-swe-agent on the same ticket, stopped after `wall_seconds` or its step limit."""
    sandbox = open_sandbox(load_settings())
    venv = await asyncio.to_thread(install_mini, bench_home())
    done = await run_mini(ticket, folder, sandbox=sandbox, venv=venv, model_url=url, wall_seconds=wall_seconds)
    solved = passes(await judge(ticket, done.checkout, sandbox), ticket)
    return _row("mini-swe-agent", ticket, solved, done.usage, done.usage.seconds, done.exit_status)


def _row(agent: str, ticket: BenchTicket, solved: bool, usage: Usage, seconds: float, ending: str) -> dict[str, Any]:
    return {
        "agent": agent,
        "ticket": ticket.key,
        "kind": ticket.kind,
        "difficulty": ticket.difficulty,
        "solved": solved,
        "ending": ending,
        "seconds": round(seconds, 1),
        "calls": usage.calls,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line for each agent (all tickets, then by kind). Tokens, seconds and calls are means per ticket."""
    lines = [
        "| agent | tickets | n | solved | accepted | accepted but wrong | calls | prompt tokens | cached | written | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for agent in dict.fromkeys(row["agent"] for row in rows):
        own = [row for row in rows if row["agent"] == agent]
        lines.append(_line(agent, "all", own))
        lines += [
            _line(agent, kind, [r for r in own if r["kind"] == kind]) for kind in sorted({r["kind"] for r in own})
        ]
    return "\n".join(lines)


def _line(agent: str, what: str, rows: list[dict[str, Any]]) -> str:
    n = len(rows)
    accepted = [r for r in rows if r["ending"].startswith(("ACCEPT", "Submitted"))]
    prompt = sum(r["prompt_tokens"] for r in rows)
    cached = sum(r["cached_tokens"] for r in rows) / prompt if prompt else 0.0
    return (
        f"| {agent} | {what} | {n} | {sum(r['solved'] for r in rows)} ({sum(r['solved'] for r in rows) / n:.0%}) "
        f"| {len(accepted)} | {sum(not r['solved'] for r in accepted)} | {sum(r['calls'] for r in rows) / n:.1f} "
        f"| {prompt / n:.0f} | {cached:.0%} | {sum(r['completion_tokens'] for r in rows) / n:.0f} "
        f"| {sum(r['seconds'] for r in rows) / n:.0f} |"
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def measure_all(
    tickets: Iterable[BenchTicket], folder: Path, part: str, settings: Settings, *, mini_every: int
) -> None:
    """Each ticket by both agents one after the other, so that both meet the same load of the machine."""
    results = folder / "results.jsonl"
    for number, ticket in enumerate(tickets):
        mini = mini_every > 0 and number % mini_every == 0
        have = {(row["agent"], row["ticket"]) for row in read_rows(results)}
        wall = 0.0
        for agent in ("darkfactory", *(("mini-swe-agent",) if mini else ())):
            if (agent, ticket.key) in have:
                continue
            place = folder / agent / ticket.key
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            if agent == "darkfactory":
                row = await run_factory(ticket, place, part)
            else:
                wall = max(120.0, next(r["seconds"] for r in read_rows(results) if r["ticket"] == ticket.key))
                row = await run_peer(ticket, place, await endpoint(), wall)
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


async def endpoint() -> str:
    """The OpenAI-compatible base URL behind the configured model."""
    from infra.llm.local import read_record
    from tasks import services

    settings = services.settings()
    if settings.model == "embedded":
        await (await services.model()).check()
        record = read_record(settings.root)
        return f"{record.url}/v1" if record else ""
    return settings.model_url or ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="a ticket key; may be repeated")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N tickets, evenly over the repositories")
    parser.add_argument("--part", choices=["full", "coding"], default="full")
    parser.add_argument(
        "--mini-every", type=int, default=1, metavar="N", help="mini-swe-agent on every Nth ticket; 0: never"
    )
    parser.add_argument("--folder", type=Path, default=bench_home() / "run")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("DARKFACTORY_BOARD", str(folder / "board"))
    os.environ.setdefault("DARKFACTORY_MEMORY", '{"enabled": false}')  # what one ticket taught must not help the next
    settings = load_settings()
    open_model(settings)
    engine = choose_engine(settings)
    engine.start()
    try:
        engine.wait()
        # round by round over the repositories, so that a stopped measurement has met all of them
        tickets = sorted(load_tickets(tuple(arguments.only)), key=lambda t: t.key.split("-")[::-1])[: arguments.first]
        asyncio.run(measure_all(tickets, folder, arguments.part, settings, mini_every=arguments.mini_every))
    finally:
        engine.stop()
    print(
        f"\nModel {settings.model}, part {arguments.part}, mini-swe-agent: at most {STEP_LIMIT} calls and the same wall time (at least 120 s).\n"
    )
    print(table(read_rows(folder / "results.jsonl")))


if __name__ == "__main__":
    main()
