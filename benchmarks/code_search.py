"""How fast the code index is, and whether it finds the place of a bug: `python -m benchmarks.code_search`.

The repository is made of the sources of this Python and its installed packages, as often as needed (copies get other
names), and of the benchmark's own small repositories. Prints Markdown tables. For each benchmark ticket the file
with the bug should be among those that the index hands to the ranking, although thousands of others are there.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.tickets import BenchTicket, load_tickets
from infra.boards import Ticket
from infra.code_index import MAX_FILE_BYTES, CodeIndex
from infra.git import Mirror
from tasks.code_search import likely_files
from tasks.context import CAPABLE_CONTEXT_CHARS, SMALL_CONTEXT_CHARS, rank_functions, select_code, source_files

QUERIES = 200
CHANGED = 10


def real_sources() -> Iterator[tuple[str, str]]:
    """Path and text of the standard library and the installed packages, then the same again under other names."""
    folders = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    files = sorted(
        {path for folder in folders for path in folder.rglob("*.py") if path.stat().st_size < MAX_FILE_BYTES}
    )
    for copy in range(100):
        for file in files:
            text = file.read_text(errors="replace")
            if copy:
                text = re.sub(r"\b(def|class) (\w+)", rf"\1 \2_v{copy}", text)
            yield f"v{copy}/{_inside(file, folders)}", text


def _inside(file: Path, folders: list[Path]) -> str:
    root = max((folder for folder in folders if file.is_relative_to(folder)), key=lambda folder: len(folder.parts))
    return file.relative_to(root).as_posix().replace("site-packages/", "installed/")


def make_repository(folder: Path, count: int, tickets: list[BenchTicket]) -> list[str]:
    """A commit of `count` files; the paths of the real sources among them."""
    made: list[str] = []
    for ticket in {ticket.repository: ticket for ticket in tickets}.values():
        for file in (each for each in ticket.correct.rglob("*") if each.is_file()):
            _write(folder, f"{ticket.repository}/{file.relative_to(ticket.correct)}", file.read_text(errors="replace"))
    for path, text in real_sources():
        if len(made) >= count:
            break
        made.append(path)
        _write(folder, path, text)
    _git(folder, "init", "--quiet", "--initial-branch=main", ".")
    _commit(folder)
    return made


def _write(folder: Path, path: str, text: str) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text, errors="replace")


def _git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=Benchmark", "-c", "user.email=benchmark@localhost", "-c", "gc.auto=0")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def _commit(folder: Path) -> None:
    _git(folder, "add", "--all", "--force")
    _git(folder, "commit", "--quiet", "--message", "state")


def timed(question: Callable[[str], object], asked: list[str]) -> str:
    """Median and 95th percentile in milliseconds, as two cells."""
    took = []
    for text in asked:
        started = time.perf_counter()
        question(text)
        took.append((time.perf_counter() - started) * 1000)
    return f"{statistics.median(took):.0f} | {statistics.quantiles(took, n=20)[-1]:.0f}"


def measure_speed(
    index: CodeIndex, mirror: Mirror, sha: str, folder: Path, paths: list[str], chooser: random.Random
) -> None:
    """The tables of times."""
    names, texts = _questions(folder, paths, chooser)
    files = source_files(mirror.paths(sha))
    print("\n| question | p50 ms | p95 ms |\n|---|---|---|")
    print(f"| symbol by name | {timed(lambda name: index.symbols(sha, name), names)} |")
    print(f"| words of a sentence | {timed(lambda text: index.search(sha, text), texts)} |")
    print(f"| references of a name | {timed(lambda name: index.references(sha, name), names)} |")
    tickets = [f"{a} {b} in `{name}`" for a, b, name in zip(texts, reversed(texts), names, strict=True)][: QUERIES // 4]
    print(f"| candidates of a ticket | {timed(lambda text: likely_files(mirror, sha, files, text), tickets)} |")


def _questions(folder: Path, paths: list[str], chooser: random.Random) -> tuple[list[str], list[str]]:
    """Names that some file defines, and first sentences of docstrings."""
    names: list[str] = []
    texts: list[str] = []
    while len(names) < QUERIES or len(texts) < QUERIES:
        text = (folder / chooser.choice(paths)).read_text(errors="replace")
        names += chooser.sample(found, 1) if (found := re.findall(r"\bdef (\w+)", text)) else []
        texts += chooser.sample(said, 1) if (said := re.findall(r'"""([A-Z][^"\n]{30,200})', text)) else []
    return names[:QUERIES], texts[:QUERIES]


def measure_finding(mirror: Mirror, sha: str, tickets: list[BenchTicket]) -> None:
    """How many tickets' buggy files are candidates and are shown, among all the other files."""
    files = source_files(mirror.paths(sha))
    candidates = shown = shown_small = 0
    for ticket in tickets:
        wanted = {f"{ticket.repository}/{path}" for path in _patched(ticket)}
        found = likely_files(mirror, sha, files, f"{ticket.title}\n{ticket.body}")
        texts = {path: raw.decode(errors="replace") for path, raw in mirror.read_all(sha, found).items()}
        ranked = rank_functions(Ticket(key=ticket.key, title=ticket.title, body=ticket.body, state="todo"), texts)
        candidates += bool(wanted & set(found))
        shown += bool(wanted & {e.path for e in select_code(ranked, texts, CAPABLE_CONTEXT_CHARS)})
        shown_small += bool(wanted & {e.path for e in select_code(ranked, texts, SMALL_CONTEXT_CHARS)})
    print(f"\n| tickets | file with the bug is a candidate | shown in {CAPABLE_CONTEXT_CHARS} characters | shown in "
          f"{SMALL_CONTEXT_CHARS} |\n|---|---|---|---|\n| {len(tickets)} | {candidates} | {shown} | {shown_small} |")  # fmt: skip


def _patched(ticket: BenchTicket) -> list[str]:
    return re.findall(r"^\+\+\+ b/(.+)$", (ticket.folder / "bug.patch").read_text(), re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    chooser, tickets = random.Random(arguments.seed), load_tickets()
    with tempfile.TemporaryDirectory(prefix="darkfactory-code-search-") as name:
        folder = Path(name) / "source"
        paths = make_repository(folder, arguments.files, tickets)
        mirror = Mirror.open(Path(name) / "mirrors", "large", str(folder))
        index, (_, sha) = CodeIndex(mirror), mirror.base(None)
        print("| index of | files | parsed | seconds | of our CPU | MB on disk |\n|---|---|---|---|---|---|")
        started = time.process_time()
        first = index.update(sha)
        busy = time.process_time() - started
        size = sum(file.stat().st_size for file in Path(name).glob("mirrors/*.code/*"))
        print(
            f"| the first commit | {first.files} | {first.parsed} | {first.seconds:.1f} | {busy:.1f} | {size / 1e6:.0f} |",
            flush=True,
        )
        for path in chooser.sample(paths, CHANGED):
            _write(
                folder, path, (folder / path).read_text(errors="replace") + "\n\ndef added_by_the_benchmark(): ...\n"
            )
        _commit(folder)
        mirror = Mirror.open(Path(name) / "mirrors", "large", str(folder))
        _, sha = mirror.base(None)
        started = time.process_time()
        again = index.update(sha)
        busy = time.process_time() - started
        print(
            f"| the next one, {CHANGED} files changed | {again.files} | {again.parsed} | {again.seconds:.2f} | {busy:.2f} | |",
            flush=True,
        )
        measure_speed(index, mirror, sha, folder, paths, chooser)
        measure_finding(mirror, sha, tickets)


if __name__ == "__main__":
    main()
