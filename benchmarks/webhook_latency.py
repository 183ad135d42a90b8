"""How long a ticket waits after its webhook: a real `darkfactory up`, a fake Linear, a scripted model, and the time of every step.

    python -m benchmarks.webhook_latency --tickets 20

The first agent action is the first thing the ticket's own run changes outside: it moves the ticket to the working state, as
the board saw it. That, measured from the moment before the webhook was sent, is the total, and the command ends with 1 when
its p95 is over `LIMIT_SECONDS`. Reading the repository comes next; the first model call is given below the total.

Tickets come one after the other, each when the run of the one before has ended, and boards are polled once a day, so that
the webhook alone starts work. All times are of one machine: the board's and the model's own clocks, `created` and states of
Prefect's flow runs, the claim in the ledger, and the birth of a run's output file, which its process makes first of all.
Ends with 2 when Linear's schema, by which the fake answers, is not beside the checkout.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx
import yaml

from deployments.engine import end_group, free_port, read_record, start_child
from infra.boards.linear import LinearBoard
from infra.claims import Claims
from infra.database import Database, open_database
from infra.errors import FactoryError, Unreachable
from infra.fleet import Fleet
from infra.llm import Frozen
from infra.llm.scripted import ScriptedModel
from infra.postgres import stop_postgres
from infra.settings import Settings, load_settings
from tests.fakes.linear import SCHEMA, FakeLinear
from tests.shop import BODY, make_repository, script

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 5.0
"""From the webhook to the first agent action, at the 95th percentile, on one idle machine."""
START_SECONDS = 300.0
TICKET_SECONDS = 180.0
"""Longest waits: for a factory with a new database, and for one ticket from its webhook to the end of its run."""
STOP_SECONDS = 120.0
BOARD, NODE, WORKING = "tickets", "bench", "In Progress"
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

_T = TypeVar("_T")


class Timeline(Frozen):
    """When one ticket reached each point, in seconds since the epoch, in the order in which they come."""

    sent: float
    answered: float
    """By the gateway, which has recorded the delivery then."""
    event: float
    """Prefect's server received the event."""
    dispatch_created: float
    dispatch_picked: float
    """The control pool's worker saw the run and marked it as pending."""
    dispatch_process: float
    dispatch_running: float
    claimed: float
    """The dispatcher's claim stands on the ticket."""
    ticket_created: float
    ticket_picked: float
    ticket_process: float
    ticket_running: float
    held: float
    """The run took its claim over."""
    first_action: float
    model_call: float

    @property
    def total(self) -> float:
        return self.first_action - self.sent


class Step(NamedTuple):
    """A row of the table: the time between two points of a timeline."""

    name: str
    start: str
    end: str


STEPS = (
    Step("receive: the gateway answers", "sent", "answered"),
    Step("event: Prefect's server has it", "answered", "event"),
    Step("dispatch run created", "event", "dispatch_created"),
    Step("dispatch run picked up by the worker", "dispatch_created", "dispatch_picked"),
    Step("dispatch process up", "dispatch_picked", "dispatch_process"),
    Step("dispatch imports, flow running", "dispatch_process", "dispatch_running"),
    Step("dispatch work: claim on the ticket", "dispatch_running", "claimed"),
    Step("ticket run created", "claimed", "ticket_created"),
    Step("ticket run picked up by the node", "ticket_created", "ticket_picked"),
    Step("ticket process up", "ticket_picked", "ticket_process"),
    Step("ticket imports, flow running", "ticket_process", "ticket_running"),
    Step("the run holds its claim", "ticket_running", "held"),
    Step("first action: ticket moved", "held", "first_action"),
)
TOTAL = Step("TOTAL webhook to first action", "sent", "first_action")
AFTERWARDS = Step("then: first model call", "first_action", "model_call")


# --- the arithmetic


def spent(step: Step, timelines: Sequence[Timeline]) -> list[float]:
    """Seconds of the step, one per ticket. Below zero where its end did not wait for its start."""
    return [getattr(timeline, step.end) - getattr(timeline, step.start) for timeline in timelines]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed (nearest rank). `values` has some."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def summary(timelines: Sequence[Timeline]) -> dict[str, dict[str, float]]:
    """p50, p95 and max in seconds of every step, by its name."""
    rows = {step.name: spent(step, timelines) for step in (*STEPS, TOTAL, AFTERWARDS)}
    return {
        name: {"p50": percentile(each, 0.5), "p95": percentile(each, 0.95), "max": max(each)}
        for name, each in rows.items()
    }


