"""Proof that every ticket is sound: `python -m benchmarks.checks [KEY …]` prints what is wrong and ends with 1.

Sound: the hidden tests fail on the base with the bug (and not while loading) and pass without it; the ordinary tests
pass without it; with the bug some fail for a `failing-test` ticket, and none fails for the others.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from benchmarks.tickets import BenchTicket, file_of_test, judge, judge_correct, load_tickets, materialise, passes
from infra.sandbox import Sandbox, open_sandbox
from infra.settings import load_settings
from infra.test_runners import TestRun


async def complaints(tickets: Iterable[BenchTicket], sandbox: Sandbox) -> list[str]:
    """One sentence per fault, in the order of the tickets; repositories are checked side by side."""
    groups = [list(group) for _, group in groupby(tickets, key=lambda ticket: ticket.repository)]
    found = await asyncio.gather(*(_repository(group, sandbox) for group in groups))
    return [line for lines in found for line in lines]


async def _repository(tickets: list[BenchTicket], sandbox: Sandbox) -> list[str]:
    correct = await judge_correct(tickets, sandbox)
    lines = [line for ticket in tickets for line in await _ticket(ticket, sandbox)]
    if not all(passes(correct, ticket) for ticket in tickets):
        reason = correct.error or correct.output
        lines.append(f"{tickets[0].repository}: tests do not pass on the correct repository: {reason}")
    return lines


async def _ticket(ticket: BenchTicket, sandbox: Sandbox) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="darkfactory-check-") as name:
        buggy = await judge(ticket, materialise(ticket, Path(name) / "base"), sandbox)
    return [f"{ticket.key}: {fault}" for fault in _with_bug(ticket, buggy)]


def _with_bug(ticket: BenchTicket, run: TestRun) -> list[str]:
    if run.error:
        return [f"the tests do not run with the bug: {run.error}"]
    failed = {name: result for name, result in run.results.items() if result.outcome == "failed"}
    hidden = [name for name in failed if file_of_test(name) in ticket.hidden_tests()]
    ordinary = sorted(set(failed) - set(hidden))
    faults = []
    if not hidden:
        faults.append("no hidden test fails with the bug")
    if any(result.phase == "collect" for result in failed.values()):
        faults.append("a test file cannot be loaded with the bug")
    if bool(ordinary) != (ticket.kind == "failing-test"):
        faults.append(f"a {ticket.kind} ticket must not have these failing ordinary tests: {ordinary}")
    return faults


def main() -> int:
    tickets = load_tickets(tuple(sys.argv[1:]))
    faults = asyncio.run(complaints(tickets, open_sandbox(load_settings())))
    print("\n".join([*faults, f"{len(tickets)} tickets checked, {len(faults)} faults"]))
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
