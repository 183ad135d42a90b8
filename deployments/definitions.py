"""THE table: what runs where, when, and how often at the same time. Applying it again changes nothing.

The factory's own flows run in the pool `control`, next to Prefect's server. Tickets run in the pool of the node they were
given to; every node has a deployment of its own, named like the node, so that a dispatcher chooses the machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from infra.chores import CHORES
from infra.fleet import pool_name
from infra.releases import INSTALLED
from infra.settings import Settings

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient
    from prefect.events.schemas.automations import AutomationCore
    from prefect.flows import Flow

CONTROL = "control"
CONTROL_SLOTS = 4
JANITOR_SECONDS = 900.0
OUR_TAGS = ["factory", "ticket", "operation"]
"""Each deployment of ours has one of them."""
CHORE_FLOWS = {"issue-triage": "flows.upkeep.triage", "pr-guardian": "flows.upkeep.guard"}
"""Chores with a flow of their own; the others make tickets."""


class Definition(NamedTuple):
    """One deployment. `entrypoint` is a module path; `every_seconds` or `cron` (UTC) its schedule, neither: only when asked
    for. `parameters` are what the schedule starts it with."""

    name: str
    entrypoint: str
    pool: str
    tags: tuple[str, ...]
    description: str
    every_seconds: float | None = None
    cron: str | None = None
    parameters: Mapping[str, Any] = {}


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
        Definition(
            name="steward",
            entrypoint="flows.steward.steward",
            pool=CONTROL,
            tags=("factory",),
            description="Looks after open pull requests: checks, reviews, conflicts, proof, merging. Webhooks start it, too.",
            every_seconds=min((r.steward.every_seconds for r in settings.repositories.values()), default=600.0),
        ),
        Definition(
            name="refine",
            entrypoint="flows.steward.ask_for_refinement",
            pool=CONTROL,
            tags=("factory",),
            description="Notes that a branch or pull request is to be refined, and hands the round to a node.",
        ),
        *housekeeping_table(settings),
        Definition(
            name="repair",
            entrypoint="flows.repair.repair_factory",
            pool=CONTROL,
            tags=("factory", INSTALLED),  # whatever release is used, what takes it back runs from the installed package
            description="Mends what fails in the factory's own code, and takes back what did not help. Off by default.",
            every_seconds=settings.repair.every_seconds if settings.repair.enabled else None,
        ),
        Definition(
            name="calibrate",
            entrypoint="flows.feedback.calibrate",
            pool=CONTROL,
            tags=("factory",),
            description="Compares what runs were like with how they ended: success rates, confidence, routing, what got worse.",
            cron="45 3 * * *",
        ),
    )


def housekeeping_table(settings: Settings) -> tuple[Definition, ...]:
    """The work the factory finds by itself; nothing while that is off (W1, W2)."""
    section = settings.housekeeping
    chores = tuple(
        Definition(
            name=name,
            entrypoint=CHORE_FLOWS.get(name, "flows.backlog.find_work"),
            pool=CONTROL,
            tags=("factory", "housekeeping"),
            description=f"Looks for work: {chore.about}.",
            cron=section.cron(name),
            parameters={} if name in CHORE_FLOWS else {"chore": name},
        )
        for name, chore in CHORES.items()
    )
    refill = Definition(
        name="refill",
        entrypoint="flows.backlog.refill",
        pool=CONTROL,
        tags=("factory", "housekeeping"),
        description="Looks for all kinds of work, one after the other. A dispatcher with an empty queue starts it.",
    )
    return (*chores, refill) if section.enabled else ()


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
            entrypoint="flows.refine.refine",
            pool=pool_name(node),
            tags=("ticket",),
            description="One round on an open pull request.",
        ),
        Definition(
            name=node,
            entrypoint="flows.playbooks.run_playbook",
            pool=pool_name(node),
            tags=("operation",),
            description="One run of a playbook; suspended while it waits for approval.",
        ),
        Definition(
            name=node,
            entrypoint="flows.janitor.clean_node",
            pool=pool_name(node),
            tags=("factory",),
            description="Ends stray processes and removes stray worktrees of this machine.",
            every_seconds=JANITOR_SECONDS,
        ),
        Definition(
            name=node,
            entrypoint="flows.memory.consolidate_memory",
            pool=pool_name(node),
            tags=("factory",),
            description="Brings together what this machine remembered since the last time.",
            cron="20 */6 * * *",
        ),
    )


async def apply(client: PrefectClient, definition: Definition, empty_folder: str) -> None:
    """Create or update one deployment. Prefect copies the folder a run starts in, so it is an empty one."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema

    flow: Flow[..., Any] = load_flow_from_entrypoint(definition.entrypoint, use_placeholder_flow=False)
    schedules = []
    if definition.every_seconds is not None:
        every = IntervalSchedule(interval=timedelta(seconds=definition.every_seconds))
        schedules.append(DeploymentScheduleCreate(schedule=every, active=True))
    if definition.cron is not None:
        schedules.append(DeploymentScheduleCreate(schedule=CronSchedule(cron=definition.cron), active=True))
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
        parameters=dict(definition.parameters),
    )


