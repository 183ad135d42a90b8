"""Triage of new tickets: which kind of work, which tickets say the same, what is missing (W2). By rule, without a model.

Each ticket is looked at once. It gets at most one label and one comment; nothing is closed, moved or rewritten.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from prefect import task

from infra.sections import AnyBoard
from tasks import services
from tasks.choosing import alike
from tasks.intents import intent_of
from tasks.models import Frozen, Ticket
from tasks.routing import route
from tasks.scribe import code, quoted

CHORE = "issue-triage"
FEWEST_WORDS = 8
"""A text with fewer tells nobody what to do."""
MOST_DUPLICATES = 3
_FACTORY_LABELS = {"darkfactory"}
_NO_DATE = datetime.max.replace(tzinfo=UTC)
_WORDS = re.compile(r"\w+")
_QUESTIONS = {
    "bug": "What did you do, what did you see, and what did you expect to see?",
    "operation": "Which system is it about, and how does one see that it worked?",
}
_ANY_QUESTION = "What should be different afterwards, and how does one see that it is done?"


class Triaged(Frozen):
    """What triage says of one ticket. `label` None: none, because that label would decide what the factory does."""

    ticket: str
    label: str | None
    duplicates: tuple[str, ...] = ()
    question: str | None = None


@task(name="find tickets", task_run_name="find tickets")
async def untriaged(repository: str | None) -> tuple[tuple[Ticket, tuple[Ticket, ...]], ...]:
    """Tickets of the queue without a label that were not looked at yet, the oldest first, each with the older open ones."""
    return await asyncio.to_thread(_untriaged, repository)


def _untriaged(repository: str | None) -> tuple[tuple[Ticket, tuple[Ticket, ...]], ...]:
    name = services.housekeeping_board()
    board, section, store = services.board(name), services.board_section(name), services.housekeeping()
    states, own = section.states, store.tickets(name)
    known = board.tickets_in_states([*states.queue, states.working, states.review, states.parked])
    known = sorted(known, key=_age)
    queue = {state.casefold() for state in states.queue}
    fresh = [
        (ticket, tuple(known[:number]))
        for number, ticket in enumerate(known)
        if ticket.state.casefold() in queue and ticket.key not in own and is_bare(ticket, section)
        and _is_of(ticket, repository, section) and store.mark_of(CHORE, name, ticket.key) is None
    ]  # fmt: skip
    return tuple(fresh)


def _age(ticket: Ticket) -> tuple[datetime, str]:
    return ticket.created_at or _NO_DATE, ticket.key


def is_bare(ticket: Ticket, section: AnyBoard) -> bool:
    """Whether nobody said by a label what it is; labels that every ticket of the board has say nothing."""
    states = section.states
    ignored = {*_FACTORY_LABELS, *section.required_labels, *states.queue, states.working, states.review, states.parked}
    return not {label.casefold() for label in ticket.labels} - {label.casefold() for label in ignored}


def _is_of(ticket: Ticket, repository: str | None, section: AnyBoard) -> bool:
    if repository is None:
        return True
    return route(ticket, services.settings().repositories, section.repository).repository == repository


def room_today() -> int:
    """Tickets that today's cap leaves."""
    used = services.housekeeping().marked_today(CHORE)
    return max(services.settings().housekeeping.max_per_day(CHORE) - used, 0)


def consider(ticket: Ticket, older: Sequence[Ticket]) -> Triaged:
    """What is to be said of a ticket, by rule."""
    intent = intent_of(ticket)
    same = [other.key for other in older if alike(ticket.title, other.title)][-MOST_DUPLICATES:]
    short = len(_WORDS.findall(ticket.body)) < FEWEST_WORDS
    return Triaged(
        ticket=ticket.key, label=None if intent in _deciding() else intent, duplicates=tuple(same),
        question=_QUESTIONS.get(intent, _ANY_QUESTION) if short else None,
    )  # fmt: skip


def _deciding() -> set[str]:
    """Labels that let the factory do something: only people and the configuration give those."""
    settings = services.settings()
    required = {label for board in settings.all_boards.values() for label in board.required_labels}
    return {label.casefold() for label in (*required, settings.playbooks.label)}


@task(name="triage", task_run_name="{said.ticket}")
async def tell(said: Triaged, older: tuple[Ticket, ...]) -> None:
    """Label and comment on the ticket, and remember that it was looked at. Twice changes nothing."""
    await asyncio.to_thread(_tell, said, older)


def _tell(said: Triaged, older: tuple[Ticket, ...]) -> None:
    name = services.housekeeping_board()
    board, text = services.board(name), as_comment(said, older)
    if text:
        board.comment(said.ticket, text, marker="triage")
    if said.label is not None:
        board.label(said.ticket, add=[said.label])
    digest = hashlib.sha256(said.model_dump_json().encode()).hexdigest()[:16]
    services.housekeeping().mark(CHORE, name, said.ticket, digest)


def as_comment(said: Triaged, older: Sequence[Ticket]) -> str:
    """Duplicates with what they share, and the one question; empty when there is nothing to say."""
    titles = {ticket.key: ticket.title for ticket in older}
    lines = [f"- {code(key)}: {quoted(titles[key])}" for key in said.duplicates if key in titles]
    parts = (
        ["Open tickets whose titles say much the same; close one of them if they are the same:\n\n" + "\n".join(lines)]
        if lines
        else []
    )
    parts += [f"There is little to go by in the text. {said.question}"] if said.question else []
    return "\n\n".join(parts)
