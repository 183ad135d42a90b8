"""The feedback loop (L2): what runs were like and how they ended, the rules that a day's calibration follows, and the level
that a run's coder gets from it. Few runs change nothing: every rule reads the ends of an interval, never a bare rate.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, timedelta
from typing import Any, Literal

from prefect import task
from prefect.artifacts import acreate_markdown_artifact
from pydantic import AwareDatetime

from infra import errors
from infra.feedback import Feedback, Run, Traits
from infra.notify import notify
from infra.sections import LearningSection, Level
from tasks import paper, services
from tasks.agents import coder_agent
from tasks.intents import intent_of
from tasks.models import Frozen, Job, Plan
from tasks.seats import seat

WINDOW_DAYS = 60
HALF_LIFE_DAYS = 30.0
Z = 1.6449
"""Of a two-sided interval of 90 %."""
START = 0.8
"""The confidence of what was never seen: the rate that the rule asks for, neither shown nor refuted."""
WANTED, STEP_UP, STEP_DOWN = 0.8, 0.05, 0.10
LEAST, MOST = 0.05, 0.99
CONFIDENCE_RUNS = 10
"""Runs before a confidence moves: the lower end of fewer cannot reach WANTED, and fewer must not cut it either."""
RECENT_DAYS, DECLINE_RUNS, DECLINE = 14, 30, 0.10
"""A decline: the rate of RECENT_DAYS, over DECLINE_RUNS or more, is this much below that of WINDOW_DAYS."""
BINS = 10

Dimension = Literal["intent", "effort", "model", "node", "repository"]
_DIMENSIONS: tuple[tuple[Dimension, Callable[[Traits], str]], ...] = (
    ("intent", lambda t: t.intent),
    ("effort", lambda t: str(t.effort)),
    ("model", lambda t: t.model),
    ("node", lambda t: t.node),
    ("repository", lambda t: t.repository),
)


class Rate(Frozen):
    """How often runs were accepted. `weight` is their number with older ones counted less; `low` and `high` are the ends of
    the interval that this weight allows."""

    runs: int
    weight: float
    share: float
    low: float
    high: float


class Group(Frozen):
    dimension: Dimension
    name: str
    rate: Rate


class Confidence(Frozen):
    """How sure the factory is that a run of this kind is accepted. `last_run` is the end of the newest that counted."""

    intent: str
    effort: int
    model: str
    rate: Rate
    before: float
    value: float
    last_run: AwareDatetime
    why: str


class Route(Frozen):
    """The level that the coder of an intent and effort should start at; `before`: what the last calibration said."""

    intent: str
    effort: int
    level: Level
    before: Level
    usual: Rate
    strong: Rate
    why: str


class Decline(Frozen):
    """An intent or a model that got worse. `new`: the last calibration did not say so."""

    dimension: Dimension
    name: str
    recent: float
    recent_runs: int
    before: float
    runs: int
    new: bool


class Calibration(Frozen):
    """What one day's calibration found. `left_out` counts the runs that say nothing about the work, by how they ended.

    `error` is the mean distance between confidence and outcome over `BINS` bins of confidence, each weighted by its runs.
    """

    day: date
    at: AwareDatetime
    runs: int
    left_out: dict[str, int] = {}
    groups: tuple[Group, ...] = ()
    confidences: tuple[Confidence, ...] = ()
    routes: tuple[Route, ...] = ()
    declines: tuple[Decline, ...] = ()
    error: float | None = None


# --- the rules --------------------------------------------------------------------------------------------------------


def wilson(share: float, weight: float) -> tuple[float, float]:
    """The ends of Wilson's interval for a share of so many runs; all of 0 to 1 for none."""
    if weight <= 0:
        return 0.0, 1.0
    square = Z * Z / weight
    middle = share + square / 2
    reach = Z * math.sqrt(share * (1 - share) / weight + square / weight / 4)
    return max(0.0, (middle - reach) / (1 + square)), min(1.0, (middle + reach) / (1 + square))


def rate_of(runs: Sequence[Run], now: datetime) -> Rate:
    """A run counts half as much after HALF_LIFE_DAYS, so old evidence widens the interval."""
    weights = [0.5 ** ((now - run.ended_at).total_seconds() / 86_400 / HALF_LIFE_DAYS) for run in runs]
    weight = sum(weights)
    accepted = sum(each for each, run in zip(weights, runs, strict=True) if run.outcome == "accepted")
    share = accepted / weight if weight else 0.0
    low, high = wilson(share, weight)
    return Rate(runs=len(runs), weight=weight, share=share, low=low, high=high)


