"""`steward`: looks after every open pull request of the factory until it is merged or closed (T15). By schedule, and at once
when an event names one. What waits is a row of the ledger; only a round that is worked holds a slot.
"""

from __future__ import annotations

from prefect import flow

from flows.refine import refine
from tasks.bugs import record_bug
from tasks.models import FactoryError
from tasks.stewarding import Due, Stewarded, hand_out, look, want


@flow(name="steward", persist_result=False, on_failure=[record_bug])
async def steward(repository: str = "", branch: str = "", number: str = "") -> Stewarded:
    """Look at every pull request, or at those of one repository, and hand the rounds that are due to nodes.

    `branch` or `number` names the one that an event was about; it is looked at however settled it seems.
    """
    seen = await look(repository or None, branch or number or None)
    return seen.model_copy(update={"launched": await hand_out(seen.due)})


@flow(name="ask-for-refinement", persist_result=False)
async def ask_for_refinement(
    repository: str, branch: str = "", number: str = "", instructions: str = "", asked_by: str = "somebody"
) -> Due | None:
    """Note that a branch is to be refined (T9), and hand the round to a node. The same request again changes nothing."""
    due = await want(repository, branch, number, instructions, asked_by)
    if due is not None:
        await hand_out((due,))
    return due


@flow(name="steward-here", persist_result=False)
async def steward_here(ticket: str | None = None) -> Stewarded:
    """As `steward`, with the rounds worked in this process, one after the other; with `ticket` only its own."""
    seen = await look()
    due = tuple(each for each in seen.due if ticket in (None, each.ticket))
    for each in due:
        try:
            await refine(each.ticket, each.repository, each.board)
        except FactoryError as error:
            seen.steps[f"{each.repository}:{each.branch}"] = f"{each.kind}: {error}"
    return seen.model_copy(update={"due": due, "launched": tuple(each.branch for each in due)})
