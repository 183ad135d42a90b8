"""Looking after open pull requests (T15): what is seen of one, the one rule that decides what is done next, and the light
steps. What needs a model or a sandbox is a round (`tasks.refining`), which a node works under the ticket's claim.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Literal

from prefect import task

from infra.errors import ConfigError, FactoryError
from infra.git import directory_name
from infra.llm import Frozen
from infra.pull_requests import Check, PullRequest, Review
from infra.sections import StewardSection
from infra.stewardships import Counter, Handled, Stewardship, Wanted
from tasks import services
from tasks.dispatching import Waiting, launch_round
from tasks.intake import find_ticket, pin
from tasks.models import Repository, Ticket

BRANCHES = "branches"
"""The board, so to speak, of branches that belong to no ticket; no board of factory.yaml has this name's tickets."""
LABEL = "dark-factory-refine"
"""A pull request with this label is refined, once for each time it is put on."""
SETTLED_FOR = timedelta(hours=1)
"""A pull request on which nothing changed is asked about again after this time: a check may have run anew unseen."""

Kind = Literal["wait", "end", "park", "refine", "conflict", "review", "ci", "qa", "update", "merge"]
ROUNDS: tuple[Kind, ...] = ("refine", "conflict", "review", "ci", "qa", "update")
"""Work for a node."""
COUNTERS: dict[Kind, Counter] = {
    "ci": "ci_fixes", "review": "review_rounds", "conflict": "conflict_fixes", "update": "conflict_fixes",
}  # fmt: skip

_log = logging.getLogger(__name__)


class Seen(Frozen):
    """One look at a pull request. `said` is what trusted people said, oldest first; `conflicts` are paths on which branch
    and base collide; `behind`: the base branch moved on."""

    state: Literal["open", "closed", "merged"] = "open"
    head_sha: str
    base_sha: str
    draft: bool = False
    checks: tuple[Check, ...] = ()
    said: tuple[Review, ...] = ()
    conflicts: tuple[str, ...] = ()
    behind: bool = False
    label: bool = False


class Step(Frozen):
    """What is done next, and why."""

    kind: Kind
    reason: str


class Due(Frozen):
    """A round that is to be worked."""

    board: str
    ticket: str
    repository: str
    branch: str
    kind: Kind


class Stewarded(Frozen):
    """What one look at all pull requests came to: by branch, what was done or why nothing was."""

    steps: dict[str, str] = {}
    launched: tuple[str, ...] = ()
    due: tuple[Due, ...] = ()


# ---- the rule ---------------------------------------------------------------------------------------------------


def next_step(seen: Seen, row: Stewardship, policy: StewardSection) -> Step:
    """The one thing to do about a pull request now. Knows nothing but its arguments."""
    if seen.state != "open":
        return Step(kind="end", reason=f"it is {seen.state}")
    if row.state == "parked":
        return Step(kind="wait", reason=f"it waits for a person: {row.reason}")
    if row.wanted is not None:
        return Step(kind="refine", reason=f"asked for by {row.wanted.by}")
    for rule in (_conflict, _review, _ci, _qa, _merge):
        step = rule(seen, row, policy)
        if step is not None:
            return step
    return Step(kind="wait", reason="its checks run" if is_pending(seen) else "there is nothing to do")


def _conflict(seen: Seen, row: Stewardship, policy: StewardSection) -> Step | None:
    if not seen.conflicts:
        return None
    return _bounded("conflict", f"it collides with its base branch in {len(seen.conflicts)} file(s)", row, policy)


def _review(seen: Seen, row: Stewardship, policy: StewardSection) -> Step | None:
    words = unanswered(seen, row.handled)
    return _bounded("review", f"{len(words)} remark(s) of reviewers", row, policy) if words else None


def _ci(seen: Seen, row: Stewardship, policy: StewardSection) -> Step | None:
    failed = failing(seen)
    return _bounded("ci", f"{len(failed)} check(s) failed", row, policy) if failed and not is_pending(seen) else None


def _qa(seen: Seen, row: Stewardship, policy: StewardSection) -> Step | None:
    if policy.qa is None or row.handled.qa == seen.head_sha:
        return None
    return Step(kind="qa", reason="this commit has no proof yet")


