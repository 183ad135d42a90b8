"""Which level a role asks at."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra.boards import Ticket
from infra.claims import Claim
from tasks import services
from tasks.models import Job, Repository
from tasks.seats import seat

FILE = """
models:
  local: {model: openai/small, url: "http://127.0.0.1:1/v1"}
  cloud: {model: openai/large, url: "http://127.0.0.1:2/v1"}
  best: {model: anthropic/opus, url: "http://127.0.0.1:3", level: strong, context_tokens: 500000}
roles:
  architect: {level: strong}
  coder: {strong_from_effort: 4}
"""


@pytest.fixture(autouse=True)
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "factory.yaml").write_text(FILE)
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    services.close()
    yield
    services.close()


def job_at(name: str) -> Job:
    router = services.router("strong") if name == "strong" else services.router("usual")
    ticket = Ticket(board="folder", key="T-1", title="t", body="", state="todo")
    repository = Repository(name="shop", mirror="m", remote="r", base_branch="main", base_sha="a" * 40)
    claim = Claim.model_construct(board="folder", ticket="T-1", token=1, node="n", since=datetime.now(UTC))
    return Job.model_construct(
        ticket=ticket, repository=repository, attempt_id=1, attempt=1, model=router.name, tier=router.tier,
        context_tokens=router.context_tokens, claim=claim,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("role", "effort", "expected"),
    [("judge", 5, "usual:local+cloud"), ("architect", 1, "strong:best"), ("coder", 3, "usual:local+cloud"),
     ("coder", 4, "strong:best"), ("coder", 5, "strong:best")],
)  # fmt: skip
def test_the_file_says_which_level_a_role_asks_at(role: str, effort: int, expected: str) -> None:
    assert seat(job_at("usual"), role, effort).model == expected


@pytest.mark.parametrize("role", ["judge", "coder", "architect"])
def test_an_escalated_attempt_asks_the_strong_level_for_every_role(role: str) -> None:
    """RB10."""
    assert seat(job_at("strong"), role).model == "strong:best"


async def test_a_seat_names_what_can_be_asked(tmp_path: Path) -> None:
    for taken in (seat(job_at("usual"), "architect"), seat(job_at("usual"), "judge")):
        router = await services.model_named(taken.model)
        assert (router.name, router.tier, router.context_tokens) == (taken.model, taken.tier, taken.context_tokens)
    assert seat(job_at("usual"), "architect").context_tokens == 500_000
    assert services.provider() == "openai@127.0.0.1:1, openai@127.0.0.1:2"
    assert services.provider(strong=True) == "anthropic@127.0.0.1:3"
