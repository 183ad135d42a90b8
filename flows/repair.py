"""`repair_factory`: the factory mends its own code (L4). By schedule; it runs from the installed package whatever release is
used, so that a release which is broken can always be taken back.
"""

from __future__ import annotations

from prefect import flow

from flows.ticket import work_ticket
from tasks.models import FactoryError
from tasks.repair import Repaired, advance_repairs, find_signals, is_enabled, note_failure, waiting_work


@flow(name="repair-factory", persist_result=False)
async def repair_factory() -> Repaired:
    """Look for failures of our own, begin repairs, and take every repair as far as it goes. Agents work on its tickets like
    on any other."""
    if not is_enabled():
        return Repaired()
    begun = await find_signals()
    return (await advance_repairs()).model_copy(update={"begun": begun})


@flow(name="repair-here", persist_result=False)
async def repair_here() -> Repaired:
    """As `repair_factory`, with the tickets worked in this process, one after the other."""
    seen = await repair_factory()
    for repair in waiting_work():
        try:
            await work_ticket(repair.ticket or "", repair.repository, repair.board)
        except FactoryError as error:
            note_failure(repair, error)
    return (await advance_repairs()).model_copy(update={"begun": seen.begun})