def _merge(seen: Seen, row: Stewardship, policy: StewardSection) -> Step | None:
    if policy.merge == "never" or seen.draft or not _is_green(seen, row):
        return None
    if policy.merge == "when-approved" and not is_approved(seen):
        return None
    if seen.behind:
        return _bounded("update", "its base branch moved on", row, policy)
    return Step(kind="merge", reason=f"everything is green ({policy.merge})")


def _bounded(kind: Kind, why: str, row: Stewardship, policy: StewardSection) -> Step:
    """The step, unless its rounds are used up (RB6: every kind has a counter of its own)."""
    counter = COUNTERS[kind]
    done, most = getattr(row, counter), getattr(policy, f"max_{counter}") + row.extra
    if done < most:
        return Step(kind=kind, reason=why)
    return Step(
        kind="park", reason=f"{why}, and {done} round(s) of that kind were worked ({counter} of at most {most})"
    )


def unanswered(seen: Seen, handled: Handled) -> tuple[Review, ...]:
    """What trusted people said since the last round and that asks for something. An approval asks for nothing."""
    new = (r for r in seen.said if r.at is not None and (handled.heard is None or r.at > handled.heard))
    return tuple(r for r in new if r.verdict == "changes-requested" or (r.verdict == "commented" and r.body))


def failing(seen: Seen) -> tuple[Check, ...]:
    return tuple(check for check in seen.checks if check.state == "failed")


def is_pending(seen: Seen) -> bool:
    return any(check.state == "pending" for check in seen.checks)


def _is_green(seen: Seen, row: Stewardship) -> bool:
    """Nothing failed or runs, and something was proved: without any check nothing is known."""
    proved = row.handled.qa == seen.head_sha or bool(seen.checks)
    return proved and all(check.state == "passed" for check in seen.checks)


def is_approved(seen: Seen) -> bool:
    """Somebody who is trusted approved this very commit, and nobody's last verdict asks for changes."""
    last = {r.author: r for r in seen.said if r.verdict != "commented"}
    if any(r.verdict == "changes-requested" for r in last.values()):
        return False
    return any(r.verdict == "approved" and r.head_sha == seen.head_sha for r in last.values())


def revived(row: Stewardship, seen: Seen) -> bool:
    """Whether a person did something about a parked pull request: wrote, or pushed a commit. That grants one more round."""
    if row.state != "parked":
        return False
    return (row.handled.parked_head, row.handled.parked_heard) != (seen.head_sha, newest(seen))


def newest(seen: Seen) -> datetime | None:
    """When a trusted person spoke last, by the forge's clock."""
    return max((r.at for r in seen.said if r.at is not None), default=None)


# ---- looking ----------------------------------------------------------------------------------------------------


def see(row: Stewardship, pinned: Repository, pull: PullRequest | None) -> Seen:
    """Look at everything about one branch: its tip and its base branch in git, its checks and reviews at the forge.

    Raises ConfigError when the branch, or its base branch, is gone.
    """
    mirror, base = services.mirror(pinned), pull.base if pull else pinned.base_branch
    tips = mirror.take(pinned.remote, [row.branch, base])
    missing = [name for name in (row.branch, base) if name not in tips]
    if missing:
        raise ConfigError(
            f"the remote of {row.repository!r} has no branch {missing[0]!r}; restore it, or close the pull request"
        )
    forge, head = services.forge(row.repository), tips[row.branch]
    said = tuple(r for r in forge.reviews(row.branch) if is_trusted(r, row.board)) if pull else ()
    checks = [*forge.checks(row.branch)] if pull and pull.head_sha in ("", head) else []
    behind = not mirror.contains(head, tips[base])
    return Seen(
        state=pull.state if pull else "open",
        head_sha=head,
        base_sha=tips[base],
        draft=pull.draft if pull else True,
        checks=(*checks, *_qa_check(row, head)),
        said=said,
        conflicts=mirror.merge(head, tips[base]).conflicts if behind else (),
        behind=behind,
        label=pull is not None and LABEL in pull.labels,
    )


def _qa_check(row: Stewardship, head: str) -> list[Check]:
    if row.handled.qa != head or row.handled.qa_exit is None:
        return []
    return [Check(name="QA", state="passed" if row.handled.qa_exit == 0 else "failed", summary=qa_output(row, head))]


def qa_output(row: Stewardship, head: str) -> str:
    raw = services.objects().get(f"{qa_folder(row, head)}/output.txt")
    return (raw or b"").decode(errors="replace")[-4_000:]


