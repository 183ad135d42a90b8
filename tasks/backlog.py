"""Work the factory finds by itself: a look at a repository becomes tickets on the board, each once, within the day's caps (W1)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence

import httpx
from prefect import task
from prefect.artifacts import acreate_table_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from infra.chores import CHORES
from infra.errors import ConfigError
from infra.housekeeping import Draft, Finding, Sorted, fingerprint
from infra.redaction import redact
from infra.slots import sole
from infra.test_runners import detect_policy, shorten
from tasks import services
from tasks.advisories import advisories
from tasks.dispatching import Slots, dispatch_gate
from tasks.finders import (
    Found,
    Look,
    Sighted,
    dead_code,
    failing_tests,
    lint_bugs,
    old_notes,
    security,
    skipped_tests,
    tangled,
    untested,
    unwritten,
)
from tasks.hunting import hunted
from tasks.intake import named_repository, pin
from tasks.models import FactoryError, Frozen, Ticket
from tasks.policy import read_policy
from tasks.scribe import code, quoted

EVIDENCE_CHARS = 2_000
TITLE_CHARS = 120
MOST_NEW = 300
"""New findings that one run sorts, the worst first; the others are counted as capped, and seen again by a later run."""
PAST_TICKETS = 2_000
"""Of earlier tickets, how many titles are compared."""
REFILL = "refill"

Finder = Callable[[Look], Awaitable[list[Found]]]
FINDERS: dict[str, tuple[Finder, ...]] = {
    "bug-hunter": (failing_tests, lint_bugs, hunted),
    "security-audit": (security,),
    "dependency-audit": (advisories,),
    "technical-debt": (old_notes, dead_code),
    "test-gaps": (skipped_tests, untested),
    "simplify": (tangled,),
    "docs": (unwritten,),
}
"""In the order of the day; an empty queue is filled in it, too."""


class Swept(Frozen):
    """What one chore came to in one repository. `tickets` are the keys made; `titles` what they say, or would say in a dry run."""

    chore: str
    repository: str
    found: int = 0
    made: int = 0
    known: int = 0
    duplicates: int = 0
    capped: int = 0
    tickets: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("found", "made", "known", "duplicates", "capped")}


def repositories(named: str | None) -> tuple[str, ...]:
    """The named repository, or all that are configured. Raises ConfigError for an unknown one and for none at all."""
    known = tuple(services.settings().repositories)
    if named is not None and named not in known:
        raise ConfigError(f"repository {named!r} is not in `repositories` (configured: {', '.join(known) or 'none'})")
    if not known:
        raise ConfigError(
            "housekeeping looks at the configured repositories; add one to `repositories` in factory.yaml"
        )
    return (named,) if named else known


def chores() -> tuple[str, ...]:
    """Chores that make tickets, in their order."""
    return tuple(FINDERS)


def why_off(chore: str) -> str | None:
    """Why a chore does nothing now, or None. A deployment may be older than the settings. Raises ConfigError for no chore."""
    if chore not in CHORES:
        raise ConfigError(f"there is no chore {chore!r}; known: {', '.join(CHORES)}")
    return None if services.settings().housekeeping.enabled else "housekeeping is off; set `housekeeping.enabled: true`"


# ---- looking ----------------------------------------------------------------------------------------------------


@task(name="look", task_run_name="{chore} {repository}")
async def look_for(chore: str, repository: str) -> Sighted:
    """Everything the chore's finders see on the base branch, the worst first. One look per chore on a machine at a time."""
    key = f"housekeeping-{chore}-{repository}"
    with sole(services.ticket_lock("housekeeping", key), f"the chore {chore!r} in {repository!r}"):
        look = await asyncio.to_thread(_opened, repository, key)
        found = [each for finder in FINDERS[chore] for each in await finder(look)]
    return Sighted(
        base_sha=look.sha,
        found=tuple(sorted(found, key=lambda f: (-f.weight, f.path, f.line))),
        notes=tuple(look.notes),
    )


def _opened(repository: str, key: str) -> Look:
    pinned = pin(*named_repository(repository))
    mirror = services.mirror(pinned)
    return Look(pinned, mirror, read_policy(mirror, pinned.base_sha, detect_policy), key)


# ---- tickets ----------------------------------------------------------------------------------------------------


@task(name="make tickets", task_run_name="{chore} {repository}")
async def make_tickets(chore: str, repository: str, seen: Sighted, dry_run: bool) -> Swept:
    """Tickets of what is new, within the caps; a dry run only says which. Run again after a kill, it makes what is missing."""
    return await asyncio.to_thread(_made, chore, repository, seen, dry_run)


