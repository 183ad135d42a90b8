"""Where a ticket may start when models are paused."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.boards import Ticket
from infra.fleet import Node
from tasks import services
from tasks.attempts import provider_scope
from tasks.dispatching import Slots, Waiting, dispatch_gate
from tasks.models import Job

FILE = """
repositories:
  shop: {path: /nowhere}
models:
  local: {model: openai/small, url: "http://127.0.0.1:1/v1"}
  cloud: {model: openai/large, url: "http://127.0.0.1:2/v1"}
"""
LOCAL, CLOUD = "provider:openai@127.0.0.1:1", "provider:openai@127.0.0.1:2"


@pytest.fixture(autouse=True)
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "factory.yaml").write_text(FILE)
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    services.close()
    yield
    services.close()


@pytest.mark.parametrize(
    ("paused", "reason"),
    [((), None), ((LOCAL,), None), ((CLOUD,), None), ((LOCAL, CLOUD), "paused"), (("node:hive",), "paused")],
)
def test_one_dead_provider_stops_no_node_that_has_another(paused: tuple[str, ...], reason: str | None) -> None:
    """RB8"""
    now = datetime.now(UTC)
    node = Node(name="hive", slots=1, labels=(), state="active", machine="m", provider=services.provider(),
                lease_until=now + timedelta(hours=1), joined_at=now, alive=True)  # fmt: skip
    ticket = Ticket(board="folder", key="T-1", title="t", body="", state="todo")
    found = Slots([], [node], paused).why_not(Waiting(ticket=ticket, repository="shop"))
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_a_run_with_several_providers_leaves_their_pauses_to_the_router() -> None:
    assert provider_scope(Job.model_construct(provider=services.provider())) is None
    assert provider_scope(Job.model_construct(provider="openai")) == "provider:openai"


def test_nothing_is_launched_while_the_agent_that_codes_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    """RB8: the architect would be paid for a ticket that its coder cannot work on."""
    coder = "roles: {coder: {agent: codex}}\nagents: {codex: {kind: codex}}\n"
    (tmp_path / "factory.yaml").write_text(FILE + coder)
    monkeypatch.setenv("DARKFACTORY_DATABASE_URL", database_url)
    services.close()
    assert dispatch_gate().closed is None
    until = datetime.now(UTC) + timedelta(hours=1)
    services.pauses().pause("provider:codex", "codex: the provider's limit is reached", until)
    assert dispatch_gate().closed == "codex: the provider's limit is reached"
    services.pauses().succeed("provider:codex")
    assert dispatch_gate().closed is None
