"""Launching: a claim becomes a run of its node's work pool in Prefect, the same run however often it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from infra.claims import Claim
from infra.errors import CapacityUnavailable, Unreachable

ONE, SEVERAL, ROUND = "work-ticket", "work-tickets", "refine"
"""The flows of one ticket, of a batch, and of a round on a pull request; each node has a deployment of each, named like it."""


async def launch_run(claimed: Sequence[tuple[Claim, str]], flow: str | None = None) -> str:
    """Start one run for the claims, all of one node, with their repositories. Returns the run's id.

    Raises CapacityUnavailable when the node has no deployment, or the run of these claims is over already, and Unreachable.
    """
    node = claimed[0][0].node
    flow = flow or (ONE if len(claimed) == 1 else SEVERAL)
    key = "+".join(claim.key for claim, _ in claimed)
    try:
        async with get_client() as client:
            deployment = await client.read_deployment_by_name(f"{flow}/{node}")
            run = await client.create_flow_run_from_deployment(
                deployment.id,
                parameters=_parameters(claimed),
                idempotency_key=key,
                name=", ".join(claim.ticket for claim, _ in claimed),
                tags=[f"board:{claimed[0][0].board}", f"node:{node}"],
            )
    except ObjectNotFound:
        raise CapacityUnavailable(f"node {node!r} has no deployment {flow!r}; let it join again") from None
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        raise Unreachable(f"Prefect's server did not take the run of {key!r}: {error!r}") from error
    if run.state is not None and run.state.is_final():
        raise CapacityUnavailable(f"the run of {key!r} is over already ({run.state.name}); it gets a new one")
    return str(run.id)


def _parameters(claimed: Sequence[tuple[Claim, str]]) -> dict[str, object]:
    each = [
        {"ticket": claim.ticket, "repository": repository, "board": claim.board, "token": claim.token}
        for claim, repository in claimed
    ]
    return dict(each[0]) if len(each) == 1 else {"tickets": each}
