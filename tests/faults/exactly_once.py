"""SM9 as a script: many dispatchers on one ledger, killed in the middle of everything, and every ticket is worked on once.

    python tests/faults/exactly_once.py --tickets 1000 --dispatchers 4 --seed 1

Dispatchers are processes that tick without pause. Every node is a process that takes the runs of its pool from Prefect,
pushes a branch with a commit that names the run, publishes the pull request and moves the ticket. A killer ends them with
SIGKILL at moments drawn from the seed, and starts them anew; a node that starts marks what the one before it had in hand
as crashed, which is the only excuse for a second run of a ticket. The proof is what Prefect's database, the reflog of the
remote, the forge and the board hold at the end. Ends with status 0 when nothing happened twice and nothing was left out.

PostgreSQL and Prefect are its own, unless DARKFACTORY_DATABASE_URL and PREFECT_API_URL name others.
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
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import psycopg  # noqa: E402

from deployments.engine import (  # noqa: E402  found beside this script's folder
    HOST,
    end_group,
    engine_environment,
    free_port,
    start_server,
    wait_for_server,
)
from infra.claims import Claim  # noqa: E402
from infra.errors import FactoryError, FencedOff  # noqa: E402
from infra.fleet import pool_name  # noqa: E402
from infra.git import Mirror, branch_name, ensure_bare  # noqa: E402
from infra.postgres import ensure_postgres, stop_postgres  # noqa: E402
from infra.pull_requests.folder import FolderForge  # noqa: E402
from infra.settings import Settings, load_settings  # noqa: E402
from tests.shop import git, make_repository, write_ticket  # noqa: E402

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, State, StateType

LEASE_SECONDS = 10
SLOTS = 24
"""Of each node; the dispatchers fill them faster than the nodes work them off."""
LANES = 3
"""Runs that a node works on at the same time."""
WORKER_SHARE = 0.35
"""Of all kills, those that hit a node."""
LATE_SECONDS = 1.0
"""What a killed process asked of Prefect's server may still happen this long after its death."""
END_SECONDS = 90.0
"""Longest wait for the last ticks, and for processes that were told to end."""
PRELOADED = ["__main__", "flows.dispatch", "tasks.holding", "prefect.flow_engine", "prefect.events.clients"]
POLL_SECONDS, POLLS = 0.1, 10
SAY_SECONDS = 10.0
PAGE = 200
OURS = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    **{f"GIT_{who}_NAME": "Darkfactory" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "darkfactory@localhost" for who in ("AUTHOR", "COMMITTER")},
}
"""Whose commits the factory may replace: its own."""


