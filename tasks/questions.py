"""Questions to the people of a ticket (I12): whether one may still be asked, whose reply counts, and what the next run is told."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from infra.boards import Comment, Ticket
from infra.claims import Claim
from infra.sections import AnyBoard, FolderBoardSection
from tasks import services
from tasks.choosing import person

MARKER = "question-"
PART_CHARS, ANSWERS_CHARS = 2_000, 8_000
"""How much of one question or reply, and of all of a ticket's, a prompt shows; of too much, the last."""
_BOT = "[bot]"
"""How GitHub ends the names of apps: what they write by themselves is nobody's answer."""


def may_ask(claim: Claim) -> bool:
    """Whether the ticket waited for fewer answers than it may (SM8); after that a run decides with what there is."""
    return claim.continuations < services.settings().dispatch.max_continuations


def replies(ticket: Ticket, claim: Claim, section: AnyBoard) -> tuple[Comment, ...]:
    """What trusted people wrote on the ticket below the claim's question; nothing when that is not there (RC7).

    It rests on the board's word for who wrote: whoever can write a folder board's files can pretend to be anybody. An older
    comment that is edited later stays above the question, and what the factory writes carries its marker.
    """
    marker = f"{MARKER}{claim.token}"
    posted = next((n for n, comment in enumerate(ticket.comments) if comment.marker == marker), None)
    return () if posted is None else _trusted(ticket.comments[posted + 1 :], ticket, section)


def _trusted(comments: Iterable[Comment], ticket: Ticket, section: AnyBoard) -> tuple[Comment, ...]:
    own = [ticket.author] if ticket.author and not ticket.author.endswith(_BOT) else []
    names = {person(name) for name in section.trusted_authors or (*section.allowed_authors, *own)}
    said = [comment for comment in comments if comment.marker is None and comment.body.strip()]
    if not names:  # people who may write a folder's files are trusted; on a service, everybody may reply
        return tuple(said) if isinstance(section, FolderBoardSection) else ()
    return tuple(comment for comment in said if person(comment.author) in names)


def answers(ticket: Ticket) -> str:
    """The questions of earlier runs with the trusted replies to each, for prompts; empty when there are none."""
    section = services.settings().all_boards.get(ticket.board)
    if section is None:
        return ""
    asked = [n for n, comment in enumerate(ticket.comments) if (comment.marker or "").startswith(MARKER)]
    told = ""
    for start, end in pairwise([*asked, len(ticket.comments)]):
        given = _trusted(ticket.comments[start + 1 : end], ticket, section)
        if given:
            lines = [f"asked: {ticket.comments[start].body}", *(f"{c.author} replied: {c.body}" for c in given)]
            told += "\n".join(line[:PART_CHARS] for line in lines) + "\n\n"
    return told.strip()[-ANSWERS_CHARS:]
