"""I10, SM11 and RC8 as a script: two nodes on one machine, one of them dies in mid-run, and every ticket ends once.

    python tests/faults/two_nodes.py --tickets 8 --seed 1

`darkfactory up` is the node `a`; the node `b` has a home of its own and shares the database, the board, the remote and the
scripted model, as a second machine would. While `b` works, its whole process tree is killed (`--fault kill`), or put to
sleep until the other node has done its tickets (`--fault freeze`), so that it comes back as a holder who is late. Every
ticket has to end in review with one branch and one pull request, and nothing of `b` may be left. Then `b` joins again and
gets new tickets. Ends with status 0 when all of that holds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import httpx  # noqa: E402
import yaml  # noqa: E402

from deployments.engine import end_group, free_port, read_record  # noqa: E402  found beside this script's folder
from infra.claims import Claim, Claims  # noqa: E402
from infra.database import Database  # noqa: E402
from infra.fleet import Fleet  # noqa: E402
from infra.git import branch_name  # noqa: E402
from infra.llm.scripted import Answer, ScriptedModel  # noqa: E402
from infra.postgres import database_urls, ensure_postgres, stop_postgres  # noqa: E402
from infra.processes import descendants, marked_runs  # noqa: E402
from tests.faults.exactly_once import hurry  # noqa: E402
from tests.shop import ACCEPT, ARCHITECT, RIGHT, fingerprint, git, make_repository, script, write_ticket  # noqa: E402

LEASE_SECONDS = 30
TICK_SECONDS = 10
READY_SECONDS = 180.0
TICKET_SECONDS = 90.0
"""Longest time per ticket; an idle machine takes a tenth of it."""
LEAVE_SECONDS = 45.0
"""Longest time in which killed, or late, processes are gone: a late run hears of it with its next heartbeat."""
LATEST = 6.0
"""The fault comes at most this many seconds after `b` was seen at work."""


class Place(NamedTuple):
    """Where everything of one go lies. Homes are `a` and `b`; what machines share is beside them."""

    folder: Path

    @property
    def board(self) -> Path:
        return self.folder / "board"

    @property
    def repository(self) -> Path:
        return self.folder / "shop"

    @property
    def remote(self) -> Path:
        return self.folder / "git" / "shop.git"

    @property
    def pulls(self) -> Path:
        return self.folder / "git" / "shop.pulls"

    def home(self, node: str) -> Path:
        return self.folder / node

    def states(self, tickets: Sequence[str]) -> list[str]:
        """The `state:` of each ticket's file."""
        texts = [(self.board / f"{ticket}.md").read_text() for ticket in tickets]
        return [text.partition("\nstate: ")[2].partition("\n")[0] for text in texts]


class Wanted(NamedTuple):
    """What a go is told. `again`: tickets for the time when node b is back."""

    tickets: int
    seed: int
    fault: str
    slots: int
    again: int
    slow_seconds: float


class Row(NamedTuple):
    """What became of one ticket. `nodes` and `runs`: whom its runs were given to and how they ended, in order; `announced`:
    comments that name the pull request."""

    ticket: str
    nodes: list[str]
    runs: list[str]
    completed_on: list[str]
    branches: int
    pushes: int
    pull_requests: int
    announced: int
    state: str

    @property
    def mistakes(self) -> list[str]:
        """What is not as it should be. Pushing again is right after a death between push and pull request."""
        seen = (len(self.completed_on), self.branches, self.pull_requests, self.announced, self.state)
        right = seen == (1, 1, 1, 1, "in review") and 1 <= self.pushes <= len(self.runs)
        return [] if right else [f"{self.ticket} did not end exactly once: {self._asdict()}"]


class Seen(NamedTuple):
    """What a go came to. `hit`: the tickets node b had in hand; `mistakes`: empty when all is as it should be."""

    wanted: Wanted
    rows: list[Row]
    hit: list[str]
    mistakes: list[str]
    seconds_after_fault: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {**self._asdict(), "wanted": self.wanted._asdict(), "rows": [row._asdict() for row in self.rows]}