async def apply_all(client: PrefectClient, pool: str, definitions: Sequence[Definition], empty_folder: str) -> None:
    """Make the pool's deployments of our flows exactly these: one that is left over would go on by its schedule. Those that
    somebody else put into the pool stay."""
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterTags,
        WorkPoolFilter,
        WorkPoolFilterName,
    )
    from prefect.exceptions import ObjectNotFound

    for definition in definitions:
        await apply(client, definition, empty_folder)
    wanted = {(each.name, each.entrypoint) for each in definitions}
    of_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    tagged = DeploymentFilter(tags=DeploymentFilterTags(any_=OUR_TAGS))
    for there in await client.read_deployments(work_pool_filter=of_pool, deployment_filter=tagged, limit=200):
        ours = re.fullmatch(r"flows(\.\w+)+", there.entrypoint or "")  # no file, as `flows.py:main` of somebody else
        if ours and (there.name, there.entrypoint) not in wanted:
            with suppress(ObjectNotFound):
                await client.delete_deployment(there.id)


async def ensure_pool(client: PrefectClient, name: str, slots: int) -> None:
    """Create the work pool with its limit, or correct the limit."""
    from prefect.client.schemas.actions import WorkPoolCreate

    await client.create_work_pool(WorkPoolCreate(name=name, type="process", concurrency_limit=slots), overwrite=True)


def triggers(deployments: Mapping[str, UUID]) -> list[AutomationCore]:
    """The automations that start a control deployment as soon as a webhook's event arrives, by the deployments' names."""
    return [
        _on_event(
            "dispatch on webhook", "A ticket was touched on its board: look at it now, not at the next tick.",
            "darkfactory.ticket", "touched", deployments["dispatch"], ("board", "ticket"),
        ),
        _on_event(
            "steward on webhook", "A pull request was touched: look at it now, not at the next tick.",
            "darkfactory.pull-request", "touched", deployments["steward"], ("repository", "branch", "number"),
        ),
        _on_event(
            "refine on dispatch", "Somebody asked for a refinement by `repository_dispatch`.",
            "darkfactory.refinement", "asked", deployments["refine"],
            ("repository", "branch", "number", "instructions", "asked_by"),
        ),
    ]  # fmt: skip


def _on_event(
    name: str, description: str, subject: str, happened: str, deployment: UUID, parameters: Sequence[str]
) -> AutomationCore:
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    return AutomationCore(
        name=name,
        description=description,
        trigger=EventTrigger(
            expect={f"{subject}.{happened}"},
            match={"prefect.resource.id": f"{subject}.*"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=deployment,
                parameters={
                    p: {"__prefect_kind": "jinja", "template": "{{ event.payload." + p + " }}"} for p in parameters
                },
            )
        ],
    )


async def ensure_triggers(client: PrefectClient) -> None:
    """Create the automations, or bring them up to date."""
    named = {"dispatch": "dispatch-tickets", "steward": "steward", "refine": "ask-for-refinement"}
    found = {name: (await client.read_deployment_by_name(f"{flow}/{name}")).id for name, flow in named.items()}
    for automation in triggers(found):
        await _ensure(client, automation)


async def _ensure(client: PrefectClient, automation: AutomationCore) -> None:
    found = await client.read_automations_by_name(automation.name)
    if not found:
        await client.create_automation(automation)
        return
    await client.update_automation(found[0].id, automation)
    for extra in found[1:]:
        await client.delete_automation(extra.id)