def _names(error: type[errors.FactoryError]) -> set[str]:
    return {error.__name__}.union(*(_names(each) for each in error.__subclasses__()))


NOT_THE_WORK = (_names(errors.InfraError) | _names(errors.ConfigError) | _names(errors.NeedsHuman)) - {"Stopped"}
"""Failure classes that say nothing about who worked. A stalled run or one out of time (`Stopped`) is none of them where it
burnt its attempt."""


def counts(run: Run) -> bool:
    """Whether a run says something about the work: accepted, refused, or failed by its own fault.

    Faults of machines and providers, limits, budgets, fast deaths and cancelling all end as `infra_failed` or `cancelled`
    (`tasks.attempts`); the class of the failure is a second look.
    """
    if run.outcome == "work_failed":
        return run.failure_class not in NOT_THE_WORK
    return run.outcome in ("accepted", "rejected")


def stepped(rate: Rate, before: float) -> tuple[float, str]:
    """The confidence after a day with new runs, and why: a small step, never past the interval it is drawn by."""
    seen = f"{rate.share:.0%} of {rate.runs} runs accepted, {rate.low:.0%} to {rate.high:.0%}"
    if rate.runs < CONFIDENCE_RUNS:
        return before, f"{seen}: fewer than {CONFIDENCE_RUNS} runs change nothing"
    if rate.low >= WANTED:
        return max(before, min(before + STEP_UP, rate.high, MOST)), f"{seen}: the lower end is at least {WANTED:.0%}"
    if rate.high <= WANTED:
        return min(before, max(before - STEP_DOWN, rate.low, LEAST)), f"{seen}: the upper end is at most {WANTED:.0%}"
    return before, f"{seen}: the interval holds {WANTED:.0%}"


def routed(usual: Rate, strong: Rate, min_runs: int) -> tuple[Level, str]:
    """Where a coder should start, and why: on the strong level only where its interval lies above the usual one's."""
    seen = f"usual {_shown(usual)}, strong {_shown(strong)}"
    if min(usual.runs, strong.runs) < min_runs:
        return "usual", f"{seen}: fewer than {min_runs} runs on a side"
    if strong.low > usual.high:
        return "strong", f"{seen}: the strong level's interval lies above"
    return "usual", f"{seen}: the strong level's interval does not lie above"


def _shown(rate: Rate) -> str:
    return f"{rate.share:.0%} of {rate.runs} ({rate.low:.0%} to {rate.high:.0%})"


def calibration_error(runs: Sequence[Run]) -> float | None:
    """Mean distance between what runs were expected to be (`Traits.confidence`) and were; None without runs."""
    bins: dict[int, list[Run]] = {}
    for run in runs:
        bins.setdefault(min(int(run.traits.confidence * BINS), BINS - 1), []).append(run)
    if not bins:
        return None
    return sum(
        abs(sum((run.outcome == "accepted") - run.traits.confidence for run in each)) for each in bins.values()
    ) / len(runs)


def calibrated(runs: Sequence[Run], before: Calibration | None, now: datetime, section: LearningSection) -> Calibration:
    """The whole calibration of a moment, from the runs of WINDOW_DAYS and the calibration of an earlier day."""
    counted = [run for run in runs if counts(run)]
    return Calibration(
        day=now.date(),
        at=now,
        runs=len(counted),
        left_out=dict(sorted(Counter(run.failure_class or run.outcome for run in runs if not counts(run)).items())),
        groups=tuple(
            Group(dimension=dimension, name=name, rate=rate_of(members, now))
            for dimension, label in _DIMENSIONS
            for name, members in _grouped(counted, label)
        ),
        confidences=tuple(_confidences(counted, before, now)),
        routes=tuple(_routes(counted, before, now, section.min_runs)),
        declines=tuple(_declines(counted, before, now)),
        error=calibration_error(counted),
    )


def _grouped(runs: Iterable[Run], label: Callable[[Traits], Any]) -> list[tuple[Any, list[Run]]]:
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(label(run.traits), []).append(run)
    return sorted(groups.items())


