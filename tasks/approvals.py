"""Approvals: a playbook's run that waits for a person is a suspended run in Prefect's pages, and a line of the journal."""

from __future__ import annotations

import asyncio
import logging

import httpx
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.flow_runs import asuspend_flow_run
from prefect.input import RunInput

from infra.errors import ConfigError
from infra.notify import notify
from infra.playbooks import PlaybookRun
from tasks import services
from tasks.playbooks import Work, approve_step, ran, reject_step

RUN_PLAYBOOK = "run-playbook"
_log = logging.getLogger(__name__)


class Approval(RunInput):
    """What a person answers when resuming the run in Prefect's pages."""

    approve: bool
    by: str = "somebody in Prefect's pages"


async def ask_people(work: Work) -> None:
    """Tell people, once, what waits for them."""
    run, stands = work.now(), ran(work.id)
    text = (
        f"step {run.step!r} of playbook {run.name!r} on {run.repository!r} ({run.ticket or 'by hand'}) wants to run "
        f"`{stands.command}`; `darkfactory playbook approve {run.id}` or `darkfactory playbook reject {run.id}`"
    )
    _log.info("playbook-run=%s step=%s outcome=waiting", run.id, run.step)
    await asyncio.to_thread(
        notify, services.settings().notify, "an approval is wanted", text, key=f"gate:{run.id}:{run.step}"
    )


async def heard(run_id: str, suspend: bool) -> bool:
    """Whether a person has decided. A run of a deployment is suspended until then, and does not come back from here."""
    if not suspend or runtime.deployment.id is None:
        return False
    run = services.playbooks().run(run_id)
    services.playbooks().note(run_id, flow_run=str(runtime.flow_run.id))
    answer = await asuspend_flow_run(wait_for_input=Approval, key=f"{run_id}-{run.step}")
    if services.playbooks().run(run_id).state == "waiting":  # else the command line said it already
        (approve_step if answer.approve else reject_step)(run_id, answer.by)
    return True


async def resume_suspended(run: PlaybookRun, approve: bool, by: str) -> bool:
    """Let the suspended run in Prefect go on. False when there is none: then somebody has to start it again."""
    if run.flow_run is None:
        return False
    try:
        async with get_client() as client:
            found = await client.read_flow_run(run.flow_run)  # type: ignore[arg-type]  # it takes the text of an id, too
            if found.state is None or not found.state.is_paused():
                return False
            await client.resume_flow_run(found.id, run_input={"approve": approve, "by": by})
    except (ObjectNotFound, PrefectHTTPStatusError, httpx.HTTPError) as error:
        _log.warning("playbook-run=%s outcome=not-resumed reason=%r", run.id, error)
        return False
    return True


async def hand_over(run: PlaybookRun) -> bool:
    """Have this node's deployment take over a run that waits, so that Prefect's pages show it suspended. False: there is none."""
    try:
        async with get_client() as client:
            found = await client.read_deployment_by_name(f"{RUN_PLAYBOOK}/{services.settings().node_name}")
            await client.create_flow_run_from_deployment(
                found.id,
                parameters={"run": run.id},
                idempotency_key=f"playbook:{run.id}:{run.step}",
                name=f"{run.name} {run.id}",
            )
    except ObjectNotFound:
        return False
    except (PrefectHTTPStatusError, httpx.HTTPError) as error:
        _log.warning("playbook-run=%s outcome=not-handed-over reason=%r", run.id, error)
        return False
    return True


def decide(run_id: str, approve: bool, by: str) -> PlaybookRun:
    """What a person says on the command line. Raises ConfigError when the run waits for nothing."""
    run = services.playbooks().run(run_id)
    if run.state != "waiting":
        raise ConfigError(f"playbook run {run_id!r} does not wait for approval, it is {run.state}")
    return (approve_step if approve else reject_step)(run_id, by)
