"""A6, RB11 as a script: many tickets spend at once, are killed and started anew, and no cent more than the cap is billed.

    python tests/faults/budget_storm.py --tickets 35 --cap 1.0

Every ticket is a process that asks a model behind a real HTTP port, each call reserved before and settled after. A killer
ends them with SIGKILL at moments drawn from the seed and starts them anew. The endpoint is a process of its own whose log
is the bill: everything it was asked, also by those that died before they heard the answer. Ends with status 0 when
neither the bill nor the ledger passes the cap, the ledger knows of every cent of the bill, and the storm was one.

PostgreSQL is its own, unless DARKFACTORY_DATABASE_URL names another.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from infra.budgets import SOON_SECONDS, Budgets  # noqa: E402  found beside this script's folder
from infra.database import Database, open_database  # noqa: E402
from infra.errors import BudgetExhausted  # noqa: E402
from infra.llm import Message, ModelRequest  # noqa: E402
from infra.llm.calls import Prices  # noqa: E402
from infra.llm.openai_api import OpenAIClient  # noqa: E402
from infra.llm.scripted import CHARACTERS_PER_TOKEN, Answer, Received, Rule, Script, on  # noqa: E402
from infra.postgres import open_databases, stop_postgres  # noqa: E402
from infra.sections import BudgetsSection  # noqa: E402
from infra.settings import Settings  # noqa: E402

PRICES: Prices = (40.0, 40.0, 200.0)
"""Dear, and without a discount, so that few calls reach the cap and the bill can be read off the endpoint's log."""
MAX_TOKENS = 200
ANSWER = "x" * 50 * CHARACTERS_PER_TOKEN
PROMPT = "storm " * 60
CALLS = 4
"""Of each ticket; together they would pass the cap several times."""
PATIENCE = 6
"""Times a ticket asks again where only calls under way are in the way."""
KILL_EVERY = (0.05, 0.4)
SECONDS = 120.0
"""Longest storm."""


class Work(NamedTuple):
    """What a ticket's process needs to know."""

    url: str
    database_url: str
    folder: Path
    cap: float
    ticket: str

    @property
    def done(self) -> Path:
        """A line for each call that was settled, so that who starts anew goes on behind it."""
        return self.folder / f"{self.ticket}.done"


def worst(prompt: str) -> float:
    """The most that a call may cost, in USD."""
    return ((len(prompt) + 20) / CHARACTERS_PER_TOKEN * PRICES[0] + MAX_TOKENS * PRICES[2]) / 1e6


def billed(received: Received) -> float:
    """What the endpoint bills for a request, whether its answer arrived or not."""
    return (
        len(received.prompt) // CHARACTERS_PER_TOKEN * PRICES[0] + len(ANSWER) // CHARACTERS_PER_TOKEN * PRICES[2]
    ) / 1e6


def work(job: Work) -> None:
    """A ticket's process: its calls in turn, until they are done or the money is."""
    with Database(job.database_url) as database:
        budgets = Budgets(database, BudgetsSection(month_usd=job.cap))
        for number in range(len(job.done.read_text()) if job.done.exists() else 0, CALLS):
            if not _call(job, budgets, f"{PROMPT}{job.ticket} {number}"):
                return
            with job.done.open("a") as file:
                file.write(".")


def _call(job: Work, budgets: Budgets, prompt: str) -> bool:
    """One call. Its key is new each time: what is asked a second time may be billed a second time."""
    key = f"{job.ticket}:{secrets.token_hex(8)}"
    for _ in range(PATIENCE):
        try:
            budgets.reserve(key, board="storm", ticket=job.ticket, role="coder", usd=worst(prompt))
            break
        except BudgetExhausted as error:
            (job.folder / f"{job.ticket}.refused").touch()
            if error.reset_at is None or error.reset_at > datetime.now(UTC) + timedelta(seconds=2 * SOON_SECONDS):
                return False
            time.sleep(0.1)
    else:
        return False
    client = OpenAIClient(name="storm", base_url=job.url, usd_per_million_tokens=PRICES)
    asked = ModelRequest(messages=(Message(role="user", content=prompt),), max_tokens=MAX_TOKENS)
    budgets.settle(key, asyncio.run(client.complete(asked)).usage.cost_usd)
    return True


