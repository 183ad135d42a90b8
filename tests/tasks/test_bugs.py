"""Which exceptions are bugs of our own code, how two of a kind look alike, and that a flow that fails by one says so."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from infra.errors import Unreachable
from infra.repairs import INTERNAL_ERROR, Repairs
from tasks import services
from tasks.bugs import Bug, bug_of
from tests.flows.conftest import Factory, _prefect, factory  # noqa: F401  fixtures

ROOT = Path(__file__).parents[2]


def raised(action: Callable[[], object]) -> Bug | None:
    try:
        action()
    except Exception as error:
        return bug_of(error, ROOT, ("tests",))
    raise AssertionError("nothing was raised")


def fail(error: Exception) -> None:
    raise error


def test_two_of_a_kind_have_one_signature_whatever_their_numbers() -> None:
    first, second = (raised(lambda n=n: fail(KeyError(f"ticket {n} in /tmp/run-{n}/x"))) for n in (1, 22))
    assert first is not None
    assert second is not None
    assert first.signature == second.signature
    assert first.signature.startswith("KeyError in tests.tasks.test_bugs.fail: ")
    assert first.frames[-1].endswith("in fail: raise error")


def test_a_group_of_steps_is_the_error_inside() -> None:
    def steps() -> None:
        try:
            fail(ValueError("inner"))
        except ValueError as error:
            raise ExceptionGroup("steps", [error]) from None

    bug = raised(steps)
    assert bug is not None
    assert bug.message == "ValueError: inner"


@pytest.mark.parametrize(
    "error",
    [Unreachable("no database"), httpx.ConnectError("refused"), MemoryError(), OSError(errno.ENOSPC, "full")],
    ids=lambda error: type(error).__name__,
)
def test_decisions_of_ours_services_and_full_machines_are_no_bugs(error: Exception) -> None:
    assert raised(lambda: fail(error)) is None


def test_an_error_that_never_touched_our_code_is_no_bug() -> None:
    error = ValueError("of somebody else")
    assert bug_of(error, ROOT, ("tests",)) is None


@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning")
async def test_a_run_that_ends_by_a_bug_is_in_the_ledger(factory: Factory, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The hook of the flow sees the exception itself, with its traceback."""
    from flows import ticket as flow

    (factory.board / "shop-1.md").parent.mkdir(parents=True, exist_ok=True)
    (factory.board / "shop-1.md").write_text("---\ntitle: t\nstate: todo\n---\nb\n")
    monkeypatch.setattr(flow, "deliver", None)  # a bug of ours, if there ever was one
    with pytest.raises(TypeError):
        await factory.run("shop-1")
    (event,) = [e for e in services.ledger().history("shop-1").events if e.kind == INTERNAL_ERROR]
    assert event.data["signature"].startswith("TypeError in flows.ticket.work_ticket: ")
    assert event.data["release"] == "installed"
    assert "in work_ticket:" in event.data["frames"][-1]
    repairs = Repairs(services.database())
    assert repairs.sample(repairs.now().replace(year=2000)).failures == 1
