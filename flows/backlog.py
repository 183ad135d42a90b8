"""`find_work`: one chore looks at the repositories and makes tickets of what it finds (W1). `refill`: all of them, one after
the other, when the queue is empty.
"""

from __future__ import annotations

from prefect import flow

from tasks.backlog import Swept, chores, failed, is_full, leave_table, look_for, make_tickets, repositories, why_off
from tasks.models import FactoryError


@flow(name="find-work", flow_run_name="{chore}", persist_result=False)
async def find_work(chore: str, repository: str | None = None, dry_run: bool = False) -> tuple[Swept, ...]:
    """Run one chore in one repository or in all. A dry run makes no ticket and no record of a run, and may be asked for
    while housekeeping is off; `bug-hunter` asks the model all the same, which costs, and remembers what it asked about.
    """
    off = why_off(chore)
    if off is not None and not dry_run:
        return (Swept(chore=chore, repository="", notes=(off,)),)
    swept = tuple([await one(chore, name, dry_run) for name in repositories(repository)])
    await leave_table(swept)
    return swept


async def one(chore: str, repository: str, dry_run: bool) -> Swept:
    """One chore in one repository; what goes wrong there is its result."""
    try:
        seen = await look_for(chore, repository)
        return await make_tickets(chore, repository, seen, dry_run)
    except FactoryError as error:
        return failed(chore, repository, error, dry_run)


@flow(name="refill", persist_result=False)
async def refill() -> tuple[Swept, ...]:
    """Look for work in the order of the table until the day's cap is reached."""
    swept: list[Swept] = []
    for chore in chores():
        if is_full():
            break
        swept += await find_work(chore)
    await leave_table(tuple(swept))
    return tuple(swept)