def qa_folder(row: Stewardship, head: str) -> str:
    """Where the proof of a commit is kept in the object store."""
    return f"{directory_name(row.ticket)}/qa/{head[:12]}"


def is_trusted(review: Review, board: str) -> bool:
    """Whose words start work: those that the board trusts by name; without names, members of the repository."""
    section = services.settings().all_boards.get(board)
    names = {name.casefold() for name in (section.trusted_authors or section.allowed_authors)} if section else set()
    if section is not None and section.trusted_authors:
        return review.author.casefold() in names
    return review.member or review.author.casefold() in names


@task(name="look at pull requests", task_run_name="look at pull requests")
async def look(repository: str | None = None, only: str | None = None) -> Stewarded:
    """Look at every pull request of `repository` (None: of all), do what is light, and say which rounds are due.

    `only` is a branch or number that an event named: it is looked at however settled it seems. A repository that cannot be
    read leaves the others alone.
    """
    return await asyncio.to_thread(_look, repository, only)


def _look(repository: str | None, only: str | None) -> Stewarded:
    services.stewardships().enrol()
    steps: dict[str, str] = {}
    due: list[Due] = []
    for name in _repositories(repository):
        try:
            for row, step in _look_at(name, only):
                steps[f"{name}:{row.branch}"] = f"{step.kind}: {step.reason}"
                due += [_due(row, step)] if step.kind in ROUNDS else []
        except FactoryError as error:
            _log.warning("repository=%s outcome=not-looked-at reason=%r", name, str(error))
            steps[name] = f"not looked at: {error}"
    return Stewarded(steps=steps, due=tuple(due))


def _repositories(named: str | None) -> list[str]:
    """Those where something is watched, and those where a label may ask for something."""
    known = services.settings().repositories
    watched = {row.repository for row in services.stewardships().watched(named)}
    labelled = {name for name, section in known.items() if section.github and section.steward.enabled}
    return sorted(name for name in (watched | labelled) & known.keys() if named in (None, name))


def _due(row: Stewardship, step: Step) -> Due:
    return Due(board=row.board, ticket=row.ticket, repository=row.repository, branch=row.branch, kind=step.kind)


def _look_at(name: str, only: str | None) -> Iterable[tuple[Stewardship, Step]]:
    """One list of the forge and one of the remote's branches serve all pull requests of a repository."""
    enabled = services.settings().repositories[name].steward.enabled
    pulls = {pull.branch: pull for pull in services.forge(name).open()}
    for branch in (branch for branch, pull in pulls.items() if LABEL in pull.labels):
        services.stewardships().watch(name, branch, BRANCHES, _stand_in(name, branch))
    rows = services.stewardships().watched(name)
    if not rows:
        return
    pinned = pin(name, services.settings().repositories[name])
    tips = services.mirror(pinned).tips(pinned.remote)
    for row in rows:
        if enabled or row.wanted is not None:
            with services.stewardships().alone(name, row.branch) as fresh:
                if fresh is not None:
                    yield fresh, _look_at_one(fresh, pinned, pulls.get(row.branch), tips, only)


def _look_at_one(
    row: Stewardship, pinned: Repository, pull: PullRequest | None, tips: dict[str, str], only: str | None
) -> Step:
    named = only is not None and only in (row.branch, str(pull.number) if pull else "")
    looks_like = _looks_like(pull, tips, row.branch)
    if not (named or row.wanted or row.journal) and _is_settled(row, looks_like):
        return Step(kind="wait", reason=row.reason or "nothing changed")
    if is_held(row):
        return Step(kind="wait", reason="its ticket is being worked on")
    pull = pull or services.forge(row.repository).find(row.branch)
    if pull is not None and pull.state != "open":
        return _end(row, pull)
    if pull is None and row.board != BRANCHES:
        return _park(row, None, "its pull request is gone from the forge")
    try:
        seen = see(row, pinned, pull)
    except ConfigError as error:
        return _park(row, None, str(error))
    return _act(prepared(row, seen), seen, pull, looks_like)


