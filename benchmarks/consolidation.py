"""What consolidating 100 new points costs on a small and on a large store: `python -m benchmarks.consolidation TICKETS_FOLDER`.

Texts are made of the words of real tickets (as in `benchmarks.memory`), in `--repositories` repositories; every fourth new
point says nearly the same as one that is there. A real owner process keeps the store and is asked, as in the factory: the
time is that of looking, deciding without a model, and carrying out, without the start of the owner. Prints a Markdown table
and the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.memory import titles_and_bodies
from infra.memory import Record
from infra.memory.client import Memory
from infra.memory.outbox import Journal, entry_of
from infra.memory.plans import Cursor
from tasks import services
from tasks.consolidation import decide, look, plans, put_right

NEW = 100
ROUNDS = 5
WORDS = 30
OPEN_SECONDS = 1_800.0
NOW = datetime.now(UTC)


def records(words: list[str], count: int, repositories: int, chance: random.Random) -> list[Record]:
    """Lessons of different days, each in one of the repositories."""
    return [
        Record(
            kind="lesson",
            text=" ".join(chance.choices(words, k=WORDS)),
            scope=f"repository-{chance.randrange(repositories)}",
            source=f"run {n}",
            created_at=NOW - timedelta(days=30, seconds=-n),
        )
        for n in range(count)
    ]


def newer(known: list[Record], words: list[str], repositories: int, chance: random.Random) -> list[Record]:
    """New points, a quarter of which say what a known one says, with other fillers."""
    fresh = records(words, NEW, repositories, chance)
    again = [chance.choice(known) for _ in range(NEW // 4)]
    repeated = [
        old.model_copy(update={"text": f"The {old.text}", "source": "seen again", "created_at": NOW}) for old in again
    ]
    return [*fresh[len(repeated) :], *repeated]


async def consolidated() -> tuple[float, int]:
    """Seconds, and points written."""
    began = time.perf_counter()
    plan = await decide.fn(await look.fn(), False)
    await put_right.fn(plan)
    return time.perf_counter() - began, len(plan.written)


def measure(words: list[str], points: int, repositories: int) -> float:
    """The median seconds of ROUNDS consolidations, each of NEW points, on a store of so many; prints a row."""
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as home:
        os.environ["DARKFACTORY_HOME"] = home
        services.close()
        memory = services.memory()
        assert memory is not None
        known = records(words, points, repositories, chance)
        journal = Journal(memory.folder / "journal.jsonl")
        journal.append([entry_of(record) for record in known])
        _open(memory)
        _, upto = journal.since(0, points + 1)
        place = plans(memory)
        place.folder.mkdir()
        (place.folder / "cursor.json").write_text(Cursor(upto=upto).model_dump_json())
        times = [_round(memory, newer(known, words, repositories, chance)) for _ in range(ROUNDS)]
        memory.stop()
    seconds = statistics.median(each for each, _ in times)
    spread = f"{min(times)[0]:.2f} to {max(times)[0]:.2f}"
    print(f"| {points:,} | {seconds:.2f} | {spread} | {sum(n for _, n in times)} |", flush=True)
    return seconds


def _open(memory: Memory) -> None:
    """Wait until the owner has made the index from the journal."""
    deadline = time.monotonic() + OPEN_SECONDS
    while memory.health(OPEN_SECONDS).points == 0:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def _round(memory: Memory, new: list[Record]) -> tuple[float, int]:
    for record in new:
        memory.write(record)
    memory.settle(600)
    return asyncio.run(consolidated())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder that holds gastown-board")
    parser.add_argument("--points", type=int, nargs=2, default=[1_000, 100_000])
    parser.add_argument("--repositories", type=int, default=20)
    parser.add_argument("--embedder", choices=["bm25", "minilm"], default="bm25")
    given = parser.parse_args()
    os.environ["DARKFACTORY_MEMORY"] = json.dumps({"embedder": given.embedder, "idle_seconds": 600})
    words = " ".join(titles_and_bodies(given.folder).texts).split()
    print("| points in store | seconds for 100 new | spread | merged |\n|---|---|---|---|")
    small, large = (measure(words, points, given.repositories) for points in given.points)
    print(f"\nratio {large / small:.2f} for a store {given.points[1] / given.points[0]:.0f} times as large")


if __name__ == "__main__":
    main()