@contextmanager
def endpoint(folder: Path) -> Iterator[tuple[str, Path]]:
    """The scripted model as a process: its base URL, and its log."""
    rules: tuple[Rule, ...] = (on("storm", Answer(text=ANSWER, delay_seconds=0.5)),)
    told, port, log = folder / "script.json", folder / "port", folder / "bill.jsonl"
    told.write_text(Script(rules=rules).model_dump_json())
    command = [sys.executable, "-P", "-m", "infra.llm.scripted", "--script", str(told), "--log", str(log),
               "--port-file", str(port)]  # fmt: skip
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not port.exists() or not port.read_text():
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit("the scripted model did not start")
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port.read_text()}/v1", log
    finally:
        process.kill()
        process.wait(timeout=10)


def storm(jobs: list[Work], kills: int, seed: int) -> int:
    """Run all tickets at once and kill some. Returns how many were killed."""
    draw, forked = random.Random(seed), multiprocessing.get_context("fork")
    alive: dict[Work, ForkProcess] = {}

    def start(job: Work) -> None:
        alive[job] = forked.Process(target=work, args=(job,))
        alive[job].start()

    for job in jobs:
        start(job)
    killed, deadline = 0, time.monotonic() + SECONDS
    while alive and time.monotonic() < deadline:
        time.sleep(draw.uniform(*KILL_EVERY))
        for job in [job for job, process in alive.items() if not process.is_alive()]:
            alive.pop(job).join()
        if alive and killed < kills:
            job = draw.choice(list(alive))
            os.kill(alive[job].pid or 0, signal.SIGKILL)
            alive[job].join()
            killed += 1
            start(job)
    for process in alive.values():
        process.kill()
        process.join()
    return killed


def ledger_of(database: Database) -> tuple[float, float]:
    """USD that the ledger counts, and the part of it that was never settled."""
    month = next(use for use in Budgets(database, BudgetsSection()).usage() if use.cap == "month_usd")
    return month.used, month.reserved


def run(tickets: int, cap: float, kills: int, seed: int, settings: Settings) -> dict[str, float]:
    """The storm, and what was counted at its end."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, open_database(settings) as database:
        folder, url = Path(name), open_databases(settings).ledger
        database.close()  # forked processes must not share its connections
        with endpoint(folder) as (model, log):
            jobs = [Work(model, url, folder, cap, f"T-{number}") for number in range(tickets)]
            killed = storm(jobs, kills, seed)
        bill = [billed(Received.model_validate_json(line)) for line in log.read_text().splitlines()]
        used, unsettled = ledger_of(database)
        refused = len(list(folder.glob("*.refused")))
    return {
        "tickets": tickets, "cap USD": cap, "billed USD": round(sum(bill), 6), "ledger USD": round(used, 6),
        "of it never settled USD": round(unsettled, 6), "calls billed": len(bill), "calls wanted": tickets * CALLS,
        "processes killed": killed, "tickets refused": refused, "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def mistakes(count: dict[str, float]) -> list[str]:
    """What the count shows that must not be; empty when the cap held in a real storm."""
    cap, bill, ledger = count["cap USD"], count["billed USD"], count["ledger USD"]
    found = {
        "more was billed than the cap": bill > cap,
        "the ledger passed the cap": ledger > cap,
        "the ledger knows less than was billed": ledger < bill,
        "the cap was never near: that is no storm": ledger < cap / 2 or not count["tickets refused"],
        "nothing was killed": not count["processes killed"],
        "nobody died in a call": not count["of it never settled USD"],
    }
    return [text for text, there in found.items() if there]


def main() -> int:
    parser = argparse.ArgumentParser(description="Many tickets spend at once; the cap holds.")
    parser.add_argument("--tickets", type=int, default=35)
    parser.add_argument("--cap", type=float, default=1.0, help="USD a month")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="darkfactory-storm-") as home:
        url = os.environ.get("DARKFACTORY_DATABASE_URL")
        try:
            settings = Settings(home=Path(home), database_url=url)
            count = run(given.tickets, given.cap, given.kills, given.seed, settings)
        finally:
            if url is None:
                stop_postgres(Path(home))
    wrong = mistakes(count)
    if given.json:
        print(json.dumps({**count, "mistakes": wrong}))
    else:
        print("\n".join(f"{name:<26}{value:>12g}" for name, value in count.items()))
        print("\n".join(f"WRONG: {text}" for text in wrong) or "the cap held")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
