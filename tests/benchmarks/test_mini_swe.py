"""The peer's runner: what it counts and how it speaks to an endpoint. The real install is opt-in (`-m live`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.mini_swe import bench_home, install_mini, read_trajectory, run_mini, task_text
from benchmarks.tickets import judge, load_tickets, passes
from infra.llm import Usage
from infra.llm.scripted import ScriptedModel, on
from infra.sandbox import open_sandbox
from infra.settings import Settings

TICKET = load_tickets(("timespan-04",))[0]


def trajectory(path: Path, *responses: object) -> Path:
    messages = [{"role": "assistant", "extra": {"response": response}} for response in responses]
    exit_message = {"role": "exit", "content": "", "extra": {}}
    path.write_text(json.dumps({"info": {"exit_status": "Submitted"}, "messages": [*messages, exit_message]}))
    return path


def test_tokens_are_summed_over_all_calls(tmp_path: Path) -> None:
    one = {"usage": {"prompt_tokens": 100, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 80}}}
    two = {"usage": {"prompt_tokens": 150, "completion_tokens": 5, "prompt_tokens_details": None}}
    path = trajectory(tmp_path / "traj.json", one, two)
    expected = Usage(prompt_tokens=250, cached_tokens=80, completion_tokens=12, calls=2)
    assert read_trajectory(path) == ("Submitted", expected)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"messages": 3}', '{"messages": [], "info": 1}'])
def test_a_broken_trajectory_counts_nothing(text: str, tmp_path: Path) -> None:
    path = tmp_path / "traj.json"
    path.write_text(text)
    assert read_trajectory(path) == ("", Usage())


def test_a_link_planted_by_the_agent_is_not_read(tmp_path: Path) -> None:
    trajectory(tmp_path / "secret.json", {"usage": {"prompt_tokens": 1, "completion_tokens": 1}})
    (tmp_path / "traj.json").symlink_to(tmp_path / "secret.json")
    assert read_trajectory(tmp_path / "traj.json") == ("", Usage())


def test_the_task_holds_ticket_and_test_command() -> None:
    text = task_text(TICKET)
    assert TICKET.title in text
    assert "python -m pytest -q" in text
    assert TICKET.bug not in text


@pytest.mark.live
async def test_mini_fixes_a_ticket_with_a_model_that_knows_the_answer(tmp_path: Path) -> None:
    edit = "```mswea_bash_command\nsed -i 's/difference <= 7/difference < 7/' timespan/relative.py\n```"
    submit = "```mswea_bash_command\necho COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT\n```"
    sandbox = open_sandbox(Settings(home=tmp_path / "home"))
    venv = install_mini(bench_home())
    with ScriptedModel([on("", f"THOUGHT: one line\n\n{edit}", f"THOUGHT: done\n\n{submit}")]) as model:
        run = await run_mini(TICKET, tmp_path / "run", sandbox=sandbox, venv=venv, model_url=model.openai_url)
    assert run.exit_status == "Submitted", run.output
    assert run.usage.calls == 2
    assert "+    if 1 < difference < 7:" in run.diff
    assert passes(await judge(TICKET, run.checkout, sandbox), TICKET)