def _made(chore: str, repository: str, seen: Sighted, dry_run: bool) -> Swept:
    store, section = services.housekeeping(), services.settings().housekeeping
    named = {_fingerprint(repository, each): each for each in seen.found}
    known = store.known(list(named))
    fresh = [key for key in named if key not in known]
    looked_at = {*known, *fresh[:MOST_NEW]}
    drafts = {
        key: _draft(chore, repository, seen.base_sha, key, each) for key, each in named.items() if key in looked_at
    }
    same = _duplicates({key: named[key] for key in fresh[:MOST_NEW]})
    wanted = [(key, named[key].kind, draft) for key, draft in drafts.items() if key not in same]
    swept = Swept(
        chore=chore, repository=repository, found=len(named), known=len(known), duplicates=len(same), notes=seen.notes,
        capped=len(fresh[MOST_NEW:]), dry_run=dry_run,
    )  # fmt: skip
    if dry_run:
        return _foretold(swept, [draft.title for key, _, draft in wanted if key not in known])
    store.start(chore, repository)
    for key, other in same.items():
        store.pass_over(chore, repository, key, named[key].kind, drafts[key], services.housekeeping_board(), other.key)
    chosen = store.sort(
        chore, repository, services.housekeeping_board(), wanted,
        per_chore=section.max_per_day(chore), overall=section.max_tickets_per_day,
    )  # fmt: skip
    return _end(swept, chosen, [ticket for each in chosen.intended if (ticket := _create(each)) is not None])


def _foretold(swept: Swept, titles: Sequence[str]) -> Swept:
    section, today = services.settings().housekeeping, services.housekeeping().made_today()
    room = min(
        section.max_per_day(swept.chore) - today.get(swept.chore, 0), section.max_tickets_per_day - sum(today.values())
    )
    shown = tuple(titles[: max(room, 0)])
    return swept.model_copy(update={"capped": swept.capped + len(titles) - len(shown), "titles": shown})


def _end(swept: Swept, chosen: Sorted, made: Sequence[Ticket]) -> Swept:
    done = swept.model_copy(update={
        "known": chosen.known, "capped": swept.capped + chosen.capped, "made": len(made),
        "tickets": tuple(t.key for t in made), "titles": tuple(t.title for t in made),
    })  # fmt: skip
    record(done)
    return done


def record(swept: Swept) -> None:
    """Write down how a run ended, in the ledger of runs and as an event."""
    services.housekeeping().end(swept.chore, swept.repository, swept.counts, "; ".join(swept.notes))
    said = ", ".join(f"{name} {count}" for name, count in swept.counts.items())
    data = {**swept.counts, "tickets": list(swept.tickets), "notes": list(swept.notes)}
    services.ledger(services.housekeeping_board()).record_event(
        None, f"housekeeping/{swept.chore}", "housekeeping", f"{swept.repository}: {said}", data
    )


def _create(intended: Finding) -> Ticket | None:
    """The ticket on its board; None when another machine made it meanwhile.

    It stands in the queue's first state then; one that somebody took up, moved or closed is left as it is.
    """
    store, draft = services.housekeeping(), intended.draft
    with store.alone(intended.fingerprint) as mine:
        if mine is None:
            return None
        name = mine.board or services.housekeeping_board()
        board, section = services.board(name), services.board_section(name)
        made = board.create(draft.title, draft.body, marker=mine.marker, labels=draft.labels, priority=draft.priority)
        wanted = services.settings().housekeeping.state
        if (
            wanted
            and not made.closed
            and made.state.casefold() == section.states.queue[0].casefold() != wanted.casefold()
        ):
            board.move(made.key, wanted)
        store.confirm(mine.fingerprint, made.key)
    return made


def _fingerprint(repository: str, each: Found) -> str:
    return fingerprint(repository, each.kind, each.path, each.subject)


def _draft(chore: str, repository: str, base_sha: str, key: str, each: Found) -> Draft:
    settings = services.settings()
    labels = [*settings.housekeeping.labels, CHORES[chore].label]
    if (
        len(settings.repositories) > 1
        and services.board_section(services.housekeeping_board()).repository != repository
    ):
        labels.append(f"repo:{repository}")
    title = shorten(redact(" ".join(each.title.split())), TITLE_CHARS).split("\n")[0]
    body = _body(chore, repository, base_sha, key, each)
    return Draft(title=title, body=body, labels=tuple(dict.fromkeys(labels)))


def _body(chore: str, repository: str, base_sha: str, key: str, each: Found) -> str:
    """What, where, evidence and acceptance. What the repository says is shortened, redacted and fenced."""
    place = f"{code(f'{each.path}:{each.line}' if each.line else each.path)} at " if each.path else ""
    return "\n".join([
        quoted(redact(each.what)), "", f"Where: {place}commit `{base_sha[:12]}` of {repository}.", *_fenced(each.evidence),
        "", "Done when:", "", f"- {quoted(redact(each.acceptance))}", "- The repository's tests pass.", "",
        f"Found by the chore `{chore}` (finding `{key}`). Closed as not planned, it is not opened again.",
    ])  # fmt: skip


