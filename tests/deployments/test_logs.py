"""OB4 by doing it: logs that cannot be written, and a Prefect whose log API fails, stop nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import yaml
from prefect.logging.configuration import DEFAULT_LOGGING_SETTINGS_PATH

from deployments import run_process
from deployments.engine import LOGGING, engine_environment, start_child
from deployments.run_process import _Log
from infra.logs import PACKAGES
from infra.settings import Settings

ROOT = Path(__file__).parents[2]


def poured(path: Path, *pieces: bytes) -> _Log:
    """A run's log that took all of these from the run's output."""
    reading, writing = os.pipe()
    log = _Log(reading, path)
    for piece in pieces:
        os.write(writing, piece)
        log.copy()
    os.close(writing)
    log.copy()
    os.close(reading)
    assert log.sources == []  # it read to the end, so the run was never held up
    return log


def test_a_run_goes_on_without_a_folder_for_its_log(tmp_path: Path) -> None:
    """OB4"""
    (tmp_path / "logs").write_text("a file where the folder should be")
    os.close(poured(tmp_path / "logs" / "runs" / "one.log", b"hello")._file)


def test_a_run_goes_on_when_the_disk_is_full(tmp_path: Path) -> None:
    """OB4"""
    (tmp_path / "one.log").symlink_to("/dev/full")
    os.close(poured(tmp_path / "one.log", b"hello", b"again")._file)


def test_a_log_that_cannot_be_turned_over_is_written_to_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OB4: the number of a closed file may be another file's by then."""
    monkeypatch.setattr(run_process, "LOG_BYTES", 10)
    path = tmp_path / "runs" / "one.log"
    reading, writing = os.pipe()
    log = _Log(reading, path)
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("not a folder any more")
    os.write(writing, b"x" * 20)
    log.copy()
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    os.write(writing, b"y" * 20)
    log.copy()
    for each in (other, reading, writing, log._file):
        os.close(each)
    assert (tmp_path / "other").read_bytes() == b""


def test_what_up_and_a_node_say_cannot_end_them() -> None:
    """OB4: their logs are full."""
    code = "from deployments.__main__ import _say; _say('one'); _say('two'); print('goes on', flush=True)"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=full, text=True, timeout=60)  # fmt: skip
    assert done.stdout == "goes on\n"


def test_a_part_of_the_factory_starts_although_its_log_cannot_be_written(tmp_path: Path) -> None:
    """OB4"""
    (tmp_path / "logs").write_text("a file where the folder should be")
    child = start_child([sys.executable, "-c", "print('hello')"], {}, tmp_path, tmp_path / "logs" / "gateway.log")
    assert child.wait(60) == 0


def test_prefects_set_up_is_kept_but_for_our_form_and_our_packages() -> None:
    """OB1: a logger that a newer Prefect adds is missed here first."""
    ours, theirs = yaml.safe_load(LOGGING.read_text()), yaml.safe_load(DEFAULT_LOGGING_SETTINGS_PATH.read_text())
    assert ours["loggers"].keys() == theirs["loggers"].keys() | set(PACKAGES)
    assert {ours["loggers"][name]["level"] for name in PACKAGES} == {"INFO"}
    for name, logger in theirs["loggers"].items():
        assert {"handlers": [], "propagate": True} | ours["loggers"][name] == {
            "handlers": [],
            "propagate": True,
        } | logger | ({"handlers": ["console"]} if logger.get("handlers") == ["debug"] else {}), name
    assert {handler["formatter"] for handler in ours["handlers"].values()} == {"lines", "words"}


LOGGED = """
import logging
from prefect import flow, get_run_logger, task
from infra.logs import about

@task
def step():
    get_run_logger().info("in Prefect's pages: sk-" + "a1B2c3" * 5)
    return 7

@flow
def work():
    with about(board="shop", ticket="SHOP-7"):
        logging.getLogger("tasks.sample").info("outcome=begins")
        get_run_logger().info("one\\ntwo")
        return step()

print(work())
"""


@contextmanager
def without_logs(prefect: str, seconds: float) -> Iterator[tuple[str, list[bytes]]]:
    """The server, but nothing can be logged there: 500 after this time. Also what was sent."""
    sent: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path.startswith("/api/logs"):
                sent.append(body)
                time.sleep(seconds)
                self._answer(500, b'{"detail": "no"}')
                return
            kind = {"Content-Type": self.headers.get("Content-Type") or "application/json"}
            done = httpx.request(self.command, prefect.removesuffix("/api") + self.path, content=body, headers=kind, timeout=30)  # fmt: skip
            self._answer(done.status_code, done.content)

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _pass_on  # noqa: N815

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api", sent
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.integration
@pytest.mark.slow
def test_a_run_ends_well_when_prefects_log_api_answers_500(prefect_url: str, tmp_path: Path) -> None:
    """OB4; and OB1: lines for Prefect's pages are masked, too, and all lines have our form."""
    (tmp_path / "prefect").mkdir()
    with without_logs(prefect_url, seconds=0.2) as (url, sent):
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(tmp_path), "PREFECT_API_URL": url,
            **engine_environment(Settings(home=tmp_path), verbose=True),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", LOGGED], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150, check=False
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr
    assert any(b"in Prefect's pages: ***" in body for body in sent)
    assert not any(b"a1B2c3" in body for body in sent)
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.endswith("logger=tasks.sample board=shop ticket=SHOP-7 outcome=begins")]
    assert [line for line in lines if "logger=prefect.flow_runs board=shop ticket=SHOP-7 one\\ntwo" in line]
    assert "a1B2c3" not in done.stderr
