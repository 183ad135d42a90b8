"""What makes two questions the same, and which faults of a provider are worth a second try."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infra import errors
from tasks.asking import WAIT_FOR_RESET_SECONDS, Asker, ask_key, chat, worth_waiting_for
from tasks.models import ModelRequest

ASKER = Asker(ticket="T-1", attempt_id=1, thought="r:b:1:0", role="coder", prompt_version="coder-1")
REQUEST = ModelRequest(messages=chat("prefix", "system", "do it"), max_tokens=10)


def test_a_run_that_starts_again_asks_the_same_question() -> None:
    """The attempt's database id changes with a new database; the attempt's number is in `thought`."""
    assert ask_key(ASKER, REQUEST, "m") == ask_key(
        ASKER.model_copy(update={"attempt_id": 2}), REQUEST.model_copy(), "m"
    )


@pytest.mark.parametrize(
    "other",
    [
        {"ticket": "T-2"}, {"thought": "r:b:2:0"}, {"role": "judge"}, {"prompt_version": "coder-2"},
        {"candidate": 2}, {"round": 2}, {"sample": 2},
    ],
)  # fmt: skip
def test_whatever_has_to_be_thought_anew_is_a_new_question(other: dict[str, Any]) -> None:
    assert ask_key(ASKER.model_copy(update=other), REQUEST, "m") != ask_key(ASKER, REQUEST, "m")


@pytest.mark.parametrize("other", [{"seed": 1}, {"temperature": 0.5}, {"max_tokens": 11}, {"messages": chat("p", "s", "i")}, {"stop": ("x",)}])  # fmt: skip
def test_another_request_or_model_is_a_new_question(other: dict[str, Any]) -> None:
    assert ask_key(ASKER, REQUEST.model_copy(update=other), "m") != ask_key(ASKER, REQUEST, "m")
    assert ask_key(ASKER, REQUEST, "n") != ask_key(ASKER, REQUEST, "m")


def test_all_roles_begin_with_the_same_bytes() -> None:
    one, two = chat("prefix", "system", "code"), chat("prefix", "system", "judge")
    assert one[0] == two[0]
    assert one[1].content.split("---")[0] == two[1].content.split("---")[0] == "prefix\n\n"


@pytest.mark.parametrize(("error", "expected"), [
    (errors.Unreachable("x"), True), (errors.CapacityUnavailable("x"), True),
    (errors.AuthFailed("x"), False), (errors.QuotaExhausted("x"), False), (errors.ProviderFault("x"), False),
    (errors.ConfigError("x"), False), (errors.LimitReached("x"), False), (errors.DiskFull("x"), False),
    (errors.RateLimited("x"), False), (ValueError("x"), False),
])  # fmt: skip
def test_only_faults_that_pass_in_seconds_are_worth_waiting_for(error: BaseException, expected: bool) -> None:
    """RB8: the rest ends the run at once and burns nothing."""
    assert worth_waiting_for(error) is expected


def test_a_rate_limit_is_waited_for_when_it_resets_soon() -> None:
    now = datetime.now(UTC)
    assert worth_waiting_for(errors.RateLimited("x", now - timedelta(seconds=1)))
    assert worth_waiting_for(errors.RateLimited("x", now + timedelta(seconds=WAIT_FOR_RESET_SECONDS - 5)))
    assert not worth_waiting_for(errors.RateLimited("x", now + timedelta(seconds=WAIT_FOR_RESET_SECONDS + 5)))