def _fenced(evidence: str) -> list[str]:
    text = shorten(redact(evidence.strip()), EVIDENCE_CHARS).replace(
        "<!--", "&lt;!--"
    )  # a secret cut in half is no longer known
    if not text:
        return []
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 3)
    return ["", "What the factory saw:", "", f"{fence}text", text, fence]


# ---- duplicates --------------------------------------------------------------------------------------------------


def _duplicates(fresh: Mapping[str, Found]) -> dict[str, Ticket]:
    """Findings that somebody else's ticket is about already."""
    others = _tickets_of_others() if fresh else []
    same = {key: next((t for t in others if near(each, t.title)), None) for key, each in fresh.items()}
    return {key: ticket for key, ticket in same.items() if ticket is not None}


def _tickets_of_others() -> list[Ticket]:
    """Open tickets of the board and earlier ones of the ledger, without those that housekeeping made."""
    name = services.housekeeping_board()
    own, states = services.housekeeping().tickets(name), services.board_section(name).states
    open_ones = services.board(name).tickets_in_states([*states.queue, states.working, states.review, states.parked])
    past = [
        Ticket(board=name, key=row.key, title=row.title, body="", state=row.state)
        for row in services.ledger(name).overview(PAST_TICKETS)
    ]
    return [ticket for ticket in (*open_ones, *past) if ticket.key not in own]


def near(each: Found, title: str) -> bool:
    """Whether a person's title is about this finding: it names the same code, and most of the shorter one's words are in
    the other. A finding that has no name of its own needs all of its words."""
    mine, theirs = _words(each.title), _words(title)
    shorter = min(len(mine), len(theirs))
    if not each.name:
        return len(mine) >= 3 and mine <= theirs
    named = each.name.casefold() in re.findall(r"\w+", title.casefold())
    return named and shorter >= 3 and len(mine & theirs) >= 0.6 * shorter


def _words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", text.casefold()) if len(word) > 2 and not word.isdigit()}


# ---- telling ------------------------------------------------------------------------------------------------------


def failed(chore: str, repository: str, error: FactoryError, dry_run: bool) -> Swept:
    """What is told of a repository that could not be looked at; the others are looked at all the same."""
    return Swept(chore=chore, repository=repository, notes=(f"not looked at: {error}",), dry_run=dry_run)


@task(name="write down", task_run_name="{swept.chore} {swept.repository}")
async def write_down(swept: Swept) -> Swept:
    """The result of a chore that makes no tickets. A dry run is not written down."""
    if not swept.dry_run:
        await asyncio.to_thread(services.housekeeping().start, swept.chore, swept.repository)
        await asyncio.to_thread(record, swept)
    return swept


@task(name="leave table", task_run_name="leave table")
async def leave_table(swept: tuple[Swept, ...]) -> None:
    """The artifact of a run: one row for each chore and repository."""
    rows = [
        {"chore": s.chore, "repository": s.repository, **s.counts, "tickets": ", ".join(s.tickets), "notes": redact("; ".join(s.notes))}
        for s in swept
    ]  # fmt: skip
    names = {s.chore for s in swept}
    await acreate_table_artifact(table=rows, key=f"housekeeping-{names.pop() if len(names) == 1 else REFILL}")


# ---- an empty queue ------------------------------------------------------------------------------------------------


def is_full() -> bool:
    """Whether today's cap over all kinds is used up."""
    section = services.settings().housekeeping
    return sum(services.housekeeping().made_today().values()) >= section.max_tickets_per_day


@task(name="refill", task_run_name="refill")
async def refill_when_idle(skipped: tuple[str, ...]) -> bool:
    """Start the generators at once when nothing waits and a slot is free; True when this tick did.

    At most once in `refill_seconds` over all dispatchers, and not on days whose cap is used up. `skipped` are the keys of
    a tick's reasons: a board that was not read is not known to be empty.
    """
    section = services.settings().housekeeping
    if not section.enabled or any(key.startswith("board ") for key in skipped):
        return False
    if not await asyncio.to_thread(_has_room) or not await asyncio.to_thread(
        services.housekeeping().take_turn, REFILL, section.refill_seconds
    ):
        return False
    try:
        async with get_client() as client:
            deployment = await client.read_deployment_by_name(f"{REFILL}/{REFILL}")
            await client.create_flow_run_from_deployment(deployment.id)
    except (ObjectNotFound, PrefectHTTPStatusError, httpx.HTTPError):
        return False  # `darkfactory up` has not made it yet, or its server is away; the schedules still run
    return True


def _has_room() -> bool:
    boards = {f"board:{services.housekeeping_board()}"} & services.pauses().active().keys()
    return not boards and dispatch_gate().closed is None and Slots.now().has_room() and not is_full()
