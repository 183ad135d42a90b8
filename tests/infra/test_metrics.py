"""Metrics, read from a real ledger: every single one is moved by something that the factory does, and no part that fails
takes the others with it."""

from __future__ import annotations

import itertools
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from infra.boards import Ticket
from infra.budgets import Budgets
from infra.claims import Claim, Claims
from infra.database import SCHEMA, Database, ReadOnly
from infra.deliveries import Deliveries
from infra.errors import Unreachable
from infra.feedback import CalibrationTable, Feedback, Traits
from infra.fleet import Fleet
from infra.housekeeping import Draft, Housekeeping
from infra.ledger import AttemptOutcome, Ledger
from infra.lessons import Failure, Kind, Lessons, Shown
from infra.llm import Usage
from infra.metrics import (
    ATTEMPT_BOUNDS,
    LONGEST_VALUE,
    METRICS,
    MOST_VALUES,
    OF_READING,
    SECTIONS,
    Metric,
    Section,
    _sql,
    read_metrics,
)
from infra.pauses import Pauses
from infra.playbooks import ObservedStep, Operation, Playbooks
from infra.postgres import open_databases
from infra.pull_requests import PullRequest
from infra.repairs import Repairs, Sample, Signal
from infra.runner_jobs import RunnerJobs
from infra.sections import ActionsSection, BudgetsSection, DispatchSection
from infra.settings import Settings
from infra.stewardships import Journal, Stewardships, Wanted

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
USAGE = Usage(prompt_tokens=100, cached_tokens=80, completion_tokens=10, calls=3, seconds=20, cost_usd=0.25)
CODER = ("coder", "tiny", "openai")
CAPS = BudgetsSection(day_usd=100, ticket_usd=1000, ticket_agents=100)


