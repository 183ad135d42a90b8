"""The main path with everything real but the model's mind: tickets go in, and what comes out is looked at from outside."""

from __future__ import annotations

import pytest

from tests.flows.conftest import Factory
from tests.shop import write_ticket

pytestmark = pytest.mark.integration


async def test_a_ticket_becomes_one_pull_request_with_red_then_green_evidence(factory: Factory) -> None:
    write_ticket(factory.board, "SHOP-1")
    outcome = await factory.run("SHOP-1")
    assert outcome.decision == "ACCEPT", outcome.reasons
    print(outcome)
    print(factory.calls())