class Place(NamedTuple):
    """Where everything of one go lies, and the names of its nodes (Prefect's server may be shared with others)."""

    home: Path
    nodes: tuple[str, ...]

    @property
    def board(self) -> Path:
        return self.home / "board"

    @property
    def mirror(self) -> Path:
        return self.home / "repos" / "shop.git"

    @property
    def remote(self) -> Path:
        return self.home / "forge" / "shop" / "repo.git"

    @property
    def pulls(self) -> Path:
        return self.home / "forge" / "shop" / "pulls"

    @property
    def journal(self) -> Path:
        return self.home / "journal.jsonl"

    @property
    def over(self) -> Path:
        """There when all processes shall end."""
        return self.home / "over"

    def note(self, **what: Any) -> None:
        """Append a line to the journal; a killed writer leaves all of it or nothing."""
        handle = os.open(self.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(handle, json.dumps(what).encode() + b"\n")
        finally:
            os.close(handle)

    def notes(self, what: str) -> list[dict[str, Any]]:
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [note for note in map(json.loads, lines) if note["what"] == what]

    def in_review(self) -> int:
        return sum("\nstate: in review\n" in path.read_text() for path in self.board.glob("*.md"))


# --- setting up


def make_place(home: Path, tickets: int, nodes: int) -> Place:
    """Tickets, one repository with its mirror, and a remote that writes down every move of a branch."""
    mark = secrets.token_hex(4)
    place = Place(home, tuple(f"once-{mark}-{number}" for number in range(nodes)))
    for number in range(tickets):
        path = write_ticket(place.board, f"t-{number:04d}")
        path.write_text(path.read_text().replace("state: ready\n", "state: todo\n"))
    mirror = Mirror.open(place.mirror.parent, "shop", str(make_repository(home / "shop")))
    ensure_bare(place.remote, mirror, "main")
    git(place.remote, "config", "core.logAllRefUpdates", "always")
    return place


def choose_settings(home: Path, seats: int) -> Settings:
    """The settings of this process and all it starts."""
    repository = {"shop": {"path": str(home / "shop")}}
    for name, value in {
        "HOME": str(home),
        "MODEL": "openai/none",
        "MODEL_URL": "http://127.0.0.1:9/v1",
        "MODEL_TIER": "small",
        "REPOSITORIES": json.dumps(repository),
        "DISPATCH": json.dumps({"lease_seconds": LEASE_SECONDS, "max_running": seats}),
    }.items():
        os.environ[f"DARKFACTORY_{name}"] = value
    settings = load_settings()
    os.environ |= engine_environment(settings) | {"PREFECT_LOGGING_TO_API_ENABLED": "false"}
    (settings.root / "prefect").mkdir(parents=True, exist_ok=True)
    return settings


@contextmanager
def servers(settings: Settings) -> Iterator[None]:
    """PostgreSQL and Prefect, unless the environment names them; Prefect may be imported inside."""
    if settings.database_url is not None and "PREFECT_API_URL" in os.environ:
        yield
        return
    port, log = free_port(), settings.root / "logs" / "prefect.log"
    try:
        hurry(ensure_postgres(settings.root))
        server = start_server(settings, port, log, ["--no-ui", "--no-scheduler", "--no-late-runs"])
        try:
            os.environ["PREFECT_API_URL"] = f"http://{HOST}:{port}/api"
            wait_for_server(os.environ["PREFECT_API_URL"], server, log)
            yield
        finally:
            end_group(server)
    finally:
        stop_postgres(settings.root)


def hurry(url: str) -> None:
    """Processes are killed here, machines are not: nobody has to wait for the disk."""
    with psycopg.connect(url, autocommit=True) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(f"alter system set {setting} = off")
        connection.execute("select pg_reload_conf()")


async def join(client: PrefectClient, place: Place, node: str) -> None:
    """A node with its pool and the deployment that tickets are launched by."""
    from deployments.definitions import apply, ensure_pool, node_table
    from tasks import services

    services.fleet().join(node, slots=SLOTS, labels=(), machine=node, provider=services.provider(), lease_seconds=1e6)
    await ensure_pool(client, pool_name(node), SLOTS + 1)
    empty = place.home / "prefect" / "empty"
    empty.mkdir(parents=True, exist_ok=True)
    await apply(client, node_table(node)[0], str(empty))


# --- the processes that are killed


def begin(place: Place) -> None:
    """A process group of its own, which dies with the script; its words go into one file."""
    os.setsid()
    threading.Thread(target=_end_with_script, daemon=True).start()
    log = os.open(place.home / "logs" / "processes.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _end_with_script() -> None:
    """The process that all are forked from lives as long as one of them does, so they look after themselves."""
    script = multiprocessing.parent_process()
    if script is not None:
        script.join()
        os.killpg(0, signal.SIGKILL)


def dispatch(place: Place) -> None:
    """A dispatcher: ticks until all is over."""
    begin(place)
    asyncio.run(_dispatch(place))


async def _dispatch(place: Place) -> None:
    from flows.dispatch import dispatch_tickets

    while not place.over.exists():
        began = time.time()
        done = await dispatch_tickets()
        place.note(what="tick", began=began, seconds=time.time() - began, launched=len(done.launched))
        await asyncio.sleep(random.uniform(0, 0.5))


def work(place: Place, node: str) -> None:
    """A node: buries what the one before it had in hand, then takes the runs of its pool until all is over."""
    begin(place)
    asyncio.run(_work(place, node))


async def _work(place: Place, node: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    ensure_bare(place.remote, Mirror(place.mirror), "main")  # as intake does: a killed push leaves a lock in the remote
    async with get_client() as client:
        await asyncio.sleep(LATE_SECONDS)
        for run in await runs_of(client, [node], StateType.PENDING, StateType.RUNNING):
            await client.set_flow_run_state(run.id, Crashed(message="its node was killed"), force=True)
        while not place.over.exists():
            waiting = await client.get_scheduled_flow_runs_for_work_pool(pool_name(node))
            await asyncio.gather(*(_work_on(client, place, each.flow_run) for each in waiting[:LANES]))
            await asyncio.sleep(0 if waiting else 0.3)


async def _work_on(client: PrefectClient, place: Place, run: FlowRun) -> None:
    from prefect.states import Cancelled, Completed, Failed, Pending, Running

    ended: State[None] = Completed()
    await client.set_flow_run_state(run.id, Pending())
    await client.set_flow_run_state(run.id, Running())
    try:
        await _hold_and_deliver(place, run)
    except FencedOff as error:
        ended = Cancelled(message=str(error))
    except FactoryError as error:
        ended = Failed(message=str(error))
    await client.set_flow_run_state(run.id, ended, force=True)


async def _hold_and_deliver(place: Place, run: FlowRun) -> None:
    from tasks import services
    from tasks.holding import holding

    board, ticket, token = (run.parameters[name] for name in ("board", "ticket", "token"))
    settings, claims = services.settings(), services.claims()
    claim = await asyncio.to_thread(claims.start, board, ticket, token, flow_run=str(run.id), machine=settings.machine)
    place.note(what="started", ticket=ticket, run=str(run.id))
    async with holding(claim):
        await asyncio.to_thread(deliver, place, claim, str(run.id))


def deliver(place: Place, claim: Claim, run: str) -> None:
    """Branch, pull request, ticket, claim: what the product does in the same order, without the thinking."""
    from tasks import services

    branch, mirror = branch_name(claim.ticket), Mirror(place.mirror)
    with services.claims().fenced(claim):
        sha = commit(place, run)
        mirror.push(str(place.remote), branch, sha)
        services.forge("shop").publish(branch=branch, base="main", head_sha=sha, title=claim.ticket, body=run)
        services.board(claim.board).move(claim.ticket, "in review")
    services.claims().release(claim, "accepted", moved=True)


def commit(place: Place, run: str) -> str:
    """A commit of the mirror whose message is the run: every run pushes another one."""
    base = "refs/source/heads/main"
    command = ["git", "commit-tree", f"{base}^{{tree}}", "-p", base, "-m", run]
    made = subprocess.run(command, cwd=place.mirror, env=OURS, check=True, capture_output=True, text=True)
    return made.stdout.strip()


async def runs_of(client: PrefectClient, nodes: Sequence[str], *states: StateType) -> list[FlowRun]:
    """The ticket runs in the pools of the nodes, of these states or of all."""
    from prefect.client.schemas import filters
    from prefect.client.schemas.sorting import FlowRunSort

    pools = filters.WorkPoolFilter(name=filters.WorkPoolFilterName(any_=[pool_name(node) for node in nodes]))
    kinds = filters.FlowRunFilterStateType(any_=list(states)) if states else None
    wanted = filters.FlowRunFilter(state=filters.FlowRunFilterState(type=kinds)) if kinds else None
    found: list[FlowRun] = []
    while True:
        page = await client.read_flow_runs(
            work_pool_filter=pools, flow_run_filter=wanted, sort=FlowRunSort.ID_DESC, limit=PAGE, offset=len(found)
        )
        found += page
        if len(page) < PAGE:
            return found


# --- the one that kills


class Killer:
    """Keeps the dispatchers and nodes running, ends one of them now and then, and counts.

    There are `most` kills, each up to `peace_seconds` after the board was written: a slow machine gets on, too.
    """

    def __init__(
        self, place: Place, dispatchers: int, *, rng: random.Random, most: int, share: float, peace_seconds: float
    ) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._parts: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {
            **{f"dispatcher {number}": (dispatch, (place,)) for number in range(dispatchers)},
            **{f"node {node}": (work, (place, node)) for node in place.nodes},
        }
        self.dispatchers = dispatchers
        self._running: dict[str, ForkServerProcess] = {}
        self._board, self._written = place.board, 0
        self._rng, self._most, self._share, self._peace_seconds = rng, most, share, peace_seconds
        self._next: float | None = None
        self.killed, self.died = Counter[str](), Counter[str]()

    def start(self) -> None:
        for name in self._parts:
            self._start(name)

    def look(self, kill: bool) -> None:
        """Start again what ended by itself (which nothing should), and kill when it is time to."""
        for name, process in self._running.items():
            if not process.is_alive():
                self.died[name.split()[0]] += 1
                self._start(name)
        if kill and self.killed.total() < self._most and self._is_time():
            self._kill(self._victim())

    def _is_time(self) -> bool:
        """Some time after a ticket was written."""
        if self._next is None and self._is_written():
            self._next = time.monotonic() + self._rng.uniform(0, self._peace_seconds)
        if self._next is None or time.monotonic() < self._next:
            return False
        self._next = None
        return True

    def _is_written(self) -> bool:
        """Whether the board changed since it was asked last."""
        before, self._written = self._written, self._board.stat().st_mtime_ns
        return before != self._written

    def _victim(self) -> str:
        kind = "node" if self._rng.random() < self._share else "dispatcher"
        return self._rng.choice([name for name in self._parts if name.startswith(kind)])

    def _kill(self, name: str) -> None:
        end(self._running[name])
        self.killed[name.split()[0]] += 1
        self._start(name)

    def _start(self, name: str) -> None:
        target, arguments = self._parts[name]
        self._running[name] = process = self._context.Process(target=target, args=arguments, name=name)
        process.start()

    def stop(self, grace_seconds: float) -> None:
        """Wait for all to end by themselves, then end the rest."""
        deadline = time.monotonic() + grace_seconds
        for process in self._running.values():
            process.join(max(0.0, deadline - time.monotonic()))
            end(process)


def end(process: ForkServerProcess) -> None:
    """Kill -9 of a process and its group: nothing of it can clean up."""
    if process.is_alive() and process.pid is not None:
        with suppress(ProcessLookupError):  # it has no group of its own yet
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.join()


async def drive(client: PrefectClient, place: Place, killer: Killer, tickets: int, seconds: float) -> None:
    """Until every ticket is in review and no run is left, or the time is over; then until a last tick of everybody."""
    began = time.monotonic()
    said = began
    while not await is_done(client, place, tickets) and time.monotonic() < began + seconds:
        for _ in range(POLLS):
            killer.look(kill=True)
            await asyncio.sleep(POLL_SECONDS)
        if time.monotonic() > said + SAY_SECONDS:
            said = time.monotonic()
            say(place, killer, tickets, said - began)
    await settle(place, killer)


async def is_done(client: PrefectClient, place: Place, tickets: int) -> bool:
    from prefect.client.schemas.objects import StateType

    unfinished = (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING)
    return place.in_review() == tickets and not await runs_of(client, place.nodes, *unfinished)


async def settle(place: Place, killer: Killer) -> None:
    """Let everybody who dispatches look once more at a board that is done: nothing may come of it."""
    began = time.time()
    while time.time() < began + END_SECONDS:
        killer.look(kill=False)
        if sum(note["began"] > began for note in place.notes("tick")) >= killer.dispatchers:
            return
        await asyncio.sleep(POLL_SECONDS)


def say(place: Place, killer: Killer, tickets: int, seconds: float) -> None:
    ticks = place.notes("tick")
    slowest = max((note["seconds"] for note in ticks), default=0.0)
    print(
        f"{seconds:5.0f} s: {place.in_review()} of {tickets} in review; {len(ticks)} ticks, the slowest {slowest:.1f} s; "
        f"killed {killer.killed['dispatcher']} dispatchers, {killer.killed['node']} nodes",
        file=sys.stderr, flush=True,
    )  # fmt: skip


# --- what came of it


class Evidence(NamedTuple):
    """What is there at the end. `runs`: of each ticket, in the order of their tokens, id and Prefect's state; `moves`:
    of each branch, the runs whose commits it pointed at, in order; `pulls`: the branch of every pull request."""

    runs: Mapping[str, Sequence[tuple[str, str]]]
    started: Mapping[str, int]
    moves: Mapping[str, Sequence[str]]
    pulls: Sequence[str]
    in_review: int

    @property
    def crashed(self) -> set[str]:
        """Runs that a killed node had in hand."""
        return {run for runs in self.runs.values() for run, state in runs if state == "CRASHED"}

    def unexcused(self, runs: Sequence[str]) -> int:
        """How many of them followed one that nobody had killed."""
        return sum(run not in self.crashed for run in runs[:-1])


async def gather(client: PrefectClient, place: Place) -> Evidence:
    runs: dict[str, list[FlowRun]] = defaultdict(list)
    for run in await runs_of(client, place.nodes):
        runs[run.parameters["ticket"]].append(run)
    ordered = {ticket: sorted(each, key=lambda run: int(run.parameters["token"])) for ticket, each in runs.items()}
    forge = FolderForge(place.pulls)
    pulls = [path.stem.replace("--", "/") for path in sorted(place.pulls.glob("[!.]*"))]
    return Evidence(
        runs={ticket: [(str(run.id), str(run.state_type and run.state_type.value)) for run in each] for ticket, each in ordered.items()},
        started=Counter(note["ticket"] for note in place.notes("started")),
        moves=moves(place),
        pulls=[found.branch for branch in pulls if (found := forge.find(branch)) is not None],
        in_review=place.in_review(),
    )  # fmt: skip


def moves(place: Place) -> dict[str, list[str]]:
    """Of each branch of the factory, the messages of the commits it pointed at one after the other."""
    listed = git(place.remote, "log", "--all", "--reflog", "--format=%H %s")
    message = dict(line.split(" ", 1) for line in listed.splitlines())
    folder = place.remote / "logs" / "refs" / "heads"
    return {
        str(path.relative_to(folder)): [message[line.split()[1]] for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("agent/*"))
    }


def counts(evidence: Evidence, tickets: int, killer: Killer, seconds: float) -> dict[str, int]:
    runs = {ticket: [run for run, _ in each] for ticket, each in evidence.runs.items()}
    states = Counter(state for each in evidence.runs.values() for _, state in each)
    return {
        "tickets": tickets,
        "tickets in review": evidence.in_review,
        "runs": sum(map(len, runs.values())),
        "runs that a dead node had in hand": len(evidence.crashed),
        "runs fenced off": states["CANCELLED"],
        "runs that failed": states["FAILED"],
        "runs that began, most of one ticket": max(evidence.started.values(), default=0),
        "runs after one that nobody killed": sum(map(evidence.unexcused, runs.values())),
        "branches": len(evidence.moves),
        "branches pushed again after a run that nobody killed": sum(map(evidence.unexcused, evidence.moves.values())),
        "pull requests": len(set(evidence.pulls)),
        "pull requests more than one of a branch": len(evidence.pulls) - len(set(evidence.pulls)),
        "dispatchers killed": killer.killed["dispatcher"],
        "nodes killed": killer.killed["node"],
        "dispatchers that died by themselves": killer.died["dispatcher"],
        "nodes that died by themselves": killer.died["node"],
        "seconds": round(seconds),
    }


def is_right(count: Mapping[str, int]) -> bool:
    """One branch, one pull request and one run of each ticket, and one more for each that was in a dead node's hands."""
    tickets = count["tickets"]
    each_once = all(count[name] == tickets for name in ("tickets in review", "branches", "pull requests"))
    twice = ("runs after one that nobody killed", "branches pushed again after a run that nobody killed",
             "pull requests more than one of a branch", "runs that failed", "runs fenced off")  # fmt: skip
    spare = count["runs"] - tickets
    return (
        each_once
        and not any(count[name] for name in twice)
        and 0 <= spare <= count["runs that a dead node had in hand"]
    )


def last_words(place: Place) -> str:
    """The end of what the processes wrote: why one died by itself."""
    log = place.home / "logs" / "processes.log"
    return log.read_text(errors="replace")[-4000:] if log.exists() else ""


async def run_all(place: Place, killer: Killer, tickets: int, seconds: float) -> dict[str, int]:
    """All of it: join the nodes, start, kill, wait, count."""
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        for node in place.nodes:
            await join(client, place, node)
        began = time.monotonic()
        try:
            killer.start()
            await drive(client, place, killer, tickets, seconds)
            lasted = time.monotonic() - began
            place.over.touch()
        finally:
            killer.stop(END_SECONDS if place.over.exists() else 0)
        return counts(await gather(client, place), tickets, killer, lasted)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Many dispatchers, killed at any moment: exactly one run per ticket; SM9."
    )
    parser.add_argument("--tickets", type=int, default=1000)
    parser.add_argument("--dispatchers", type=int, default=4)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--no-worker-kills", action="store_true", help="kill dispatchers only: exactly one run per ticket"
    )
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the database outlives whoever does not stop it
    with tempfile.TemporaryDirectory(prefix="exactly-once-") as folder:
        home = Path(folder).resolve()
        (home / "logs").mkdir()
        settings = choose_settings(home, seats=options.nodes * SLOTS)
        place = make_place(home, options.tickets, options.nodes)
        with servers(settings):
            killer = Killer(
                place, options.dispatchers, rng=random.Random(options.seed), most=max(10, options.tickets // 10), peace_seconds=2 + options.tickets / 100,
                share=0 if options.no_worker_kills else WORKER_SHARE,
            )  # fmt: skip
            count = asyncio.run(run_all(place, killer, options.tickets, 120 + 3 * options.tickets))
            print(last_words(place), end="", file=sys.stderr)
    print(json.dumps(count) if options.json else "\n".join(f"{value:>7}  {name}" for name, value in count.items()))
    return 0 if is_right(count) else 1


if __name__ == "__main__":
    sys.exit(main())