class Factory:
    """`up` and `node join` as processes, and what can be seen of them from outside."""

    def __init__(self, place: Place, database: Database, database_url: str, model_url: str) -> None:
        self.place, self.claims, self.fleet = place, Claims(database), Fleet(database)
        self._database_url, self._model_url = database_url, model_url
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self.api_url = ""

    def write_home(self, node: str) -> None:
        settings = {
            "model": "openai/scripted", "model_url": self._model_url, "model_tier": "small", "max_samples": 2, "node": node,
            "database_url": self._database_url, "webhooks": {"port": free_port()},
            "boards": {"tickets": {"kind": "folder", "path": str(self.place.board), "repository": "shop"}},
            "repositories": {"shop": {"path": str(self.place.repository), "remote": str(self.place.remote)}},
            "dispatch": {"every_seconds": TICK_SECONDS, "lease_seconds": LEASE_SECONDS},
        }  # fmt: skip
        self.place.home(node).mkdir(exist_ok=True)
        (self.place.home(node) / "factory.yaml").write_text(yaml.safe_dump(settings))

    def up(self) -> None:
        """Start `darkfactory up` with the node `a`; return when it takes work."""
        self._start("a", "up", "--port", str(free_port()))
        wait_for(lambda: self.is_there("a"), READY_SECONDS, "node a does not join", self.check)
        record = read_record(self.place.home("a"))
        assert record
        self.api_url = record.api_url

    def join(self, node: str, slots: int) -> None:
        """Start `darkfactory node join`; return when the node takes work."""
        self._start(node, "node", "join", "--name", node, "--slots", str(slots), "--api", self.api_url)
        wait_for(lambda: self.is_there(node), READY_SECONDS, f"node {node} does not join", self.check)

    def _start(self, node: str, *arguments: str) -> None:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.place.folder), "PYTHONPATH": str(ROOT),
                       "DARKFACTORY_HOME": str(self.place.home(node))}  # fmt: skip
        with (self.place.folder / f"{node}.log").open("ab") as log:
            self._children[node] = subprocess.Popen(
                [sys.executable, "-P", "-m", "deployments", *arguments], env=environment, cwd=self.place.folder,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def check(self) -> None:
        """Raises RuntimeError with the last words of a child that ended by itself."""
        for node, child in self._children.items():
            if child.poll() is not None:
                words = (self.place.folder / f"{node}.log").read_text()[-2000:]
                raise RuntimeError(f"node {node} ended with {child.returncode}:\n{words}")

    @property
    def joined(self) -> list[str]:
        """The nodes whose processes are here, the latest first."""
        return list(self._children)[::-1]

    def is_there(self, node: str) -> bool:
        """Whether it takes work: while it gets ready, it has no slots."""
        return any(n.name == node and n.alive and n.state == "active" and n.slots for n in self.fleet.nodes())

    def running_on(self, node: str) -> list[Claim]:
        return [claim for claim in self.claims.held() if claim.node == node and claim.state == "running"]

    def processes_of(self, node: str) -> list[int]:
        """The node's own process, all below it, and whatever was started with its home in the environment."""
        child = self._children.get(node)
        below = [child.pid, *descendants(child.pid)] if child is not None and child.poll() is None else []
        return sorted({*below, *started_with(f"DARKFACTORY_HOME={self.place.home(node)}")})

    def signal_all(self, node: str, number: signal.Signals) -> None:
        """Send it to every process of the node, until there is nobody new."""
        told = set[int]()
        while new := set(self.processes_of(node)) - told:
            for pid in new:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            told |= new

    def kill(self, node: str) -> None:
        self.signal_all(node, signal.SIGKILL)
        self._children.pop(node).wait(LEAVE_SECONDS)

    def end(self, node: str) -> int:
        """Ctrl-C; returns the exit code."""
        child = self._children.pop(node)
        child.send_signal(signal.SIGINT)
        return child.wait(LEAVE_SECONDS)

    def stop(self) -> None:
        """Whatever went wrong: nothing stays."""
        for node in list(self._children):
            self.signal_all(node, signal.SIGCONT)
            end_group(self._children.pop(node))
        for node in ("a", "b"):
            self.signal_all(node, signal.SIGKILL)

    def runs(self) -> list[dict[str, Any]]:
        """All runs of tickets that Prefect knows, oldest first: `id`, `ticket`, `node` and `state`."""
        asked = {"sort": "EXPECTED_START_TIME_ASC", "limit": 200, "flows": {"name": {"any_": ["work-ticket"]}}}
        found = httpx.post(f"{self.api_url}/flow_runs/filter", json=asked, timeout=30).raise_for_status().json()
        return [
            {"id": run["id"], "ticket": run["parameters"]["ticket"], "state": run["state_type"],
             "node": next(tag.removeprefix("node:") for tag in run["tags"] if tag.startswith("node:"))}
            for run in found
        ]  # fmt: skip

    def completed(self) -> set[str]:
        """The tickets of which a run got to its end."""
        return {run["ticket"] for run in self.runs() if run["state"] == "COMPLETED"}

    def left_of(self, runs: Sequence[str]) -> list[int]:
        """Living processes that carry the mark of one of these runs."""
        marked = marked_runs()
        return [pid for run in runs for pid in marked.get(run, [])]


def started_with(entry: str) -> list[int]:
    """Living processes with this line in the environment they were started with."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            living = (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
            if living and entry.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def wait_for(
    holds: Callable[[], Any], seconds: float, otherwise: str, check: Callable[[], None] = lambda: None
) -> None:
    """Return when it holds. Raises RuntimeError when it takes too long, and whatever `check` raises."""
    deadline = time.monotonic() + seconds
    while not holds():
        check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {seconds:.0f} s in vain: {otherwise}")
        time.sleep(0.2)


# --- one go


@contextmanager
def factory(slow_seconds: float) -> Iterator[Factory]:
    """PostgreSQL, a model that takes its time, a repository with its remote, and two homes; all of it is gone at the end."""
    slow = {"architect": ARCHITECT, "coder": RIGHT, "judge": ACCEPT}
    rules = script(**{role: Answer(text=text, delay_seconds=slow_seconds) for role, text in slow.items()})
    with ExitStack() as parts:
        place = Place(Path(tempfile.mkdtemp(prefix="two-nodes-")))
        parts.callback(shutil.rmtree, place.folder)
        parts.callback(stop_postgres, place.folder / "postgres")
        base = ensure_postgres(place.folder / "postgres")
        hurry(base)
        make_repository(place.repository)
        place.remote.parent.mkdir()
        git(place.folder, "clone", "--quiet", "--bare", str(place.repository), str(place.remote))
        git(place.remote, "config", "core.logAllRefUpdates", "always")
        ledger = database_urls(base).ledger
        model = parts.enter_context(ScriptedModel(rules))
        database = parts.enter_context(Database(ledger))
        database.migrate()
        made = Factory(place, database, ledger.replace("postgresql+psycopg://", "postgresql://"), model.openai_url)
        parts.callback(made.stop)
        for node in ("a", "b"):
            made.write_home(node)
        yield made


def write_tickets(place: Place, numbers: Sequence[int]) -> list[str]:
    keys = [f"t-{number:03d}" for number in numbers]
    for key in keys:
        path = write_ticket(place.board, key)
        path.write_text(path.read_text().replace("state: ready\n", "state: todo\n"))
    return keys


def go(wanted: Wanted, say: Callable[[str], None] = lambda _: None) -> Seen:
    """One go: the fault, what became of the tickets, the node that comes back, and the end."""
    began = time.monotonic()
    with factory(wanted.slow_seconds) as made:
        made.up()
        made.join("b", wanted.slots)
        keys = write_tickets(made.place, range(wanted.tickets))
        say(f"both nodes are there after {time.monotonic() - began:.0f} s")
        hit, struck = strike(made, wanted), time.monotonic()
        say(f"{wanted.fault}: node b, which held {', '.join(hit.values())}")
        finish(made, keys)
        lasted = time.monotonic() - struck
        say(f"all tickets are in review {lasted:.0f} s later")
        mistakes = after_the_fault(made, wanted.fault, list(hit))
        keys += come_back(made, wanted)
        table = rows(made, keys)
        mistakes += [mistake for row in table for mistake in row.mistakes]
        mistakes += [f"{row.ticket} did not end on node a" for row in table
                     if row.ticket in hit.values() and row.completed_on != ["a"]]  # fmt: skip
        if wanted.again:
            mistakes += of_the_return(table, wanted.tickets)
        mistakes += the_end(made)
    return Seen(wanted, table, sorted(hit.values()), mistakes, lasted, time.monotonic() - began)


def strike(made: Factory, wanted: Wanted) -> dict[str, str]:
    """Kill or freeze all of node b while it works; returns the runs it had in hand with their tickets."""
    for seconds in (random.Random(wanted.seed).uniform(0, LATEST), 0.0):
        wait_for(lambda: made.running_on("b"), READY_SECONDS, "node b gets no work", made.check)
        time.sleep(seconds)
    hit = {claim.flow_run or "": claim.ticket for claim in made.running_on("b")}
    if wanted.fault == "kill":
        made.kill("b")
    else:
        made.signal_all("b", signal.SIGSTOP)
    return hit


def finish(made: Factory, tickets: Sequence[str]) -> None:
    """Return when all tickets are in review and nobody holds one."""
    longest = READY_SECONDS + TICKET_SECONDS * len(tickets)
    wait_for(lambda: set(made.place.states(tickets)) <= {"in review"}, longest, "tickets are not done", made.check)
    wait_for(lambda: not made.claims.held(), LEAVE_SECONDS, "a claim is still held", made.check)
    wait_for(lambda: made.completed() >= set(tickets), LEAVE_SECONDS, "Prefect does not hear of an end", made.check)


def after_the_fault(made: Factory, fault: str, hit: list[str]) -> list[str]:
    """A killed node has left no process. A late one is fenced off: its runs end soon, and have written nothing."""
    if fault == "kill":
        left = sorted({*made.processes_of("b"), *made.left_of(hit)})
        return [f"left of the killed node b: process {pid}" for pid in left]
    before = written(made.place)
    made.signal_all("b", signal.SIGCONT)
    wait_for(lambda: not made.left_of(hit), LEAVE_SECONDS, "late runs of node b do not end", made.check)
    return ["a late run of node b wrote something"] if written(made.place) != before else []


def written(place: Place) -> dict[str, dict[str, str]]:
    """All that runs write for people to see."""
    return {str(folder): fingerprint(folder) for folder in (place.board, place.pulls, place.remote / "logs")}


def come_back(made: Factory, wanted: Wanted) -> list[str]:
    """Node b joins again, unless it only slept, and gets its share of new tickets."""
    if wanted.again:
        if wanted.fault == "kill":
            made.join("b", wanted.slots)
        wait_for(lambda: made.is_there("b"), READY_SECONDS, "node b does not come back", made.check)
    keys = write_tickets(made.place, range(wanted.tickets, wanted.tickets + wanted.again))
    finish(made, keys)
    return keys


def of_the_return(table: Sequence[Row], before: int) -> list[str]:
    """Node b has worked again, and what it had in hand at the fault is no longer called running."""
    mistakes = [f"a run of {row.ticket} is not over: {', '.join(row.runs)}"
                for row in table if {"running", "pending", "cancelling"} & set(row.runs)]  # fmt: skip
    worked = any("b" in row.completed_on for row in table[before:])
    return mistakes if worked else [*mistakes, "node b came back and completed nothing"]


def rows(made: Factory, tickets: Sequence[str]) -> list[Row]:
    place, runs = made.place, made.runs()
    branches = git(place.remote, "for-each-ref", "--format=%(refname:short)", "refs/heads/agent/").split()
    pulls = [path.read_text() for path in place.pulls.glob("[!.]*.md")]
    found = []
    for ticket, state in zip(tickets, place.states(tickets), strict=True):
        branch, mine = branch_name(ticket), [run for run in runs if run["ticket"] == ticket]
        moves = place.remote / "logs" / "refs" / "heads" / branch
        found.append(Row(
            ticket=ticket, nodes=[run["node"] for run in mine], runs=[run["state"].lower() for run in mine],
            completed_on=[run["node"] for run in mine if run["state"] == "COMPLETED"], branches=branches.count(branch),
            pushes=len(moves.read_text().splitlines()) if moves.exists() else 0,
            pull_requests=sum(f"\nbranch: {branch}\n" in text for text in pulls),
            announced=(place.board / f"{ticket}.md").read_text().count("Draft pull request: "), state=state,
        ))  # fmt: skip
    return found


def the_end(made: Factory) -> list[str]:
    """Ctrl-C for every node: exit code 0, and no process or checkout of it is left."""
    mistakes = []
    for node in made.joined:
        if code := made.end(node):
            mistakes.append(f"node {node} ended with {code}")
        mistakes += [f"left of node {node}: process {pid}" for pid in made.processes_of(node)]
        checkouts = made.place.home(node).glob("worktrees/*/*")
        mistakes += [f"left of node {node}: {path}" for path in checkouts if path.name != ".private"]
    return mistakes


# --- the report


def report(seen: Seen) -> str:
    """The table for people."""
    lines = ["ticket  nodes         runs                      branch  pushes  PR  ended"]
    for row in seen.rows:
        nodes, runs = " -> ".join(row.nodes), ", ".join(row.runs)
        lines.append(
            f"{row.ticket:<7} {nodes:<13} {runs:<25} {row.branches:>6} {row.pushes:>7} {row.pull_requests:>3}  {row.state}"
        )
    done = sum(not row.mistakes for row in seen.rows)
    lines.append(f"{done} of {len(seen.rows)} tickets as they should be; {len(seen.hit)} were in the hands of node b; "
                 f"done {seen.seconds_after_fault:.0f} s after the fault; {seen.seconds:.0f} s in all")  # fmt: skip
    return "\n".join([*lines, *(f"WRONG: {mistake}" for mistake in seen.mistakes)])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tickets", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", choices=("kill", "freeze"), default="kill")
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--again", type=int, default=2, help="tickets after the fault, when node b is back")
    parser.add_argument("--slow-seconds", type=float, default=6.0, help="of the model's three longest answers")
    parser.add_argument("--json", action="store_true")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing stays then, either
    given = vars(parser.parse_args())
    as_json = given.pop("json")
    seen = go(Wanted(**given), lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(seen.as_json()) if as_json else report(seen))
    return 1 if seen.mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