class World:
    """A ledger that all tests of this file use, each with keys of its own."""

    def __init__(self, url: str) -> None:
        self.settings = Settings(database_url=url, budgets=CAPS)
        self.url = open_databases(self.settings).ledger
        self.database = Database(self.url)
        self.watching = ReadOnly(self.url)
        self._numbers = itertools.count(1)

    def key(self) -> str:
        return f"T-{next(self._numbers)}"

    def read(self, metric: str, labels: tuple[str, ...] = ()) -> float | tuple[float, ...] | None:
        """The metric's value now (of a histogram all of them); None where it is not told."""
        section = next(each for each in SECTIONS if metric in {m.name for m in each.metrics})
        reading = read_metrics(self.watching, self.settings, [section])
        assert reading.up == {section.name: True}
        found = [s.values for s in reading.samples if (s.metric.name, s.labels) == (metric, labels)]
        assert len(found) <= 1
        return None if not found else found[0] if len(found[0]) > 1 else found[0][0]

    def execute(self, statement: str, **values: Any) -> None:
        with self.database.transaction() as session:
            session.execute(text(f"set local search_path = {SCHEMA}"))
            session.execute(text(statement), values)

    # ---- things that happen

    def ticket(self, board: str = "folder") -> str:
        key = self.key()
        Ledger(self.database, board).record_ticket(Ticket(key=key, title="t", body="b", state="todo"), "shop")
        return key

    def attempt(self) -> int:
        return Ledger(self.database).start_attempt(self.ticket(), "base", "rev").id

    def end(self, outcome: AttemptOutcome = "accepted", failure: str | None = None, after: float = 30) -> None:
        attempt = self.attempt()
        self.execute(
            "update attempts set started_at = now() - :n * interval '1 second' where id = :id", n=after, id=attempt
        )
        Ledger(self.database).end_attempt(attempt, outcome, failure)

    def call(self) -> None:
        Ledger(self.database).record_session(self.attempt(), self.key(), "coder", USAGE, "tiny", provider="openai")

    def event(self) -> None:
        Ledger(self.database).record_event(None, self.key(), "published", "a pull request")

    def claim(self, node: str = "mini", repository: str = "shop") -> Claim:
        claims = Claims(self.database)
        made = claims.claim(
            Ticket(key=self.key(), title="t", body="b", state="todo"), holder="h", machine="m", repository=repository,
            lease_seconds=600, read_at=claims.now(), choose_node=lambda _: node,
        )  # fmt: skip
        assert made
        return made

    def run(self) -> Claim:
        claim = self.claim()
        return Claims(self.database).start(claim.board, claim.ticket, claim.token, flow_run="f", machine="m")

    def of_claim(self, claim: Claim, **values: Any) -> None:
        changes = ", ".join(f"{name} = now() - :{name} * interval '1 second'" for name in values)
        self.execute(f"update claims set {changes} where ticket = :ticket", ticket=claim.ticket, **values)

    def node(self, lease_seconds: float = 600, slots: int = 3) -> str:
        name = f"node-{self.key()}"
        Fleet(self.database).join(
            name, slots=slots, labels=[], machine="m", provider="openai", lease_seconds=lease_seconds
        )
        return name

    def reserve(self, usd: float, *, agent: bool = False) -> str:
        key = self.key()
        Budgets(self.database, CAPS).reserve(key, board="b", ticket=key, role="coder", usd=usd, agent=agent)
        return key

    def delivery(self, source: str = "github") -> None:
        assert Deliveries(self.database).accept(source, self.key(), "issues.opened", "issues", "S-1")

    def branch(self, **changes: Any) -> None:
        branch = self.key()
        Stewardships(self.database).watch("shop", branch, "folder", branch)
        row = Stewardships(self.database).find("shop", branch)
        assert row
        Stewardships(self.database).save(row, **changes)

    def correction(self, *, told: int = 0, ok: int = 0, failed: int = 0) -> None:
        """Three attempts failed in one way, which makes a correction; more were told it and went well, or failed again."""
        lessons, kind = Lessons(self.database), Kind(repository=self.key(), intent="bug", effort=1)
        failure = Failure(pattern="p", message="m")
        for _ in range(3):
            lessons.note(self.key(), kind, [failure])
        [correction] = lessons.corrections(kind.repository)
        for number in range(told):
            attempt = self.key()
            lessons.brief(attempt, kind, lambda _: [Shown(correction=correction.id, text="mind")])
            if number >= ok:
                lessons.note(attempt, kind, [failure])
            if number < ok + failed:
                lessons.settle(attempt, accepted=number < ok)

    def playbook_run(self, state: str = "running") -> str:
        run = Playbooks(self.database).begin(
            repository="shop", name="p", digest="d", content="c", base_sha="s", parameters={}, state=state,
            board="folder", ticket=self.key(),
        )  # fmt: skip
        return run.id

    def repair(self) -> Any:
        signal = Signal(signature=f"{self.key()}Error at {self.key()}.py", count=3, error="e", frames=())
        made = Repairs(self.database).begin(signal, Sample(), "shop", "folder", datetime.now(UTC) - timedelta(days=1))
        assert made
        return made

    def finding(self, chore: str) -> None:
        draft = Draft(title="t", body="b")
        found = [(self.key(), "kind", draft)]
        Housekeeping(self.database).sort(chore, "shop", "folder", found, per_chore=99, overall=999)

    def plan(self, *, lifted: bool = False) -> None:
        plain = Traits(attempt=self.attempt(), intent="bug", effort=1, level="usual", model="m", node="n",
                       repository="shop", confidence=0.5)  # fmt: skip
        strong = plain.model_copy(update={"level": "strong", "lifted_by": "confidence"})
        Feedback(self.database).note(plain, strong if lifted else None, 1.0)

    def unit(self, project: str, minutes: int = 30, requests: int = 18) -> str:
        section = ActionsSection.model_validate({"project": project, "token": "t"})
        key = self.key()
        RunnerJobs(self.database).reserve(key, section, board="folder", ticket=key, minutes=minutes, requests=requests)
        return key


@dataclass(frozen=True)
class Mover:
    """What moves a metric: `by` is how much its value grows, or says of the values before and after whether it did."""

    act: Callable[[World], object]
    by: float | Callable[[Any, Any], bool]
    labels: tuple[str, ...] = ()


def became(value: float, within: float = 5) -> Callable[[Any, Any], bool]:
    return lambda before, after: before != after and abs(after - value) < within


def is_now(before: float | None, after: float) -> bool:
    return before != after and abs(after - time.time()) < 60


