"""THE table: what runs where, when, and how often at the same time. Applying it again changes nothing.

The factory's own flows run in the pool `control`, next to Prefect's server. Tickets run in the pool of the node they were
given to; every node has a deployment of its own, named like the node, so that a dispatcher chooses the machine.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from infra.fleet import pool_name
from infra.settings import Settings

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient
    from prefect.events.schemas.automations import AutomationCore
    from prefect.flows import Flow

CONTROL = "control"
CONTROL_SLOTS = 4
JANITOR_SECONDS = 900.0


class Definition(NamedTuple):
    """One deployment. `entrypoint` is a module path; `every_seconds` its schedule (None: only when asked for)."""

    name: str
    entrypoint: str
    pool: str
    tags: tuple[str, ...]
    description: str
    every_seconds: float | None = None


def control_table(settings: Settings) -> tuple[Definition, ...]:
    """What the factory does by itself."""
    return (
        Definition(
            name="dispatch",
            entrypoint="flows.dispatch.dispatch_tickets",
            pool=CONTROL,
            tags=("factory",),
            description="One tick: reconcile, fetch the boards, launch what there is room for. Webhooks start it, too.",
            every_seconds=settings.dispatch.every_seconds,
        ),
        Definition(
            name="janitor",
            entrypoint="flows.janitor.sweep",
            pool=CONTROL,
            tags=("factory",),
            description="Requeues tickets whose holder died and ends runs that only Prefect believes in.",
            every_seconds=JANITOR_SECONDS,
        ),
    )


def node_table(node: str) -> tuple[Definition, ...]:
    """What one node does."""
    return (
        Definition(
            name=node,
            entrypoint="flows.ticket.work_ticket",
            pool=pool_name(node),
            tags=("ticket",),
            description="One ticket, from brief to pull request.",
        ),
        Definition(
            name=node,
            entrypoint="flows.ticket.work_tickets",
            pool=pool_name(node),
            tags=("ticket",),
            description="A few small tickets of one repository, one after the other.",
        ),
        Definition(
            name=node,
            entrypoint="flows.janitor.clean_node",
            pool=pool_name(node),
            tags=("factory",),
            description="Ends stray processes and removes stray worktrees of this machine.",
            every_seconds=JANITOR_SECONDS,
        ),
    )


async def apply(client: PrefectClient, definition: Definition, empty_folder: str) -> None:
    """Create or update one deployment. Prefect copies the folder a run starts in, so it is an empty one."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import IntervalSchedule
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema

    flow: Flow[..., Any] = load_flow_from_entrypoint(definition.entrypoint, use_placeholder_flow=False)
    schedules = []
    if definition.every_seconds is not None:
        every = IntervalSchedule(interval=timedelta(seconds=definition.every_seconds))
        schedules = [DeploymentScheduleCreate(schedule=every, active=True)]
    await client.create_deployment(
        flow_id=await client.create_flow(flow),
        name=definition.name,
        entrypoint=definition.entrypoint,
        work_pool_name=definition.pool,
        tags=list(definition.tags),
        description=definition.description,
        path=empty_folder,
        parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
        enforce_parameter_schema=True,
        schedules=schedules,
    )


async def ensure_pool(client: PrefectClient, name: str, slots: int) -> None:
    """Create the work pool with its limit, or correct the limit."""
    from prefect.client.schemas.actions import WorkPoolCreate

    await client.create_work_pool(WorkPoolCreate(name=name, type="process", concurrency_limit=slots), overwrite=True)


def webhook_trigger(dispatch_id: UUID) -> AutomationCore:
    """The automation that starts a tick for one ticket as soon as a webhook's event names it."""
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    def from_event(name: str) -> dict[str, str]:
        return {"__prefect_kind": "jinja", "template": "{{ event.payload." + name + " }}"}

    return AutomationCore(
        name="dispatch on webhook",
        description="A ticket was touched on its board: look at it now, not at the next tick.",
        trigger=EventTrigger(
            expect={"darkfactory.ticket.touched"},
            match={"prefect.resource.id": "darkfactory.ticket.*"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=dispatch_id,
                parameters={"board": from_event("board"), "ticket": from_event("ticket")},
            )
        ],
    )


async def ensure_triggers(client: PrefectClient) -> None:
    """Create the automation, or bring it up to date."""
    dispatch = await client.read_deployment_by_name("dispatch-tickets/dispatch")
    automation = webhook_trigger(dispatch.id)
    found = await client.read_automations_by_name(automation.name)
    if not found:
        await client.create_automation(automation)
        return
    await client.update_automation(found[0].id, automation)
    for extra in found[1:]:
        await client.delete_automation(extra.id)
