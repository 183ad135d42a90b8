"""What Prometheus is told: every metric, and how it is read from the database, whose rows outlive restarts and cover all
machines. Nothing is counted in a process.

`SECTIONS` is the list; docs/metrics.md is its table. Labels are states, roles, and names that somebody configured, at most
`MOST_VALUES` of each; never a ticket's key, title or text.
"""

# ruff: noqa: S608 - queries are put together from constants of this file
from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from infra.budgets import Budgets
from infra.database import SCHEMA, Database, ReadOnly
from infra.errors import FactoryError
from infra.settings import Settings

MOST_VALUES = 50
"""Of one label; those that came first keep their names, the rest are `other` together."""
LONGEST_VALUE = 80
READ_SECONDS = 5.0
"""Sections that this time was not enough for are left out and called failed."""

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Metric:
    """One metric. `column` of a section's rows is summed over rows with equal `labels`, null says nothing; `every` are label
    values that are shown from the beginning, as 0. A histogram reads the columns that `_buckets` makes of its `bounds`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    column: str
    labels: tuple[str, ...] = ()
    every: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Section:
    """Metrics that are read together."""

    name: str
    read: Callable[[Database, Settings], Rows]
    metrics: tuple[Metric, ...]


@dataclass(frozen=True)
class Sample:
    """Values of a metric: one, or for a histogram those of its buckets (not cumulated, the last without bound) and the sum."""

    metric: Metric
    labels: tuple[str, ...]
    values: tuple[float, ...]


@dataclass
class Reading:
    """What was read. `up` says of each section whether it could be."""

    samples: list[Sample] = field(default_factory=list)
    up: dict[str, bool] = field(default_factory=dict)
    seconds: float = 0.0


def read_metrics(database: ReadOnly, settings: Settings, sections: Sequence[Section] | None = None) -> Reading:
    """Read all sections, or these. One that fails is left out and does not keep the others from being read. Never raises
    for what a database does."""
    began, reading = time.monotonic(), Reading()
    for section in SECTIONS if sections is None else sections:
        reading.up[section.name] = False
        if time.monotonic() - began < READ_SECONDS:
            try:
                rows = _bounded(section.read(database, settings), section.metrics)
            except (FactoryError, SQLAlchemyError):  # it is away or too slow, or has not this table
                continue
            reading.samples += [sample for metric in section.metrics for sample in _samples(metric, rows)]
            reading.up[section.name] = True
    reading.seconds = time.monotonic() - began
    return reading


def _samples(metric: Metric, rows: Rows) -> Iterator[Sample]:
    columns = [f"le_{n}" for n in range(len(metric.bounds) + 1)] if metric.bounds else []
    columns.append(metric.column)
    is_plain_counter = metric.kind == "counter" and not metric.labels
    known = [()] if is_plain_counter else [(value,) for value in metric.every]
    sums: dict[tuple[str, ...], list[float]] = {labels: [0.0] * len(columns) for labels in known}
    for row in rows:
        if row.get(metric.column) is None:
            continue
        values = sums.setdefault(tuple(row[label] for label in metric.labels), [0.0] * len(columns))
        for place, column in enumerate(columns):
            values[place] += float(row[column])
    for labels, values in sums.items():
        yield Sample(metric, labels, tuple(values))


def _bounded(rows: Rows, metrics: Sequence[Metric]) -> Rows:
    """The rows with labels that are short, printable, and of a bounded number."""
    known: dict[str, dict[str, str]] = {label: {} for metric in metrics for label in metric.labels}
    bounded = []
    for row in rows:
        changed = dict(row)
        for label, names in known.items():
            plain = "".join(c if c.isprintable() else "?" for c in str(row[label] or "none"))[:LONGEST_VALUE]
            changed[label] = names.setdefault(plain, plain if len(names) < MOST_VALUES else "other")
        bounded.append(changed)
    return bounded


# ---- how sections are read ----------------------------------------------------------------------------------------------


def _sql(query: str) -> Callable[[Database, Settings], Rows]:
    def read(database: Database, _: Settings) -> Rows:
        with database.transaction() as session:
            session.execute(text(f"set local search_path = {SCHEMA}"))
            return [dict(row) for row in session.execute(text(query)).mappings()]

    return read


def _caps(database: Database, settings: Settings) -> Rows:
    """The caps: those in USD, and the one in sessions."""
    rows = []
    for use in Budgets(database, settings.budgets).usage():
        if use.cap == "ticket_agents":
            rows.append({"cap": use.cap, "sessions_limit": use.limit, "sessions_used": use.used})
        else:
            left = None if use.limit is None else max(use.limit - use.used, 0.0)
            rows.append({"cap": use.cap, "limit": use.limit, "used": use.used, "reserved": use.reserved, "left": left})
    return rows


def _slots(_: Database, settings: Settings) -> Rows:
    return [{"max_running": settings.dispatch.max_running}]


def _buckets(seconds: str, bounds: Sequence[float]) -> str:
    """Columns that count rows by the bound they are below, and their sum as `total`."""
    edges = [(None, bounds[0]), *itertools.pairwise(bounds), (bounds[-1], None)]
    parts = []
    for place, (low, high) in enumerate(edges):
        above = "" if low is None else f"{seconds} > {low}"
        below = "" if high is None else f"{seconds} <= {high}"
        parts.append(f"count(*) filter (where {' and '.join(filter(None, (above, below)))}) as le_{place}")
    return ", ".join([*parts, f"coalesce(sum({seconds}), 0) as total"])


def _gauge(
    name: str, help: str, column: str = "value", labels: tuple[str, ...] = (), every: tuple[str, ...] = ()
) -> Metric:
    return Metric(f"darkfactory_{name}", "gauge", help, column, labels, every)


def _counter(
    name: str, help: str, column: str = "value", labels: tuple[str, ...] = (), every: tuple[str, ...] = ()
) -> Metric:
    return Metric(f"darkfactory_{name}_total", "counter", help, column, labels, every)


# ---- the list -----------------------------------------------------------------------------------------------------------

ATTEMPT_BOUNDS = (10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0)
SESSION_BOUNDS = (1.0, 5.0, 15.0, 60.0, 300.0, 1800.0)
_ATTEMPT_SECONDS = "extract(epoch from ended_at - started_at)"
_OUTCOMES = ("accepted", "rejected", "infra_failed", "work_failed", "cancelled")
_CLAIM_STATES = ("claimed", "running", "retry-queued", "parked", "released")
_COUNTERS = ("failures", "continuations", "revisions", "ci_fixes", "conflict_fixes", "infra_faults")
_WHO = ("role", "model", "provider")

SECTIONS: tuple[Section, ...] = (
    Section(
        "tickets",
        _sql("select board, count(*) as value from tickets group by board order by board"),
        (_gauge("tickets", "Tickets that were ever taken in.", labels=("board",)),),
    ),
    Section(
        "attempts",
        _sql(
            "select count(*) as value, count(*) filter (where ended_at is null) as open,"
            " coalesce(extract(epoch from now() - min(started_at) filter (where ended_at is null)), 0) as oldest"
            " from attempts"
        ),
        (
            _counter("attempts_started", "Attempts that began."),
            _gauge("attempts_open", "Attempts that have not ended.", "open"),
            _gauge("oldest_open_attempt_seconds", "Age of the oldest attempt that has not ended.", "oldest"),
        ),
    ),
    Section(
        "ends",
        _sql(
            f"select outcome, coalesce(failure_class, 'none') as class, count(*) as value,"
            f" count(failure_class) as failed, {_buckets(_ATTEMPT_SECONDS, ATTEMPT_BOUNDS)}"
            " from attempts where ended_at is not null group by 1, 2 order by min(id)"
        ),
        (
            _counter("attempts_ended", "Attempts by how they ended.", labels=("outcome",), every=_OUTCOMES),
            _counter("attempt_failures", "Attempts that an error ended, by its class.", "failed", labels=("class",)),
            Metric(
                "darkfactory_attempt_duration_seconds", "histogram", "Length of ended attempts by how they ended.",
                "total", ("outcome",), bounds=ATTEMPT_BOUNDS,
            ),
        ),
    ),
    Section(
        "sessions",
        _sql(
            "select role, model, coalesce(provider, 'unknown') as provider, count(*) as value, sum(calls) as calls,"
            " sum(prompt_tokens) as prompt, sum(cached_tokens) as cached, sum(completion_tokens) as completion,"
            " sum(cost_usd) as usd, "
            f"{_buckets('seconds', SESSION_BOUNDS)} from sessions group by 1, 2, 3 order by min(id)"
        ),
        (
            _counter("sessions", "Model calls and agent sessions, each once.", labels=_WHO),
            _counter("model_calls", "Calls of models, those of agent sessions one by one.", "calls", _WHO),
            _counter("prompt_tokens", "Tokens sent to models.", "prompt", _WHO),
            _counter("cached_prompt_tokens", "Tokens sent that the provider did not read again.", "cached", _WHO),
            _counter("completion_tokens", "Tokens written by models.", "completion", _WHO),
            _counter("cost_usd", "What models cost.", "usd", _WHO),
            _counter("model_seconds", "Time spent waiting for models.", "total", _WHO),
            Metric(
                "darkfactory_session_duration_seconds", "histogram", "Length of model calls and agent sessions.",
                "total", ("role",), bounds=SESSION_BOUNDS,
            ),
        ),
    ),
    Section(
        "events",
        _sql(
            "select kind, count(*) as value from events group by kind order by min(id)"
        ),
        (_counter("events", "Lines of the event log by kind.", labels=("kind",)),),
    ),
    Section(
        "last event",
        _sql("select extract(epoch from at) as value from events order by id desc limit 1"),
        (_gauge("last_event_timestamp_seconds", "When something was last written to the event log."),),
    ),
    Section(
        "verdicts",
        _sql("select decision, count(*) as value from verdicts group by 1 order by 1"),
        (_gauge("verdicts", "Rounds by the judge's decision; a round that is judged anew changes sides.",
                labels=("decision",), every=("ACCEPT", "REVISE", "REJECT")),),
    ),
    Section(
        "pull requests",
        _sql("select state, count(*) as value from pull_requests group by 1 order by 1"),
        (_gauge("pull_requests", "Pull requests of the factory by their last known state.",
                labels=("state",), every=("open", "merged", "closed")),),
    ),
    Section(
        "claims",
        _sql("select state, count(*) as value from claims group by 1 order by 1"),
        (_gauge("claims", "Claimed tickets by state.", labels=("state",), every=_CLAIM_STATES),),
    ),
    Section(
        "holding",
        _sql(
            "select coalesce(sum(token), 0) as taken,"
            " count(*) filter (where state in ('claimed', 'running') and lease_until < now()) as expired,"
            " count(*) filter (where state = 'retry-queued' and (due_at is null or due_at <= now())) as due,"
            " count(*) filter (where state = 'parked' and question is not null) as questions,"
            " count(*) filter (where state in ('claimed', 'running') and stop is not null) as stopping,"
            " coalesce(extract(epoch from now() - min(started_at) filter (where state = 'running')), 0) as oldest,"
            " coalesce(extract(epoch from now() - min(progress_at) filter (where state = 'running')), 0) as silence"
            " from claims"
        ),
        (
            _counter("claims_taken", "How often a ticket got a new holder.", "taken"),
            _gauge("claims_expired", "Tickets whose holder let its lease end, and that nobody took over yet.", "expired"),
            _gauge("retries_due", "Tickets whose time to be tried again has come.", "due"),
            _gauge("questions_waiting", "Tickets that wait for the answer of a person.", "questions"),
            _gauge("runs_stopping", "Runs that were told to stop and have not ended.", "stopping"),
            _gauge("longest_run_seconds", "How long the oldest run lasts.", "oldest"),
            _gauge("longest_silence_seconds", "How long the most silent run did not get on.", "silence"),
        ),
    ),
    Section(
        "work by repository",
        _sql(
            "select repository, count(*) as value from claims where state in ('claimed', 'running')"
            " group by 1 order by 1"
        ),
        (_gauge("running_by_repository", "Tickets that are claimed or running.", labels=("repository",)),),
    ),
    Section(
        "counters of claims",
        _sql(
            " union all ".join(
                f"select '{each}' as counter, coalesce(sum({each}), 0) as value from claims"
                for each in _COUNTERS
            )
        ),
        (_gauge("claim_counts", "What the claims count; a ticket that is changed or done begins anew.",
                labels=("counter",), every=_COUNTERS),),
    ),
    Section(
        "pauses",
        _sql(
            "select split_part(scope, ':', 1) as kind, count(*) as value from pauses"
            " where lifted_at is null and (until is null or until > now()) group by 1 order by 1"
        ),
        (_gauge("pauses_active", "What is paused now, by kind.", labels=("kind",),
                every=("dispatch", "budget", "provider", "node", "board")),),
    ),
    Section(
        "length of pauses",
        _sql(
            "select coalesce(extract(epoch from now() - min(since)), 0) as value, count(*) filter (where until is null) as endless"
            " from pauses where lifted_at is null and (until is null or until > now())"
        ),
        (
            _gauge("longest_pause_seconds", "How long the oldest pause lasts."),
            _gauge("pauses_without_end", "Pauses that only a person, or a probe, ends.", "endless"),
        ),
    ),
    Section(
        "fleet",
        _sql(
            "select case when state <> 'left' and lease_until <= now() then 'silent' else state end as state,"
            " count(*) as value from nodes group by 1 order by 1"
        ),
        (_gauge("nodes", "Nodes by state; silent: its lease ended.", labels=("state",),
                every=("active", "draining", "silent", "left")),),
    ),
    Section(
        "nodes",
        _sql(
            "select name as node, slots, extract(epoch from lease_until - now()) as lease, (select count(*) from claims"
            " where claims.node = nodes.name and claims.state in ('claimed', 'running')) as busy"
            " from nodes where state <> 'left' order by joined_at, name"
        ),
        (
            _gauge("node_slots", "How many tickets a node works on at the same time.", "slots", ("node",)),
            _gauge("node_busy_slots", "How many it does work on.", "busy", ("node",)),
            _gauge("node_lease_seconds", "Until its lease ends; negative: since it did.", "lease", ("node",)),
        ),
    ),
    Section(
        "dispatch limit",
        _slots,
        (_gauge("max_running", "Most tickets at the same time, `dispatch.max_running`.", "max_running"),),
    ),
    Section(
        "budgets",
        _caps,
        (
            _gauge("budget_limit_usd", "The caps of the section `budgets` that are set.", "limit", ("cap",)),
            _gauge("budget_used_usd", "What a cap counts as used; for caps of a ticket, by the ticket that used most.",
                   "used", ("cap",)),
            _gauge("budget_reserved_usd", "The part of it that is reserved by calls that have not ended.",
                   "reserved", ("cap",)),
            _gauge("budget_left_usd", "What a cap leaves.", "left", ("cap",)),
            _gauge("budget_agent_sessions_limit", "`budgets.ticket_agents`.", "sessions_limit"),
            _gauge("budget_agent_sessions_used", "Agent sessions of the ticket that used most.", "sessions_used"),
        ),
    ),
    Section(
        "reservations",
        _sql("select count(*) filter (where settled_usd is null) as value from reservations"),
        (_gauge("reservations_open", "Reservations of calls that have not ended, or died."),),
    ),
    Section(
        "deliveries",
        _sql(
            "select source, count(*) as value, count(*) filter (where emitted_at is null and board is not null) as waiting,"
            " extract(epoch from max(received_at)) as newest from deliveries group by 1 order by 1"
        ),
        (
            _gauge("webhook_deliveries", "Webhooks that were received, as far as they are kept.", labels=("source",)),
            _gauge("webhook_deliveries_waiting", "Those of a ticket whose event Prefect did not take yet.",
                   "waiting", ("source",)),
            _gauge("webhook_last_timestamp_seconds", "When the newest one came.", "newest", ("source",)),
        ),
    ),
    Section(
        "stewardships",
        _sql("select state, count(*) as value from stewardships group by 1 order by 1"),
        (_gauge("stewardships", "Branches that are looked after, by state.", labels=("state",),
                every=("watched", "parked", "ended")),),
    ),
    Section(
        "rounds",
        _sql(
            "select coalesce(sum(ci_fixes), 0) as ci, coalesce(sum(review_rounds), 0) as review,"
            " coalesce(sum(conflict_fixes), 0) as conflict, coalesce(sum(extra), 0) as extra, count(wanted) as wanted,"
            " count(journal) as pushing from stewardships"
        ),
        (
            _gauge("steward_ci_fixes", "Rounds that mended failing checks of pull requests.", "ci"),
            _gauge("steward_review_rounds", "Rounds that answered reviewers.", "review"),
            _gauge("steward_conflict_fixes", "Rounds that resolved conflicts.", "conflict"),
            _gauge("steward_extra_rounds", "Rounds that people granted beyond the bounds.", "extra"),
            _gauge("refinements_wanted", "Refinements that were asked for and not done yet.", "wanted"),
            _gauge("pushes_under_way", "Pushes of rounds that were begun and not written down as arrived.", "pushing"),
        ),
    ),
    Section(
        "failures seen",
        _sql("select count(*) as value from sightings"),
        (_counter("failures_seen", "Failures of attempts that learning noted, each pattern of an attempt once."),),
    ),
    Section(
        "corrections",
        _sql(
            "select state, count(*) as value, sum(applied) as applied, sum(ok) as ok, sum(failed) as failed"
            " from corrections group by 1 order by 1"
        ),
        (
            _gauge("corrections", "Corrections by state.", labels=("state",), every=("active", "evicted", "retired")),
            _counter("corrections_told", "How often an attempt was told a correction.", "applied"),
            _counter("corrections_helped", "Attempts that were told one and went well.", "ok"),
            _counter("corrections_failed", "Attempts that were told one and failed so again.", "failed"),
        ),
    ),
    Section(
        "briefings",
        _sql("select count(*) as value from briefings"),
        (_counter("briefings", "Attempts that learning looked at before they began."),),
    ),
    Section(
        "operations",
        _sql("select case when succeeded then 'succeeded' else 'failed' end as result, count(*) as value from operations group by 1"),
        (_counter("operations_observed", "Operations that somebody carried out and that were kept.",
                  labels=("result",), every=("succeeded", "failed")),),
    ),
    Section(
        "playbooks",
        _sql("select state, count(*) as value from playbooks group by 1 order by 1"),
        (_gauge("playbooks", "Playbooks by what was decided about them.", labels=("state",),
                every=("proposed", "approved", "disabled")),),
    ),
    Section(
        "playbook runs",
        _sql("select state, count(*) as value from playbook_runs group by 1 order by 1"),
        (_gauge("playbook_runs", "Runs of playbooks by state; waiting: for an approval.", labels=("state",),
                every=("running", "waiting", "undoing", "succeeded", "undone", "stuck")),),
    ),
    Section(
        "playbook steps",
        _sql("select state, count(*) as value from playbook_steps group by 1 order by 1"),
        (_gauge("playbook_steps", "Steps of these runs by state.", labels=("state",)),),
    ),
    Section(
        "repairs",
        _sql(
            "select count(*) as value, count(*) filter (where stage <> 'ended') as open,"
            " count(*) filter (where cooldown_until > now()) as cooling from repairs"
        ),
        (
            _counter("repairs_begun", "Repairs of the factory's own code that were begun."),
            _gauge("repairs_open", "Those that have not ended.", "open"),
            _gauge("repairs_cooling", "Failures that are left alone for a while after a repair failed.", "cooling"),
        ),
    ),
    Section(
        "ends of repairs",
        _sql("select outcome, count(*) as value from repairs where outcome is not null group by 1 order by 1"),
        (_counter("repairs_ended", "Repairs by how they ended.", labels=("outcome",),
                  every=("kept", "refused", "failed", "rolled-back")),),
    ),
    Section(
        "releases",
        _sql(
            "select (select count(*) from release_state where halted is not null) as halted,"
            " (select count(*) from node_releases where problem <> '') as problems"
        ),
        (
            _gauge("repair_halted", "1 while nothing is repaired any more.", "halted"),
            _gauge("node_release_problems", "Nodes that do not run the release that is wanted.", "problems"),
        ),
    ),
    Section(
        "findings",
        _sql("select chore, state, count(*) as value from findings group by 1, 2 order by 1, 2"),
        (_gauge("findings", "What housekeeping found, by chore and what became of it.", labels=("chore", "state")),),
    ),
    Section(
        "chores",
        _sql(
            "select chore, extract(epoch from max(started_at)) as value,"
            " coalesce(extract(epoch from max(ended_at - started_at)), 0) as seconds from chore_runs group by 1 order by 1"
        ),
        (
            _gauge("chore_last_start_timestamp_seconds", "When a chore last began.", labels=("chore",)),
            _gauge("chore_duration_seconds", "The longest of its last runs, one for each repository.",
                   "seconds", ("chore",)),
        ),
    ),
    Section(
        "runs",
        _sql(
            "select level, count(*) as value, count(lifted_by) as lifted from run_traits group by 1 order by min(attempt)"
        ),
        (
            _counter("runs_planned", "Runs by the level of model that coded.", labels=("level",), every=("usual", "strong")),
            _counter("runs_lifted", "Runs that learning put on the strong level.", "lifted"),
        ),
    ),
    Section(
        "calibration",
        _sql("select count(*) as value, extract(epoch from max(day)::timestamp) as newest from calibrations"),
        (
            _counter("calibrations", "Days that were calibrated."),
            _gauge("calibration_timestamp_seconds", "The newest of them (its midnight, UTC).", "newest"),
        ),
    ),
    Section(
        "runners",
        _sql("select state, count(*) as value from runner_jobs group by 1 order by 1"),
        (_gauge("runner_jobs", "Units on GitHub's runners by state.", labels=("state",), every=("open", "done", "failed")),),
    ),
    Section(
        "use of runners",
        _sql(
            "select project,"
            " coalesce(sum(minutes) filter (where state = 'open' or reserved_at >= date_trunc('month', now(), 'UTC')), 0)"
            "   as minutes,"
            " coalesce(sum(requests) filter (where state = 'open' or reserved_at >= date_trunc('day', now(), 'UTC')), 0)"
            "   as requests from runner_jobs group by 1 order by 1"
        ),
        (
            _gauge("runner_minutes_used", "Minutes of runners this month (UTC), held by open jobs or used.",
                   "minutes", ("project",)),
            _gauge("runner_requests_used", "Model requests of runners this day (UTC), the same way.",
                   "requests", ("project",)),
        ),
    ),
)  # fmt: skip

SECTION_UP = Metric(
    "darkfactory_section_up", "gauge", "1: this part of the metrics could be read; 0: its metrics are left out.",
    "value", ("section",),
)  # fmt: skip
UP = Metric("darkfactory_up", "gauge", "1: all parts could be read.", "value")
SECONDS = Metric("darkfactory_read_seconds", "gauge", "How long the last reading of the database took.", "value")
OF_READING = (UP, SECTION_UP, SECONDS)
METRICS = (*OF_READING, *(metric for section in SECTIONS for metric in section.metrics))
