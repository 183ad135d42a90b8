"""Prefect's surroundings: what a process is told, which server it uses, and that no server outlives its run."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deployments import engine
from deployments.engine import Child, ServerRecord
from infra.errors import ConfigError, Unreachable
from infra.llm.local import process_started
from infra.settings import Settings

ROOT = Path(__file__).parents[2]


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()
        self.wfile.write(b"true")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """Address of something that answers like a Prefect server's health check."""
    with HTTPServer(("127.0.0.1", 0), Healthy) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}/api"
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `choose_engine` sets is undone after each test."""
    for name in [*engine.engine_environment(Settings()), "PREFECT_API_URL"]:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_server_with_a_certificate_of_ones_own_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's client believes PREFECT_API_SSL_CERT_FILE: what looks for the server has to, too."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=factory"]
    named = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *made, *named], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with HTTPServer(("127.0.0.1", 0), Healthy) as http:
        http.socket = context.wrap_socket(http.socket, server_side=True)
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        found = []
        for file in ("", str(certificate)):
            monkeypatch.setenv("PREFECT_API_SSL_CERT_FILE", file)
            engine.trusted.cache_clear()
            found.append(engine.is_healthy(f"https://127.0.0.1:{http.server_address[1]}/api"))
        http.shutdown()
        thread.join()
    monkeypatch.setenv("PREFECT_API_SSL_CERT_FILE", str(tmp_path / "absent.pem"))
    engine.trusted.cache_clear()
    with pytest.raises(ConfigError, match="PREFECT_API_SSL_CERT_FILE"):
        engine.is_healthy("https://127.0.0.1:9/api")
    assert found == [False, True]


def record_of(home: Path, url: str, started: str | None = None) -> None:
    me = Child(pid=os.getpid(), started=started or process_started(os.getpid()) or "")
    engine.write_record(home, ServerRecord(up=me, children=(), api_url=url))


def test_prefect_keeps_its_files_in_our_home_and_sends_nothing_out(tmp_path: Path) -> None:
    environment = engine.engine_environment(Settings(home=tmp_path))
    assert environment["PREFECT_HOME"] == str(tmp_path / "prefect")
    assert environment["PREFECT_LOCAL_STORAGE_PATH"] == str(tmp_path / "results")
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert environment["DO_NOT_TRACK"] == "1"
    assert not [name for name in environment if "DATABASE" in name]


def test_the_server_gets_the_database_and_no_secrets(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret-1")
    monkeypatch.setenv("DARKFACTORY_MODEL_KEY", "sk-secret-2")
    environment = engine.server_environment(Settings(database_url=database_url))
    assert environment["PREFECT_API_DATABASE_CONNECTION_URL"].startswith("postgresql+asyncpg://")
    assert not [name for name, value in environment.items() if "sk-secret" in value]


def test_the_recorded_server_is_used_when_it_answers(tmp_path: Path, server: str) -> None:
    record_of(tmp_path, server)
    chosen = engine.choose_engine(Settings(home=tmp_path))
    chosen.start()
    chosen.wait()
    assert (chosen.temporary, chosen.api_url, os.environ["PREFECT_API_URL"]) == (False, server, server)
    chosen.stop()
    assert engine.is_healthy(server)


def test_a_server_named_in_the_environment_is_used(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", server)
    record_of(tmp_path, "http://127.0.0.1:1/api", started="long ago")
    assert engine.choose_engine(Settings(home=tmp_path)).api_url == server


def test_without_a_server_a_temporary_one_is_named_before_prefect_is_imported(tmp_path: Path) -> None:
    """Prefect reads its address when it is imported; one named later is ignored, and Prefect starts a server of its own."""
    chosen = engine.choose_engine(Settings(home=tmp_path))
    assert chosen.temporary
    assert os.environ["PREFECT_API_URL"] == chosen.api_url
    assert not (tmp_path / "logs").exists()


def test_a_server_that_does_not_start_is_unreachable_and_named_with_its_log(tmp_path: Path) -> None:
    child = engine.start_child([sys.executable, "-c", "print('no luck')"], dict(os.environ), tmp_path, tmp_path / "log")
    with pytest.raises(Unreachable, match=r"(?s)did not start.*no luck"):
        engine.wait_for_server("http://127.0.0.1:1/api", child, tmp_path / "log")


def test_a_taken_port_is_replaced(server: str) -> None:
    taken = int(server.split(":")[2].removesuffix("/api"))
    assert engine.free_port(taken) not in (0, taken)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """Kill -9 of a run leaves no server behind."""
    code = (
        "import sys, os, time; from pathlib import Path; from deployments.engine import start_child\n"
        "child = start_child([sys.executable, '-c', 'import time; time.sleep(60)'], dict(os.environ), Path('.'), Path('log'))\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert process_started(pid)
        parent.send_signal(signal.SIGKILL)
    assert wait_until(lambda: process_started(pid) is None, 20)
