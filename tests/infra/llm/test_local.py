"""One server per home: started once, restarted when it dies, never confused with another process. No weights needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigError, Unreachable
from infra.llm.local import LocalClient, ensure_server, is_healthy, process_started, read_record, stop_server
from infra.llm.opening import open_model
from infra.settings import Settings

FAKE = """
import argparse, os, threading
from pathlib import Path
parser = argparse.ArgumentParser()
for name in ("weights", "slots", "context-tokens", "port", "port-file"):
    parser.add_argument("--" + name)
given = parser.parse_args()
home = Path.cwd()
with (home / "starts").open("a") as file:
    print(os.getpid(), file=file)
(home / "environment").write_text("\\n".join(f"{k}={v}" for k, v in os.environ.items()))
if Path(given.weights).read_text() == "broken":
    raise SystemExit("cannot load these weights")
from infra.llm.local import end_with_parent
from infra.llm.scripted import ScriptedModel, on
with ScriptedModel([on("", "hello")], port=int(given.port)) as model:
    draft = Path(given.port_file + ".draft")
    draft.write_text(model.url.rpartition(":")[2])
    draft.rename(given.port_file)
    end_with_parent(os.getppid())
"""

CALL = """
import sys
from pathlib import Path
from infra.llm.local import ensure_server
home, fake = Path(sys.argv[1]), sys.argv[2]
print(ensure_server(home, home / "w.gguf", serve_command=(sys.executable, fake)))
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "home"
    home.mkdir()
    (home / "w.gguf").write_text("weights")
    (tmp_path / "fake.py").write_text(FAKE)
    yield home
    stop_server(home)


@pytest.fixture
def ensure(home: Path) -> Callable[..., str]:
    """`ensure_server` with a fake server in place of llama.cpp."""
    return partial(ensure_server, home, home / "w.gguf", serve_command=(sys.executable, str(home.parent / "fake.py")))


def starts(home: Path) -> list[int]:
    return [int(line) for line in (home / "starts").read_text().split()]


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_processes_that_call_at_once_get_one_server(home: Path) -> None:
    command = [sys.executable, "-c", CALL, str(home), str(home.parent / "fake.py")]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    urls = {child.communicate(timeout=60)[0].strip() for child in children}
    assert len(urls) == len(starts(home)) == 1
    assert is_healthy(urls.pop())


def test_a_running_server_is_used_again_and_stopped_once(home: Path, ensure: Callable[..., str]) -> None:
    url = ensure()
    assert ensure() == url
    record = read_record(home)
    assert record is not None
    assert (record.url, record.slots) == (url, 1)
    assert stop_server(home)
    assert not record.alive
    wait_until(lambda: not is_healthy(url))
    assert not stop_server(home)
    assert len(starts(home)) == 1


def test_other_sizes_replace_the_server(home: Path, ensure: Callable[..., str]) -> None:
    ensure()
    before = read_record(home)
    ensure(slots=2)
    after = read_record(home)
    assert before is not None
    assert after is not None
    assert (before.alive, after.alive, after.slots) == (False, True, 2)


def test_a_record_of_a_recycled_pid_is_replaced_and_its_process_left_alone(
    home: Path, ensure: Callable[..., str]
) -> None:
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        stale = {"pid": bystander.pid, "started": "1", "port": 9, "weights": str(home / "w.gguf"), "slots": 1}
        (home / "run").mkdir()
        (home / "run" / "model.json").write_text(json.dumps({**stale, "context_tokens": 16_384}))
        assert not stop_server(home)
        assert is_healthy(ensure())
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_an_unreadable_record_is_replaced(home: Path, ensure: Callable[..., str]) -> None:
    (home / "run").mkdir()
    (home / "run" / "model.json").write_text('{"pid":')
    assert is_healthy(ensure())


def test_a_dead_child_comes_back_at_the_same_address(home: Path, ensure: Callable[..., str]) -> None:
    url = ensure()
    os.kill(starts(home)[0], signal.SIGKILL)
    wait_until(lambda: len(starts(home)) == 2)
    wait_until(lambda: is_healthy(url))
    assert ensure() == url


async def test_a_call_survives_the_death_of_the_whole_server(home: Path, ensure: Callable[..., str], ask: Any) -> None:
    client = LocalClient("m1", ensure)
    assert (await client.complete(ask())).text == "hello"
    first = read_record(home)
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: process_started(starts(home)[0]) is None)
    assert (await client.complete(ask())).text == "hello"
    assert len(starts(home)) == 2
    assert "answers" in await client.check()


def test_a_server_that_cannot_start_is_given_up_and_its_log_shown(home: Path, ensure: Callable[..., str]) -> None:
    (home / "w.gguf").write_text("broken")
    with pytest.raises(Unreachable, match=r"model\.log(.|\n)*ended status=1 quick_deaths=4"):
        ensure()
    assert len(starts(home)) == 4


def test_missing_weights_are_a_config_error(home: Path, ensure: Callable[..., str]) -> None:
    (home / "w.gguf").unlink()
    with pytest.raises(ConfigError, match="weights_path"):
        ensure()


def test_no_secret_reaches_the_server(home: Path, ensure: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """WS7."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
    ensure()
    environment = (home / "environment").read_text()
    assert "sk-hidden" not in environment
    assert "OMP_WAIT_POLICY=passive" in environment


@pytest.mark.live
@pytest.mark.skipif("DARKFACTORY_WEIGHTS_PATH" not in os.environ, reason="DARKFACTORY_WEIGHTS_PATH is not set")
async def test_the_real_model_answers_json_and_reuses_the_prompt(tmp_path: Path, ask: Any) -> None:
    schema = {"type": "object", "properties": {"even": {"type": "boolean"}}, "required": ["even"]}
    model = open_model(Settings(home=tmp_path))
    question = ask("Is the number 2 even? " * 30, json_schema=schema)
    try:
        first, second = await model.complete(question), await model.complete(question)
    finally:
        stop_server(tmp_path)
    assert json.loads(first.text) == {"even": True}
    assert second.usage.cached_tokens > 0.9 * second.usage.prompt_tokens > 100
