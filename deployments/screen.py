"""What a person sees: the live table of a running ticket, and the short report at its end. Everything goes to stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TextIO
from urllib.parse import unquote, urlsplit

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from tasks.models import Evidence, Outcome
from tasks.progress import Progress, subscribe

SHOWN_ROWS = 14
UNBROKEN_COLUMNS = 1_000


class Row:
    """One role's latest word. `ended` is None while it works."""

    def __init__(self, phase: str, role: str, now: float) -> None:
        self.phase, self.role, self.started = phase, role, now
        self.message, self.speed, self.ended = "", 0.0, False
        self.until = now

    def update(self, event: Progress, now: float) -> None:
        self.phase = event.phase or self.phase
        self.speed = event.tokens_per_second or (0.0 if event.done else self.speed)
        self.message = event.message or (f"writing, {event.tokens} tokens" if event.tokens else self.message)
        self.ended, self.until = event.done, now

    def seconds(self, now: float) -> float:
        return (self.until if self.ended else now) - self.started


class Screen:
    """Turns reports into a table that rich redraws. Only the latest rows are kept on show."""

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._clock = title, clock
        self._started = clock()
        self._phase = ""
        self._rows: dict[str, Row] = {}
        self._spinner = Spinner("dots")

    def on_progress(self, event: Progress) -> None:
        now = self._clock()
        self._phase = event.phase or self._phase
        name = event.role or event.phase
        if name:
            row = self._rows.setdefault(name, Row(self._phase, event.role, now))
            row.update(event, now)

    def __rich__(self) -> RenderableType:
        now = self._clock()
        head = f"{self._title} · {self._phase or 'starting'} · {duration(now - self._started)}"
        self._spinner.update(text=Text(head, style="bold"))
        return Group(self._spinner, self._table(now)) if self._rows else self._spinner

    def _table(self, now: float) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in ("phase", "role", "now", "tokens/s", "elapsed"):
            table.add_column(
                name, justify="right" if name in ("tokens/s", "elapsed") else "left", no_wrap=name != "now"
            )
        for row in list(self._rows.values())[-SHOWN_ROWS:]:
            speed = f"{row.speed:.1f}" if row.speed else ""
            style = "dim" if row.ended else ""
            cells = (row.phase, row.role, row.message, speed, duration(row.seconds(now)))
            table.add_row(*(Text(cell) for cell in cells), style=style)
        return table


@contextmanager
def shown_progress(title: str, verbose: bool) -> Iterator[None]:
    """Show what the ticket does while the block runs: live on a terminal, else lines with `verbose`, else nothing."""
    console = Console(stderr=True)
    if not console.is_terminal:
        with _listening(_print_line(console)) if verbose else _silence():
            yield
        return
    screen = Screen(title)
    with _listening(screen.on_progress), Live(screen, console=console, refresh_per_second=4, transient=True):
        yield


@contextmanager
def _listening(listener: Callable[[Progress], None]) -> Iterator[None]:
    end = subscribe(listener)
    try:
        yield
    finally:
        end()


@contextmanager
def _silence() -> Iterator[None]:
    yield


def _print_line(console: Console) -> Callable[[Progress], None]:
    started = time.monotonic()

    def listen(event: Progress) -> None:
        if event.message:
            words = (event.ticket, event.phase, event.role, event.message)
            line = f"{time.monotonic() - started:7.1f} s  {' · '.join(w for w in words if w)}"
            console.print(Text(line), soft_wrap=True)

    return listen


def answer_console(out: TextIO) -> Console:
    """For the answer on stdout; lines are never broken where no person reads them."""
    return Console(file=out, highlight=False, width=None if out.isatty() else UNBROKEN_COLUMNS)


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def show_outcome(console: Console, outcome: Outcome, repository: str) -> None:
    """The final report. `repository` is a checkout in which the branch can be looked at."""
    for name, value in report_lines(outcome):
        console.print(Text.assemble((f"{name:<13} ", "dim"), value), soft_wrap=True)
    for command in look_commands(outcome, repository):
        note(console, f"  {command}")


def report_lines(outcome: Outcome) -> list[tuple[str, str]]:
    """Name and value of each line of the final report."""
    usage = outcome.usage
    share = f" ({usage.cached_tokens / usage.prompt_tokens:.0%} cached)" if usage.prompt_tokens else ""
    lines = [("ticket", outcome.ticket), ("verdict", outcome.decision)]
    lines += [("because", reason) for reason in outcome.reasons]
    if outcome.pull_request:
        lines += [("pull request", outcome.pull_request.url), ("branch", outcome.pull_request.branch)]
    if outcome.evidence:
        lines += _evidence_lines(outcome.evidence)
    lines += [
        ("rounds", str(outcome.rounds)),
        (
            "model",
            f"{usage.calls} calls, {usage.prompt_tokens} prompt tokens{share}, {usage.completion_tokens} written",
        ),
        ("took", f"{duration(outcome.seconds)}, of which model {duration(usage.seconds)}"),
        ("cost", f"{usage.cost_usd:.4f} USD"),
    ]
    return lines


def _evidence_lines(evidence: Evidence) -> list[tuple[str, str]]:
    before, after = (
        f"{len(r.ids('passed'))} passed, {len(r.ids('failed'))} failed" for r in (evidence.before, evidence.after)
    )
    lines = [
        ("change", f"{len(evidence.files)} file(s), +{evidence.lines_added} -{evidence.lines_removed}"),
        ("tests before", before),
        ("tests after", after),
        (
            "fixed",
            f"{len(evidence.fixed)} test(s) fail before and pass after: {', '.join(evidence.fixed[:5]) or 'none'}",
        ),
    ]
    return [*lines, *(("broken", name) for name in evidence.broken[:5])]


def look_commands(outcome: Outcome, repository: str) -> list[str]:
    """How to see the branch and how to take it over, with git alone; empty without a pull request."""
    if outcome.pull_request is None:
        return []
    pull = outcome.pull_request
    bare = Path(unquote(urlsplit(pull.url).path)).parent.parent / "repo.git"
    if not bare.is_dir():
        return [f"git -C {quote(repository)} fetch origin {quote(pull.branch)}"]
    return [
        f"git --git-dir {quote(str(bare))} log -p {quote(pull.base)}..{quote(pull.branch)}",
        f"git -C {quote(repository)} fetch {quote(str(bare))} {quote(pull.branch)}:{quote(pull.branch)}",
    ]


def show_diff(console: Console, diff: str) -> None:
    console.print(Syntax(diff, "diff", theme="ansi_dark", background_color="default", word_wrap=True))


def note(console: Console, text: str) -> None:
    """One plain line."""
    console.print(escape(text), soft_wrap=True, highlight=False)
