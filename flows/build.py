"""`build`: a specification becomes an application (T12): a repository, a ticket for it, and then the work of any ticket."""

from __future__ import annotations

from prefect import flow

from flows.ticket import work_ticket
from tasks.building import Built, Specification, prepare_repository, require_capable_models, track


@flow(name="build", flow_run_name="build {specification.name}", persist_result=True)
async def build(specification: Specification, repository: str | None = None, board: str = "folder") -> Built:
    """Build the application in `repository` (a configured name or a path), or in a new one.

    The same specification again goes on where it stopped, and changes nothing when it was built. Raises what `work_ticket`
    raises; ConfigError comes before there is a ticket.
    """
    require_capable_models()
    place = await prepare_repository(specification, repository, board)
    ticket = await track(specification, place, board)
    outcome = await work_ticket(ticket.key, place.wanted, board, greenfield=specification.limits)
    return Built(
        name=specification.name,
        ticket=ticket.key,
        repository=place.remote,
        branch=outcome.pull_request.branch if outcome.pull_request else None,
        archive=outcome.archive,
        outcome=outcome,
    )