def one_more_in_the_second_bucket(before: tuple[float, ...] | None, after: tuple[float, ...]) -> bool:
    before = before or (0.0,) * len(after)
    grown = [round(new - old, 1) for old, new in zip(before, after, strict=True)]
    return grown[:-1] == [0, 1, *[0] * (len(grown) - 3)] and 29.5 < grown[-1] < 32


def one_more_in_the_fourth_bucket(before: tuple[float, ...] | None, after: tuple[float, ...]) -> bool:
    before = before or (0.0,) * len(after)
    return [new - old for old, new in zip(before, after, strict=True)] == [0, 0, 0, 1, 0, 0, 0, 20]


def paused(world: World) -> None:
    Pauses(world.database).pause("provider:" + world.key(), "limit", datetime.now(UTC) + timedelta(hours=1))


def old_pause(world: World) -> None:
    scope = "node:" + world.key()
    Pauses(world.database).pause(scope, "by hand", None, by_hand=True)
    world.execute("update pauses set since = now() - interval '50 days' where scope = :scope", scope=scope)


def busy_node(world: World) -> None:
    world.claim(node="busy")
    Fleet(world.database).join("busy", slots=2, labels=[], machine="m", provider="o", lease_seconds=600)


def verdict(world: World) -> None:
    Ledger(world.database).record_verdict(world.attempt(), 1, "sha", "REVISE", [], {})


def opened(world: World) -> None:
    pull = PullRequest(branch="b", title="t", body="b", base="main", head_sha="s", url="u")
    Ledger(world.database).record_pull_request(world.ticket(), pull)


def pushing(world: World) -> None:
    journal = Journal(before="a", after="b", counter=None, handled={}, marker="m", comment="c")  # type: ignore[arg-type]
    world.branch(journal=journal)


def observed(world: World) -> None:
    steps = (ObservedStep(run="make"),)
    Playbooks(world.database).observe(
        "shop", "s", Operation(title="t", steps=steps, source=world.key(), succeeded=False)
    )


def step_of_a_playbook(world: World) -> None:
    Playbooks(world.database).write(world.playbook_run(), "one", 1, "started", before=())


def chore(world: World) -> None:
    Housekeeping(world.database).start("bug-hunter", "shop")


def long_chore(world: World) -> None:
    Housekeeping(world.database).start("docs", "shop")
    world.execute(
        "update chore_runs set started_at = now() - interval '90 seconds', ended_at = now() where chore = 'docs'"
    )


def calibrated(world: World) -> None:
    with world.database.transaction() as session:
        session.add(CalibrationTable(day=date(2100, 1, 1) + timedelta(days=int(world.key()[2:])), report={}))


def settled_unit(world: World) -> None:
    RunnerJobs(world.database).settle(world.unit("acme/one"), "done", minutes=4, requests=2)


def retried(world: World) -> None:
    Claims(world.database).retry(world.claim(), "again", 0, "infra_faults")


def asked(world: World) -> None:
    Claims(world.database).park(world.claim(), "waits", question="Which colour?")


def cooling(world: World) -> None:
    repair = world.repair()
    Repairs(world.database).advance(
        repair, "ended", outcome="failed", cooldown_until=datetime.now(UTC) + timedelta(hours=1)
    )


