"""Bad input and broken surroundings: a fitting exit code, one clear line, the ticket as it was, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.__main__ import main
from infra.llm.scripted import Fault
from tests.flows.conftest import Factory
from tests.shop import FILES, RIGHT, make_repository, script, write_ticket

pytestmark = [
    pytest.mark.integration,
    # Prefect's event client leaves its sockets to the garbage collector
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]

Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def run(factory: Factory, capfd: pytest.CaptureFixture[str], prefect_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`darkfactory run`: its exit code and the error it printed as its one JSON object (or the outcome)."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_url)
    from deployments.engine import engine_environment
    from infra.settings import load_settings
    from tasks.asking import ask

    monkeypatch.setattr(ask, "retry_delay_seconds", [0.05, 0.05])
    for name, value in engine_environment(load_settings()).items():
        monkeypatch.setenv(name, value)

    def command(ticket: str = "shop-1", repository: Path | None = None) -> tuple[int, dict[str, Any]]:
        handler = signal.getsignal(signal.SIGTERM)
        capfd.readouterr()
        try:
            code = main(["run", ticket, "--repo", str(repository or factory.repository), "--json"])
        finally:
            signal.signal(signal.SIGTERM, handler)
            factory.forget()
        said = capfd.readouterr()
        assert "Traceback" not in said.err, said.err
        assert said.out.count("\n") == 1
        answer = json.loads(said.out)
        error = answer.get("error", {})
        assert "\n" not in error.get("message", "")
        assert error.get("exit_code", code) == code
        assert not factory.leftovers()
        return code, error or answer

    return command


def test_mistakes_in_ticket_or_repository_end_with_2_before_any_work(run: Run, factory: Factory) -> None:
    folder = factory.home.parent
    ticket = write_ticket(factory.board, "shop-1")
    (factory.board / "untitled.md").write_text("---\nstate: ready\n---\nno title\n")
    (folder / "plain").mkdir()
    (folder / "empty").mkdir()
    subprocess.run(["git", "init", "--quiet", str(folder / "empty")], check=True)
    written = ticket.read_text()
    for arguments, words in [
        (("shop-9",), "no ticket 'shop-9'"),
        (("untitled",), "has no title"),
        (("shop-1", folder / "nowhere"), "neither a path nor configured"),
        (("shop-1", folder / "plain"), "repository"),
        (("shop-1", folder / "empty"), "empty"),
    ]:
        code, error = run(*arguments)
        assert (code, error["class"]) == (2, "ConfigError"), error
        assert words in error["message"]
    assert ticket.read_text() == written
    assert factory.calls() == []


def test_an_unknown_model_ends_with_2(run: Run, factory: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ticket(factory.board, "shop-1")
    monkeypatch.setenv("DARKFACTORY_MODEL", "gpt")
    code, error = run()
    assert (code, error["class"]) == (2, "ConfigError")
    assert "'gpt'" in error["message"]


@pytest.mark.parametrize(
    ("fault", "kind", "tries"),
    [
        (Fault(kind="garbage"), "ProviderFault", 1),
        (Fault(kind="html"), "ProviderFault", 1),
        (Fault(kind="cut"), "Unreachable", 3),
        (Fault(kind="reset"), "Unreachable", 3),
        (Fault(kind="status", status=429), "RateLimited", 1),
        (Fault(kind="status", status=429, headers={"retry-after": "1"}), "RateLimited", 3),
        (Fault(kind="status", status=401), "AuthFailed", 1),
        (Fault(kind="status", status=500), "Unreachable", 3),
    ],
    ids=["garbage", "html", "cut", "reset", "429", "429-soon", "401", "500"],
)
@pytest.mark.slow
def test_a_broken_endpoint_ends_with_3_and_burns_nothing(
    run: Run, factory: Factory, fault: Fault, kind: str, tries: int
) -> None:
    ticket = write_ticket(factory.board, "shop-1")
    written = ticket.read_text()
    factory.model.rules = script(architect=fault)
    code, error = run()
    assert (code, error["class"]) == (3, kind), error
    assert factory.calls() == ["architect"] * tries
    assert ticket.read_text() == written
    assert [a.outcome for a in factory.history("shop-1").attempts] == ["infra_failed"]


def test_an_endpoint_that_is_not_there_ends_with_3(run: Run, factory: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = write_ticket(factory.board, "shop-1")
    written = ticket.read_text()
    monkeypatch.setenv("DARKFACTORY_MODEL_URL", "http://127.0.0.1:1/v1")
    code, error = run()
    assert (code, error["class"]) == (3, "Unreachable")
    assert "127.0.0.1:1" in error["message"]
    assert ticket.read_text() == written


def test_a_fault_that_passes_is_waited_for(run: Run, factory: Factory) -> None:
    write_ticket(factory.board, "shop-1")
    factory.model.rules = script(coder=(Fault(kind="status", status=503), Fault(kind="cut"), RIGHT))
    code, outcome = run()
    assert (code, outcome["decision"]) == (0, "ACCEPT")
    assert factory.calls().count("coder") == 3
    assert outcome["usage"]["calls"] == 6


def test_python_without_tests_is_worked_on_with_a_new_red_test(run: Run, factory: Factory) -> None:
    code_only = {path: text for path, text in FILES.items() if not path.startswith("tests/")}
    write_ticket(factory.board, "shop-1")
    code, outcome = run(repository=make_repository(factory.home.parent / "untested", code_only))
    assert (code, outcome.get("decision")) == (0, "ACCEPT"), outcome


def test_a_repository_that_cannot_be_tested_is_a_named_outcome(run: Run, factory: Factory) -> None:
    ticket = write_ticket(factory.board, "shop-1")
    code, error = run(repository=make_repository(factory.home.parent / "poems", {"README.md": "# Poems\n"}))
    assert (code, error["class"]) == (1, "TestsFailed")
    assert "set `test` in WORKFLOW.md" in error["message"]
    assert "state: ready" in ticket.read_text()
    assert "set `test` in WORKFLOW.md" in ticket.read_text()


FLOOD = "import os\n\n\ndef test_floods():\n    for _ in range(1024):\n        os.write(2, b'x' * (1 << 20))\n"


@pytest.mark.parametrize(
    ("command", "runner", "seconds"),
    [("(setsid sleep 300 &) ; sleep 300", "exit-code", 3), ("python -m pytest -s", "pytest", 30)],
    ids=["hangs", "prints 1 GB"],
)
@pytest.mark.slow
def test_a_test_suite_that_runs_wild_is_ended_and_named(
    run: Run, factory: Factory, command: str, runner: str, seconds: int
) -> None:
    policy = f"---\ntimeout_seconds: {seconds}\ntest: {command}\ntest_runner: {runner}\n---\n"
    wild = {**FILES, "tests/test_wild.py": FLOOD, "WORKFLOW.md": policy}
    ticket = write_ticket(factory.board, "shop-1")
    began = time.monotonic()
    code, error = run(repository=make_repository(factory.home.parent / "wild", wild))
    assert (code, error["class"]) == (1, "TestsFailed"), error
    assert time.monotonic() - began < seconds + 30
    assert "state: ready" in ticket.read_text()
    assert factory.calls() == []
    assert [a.outcome for a in factory.history("shop-1").attempts] == ["work_failed"]


def test_no_sandbox_ends_with_3_and_says_how_to_get_one(
    run: Run, factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket = write_ticket(factory.board, "shop-1")
    written, tools = ticket.read_text(), factory.home.parent / "bin"
    tools.mkdir()
    (tools / "git").symlink_to(shutil.which("git") or "git")
    monkeypatch.setenv("PATH", str(tools))
    code, error = run()
    assert (code, error["class"]) == (3, "SandboxUnavailable")
    assert "bubblewrap" in error["message"]
    assert ticket.read_text() == written


@pytest.fixture
def small_disk(factory: Factory) -> Iterator[Path]:
    """A file system of 64 KiB where checkouts are made."""
    place = factory.home / "worktrees"
    place.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_ends_with_3_and_burns_nothing(run: Run, factory: Factory, small_disk: Path) -> None:
    ticket = write_ticket(factory.board, "shop-1")
    written = ticket.read_text()
    large = make_repository(factory.home.parent / "large", {**FILES, "data.txt": "0123456789abcdef" * 20_000})
    code, error = run(repository=large)
    assert code == 3, error
    assert "unable to write" in error["message"] or error["class"] == "DiskFull"
    assert ticket.read_text() == written
    assert [a.outcome for a in factory.history("shop-1").attempts] == ["infra_failed"]
