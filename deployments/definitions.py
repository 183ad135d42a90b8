"""THE table: what runs where. `darkfactory up` applies it; applying it again changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from deployments.engine import NODE_LIMIT

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.flows import Flow


class Definition(NamedTuple):
    """One deployment. `entrypoint` is a module path, `limit` the runs of it at the same time (None: the pool's)."""

    name: str
    entrypoint: str
    pool: str
    limit: int | None
    tags: tuple[str, ...]
    description: str


DEPLOYMENTS = (
    Definition(
        name="work-ticket",
        entrypoint="flows.ticket.work_ticket",
        pool=NODE_LIMIT,
        limit=None,
        tags=("ticket",),
        description="One ticket of the board, from brief to pull request.",
    ),
)


async def apply(client: PrefectClient, definition: Definition, empty_folder: str) -> None:
    """Create or update one deployment. Prefect copies the folder a run starts in, so it is an empty one."""
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema

    flow: Flow[..., Any] = load_flow_from_entrypoint(definition.entrypoint, use_placeholder_flow=False)
    await client.create_deployment(
        flow_id=await client.create_flow(flow),
        name=definition.name,
        entrypoint=definition.entrypoint,
        work_pool_name=definition.pool,
        concurrency_limit=definition.limit,
        tags=list(definition.tags),
        description=definition.description,
        path=empty_folder,
        parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
        enforce_parameter_schema=True,
    )