def table(timelines: Sequence[Timeline]) -> str:
    """The summary as Markdown."""
    rows = [
        f"| {name} | {row['p50']:.3f} | {row['p95']:.3f} | {row['max']:.3f} |"
        for name, row in summary(timelines).items()
    ]
    return "\n".join(["| step (seconds) | p50 | p95 | max |", "|---|---|---|---|", *rows])


# --- the board and the webhook


class TimedLinear(FakeLinear):
    """Linear, with the times at which tickets got their first comment and came into the working state."""

    def __init__(self) -> None:
        super().__init__()
        self.commented_at: dict[str, float] = {}
        self.working_at: dict[str, float] = {}

    def answer(self, headers: Mapping[str, str], data: bytes) -> tuple[int, bytes, dict[str, str]]:
        answered = super().answer(headers, data)
        for key, issue in list(self.issues.items()):
            if issue.comments:
                self.commented_at.setdefault(key, time.time())
            if issue.state == WORKING:
                self.working_at.setdefault(key, time.time())
        return answered


def warm_up(board: FakeLinear) -> None:
    """Let the fake read its schema and the operations once, which would be seconds of the first ticket."""
    key = board.add_issue("Warm up", state="Backlog")
    opened = LinearBoard("warm-up", board.section())
    opened.comment(key, "Warm", marker="warm-up")
    opened.move(key, "Done")


def send_webhook(address: str, key: str, secret: str) -> None:
    """What Linear sends for a new issue. Raises httpx.HTTPStatusError when the gateway refuses it."""
    data = {"identifier": key, "number": int(key.rpartition("-")[2]), "team": {"key": key.rpartition("-")[0]}}
    payload = {"action": "create", "type": "Issue", "webhookTimestamp": int(time.time() * 1000), "data": data}
    body = json.dumps(payload).encode()
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    headers = {"Linear-Signature": signature, "Linear-Delivery": str(uuid.uuid4()), "Content-Type": "application/json"}
    httpx.post(address, content=body, headers=headers, timeout=10).raise_for_status()


# --- the factory