def prepared(row: Stewardship, seen: Seen) -> Stewardship:
    """The row with everything put right that a killed run or a person's words left to do."""
    row = finish(row, seen.head_sha)
    stewardships = services.stewardships()
    if row.handled.label != seen.label:
        asked = {"wanted": row.wanted or Wanted(by="label"), "state": "watched"} if seen.label else {}
        row = stewardships.save(row, handled=row.handled.model_copy(update={"label": seen.label}), **asked)
    if revived(row, seen):
        row = stewardships.save(row, state="watched", extra=row.extra + 1, reason="")
    return row


def _act(row: Stewardship, seen: Seen, pull: PullRequest | None, looks_like: str) -> Step:
    step = next_step(seen, row, services.settings().repositories[row.repository].steward)
    if row.board == BRANCHES and step.kind != "refine":
        step = Step(kind="wait", reason="it belongs to no ticket, and was refined")
        if not seen.label:
            services.stewardships().save(row, state="ended", reason=step.reason)
    match step.kind:
        case "park":
            return _park(row, seen, step.reason)
        case "merge":
            merged = services.forge(row.repository).merge(row.branch, seen.head_sha)
            found = services.forge(row.repository).find(row.branch) if merged else None
            return _end(row, found) if found else Step(kind="wait", reason="the forge does not merge it now")
        case "wait" if not is_pending(seen):
            services.stewardships().save(row, settled=looks_like, settled_at=services.claims().now())
    return step


def _looks_like(pull: PullRequest | None, tips: dict[str, str], branch: str) -> str:
    """What of a pull request can be seen in the two lists."""
    labelled = pull is not None and LABEL in pull.labels
    parts = [pull.updated_at, pull.base, pull.draft, tips.get(pull.base)] if pull else []
    return " ".join(map(str, [*parts, tips.get(branch), labelled]))


def _is_settled(row: Stewardship, looks_like: str) -> bool:
    recent = row.settled_at is not None and services.claims().now() - row.settled_at < SETTLED_FOR
    return recent and row.settled == looks_like


def is_held(row: Stewardship) -> bool:
    """Whether a run has the ticket now, a dispatcher's or a round."""
    claim = services.claims().find(row.board, row.ticket)
    return claim is not None and claim.state in ("claimed", "running") and claim.lease_until > services.claims().now()


# ---- light steps ------------------------------------------------------------------------------------------------


def finish(row: Stewardship, head_sha: str) -> Stewardship:
    """What a run that was killed in the middle of a push left: its last words, or, when the push never arrived, nothing."""
    journal = row.journal
    if journal is None:
        return row
    if head_sha != journal.before:
        services.forge(row.repository).comment(row.branch, journal.comment, journal.marker)
        return services.stewardships().save(row, journal=None)
    undone = {journal.counter: getattr(row, journal.counter) - 1} if journal.counter else {}
    return services.stewardships().save(row, journal=None, handled=journal.handled, wanted=journal.wanted, **undone)


def _end(row: Stewardship, pull: PullRequest) -> Step:
    """Merged: the ticket is done. Closed: it is rejected. The branch stays."""
    if row.board in services.settings().all_boards:
        _move_ticket(row, merged=pull.state == "merged")
        services.ledger(row.board).record_pull_request(row.ticket, pull)
        services.ledger(row.board).record_event(None, row.ticket, "pull-request", f"it was {pull.state}: {pull.url}")
    services.stewardships().save(row, state="ended", reason=f"it was {pull.state}")
    return Step(kind="end", reason=f"it was {pull.state}")


def _move_ticket(row: Stewardship, *, merged: bool) -> None:
    """To the board's first word for finished that it knows, or to `rejected`; only from where the factory put it."""
    board, states = services.board(row.board), services.board_section(row.board).states
    found = board.tickets_by_keys([row.ticket])
    if not found or found[0].closed or found[0].state.casefold() != states.review.casefold():
        return
    for word in states.closed if merged else (states.rejected,):
        try:
            board.move(row.ticket, word)
            return
        except ConfigError as error:  # not a word of this board
            _log.info("board=%s ticket=%s outcome=not-moved reason=%r", row.board, row.ticket, str(error))


def _park(row: Stewardship, seen: Seen | None, reason: str) -> Step:
    """Say once on the pull request why nothing more is tried, and how it goes on."""
    if row.state != "parked":
        text = (
            f"Not worked on any more: {reason}.\n\nA comment here, a commit on the branch, or `darkfactory retry "
            f"{row.ticket}` grants one more round."
        )
        services.forge(row.repository).comment(row.branch, text, f"parked-{row.extra}")
        at = {"parked_head": seen.head_sha, "parked_heard": newest(seen)} if seen else {}
        handled = row.handled.model_copy(update=at)
        services.stewardships().save(row, state="parked", reason=reason, handled=handled)
    return Step(kind="park", reason=reason)


