"""The scripted model as others rely on it: turns, matching, the record, and the process form."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.errors import ConfigError
from infra.llm.openai_api import OpenAIClient
from infra.llm.scripted import ScriptedModel, load_script, on


async def test_answers_come_in_turn_and_the_last_repeats(ask: Any) -> None:
    with ScriptedModel([on("fix", "one", "two"), on("", "other")]) as model:
        client = OpenAIClient("m1", model.openai_url)
        prompts = ("fix a", "else", "fix b", "fix c")
        said = [(await client.complete(ask(prompt))).text for prompt in prompts]
    assert said == ["one", "other", "two", "two"]
    assert [request.prompt for request in model.requests] == [f"user: {prompt}" for prompt in prompts]


async def test_a_rule_may_be_a_regular_expression_over_lines(ask: Any) -> None:
    with ScriptedModel([on(r"plan.*cart", "yes", regex=True)]) as model:
        assert (await OpenAIClient("m1", model.openai_url).complete(ask("plan\nthe cart"))).text == "yes"


async def test_a_prompt_without_a_rule_is_refused_and_named(ask: Any) -> None:
    with ScriptedModel([on("never", "x")]) as model, pytest.raises(ConfigError, match="no rule of the script"):
        await OpenAIClient("m1", model.openai_url).complete(ask())
    assert model.requests[0].rule is None


def test_both_protocols_answer_without_streaming() -> None:
    talk = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
    with ScriptedModel([on("hi", "hello")]) as model:
        chat = httpx.post(f"{model.openai_url}/chat/completions", json=talk).json()
        headers = {"anthropic-version": "2023-06-01", "authorization": "Bearer k"}
        message = httpx.post(f"{model.url}/v1/messages", json=talk, headers=headers).json()
    assert chat["choices"][0]["message"]["content"] == message["content"][0]["text"] == "hello"
    assert (message["stop_reason"], model.requests[1].key_header) == ("end_turn", "authorization")


@contextmanager
def process(script: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process form, ended by `kill -9`."""
    port_file = log.with_suffix(".port")
    port_file.unlink(missing_ok=True)
    options = ["--script", str(script), "--log", str(log), "--port-file", str(port_file)]
    child = subprocess.Popen([sys.executable, "-m", "infra.llm.scripted", *options], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not port_file.exists() and time.monotonic() < deadline:
            assert child.poll() is None
            time.sleep(0.02)
        yield child, f"http://127.0.0.1:{port_file.read_text()}/v1"
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()


async def test_a_killed_process_goes_on_where_it_was_and_its_calls_stay_counted(tmp_path: Path, ask: Any) -> None:
    script, log = tmp_path / "script.json", tmp_path / "calls.jsonl"
    fault = {"kind": "status", "status": 503}
    script.write_text(json.dumps({"rules": [{"match": "", "answers": ["one", {"text": "two"}, fault]}]}))
    said = []
    for _ in range(2):
        with process(script, log) as (_, url):
            said.append((await OpenAIClient("m1", url, api_key="sk-hidden-123456").complete(ask())).text)
    assert said == ["one", "two"]
    assert len(log.read_text().splitlines()) == 2
    assert "sk-hidden" not in log.read_text()


@pytest.mark.parametrize("text", ["{", '{"rules": [{"match": "x", "answers": []}]}', '{"rule": []}'])
def test_a_wrong_script_is_a_config_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "script.json").write_text(text)
    with pytest.raises(ConfigError, match="script"):
        load_script(tmp_path / "script.json")