def _confidences(runs: Sequence[Run], before: Calibration | None, now: datetime) -> Iterable[Confidence]:
    """A kind without a run in the window is forgotten, and begins anew."""
    alive = [c for c in before.confidences if c.last_run > now - timedelta(days=WINDOW_DAYS)] if before else []
    earlier = {(c.intent, c.effort, c.model): c for c in alive}
    for key, members in _grouped(runs, lambda t: (t.intent, t.effort, t.model)):
        last, rate, known = max(run.ended_at for run in members), rate_of(members, now), earlier.get(key)
        value, why = stepped(rate, known.value if known else START)
        if known and known.last_run >= last:
            value, why = known.value, "no run since the last calibration"
        yield Confidence(intent=key[0], effort=key[1], model=key[2], rate=rate, last_run=last, why=why,
                         before=known.value if known else START, value=value)  # fmt: skip


def _routes(runs: Sequence[Run], before: Calibration | None, now: datetime, min_runs: int) -> Iterable[Route]:
    earlier = {(r.intent, r.effort): r.level for r in before.routes} if before else {}
    for key, members in _grouped(runs, lambda t: (t.intent, t.effort)):
        usual, strong = (rate_of([r for r in members if r.traits.level == level], now) for level in ("usual", "strong"))
        level, why = routed(usual, strong, min_runs)
        if strong.runs or key in earlier:
            yield Route(intent=key[0], effort=key[1], level=level, before=earlier.get(key, "usual"), usual=usual,
                        strong=strong, why=why)  # fmt: skip


def _declines(runs: Sequence[Run], before: Calibration | None, now: datetime) -> Iterable[Decline]:
    earlier = {(d.dimension, d.name) for d in before.declines} if before else set()
    for dimension, label in (each for each in _DIMENSIONS if each[0] in ("intent", "model")):
        for name, members in _grouped(runs, label):
            recent = [run for run in members if run.ended_at > now - timedelta(days=RECENT_DAYS)]
            if len(recent) >= DECLINE_RUNS and _plain(recent) <= _plain(members) - DECLINE:
                yield Decline(dimension=dimension, name=name, recent=_plain(recent), recent_runs=len(recent),
                              before=_plain(members), runs=len(members), new=(dimension, name) not in earlier)  # fmt: skip


def _plain(runs: Sequence[Run]) -> float:
    return sum(run.outcome == "accepted" for run in runs) / len(runs)


# --- the daily calibration --------------------------------------------------------------------------------------------


def take_calibration(feedback: Feedback, section: LearningSection, *, keep: bool = True) -> Calibration:
    """Today's calibration; made and kept by whoever comes first. Without `keep`: what it would be now."""

    def make(runs: list[Run], before: dict[str, Any] | None, at: datetime) -> dict[str, Any]:
        known = Calibration.model_validate(before) if before else None
        return calibrated(runs, known, at, section).model_dump(mode="json")

    return Calibration.model_validate(feedback.calibrated(WINDOW_DAYS, make, keep=keep))


@task(name="calibrate", task_run_name="calibrate")
async def calibrate_today() -> Calibration:
    """Make or read today's calibration, and leave it as the artifact `calibration`."""
    made = await asyncio.to_thread(take_calibration, services.feedback(), services.settings().learning)
    await acreate_markdown_artifact(
        key="calibration", markdown=as_markdown(made), description="How runs end, and what follows from it"
    )
    return made


@task(name="tell declines", task_run_name="tell declines")
async def tell_declines(made: Calibration) -> None:
    """Tell people, once, which kinds of work or models got worse: their model may have to be trained again or replaced."""
    await asyncio.to_thread(_tell_declines, made)


def _tell_declines(made: Calibration) -> None:
    feedback = services.feedback()
    if not feedback.untold(made.day):
        return
    for each in made.declines:
        if each.new:
            notify(services.settings().notify, f"{each.dimension} {each.name!r} got worse", decline_line(each),
                   key=f"decline:{each.dimension}:{each.name}")  # fmt: skip
    feedback.tell(made.day)


def decline_line(decline: Decline) -> str:
    """The finding in one sentence."""
    return (
        f"{decline.recent:.0%} of the last {RECENT_DAYS} days' {decline.recent_runs} runs were accepted, against "
        f"{decline.before:.0%} of {decline.runs} in {WINDOW_DAYS} days: retrain or replace what works there"
    )


