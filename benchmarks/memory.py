"""Whether memory finds what fits, and how fast: `python -m benchmarks.memory TICKETS_FOLDER [--points 16000]`.

Texts are real. `title -> body`: the tickets of the gastown board (`gastown-board/issues.jsonl.gz`); the title is asked,
the body without it is to be found. `report -> duplicate`: the pairs of the Hadoop tracker (`gitbugs-hadoop`) that people
marked as the same bug, so that other authors word the same; the title and text of one is asked, the other is to be found.
Texts are cut to what memory keeps. Prints Markdown tables: recall@5 by words, meaning and both, and the time of a search.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from qdrant_client import QdrantClient

from infra.memory import MAX_TEXT_CHARS, Record, Wanted
from infra.memory.edge import EmbeddedTransport
from infra.memory.embedding import Bm25Only, Embedder, MiniLM, has_minilm
from infra.memory.index import Index
from infra.memory.outbox import Entry, entry_of

NOW = datetime(2026, 11, 1, tzinfo=UTC)
FIRST = 5
QUERIES = 200


class Pairs(NamedTuple):
    """Texts that memory holds, and questions with the place of the text that answers each."""

    name: str
    texts: list[str]
    asked: list[tuple[str, int]]


class MeaningOnly(Index):
    """The index without BM25, to see what each half brings."""

    def _prefetches(self, wanted: Wanted, now: datetime) -> list[Any]:
        return super()._prefetches(wanted, now)[-1:]


def titles_and_bodies(folder: Path) -> Pairs:
    """Tickets whose body says something beyond the title; junk titles are left out."""
    found = []
    for issue in _lines(folder / "gastown-board" / "issues.jsonl.gz"):
        title, body = str(issue.get("title") or "").strip(), str(issue.get("description") or "").replace("\n", " ")
        body = body.replace(title, " ").strip()
        if len(title.split()) >= 3 and len(body) >= 80:
            found.append((title, body[:MAX_TEXT_CHARS]))
    return Pairs("title -> body", [body for _, body in found], [(title, n) for n, (title, _) in enumerate(found)])


def duplicates(folder: Path) -> Pairs:
    """All reports are held; one of each pair is asked, itself left out of the answers."""
    reports = {
        str(each["Issue id"]): f"{each['Summary']} {each.get('Description') or ''}".replace("\n", " ")[:MAX_TEXT_CHARS]
        for each in _lines(folder / "gitbugs-hadoop" / "reports.jsonl.gz")
    }
    with (folder / "gitbugs-hadoop" / "duplicate_pairs.csv").open() as file:
        pairs = [tuple(row.values())[:2] for row in csv.DictReader(file)]
    asked = {one for one, _ in pairs}
    held = [name for name in reports if name not in asked or any(other == name for _, other in pairs)]
    place = {name: n for n, name in enumerate(held)}
    questions = [
        (reports[one], place[other]) for one, other in pairs if one in reports and other in place and one not in place
    ]
    return Pairs("report -> duplicate", [reports[name] for name in held], questions)


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def entries(texts: Sequence[str]) -> list[Entry]:
    """One entry per text; texts that are the same stay apart."""
    records = [
        Record(kind="fact", text=text, scope="bench", key=f"{n}", created_at=NOW) for n, text in enumerate(texts)
    ]
    return [entry_of(record) for record in records]


def recall(index: Index, pairs: Pairs) -> tuple[float, float]:
    """Share of the questions whose answer is among the first five, and is the first."""
    chosen = random.Random(0).sample(pairs.asked, min(QUERIES, len(pairs.asked)))
    ids = [entry.points[0] for entry in entries(pairs.texts)]
    places = []
    for question, answer in chosen:
        found = [each.point.id for each in index.search(Wanted(text=question[:4_000], limit=FIRST), NOW)]
        places.append(found.index(ids[answer]) if ids[answer] in found else FIRST)
    return sum(p < FIRST for p in places) / len(places), sum(p == 0 for p in places) / len(places)


def quality(folder: Path) -> None:
    print("| texts | search | R@5 | R@1 | held | asked |\n|---|---|---|---|---|---|")
    for pairs in (titles_and_bodies(folder), duplicates(folder)):
        for name, kind, embedder in _searches():
            with tempfile.TemporaryDirectory() as home, closing(EmbeddedTransport(Path(home) / "index")) as transport:
                index = kind(_client(transport), embedder)
                index.ensure()
                index.apply(entries(pairs.texts))
                five, one = recall(index, pairs)
            held, asked = len(pairs.texts), min(QUERIES, len(pairs.asked))
            print(f"| {pairs.name} | {name} | {five:.3f} | {one:.3f} | {held} | {asked} |", flush=True)


def _searches() -> list[tuple[str, type[Index], Embedder]]:
    words: list[tuple[str, type[Index], Embedder]] = [("BM25", Index, Bm25Only())]
    if not has_minilm():
        return words
    model = MiniLM()
    return [*words, ("MiniLM", MeaningOnly, model), ("both", Index, model)]


class Scattered:
    """Unit vectors by chance: as large as the model's, and made at once."""

    name, size = "scattered", 384

    def __init__(self) -> None:
        self._chance = random.Random(0)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[self._chance.gauss(0, 1) for _ in range(self.size)] for _ in texts]


def speed(folder: Path, points: int) -> None:
    """Times of a search through Qdrant's client among `points` texts, made of the tickets' words by chance."""
    words = " ".join(titles_and_bodies(folder).texts).split()
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as home, closing(EmbeddedTransport(Path(home) / "index")) as transport:
        index = Index(_client(transport), Scattered())
        index.ensure()
        began = time.perf_counter()
        for start in range(0, points, 512):
            count = min(512, points - start)
            texts = [f"{' '.join(chance.choices(words, k=40))} {start + n}" for n in range(count)]
            index.apply([_keyed(entry, start) for entry in entries(texts)])
        built = time.perf_counter() - began
        times = []
        for _ in range(QUERIES):
            wanted = Wanted(text=" ".join(chance.choices(words, k=12)), scope="bench")
            began = time.perf_counter()
            index.search(wanted, NOW)
            times.append((time.perf_counter() - began) * 1_000)
    p95 = statistics.quantiles(times, n=20)[-1]
    print(f"| {points:,} | {built:.0f} | {statistics.median(times):.1f} | {p95:.1f} |", flush=True)


def _keyed(entry: Entry, start: int) -> Entry:
    assert entry.record is not None
    return entry_of(entry.record.model_copy(update={"key": f"{start}-{entry.record.key}"}))


def _client(transport: EmbeddedTransport) -> QdrantClient:
    return QdrantClient(url="http://embedded", transport=transport, check_compatibility=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder that holds gastown-board and gitbugs-hadoop")
    parser.add_argument("--points", type=int, nargs="*", default=[16_000], help="sizes to time; none: only recall")
    given = parser.parse_args()
    quality(given.folder)
    if given.points:
        print("\n| points | built in s | search p50 ms | p95 ms |\n|---|---|---|---|")
    for points in given.points:
        speed(given.folder, points)


if __name__ == "__main__":
    main()