MOVERS: dict[str, Mover] = {
    "tickets": Mover(lambda w: w.ticket("linear"), 1, ("linear",)),
    "attempts_started_total": Mover(World.attempt, 1),
    "attempts_open": Mover(World.attempt, 1),
    "oldest_open_attempt_seconds": Mover(
        lambda w: w.execute(
            "update attempts set started_at = now() - interval '9 days' where id = :id", id=w.attempt()
        ),
        became(9 * 86_400),
    ),
    "attempts_ended_total": Mover(lambda w: w.end("rejected"), 1, ("rejected",)),
    "attempt_failures_total": Mover(lambda w: w.end("infra_failed", "RateLimited"), 1, ("RateLimited",)),
    "attempt_duration_seconds": Mover(lambda w: w.end("cancelled"), one_more_in_the_second_bucket, ("cancelled",)),
    "sessions_total": Mover(World.call, 1, CODER),
    "model_calls_total": Mover(World.call, 3, CODER),
    "prompt_tokens_total": Mover(World.call, 100, CODER),
    "cached_prompt_tokens_total": Mover(World.call, 80, CODER),
    "completion_tokens_total": Mover(World.call, 10, CODER),
    "cost_usd_total": Mover(World.call, 0.25, CODER),
    "model_seconds_total": Mover(World.call, 20, CODER),
    "session_duration_seconds": Mover(World.call, one_more_in_the_fourth_bucket, ("coder",)),
    "events_total": Mover(World.event, 1, ("published",)),
    "last_event_timestamp_seconds": Mover(World.event, is_now),
    "verdicts": Mover(verdict, 1, ("REVISE",)),
    "pull_requests": Mover(opened, 1, ("open",)),
    "claims": Mover(World.run, 1, ("running",)),
    "claims_taken_total": Mover(World.claim, 1),
    "claims_expired": Mover(lambda w: w.of_claim(w.claim(), lease_until=1), 1),
    "retries_due": Mover(retried, 1),
    "questions_waiting": Mover(asked, 1),
    "runs_stopping": Mover(lambda w: Claims(w.database).ask_stop(w.run(), "cancelled: closed"), 1),
    "longest_run_seconds": Mover(lambda w: w.of_claim(w.run(), started_at=9000), became(9000)),
    "longest_silence_seconds": Mover(lambda w: w.of_claim(w.run(), progress_at=7000), became(7000)),
    "running_by_repository": Mover(lambda w: w.claim(repository="sums"), 1, ("sums",)),
    "claim_counts": Mover(retried, 1, ("infra_faults",)),
    "pauses_active": Mover(paused, 1, ("provider",)),
    "longest_pause_seconds": Mover(old_pause, became(50 * 86_400)),
    "pauses_without_end": Mover(old_pause, 1),
    "nodes": Mover(lambda w: w.node(lease_seconds=-1), 1, ("silent",)),
    "node_slots": Mover(busy_node, 2, ("busy",)),
    "node_busy_slots": Mover(busy_node, lambda _, after: after >= 1, ("busy",)),
    "node_lease_seconds": Mover(
        lambda w: Fleet(w.database).join("leased", slots=1, labels=[], machine="m", provider="o", lease_seconds=600),
        became(600),
        ("leased",),
    ),
    "max_running": Mover(
        lambda w: setattr(w, "settings", w.settings.model_copy(update={"dispatch": DispatchSection(max_running=7)})),
        became(7, 0.1),
    ),
    "budget_limit_usd": Mover(
        lambda w: setattr(
            w, "settings", w.settings.model_copy(update={"budgets": CAPS.model_copy(update={"day_usd": 90.0})})
        ),
        -10,
        ("day_usd",),
    ),
    "budget_used_usd": Mover(lambda w: w.reserve(1.5), 1.5, ("month_usd",)),
    "budget_reserved_usd": Mover(lambda w: w.reserve(1.5), 1.5, ("day_usd",)),
    "budget_left_usd": Mover(lambda w: w.reserve(1.5), -1.5, ("day_usd",)),
    "budget_agent_sessions_limit": Mover(
        lambda w: setattr(
            w, "settings", w.settings.model_copy(update={"budgets": CAPS.model_copy(update={"ticket_agents": 7})})
        ),
        became(7, 0.1),
    ),
    "budget_agent_sessions_used": Mover(lambda w: w.reserve(0, agent=True), 1),
    "reservations_open": Mover(lambda w: w.reserve(0.5), 1),
    "webhook_deliveries": Mover(World.delivery, 1, ("github",)),
    "webhook_deliveries_waiting": Mover(World.delivery, 1, ("github",)),
    "webhook_last_timestamp_seconds": Mover(lambda w: w.delivery("jira"), is_now, ("jira",)),
    "stewardships": Mover(lambda w: w.branch(state="parked"), 1, ("parked",)),
    "steward_ci_fixes": Mover(lambda w: w.branch(ci_fixes=2), 2),
    "steward_review_rounds": Mover(lambda w: w.branch(review_rounds=2), 2),
    "steward_conflict_fixes": Mover(lambda w: w.branch(conflict_fixes=2), 2),
    "steward_extra_rounds": Mover(lambda w: w.branch(extra=1), 1),
    "refinements_wanted": Mover(lambda w: w.branch(wanted=Wanted(by="me")), 1),
    "pushes_under_way": Mover(pushing, 1),
    "failures_seen_total": Mover(World.correction, 3),
    "corrections": Mover(World.correction, 1, ("active",)),
    "corrections_told_total": Mover(lambda w: w.correction(told=2), 2),
    "corrections_helped_total": Mover(lambda w: w.correction(told=2, ok=1), 1),
    "corrections_failed_total": Mover(lambda w: w.correction(told=2, failed=1), 1),
    "briefings_total": Mover(lambda w: w.correction(told=2), 2),
    "operations_observed_total": Mover(observed, 1, ("failed",)),
    "playbooks": Mover(lambda w: Playbooks(w.database).decide("shop", w.key(), "approved"), 1, ("approved",)),
    "playbook_runs": Mover(lambda w: w.playbook_run("waiting"), 1, ("waiting",)),
    "playbook_steps": Mover(step_of_a_playbook, 1, ("started",)),
    "repairs_begun_total": Mover(World.repair, 1),
    "repairs_open": Mover(World.repair, 1),
    "repairs_cooling": Mover(cooling, 1),
    "repairs_ended_total": Mover(cooling, 1, ("failed",)),
    "repair_halted": Mover(
        lambda w: w.execute(
            "insert into release_state (id, wanted, previous, halted) values (1, 'installed', 'installed', 'thrice')"
        ),
        1,
    ),
    "node_release_problems": Mover(lambda w: Repairs(w.database).runs(w.key(), "abc", "no disk"), 1),
    "findings": Mover(lambda w: w.finding("debt"), 1, ("debt", "intended")),
    "chore_last_start_timestamp_seconds": Mover(chore, is_now, ("bug-hunter",)),
    "chore_duration_seconds": Mover(long_chore, became(90, 1), ("docs",)),
    "runs_planned_total": Mover(World.plan, 1, ("usual",)),
    "runs_lifted_total": Mover(lambda w: w.plan(lifted=True), 1),
    "calibrations_total": Mover(calibrated, 1),
    "calibration_timestamp_seconds": Mover(calibrated, lambda before, after: after > (before or 0) and after % 86_400 == 0),
    "runner_jobs": Mover(settled_unit, 1, ("done",)),
    "runner_minutes_used": Mover(settled_unit, 4, ("acme/one",)),
    "runner_requests_used": Mover(settled_unit, 2, ("acme/one",)),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(postgres_url: str) -> Iterator[World]:
    name = f"metrics_{secrets.token_hex(4)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'create database "{name}" template ledger_template')  # type: ignore[arg-type]
        made = World(f"{postgres_url.removesuffix('/postgres')}/{name}")
        try:
            yield made
        finally:
            made.database.close()
            made.watching.close()
            connection.execute(f'drop database "{name}" with (force)')  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MOVERS)