class Factory:
    """A running `darkfactory up`, as it is seen from outside: Prefect's API, the ledger, board and model."""

    def __init__(self, settings: Settings, database: Database, board: TimedLinear, model: ScriptedModel) -> None:
        self._settings, self._claims, self._fleet = settings, Claims(database), Fleet(database)
        self._board, self._model = board, model
        self._api = httpx.Client(timeout=30)

    def wait_until_warm(self, up: subprocess.Popen[bytes]) -> None:
        """The gateway listens, the node joined and cleaned up, and the workers of both pools can fork."""
        record = wait_for(lambda: _all_started(self._settings, up), "`darkfactory up` to start", START_SECONDS)
        self._api.base_url = httpx.URL(record)
        wait_for(self._is_ready, "gateway, node and workers", START_SECONDS)

    def _is_ready(self) -> bool:
        try:
            httpx.get(self._webhooks("health"), timeout=5).raise_for_status()
        except httpx.HTTPError:
            return False
        joined = any(node.alive for node in self._fleet.nodes())
        cleaned = joined and self._runs("clean-node", lambda run: run["state_type"] in ENDED)
        return bool(cleaned) and all(self._has_worker(pool["name"]) for pool in self._ask("/work_pools/filter", {}))

    def _has_worker(self, pool: str) -> bool:
        return any(worker["status"] == "ONLINE" for worker in self._ask(f"/work_pools/{pool}/workers/filter", {}))

    def _webhooks(self, place: str) -> str:
        return f"http://{self._settings.webhooks.host}:{self._settings.webhooks.port}/{place}"

    def work_one(self, number: int) -> Timeline:
        """Add a ticket, send its webhook, and follow it until its run has ended."""
        key = self._board.add_issue(f"total ignores the discount ({number})", BODY)
        calls = self._model.calls
        sent = time.time()
        [secret] = self._settings.webhooks.linear_secret
        send_webhook(self._webhooks("webhooks/linear"), key, secret.get_secret_value())
        answered = time.time()
        first_action = wait_for(lambda: self._board.working_at.get(key), f"the first action on {key}", TICKET_SECONDS)
        held = wait_for(lambda: self._held(key), f"the claim of {key}", TICKET_SECONDS)
        ticket = wait_for(lambda: self._ended("work-ticket", key), f"the end of {key}", TICKET_SECONDS)
        dispatch = wait_for(lambda: self._ended("dispatch-tickets", key), f"the tick for {key}", TICKET_SECONDS)
        event = wait_for(lambda: self._event(key), f"the event of {key}", TICKET_SECONDS)
        if self._model.calls == calls:
            raise Unreachable(
                f"the run of {key!r} asked the model nothing; look into its log below the home's logs/runs"
            )
        return Timeline(
            sent=sent,
            answered=answered,
            event=event,
            **{f"dispatch_{point}": at for point, at in self._points(dispatch).items()},
            claimed=self._board.commented_at[key],
            **{f"ticket_{point}": at for point, at in self._points(ticket).items()},
            held=held,
            first_action=first_action,
            model_call=self._model.requests[calls].at,
        )

    def _held(self, key: str) -> float | None:
        claim = self._claims.find(BOARD, key)
        return claim.started_at.timestamp() if claim and claim.started_at else None

    def _ended(self, flow: str, key: str) -> dict[str, Any] | None:
        """The first run of the flow for this ticket, once it is over."""
        found = self._runs(flow, lambda run: run["parameters"].get("ticket") == key)
        first = min(found, key=lambda run: str(run["created"]), default=None)
        return first if first and first["state_type"] in ENDED else None

    def _runs(self, flow: str, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        asked = {"flows": {"name": {"any_": [flow]}}, "sort": "ID_DESC", "limit": 20}
        return [run for run in self._ask("/flow_runs/filter", asked) if wanted(run)]

    def _event(self, key: str) -> float | None:
        """Prefect writes events in batches, so they are there some seconds later."""
        resource = {"id": [f"darkfactory.ticket.{BOARD}.{key}"]}
        found = self._ask("/events/filter", {"filter": {"resource": resource}})["events"]
        return min((_seconds(event["received"]) for event in found), default=None)

    def _points(self, run: Mapping[str, Any]) -> dict[str, float]:
        answer = self._api.get("/flow_run_states/", params={"flow_run_id": run["id"]})
        states = sorted(answer.raise_for_status().json(), key=lambda state: str(state["timestamp"]))
        at = {state["type"]: _seconds(state["timestamp"]) for state in reversed(states)}
        log = self._settings.root / "logs" / "runs" / f"{run['id']}.log"
        return {
            "created": _seconds(run["created"]),
            "picked": at["PENDING"],
            "process": born(log),
            "running": at["RUNNING"],
        }

    def _ask(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._api.post(path, json=body).raise_for_status().json()


def born(path: Path) -> float:
    """When the file was made (Linux)."""
    command = ["stat", "--format=%.W", str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _seconds(said: str) -> float:
    return datetime.fromisoformat(said.replace("Z", "+00:00")).timestamp()


def _all_started(settings: Settings, up: subprocess.Popen[bytes]) -> str | None:
    """Prefect's address, once server, worker, node and gateway were started."""
    if up.poll() is not None:
        raise Unreachable(f"`darkfactory up` ended with {up.returncode}: {_last_words(settings.root)}")
    record = read_record(settings.root)
    return record.api_url if record and len(record.children) == 4 else None


def _last_words(home: Path) -> str:
    said = (home / "logs" / "up.log").read_text(errors="replace")
    return said.strip()[-1000:]


def wait_for(condition: Callable[[], _T | None], what: str, seconds: float) -> _T:
    """The first true value. Raises Unreachable after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise Unreachable(f"waited {seconds:.0f} s for {what}; the logs below the home say why, see --keep")
        time.sleep(0.2)
    return found


def write_settings(home: Path, board: FakeLinear, model: ScriptedModel, repository: Path) -> Settings:
    """A factory of one board, one repository and one node of one slot; environment variables of others have no say."""
    for name in [name for name in os.environ if name.startswith(("DARKFACTORY_", "PREFECT_"))]:
        del os.environ[name]
    os.environ |= {
        "DARKFACTORY_HOME": str(home),
        "LATENCY_BOARD_TOKEN": board.token,
        "LATENCY_WEBHOOK": uuid.uuid4().hex,
    }
    values = {
        "model": "openai/scripted",
        "model_url": model.openai_url,
        "model_tier": "small",
        "node": NODE,
        "boards": {BOARD: {"kind": "linear", "team": "ENG", "url": board.url, "token": "$LATENCY_BOARD_TOKEN", "repository": "shop"}},
        "repositories": {"shop": {"path": str(repository)}},
        "dispatch": {"every_seconds": 86_400},
        "webhooks": {"port": free_port(), "linear_secret": "$LATENCY_WEBHOOK"},
    }  # fmt: skip
    home.mkdir(parents=True)
    (home / "factory.yaml").write_text(yaml.safe_dump(values))
    return load_settings()


@contextmanager
def running_factory(folder: Path) -> Iterator[Factory]:
    """Everything, warm; all of it has ended when the block is left."""
    board = TimedLinear()
    with board, ScriptedModel(script()) as model:
        settings = write_settings(folder / "home", board, model, make_repository(folder / "shop"))
        warm_up(board)
        command = [sys.executable, "-P", "-m", "deployments", "up", "--port", str(free_port())]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        try:
            with open_database(settings) as database:
                up = start_child(command, environment, folder, settings.root / "logs" / "up.log")
                try:
                    factory = Factory(settings, database, board, model)
                    factory.wait_until_warm(up)
                    yield factory
                finally:
                    _end(up)
        finally:
            stop_postgres(settings.root)


def _end(up: subprocess.Popen[bytes]) -> None:
    """SIGTERM, which lets it end its children."""
    up.terminate()
    try:
        up.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"`darkfactory up` did not end within {STOP_SECONDS:.0f} s of SIGTERM; it is killed", file=sys.stderr)
    end_group(up)


def measure(folder: Path, tickets: int) -> list[Timeline]:
    """Work the tickets one after the other. Raises Unreachable when one does not get on."""
    with running_factory(folder) as factory:
        timelines = []
        for number in range(1, tickets + 1):
            timelines.append(factory.work_one(number))
            print(f"ticket {number} of {tickets}: {timelines[-1].total:.2f} s", file=sys.stderr, flush=True)
        return timelines


def report(timelines: Sequence[Timeline], loads: tuple[float, float], as_json: bool) -> str:
    """The table with what else has to be known of the machine, or all of it as JSON. `loads`: before and after."""
    p95 = percentile(spent(TOTAL, timelines), 0.95)
    verdict = f"p95 {p95:.2f} s of at most {LIMIT_SECONDS:.0f} s: {'kept' if p95 <= LIMIT_SECONDS else 'NOT KEPT'}"
    if as_json:
        each = [timeline.model_dump() for timeline in timelines]
        said = {"limit_seconds": LIMIT_SECONDS, "kept": p95 <= LIMIT_SECONDS, "load_before": loads[0], "load_after": loads[1]}  # fmt: skip
        return json.dumps({**said, "cores": os.cpu_count(), "steps": summary(timelines), "tickets": each})
    machine = f"load average {loads[0]:.2f} before, {loads[1]:.2f} after, on {os.cpu_count()} cores"
    return f"{table(timelines)}\n\n{len(timelines)} tickets; {machine}\n{verdict}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickets", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="all times of all tickets, for programs")
    parser.add_argument("--keep", type=Path, help="work in this new folder and leave it there, logs and all")
    wanted = parser.parse_args()
    if wanted.tickets < 1:
        parser.error("--tickets has to be 1 or more")
    if wanted.keep is not None and wanted.keep.exists():
        parser.error(f"{str(wanted.keep)!r} is there already; name a new folder")
    if not SCHEMA.is_file():
        print(f"there is no fake Linear without its schema; put it at {str(SCHEMA)!r}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves every `with`, so that all ends
    before = os.getloadavg()[0]
    try:
        timelines = _measure_in(wanted.keep, wanted.tickets)
    except FactoryError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(report(timelines, (before, os.getloadavg()[0]), wanted.json))
    return 0 if percentile(spent(TOTAL, timelines), 0.95) <= LIMIT_SECONDS else 1


def _measure_in(keep: Path | None, tickets: int) -> list[Timeline]:
    if keep is not None:
        return measure(keep.absolute(), tickets)
    with tempfile.TemporaryDirectory(prefix="darkfactory-latency-") as name:
        return measure(Path(name), tickets)


if __name__ == "__main__":
    raise SystemExit(main())