# ---- asking for a refinement, and handing rounds out ---------------------------------------------------------------


@task(name="note what is wanted", task_run_name="note what is wanted")
async def want(repository: str, branch: str, number: str, instructions: str, by: str) -> Due | None:
    """Note that somebody wants a branch refined (T9); the same request twice is one. `instructions` is text from outside.

    Raises ConfigError for a repository, branch or pull request that is not there.
    """
    return await asyncio.to_thread(_want, repository, branch, number, instructions, by)


def _want(repository: str, branch: str, number: str, instructions: str, by: str) -> Due | None:
    name = branch or _branch_of(repository, number)
    _check_branch(repository, name)
    stewardships = services.stewardships()
    stewardships.enrol()
    stewardships.watch(repository, name, BRANCHES, _stand_in(repository, name))
    row = stewardships.find(repository, name)
    if row is None or row.handled.refined == by:
        return None
    if row.wanted is None:
        row = stewardships.save(row, wanted=Wanted(by=by, instructions=instructions[:4_000]), state="watched")
    return Due(board=row.board, ticket=row.ticket, repository=repository, branch=name, kind="refine")


def _stand_in(repository: str, branch: str) -> str:
    """What stands for the ticket of a branch that has none, in every table and path."""
    return directory_name(f"{repository}-{branch}".lower())


def _branch_of(repository: str, number: str) -> str:
    for pull in services.forge(_configured(repository)).open():
        if number and number.lstrip("#") == str(pull.number):
            return pull.branch
    raise ConfigError(f"{repository!r} has no open pull request {number!r}; name its number or a branch")


def _configured(repository: str) -> str:
    known = services.settings().repositories
    if repository not in known:
        raise ConfigError(
            f"{repository!r} is no repository of factory.yaml (configured: {', '.join(sorted(known)) or 'none'})"
        )
    return repository


def _check_branch(repository: str, branch: str) -> None:
    pinned = pin(repository, services.settings().repositories[_configured(repository)])
    if branch == pinned.base_branch or branch not in services.mirror(pinned).tips(pinned.remote, [branch]):
        raise ConfigError(
            f"the remote of {repository!r} has no branch {branch!r} to refine; push it, or correct the name"
        )


@task(name="hand out rounds", task_run_name="hand out rounds")
async def hand_out(due: tuple[Due, ...]) -> tuple[str, ...]:
    """Give every due round to a node, as far as there is room. Returns the branches of those that were launched."""
    launched = []
    for each in due:
        try:
            ticket = await asyncio.to_thread(ticket_of, each.board, each.ticket, each.repository, each.branch)
            run = await launch_round(Waiting(ticket=ticket, repository=each.repository))
        except FactoryError as error:
            _log.warning("board=%s ticket=%s outcome=not-launched reason=%r", each.board, each.ticket, str(error))
            continue
        launched += [each.branch] if run is not None else []
    return tuple(launched)


def round_ticket(board: str, key: str, repository: str) -> Ticket:
    """The ticket whose pull request a round works on. Raises ConfigError as `ticket_of`, and when nothing is looked after."""
    row = services.stewardships().of_ticket(board, key)
    if row is None or row.repository != repository:
        raise ConfigError(
            f"no pull request of ticket {key!r} in {repository!r} is looked after; run `darkfactory steward`"
        )
    return ticket_of(board, key, repository, row.branch)


def ticket_of(board: str, key: str, repository: str, branch: str) -> Ticket:
    """The ticket of a pull request; for a branch without one, what stands in for it: its pull request's own words.

    Raises ConfigError for a ticket that is closed, or gone.
    """
    if board != BRANCHES:
        ticket = find_ticket(key, board)
        if ticket.closed:
            raise ConfigError(f"ticket {key!r} is closed; nothing is done about its pull request")
        return ticket
    pull = services.forge(repository).find(branch)
    title, body = (pull.title, pull.body) if pull else (f"Refine {branch}", f"The branch {branch} is to be refined.")
    return Ticket(board=BRANCHES, key=key, title=title, body=body, state="open", repository=repository)