def test_what_the_factory_does_moves_the_metric(world: World, name: str) -> None:
    """OB5: by exactly as much as was done."""
    mover, metric = MOVERS[name], f"darkfactory_{name}"
    before = world.read(metric, mover.labels)
    mover.act(world)
    after = world.read(metric, mover.labels)
    if callable(mover.by):
        assert mover.by(before, after), (before, after)
    else:
        assert isinstance(after, float)
        assert after - (before or 0) == pytest.approx(mover.by, abs=1e-6)  # type: ignore[operator]


def test_every_metric_has_a_mover() -> None:
    """OB5; those of the reading itself are moved below."""
    known = {metric.name for metric in METRICS} - {metric.name for metric in OF_READING}
    assert {f"darkfactory_{name}" for name in MOVERS} == known
    assert len(known) >= 43


def test_metrics_are_named_as_prometheus_wants_it() -> None:
    """Base units, `_total` for counters only, one help each, labels that nobody outside can make up."""
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"darkfactory_[a-z0-9_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert not re.search(r"_(ms|minutes_total|cents|count|sum|bucket)$", metric.name)
        assert metric.help.endswith(".")
    labels = {label for metric in METRICS for label in metric.labels}
    assert labels <= {"board", "outcome", "class", "role", "model", "provider", "kind", "decision", "state", "repository",
                      "counter", "node", "cap", "source", "result", "chore", "level", "project", "section"}  # fmt: skip


