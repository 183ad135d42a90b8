"""`guard`: pull requests that the factory did not open are measured, reviewed and commented on, once for each head (W2).
`triage`: new tickets get a label for the kind of work, and a word about duplicates and what is missing.
"""

from __future__ import annotations

from prefect import flow

from tasks.backlog import Swept, failed, leave_table, repositories, why_off, write_down
from tasks.guarding import CHORE, look_at, proposals, room_today, subject
from tasks.models import FactoryError
from tasks.triage import CHORE as TRIAGE
from tasks.triage import consider, tell, untriaged
from tasks.triage import room_today as triage_room

ALL = "(all)"


@flow(name="pr-guardian", persist_result=False)
async def guard(repository: str | None = None, dry_run: bool = False) -> tuple[Swept, ...]:
    """Look at what is new in one repository or in all. A dry run only says what it would look at."""
    off = why_off(CHORE)
    if off is not None and not dry_run:
        return (Swept(chore=CHORE, repository="", notes=(off,)),)
    swept = tuple([await guard_one(name, dry_run) for name in repositories(repository)])
    await leave_table(swept)
    return swept


async def guard_one(repository: str, dry_run: bool) -> Swept:
    """Look at the pull requests of one repository, within today's cap; what fails is tried again next time."""
    try:
        found = await proposals(repository)
    except FactoryError as error:
        return failed(CHORE, repository, error, dry_run)
    chosen, told, notes = found[: room_today()], [], []
    for each in () if dry_run else chosen:
        try:
            await look_at(repository, each)
            told.append(subject(each))
        except FactoryError as error:
            notes.append(f"{subject(each)}: {error}")
    titles = tuple(f"{subject(each)} {each.title}" for each in chosen)
    swept = Swept(
        chore=CHORE, repository=repository, found=len(found), made=len(told), capped=len(found) - len(chosen),
        tickets=tuple(told), titles=titles, notes=tuple(notes), dry_run=dry_run,
    )  # fmt: skip
    return await write_down(swept)


@flow(name="issue-triage", persist_result=False)
async def triage(repository: str | None = None, dry_run: bool = False) -> tuple[Swept, ...]:
    """Look at the new tickets of the board once each (W2). With `repository`, only at those that belong to it."""
    off = why_off(TRIAGE)
    if off is not None and not dry_run:
        return (Swept(chore=TRIAGE, repository="", notes=(off,)),)
    place = repository or ALL
    try:
        fresh = await untriaged(repository)
        chosen = [(consider(ticket, older), older) for ticket, older in fresh[: triage_room()]]
        for said, older in () if dry_run else chosen:
            await tell(said, older)
    except FactoryError as error:
        swept = failed(TRIAGE, place, error, dry_run)
    else:
        made = 0 if dry_run else len(chosen)
        titles = tuple(f"{said.ticket}: {said.label or 'no label'}" for said, _ in chosen)
        swept = Swept(
            chore=TRIAGE, repository=place, found=len(fresh), made=made, capped=len(fresh) - len(chosen), titles=titles,
            duplicates=sum(bool(said.duplicates) for said, _ in chosen), dry_run=dry_run,
        )  # fmt: skip
        await write_down(swept)
    await leave_table((swept,))
    return (swept,)