def as_markdown(made: Calibration) -> str:
    """The whole calibration for people: every rate with its runs and interval, what changed, and why."""
    error = "not known yet" if made.error is None else f"{made.error:.3f}"
    left = ", ".join(f"{count} {name}" for name, count in made.left_out.items()) or "none"
    return "\n".join([
        f"{made.day}: {made.runs} runs of {WINDOW_DAYS} days counted; left out: {left}. Calibration error: {error}.",
        "Intervals hold 90 %; a run counts half as much after 30 days.",
        "", "## Success", "", "| by | name | runs | accepted | from | to |", "|---|---|---|---|---|---|",
        *(f"| {g.dimension} | {_cell(g.name)} | {g.rate.runs} | {g.rate.share:.0%} | {g.rate.low:.0%} | {g.rate.high:.0%} |"
          for g in made.groups),
        "", "## Confidence", "", "| intent | effort | model | before | now | why |", "|---|---|---|---|---|---|",
        *(f"| {c.intent} | {c.effort} | {_cell(c.model)} | {c.before:.2f} | {c.value:.2f} | {c.why} |"
          for c in made.confidences),
        "", "## Level of the coder", "", "| intent | effort | before | now | why |", "|---|---|---|---|---|",
        *(f"| {r.intent} | {r.effort} | {r.before} | {r.level} | {r.why} |" for r in made.routes),
        "", "## Worse than before", "",
        *([f"- {d.dimension} {_cell(d.name)}: {decline_line(d)}" for d in made.declines] or ["Nothing."]),
    ])  # fmt: skip


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


# --- one run ----------------------------------------------------------------------------------------------------------


@task(name="choose level", task_run_name="choose level")
async def choose_level(job: Job, plan: Plan) -> Job:
    """The job with the level that its coder gets, noted with what the run is like; a resumed attempt keeps both.

    The sheet `level` says why.
    """
    noted = await asyncio.to_thread(_note, job, plan)
    await paper.leave(job, "level", _level_sheet(noted))
    return job.model_copy(update={"coder_level": "strong"}) if noted.lifted_by else job


def _note(job: Job, plan: Plan) -> Traits:
    found, section = services.feedback().newest(), services.settings().learning
    known = Calibration.model_validate(found) if found else None
    plain = traits_of(job, plan, known)
    reason = lifting(plain, job.attempt, known, section) if plain.level == "usual" else None
    if reason is None:
        return services.feedback().note(plain)
    lifted_by, why = reason
    if not (section.route and services.has_strong() and coder_agent() is None):
        return services.feedback().note(
            plain.model_copy(update={"why": f"{why}; it is not applied (`learning.route`)"})
        )
    strong = traits_of(job.model_copy(update={"coder_level": "strong"}), plan, known)
    full = f"{why}; not applied, {section.max_strong_share:.0%} of the runs may be (`learning.max_strong_share`)"
    return services.feedback().note(
        plain.model_copy(update={"why": full}),
        strong.model_copy(update={"lifted_by": lifted_by, "why": why}),
        section.max_strong_share,
    )


def traits_of(job: Job, plan: Plan, known: Calibration | None) -> Traits:
    """What a run is like, with the level and model that its coder has by now."""
    at = seat(job, "coder", plan.effort)
    strong = services.has_strong() and at.model == services.router("strong").name
    intent, model = intent_of(job.ticket), coder_agent() or at.model
    return Traits(
        attempt=job.attempt_id,
        intent=intent,
        effort=plan.effort,
        level="strong" if strong else "usual",
        model=model,
        node=job.claim.node,
        repository=job.repository.name,
        confidence=confidence_in(known, intent, plan.effort, model),
    )


def confidence_in(known: Calibration | None, intent: str, effort: int, model: str) -> float:
    """What the newest calibration says; START for what it does not know."""
    found = (
        c.value
        for c in (known.confidences if known else ())
        if (c.intent, c.effort, c.model) == (intent, effort, model)
    )
    return next(found, START)


def lifting(
    plain: Traits, attempt: int, known: Calibration | None, section: LearningSection
) -> tuple[Literal["route", "confidence"], str] | None:
    """Which of the two rules speaks for the strong level for a coder that would work at the usual one, and its words."""
    for route in known.routes if known else ():
        if (route.intent, route.effort, route.level) == (plain.intent, plain.effort, "strong"):
            return "route", f"recommended for {plain.intent} of effort {plain.effort}: {route.why}"
    if attempt > 1 and plain.confidence < section.low_confidence:
        return (
            "confidence",
            f"attempt {attempt}, and the confidence of {plain.confidence:.2f} is below {section.low_confidence:.2f}",
        )
    return None


def _level_sheet(noted: Traits) -> str:
    return (
        f"The coder works at the {noted.level} level ({noted.model}): {noted.why or 'as the settings say'}.\n\n"
        f"Kind of work: {noted.intent} of effort {noted.effort}. Confidence that it is accepted: {noted.confidence:.2f}."
    )