def test_the_page_lists_exactly_the_metrics_there_are() -> None:
    rows = [
        line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `darkfactory_")
    ]
    told = {row[0].strip("`"): (row[1], row[2].strip("`").replace("`, `", " ") if row[2] != "-" else "", row[3].strip()) for row in rows}  # fmt: skip
    assert told == {m.name: (m.kind, " ".join(m.labels), m.help) for m in METRICS}


def test_numbers_are_those_of_the_database_and_not_of_a_process(world: World) -> None:
    """OB5: another process, on another machine, says the same."""
    world.call()
    with ReadOnly(world.url) as other:
        names = {"tickets", "sessions", "claims"}
        sections = [section for section in SECTIONS if section.name in names]
        assert read_metrics(other, world.settings, sections).samples == read_metrics(world.watching, world.settings, sections).samples  # fmt: skip


def test_a_section_that_cannot_be_read_leaves_the_others(database_url: str) -> None:
    """OB4, OB5"""
    settings = Settings(database_url=database_url)
    with Database(open_databases(settings).ledger) as database, database.transaction() as session:
        session.execute(text(f"drop table {SCHEMA}.runner_jobs"))
    with ReadOnly(open_databases(settings).ledger) as watching:
        reading = read_metrics(watching, settings)
    assert {name for name, up in reading.up.items() if not up} == {"runners", "use of runners"}
    names = {sample.metric.name for sample in reading.samples}
    assert "darkfactory_claims" in names
    assert "darkfactory_runner_jobs" not in names


def test_no_database_is_every_section_down_and_no_error() -> None:
    """OB4"""
    with ReadOnly("postgresql+psycopg://nobody:x@127.0.0.1:1/none") as away:
        reading = read_metrics(away, Settings())
    assert not any(up for name, up in reading.up.items() if name != "dispatch limit")
    assert reading.up.keys() == {section.name for section in SECTIONS}


def test_a_slow_statement_is_ended_by_the_database_and_nothing_can_be_written(world: World) -> None:
    """OB4: who watches can neither load the database nor change anything."""
    slow = Section("slow", _sql("select pg_sleep(30)::text as value"), (Metric("m", "gauge", "h", "value"),))
    began = time.monotonic()
    assert read_metrics(world.watching, world.settings, [slow]).up == {"slow": False}
    assert time.monotonic() - began < 6
    with pytest.raises(Unreachable), world.watching.transaction() as session:
        session.execute(text("select pg_sleep(30)"))
    writes = Section("writes", _sql("delete from nodes returning slots as value"), ())
    assert read_metrics(world.watching, world.settings, [writes]).up == {"writes": False}


def test_a_database_whose_host_vanished_is_noticed_after_a_minute(world: World) -> None:
    """OB4: who waits for its answer does not wait two hours; a heartbeat's connection neither."""
    with world.watching.transaction() as session:
        raw = session.connection().connection.dbapi_connection
        assert raw is not None
        with socket.socket(fileno=os.dup(raw.fileno())) as seen:  # type: ignore[attr-defined]  # psycopg's has it
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            assert seen.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert [seen.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [30, 10, 3]


def test_labels_are_few_short_and_printable_and_counters_keep_the_names_that_came_first(world: World) -> None:
    """OB5: whatever an endpoint calls its model."""
    query = "select case when n = 0 then repeat('long', 99) || E'\\n' else 'model-' || n end as model, 1 as value from generate_series(0, 999) n"  # fmt: skip
    section = Section("names", _sql(query), (Metric("m", "counter", "h", "value", ("model",)),))
    samples = {s.labels[0]: s.values[0] for s in read_metrics(world.watching, world.settings, [section]).samples}
    assert len(samples) == MOST_VALUES + 1
    assert samples["model-1"] == 1
    assert sum(samples.values()) == 1000
    assert samples["other"] == 1000 - MOST_VALUES
    assert max(map(len, samples)) == LONGEST_VALUE


def test_the_last_bucket_has_no_bound(world: World) -> None:
    before = world.read("darkfactory_attempt_duration_seconds", ("work_failed",)) or (0.0,) * (len(ATTEMPT_BOUNDS) + 2)
    world.end("work_failed", after=999_999)
    after = world.read("darkfactory_attempt_duration_seconds", ("work_failed",))
    assert isinstance(before, tuple)
    assert isinstance(after, tuple)
    assert after[-2] - before[-2] == 1
