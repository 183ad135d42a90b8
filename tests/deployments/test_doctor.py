"""What the doctor finds, against real repositories, a real HTTP server and real silence."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deployments import doctor
from deployments.doctor import Check, examine, exit_code
from deployments.engine import free_port
from infra.settings import Settings, parse_settings
from tests.shop import make_repository, write_ticket

TOKEN = "ghp_abcdefghijklmnopqrstuvwxyz0123"
APP_TOKEN = "ghs_abcdefghijklmnopqrstuvwxyz0123"


class Service(BaseHTTPRequestHandler):
    """A stand-in for GitHub's API, a model endpoint and a webhook's host, as far as the doctor asks them."""

    asked: list[tuple[str, str]]
    skew_seconds: float

    def do_GET(self) -> None:
        self.asked.append((self.command, self.path))
        status, body = self.answer()
        text = json.dumps(body).encode()
        self.send_response_only(status)
        self.send_header("Date", formatdate(time.time() + self.skew_seconds, usegmt=True))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(text)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def answer(self) -> tuple[int, Any]:
        if self.path == "/v1/models":
            return 200, {"data": []}
        if not self.path.startswith("/repos/"):
            return 404, {}
        if self.headers["authorization"].partition(" ")[2] not in (TOKEN, APP_TOKEN):
            return 401, {"message": "Bad credentials"}
        if self.path.partition("?")[0].endswith("/issues"):
            return 200, []
        rights = {"/repos/acme/shop": True, "/repos/acme/readonly": False}
        if self.path not in rights:
            return 404, {}
        return 200, {"full_name": self.path.removeprefix("/repos/"), "permissions": {"push": rights[self.path]}}

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[tuple[str, type[Service]]]:
    handler = type("Handler", (Service,), {"asked": [], "skew_seconds": 0.0})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()


@pytest.fixture
def look(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Examines settings written as factory.yaml; answers with the checks by name."""
    for name in ("PREFECT_API_URL", "DARKFACTORY_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    monkeypatch.setenv("BOARD_TOKEN", TOKEN)

    def examined(text: str) -> dict[str, Check]:
        webhooks = "" if "webhooks:" in text else f"webhooks: {{port: {free_port()}}}\n"
        full = f"database_url: {database_url}\n{webhooks}{text}"
        (tmp_path / "factory.yaml").write_text(full)
        return {check.name: check for check in examine(parse_settings(full, "factory.yaml"))}

    return examined


def test_a_sound_factory_has_no_complaint(look: Any, service: tuple[str, type[Service]], tmp_path: Path) -> None:
    url, handler = service
    shop = make_repository(tmp_path / "shop")
    write_ticket(tmp_path / "tickets", "T-1").write_text("---\ntitle: t\nstate: todo\n---\nb\n")
    checks = look(f"""
model: openai/x
model_url: {url}/v1
strong: {{model: openai/y, url: {url}/v1}}
boards: {{main: {{kind: folder, path: {tmp_path}/tickets}}}}
repositories:
  shop: {{path: {shop}, remote: {shop}, github: {{project: acme/shop, token: $BOARD_TOKEN, url: {url}}}}}
notify: {{slack_webhook: {url}/services/hidden, webhook: {url}/hook}}
""")
    assert {name: check.message for name, check in checks.items() if not check.ok} == {}
    assert list(checks) == [
        "python", "git", "settings", "sandbox", "disk", "clock", "database", "prefect", "model", "strong model",
        "board main", "webhooks", "repository shop", "pull requests of shop", "notify slack", "notify webhook",
    ]  # fmt: skip
    assert "1 ticket(s) in 'todo', 'agent queue'" in checks["board main"].message
    assert "notify.slack_webhook` holds the secret itself" in checks["settings"].message
    assert exit_code(list(checks.values())) == 0
    assert {method for method, _ in handler.asked} <= {"GET", "HEAD"}
    assert not {"/hook", "/services/hidden"} & {path for _, path in handler.asked}
    assert "hidden" not in str(checks)


def test_what_is_wrong_is_named_with_the_place_to_mend_it(
    look: Any, service: tuple[str, type[Service]], tmp_path: Path
) -> None:
    url, _ = service
    shop = make_repository(tmp_path / "shop")
    (tmp_path / "plain").mkdir()
    checks = look(f"""
model: openai/x
model_url: {url}/v1
strong: {{model: openai/y, url: "http://127.0.0.1:1/v1"}}
boards: {{file: {{kind: folder, path: {tmp_path}/none}}}}
repositories:
  plain: {{path: {tmp_path}/plain}}
  lost: {{path: {shop}, remote: {tmp_path}/nowhere, github: {{project: acme/gone, token: $BOARD_TOKEN, url: {url}}}}}
  read: {{path: {shop}, remote: {shop}, github: {{project: acme/readonly, token: $BOARD_TOKEN, url: {url}}}}}
  deny: {{path: {shop}, remote: {shop}, github: {{project: acme/shop, token: another-token-0123456789, url: {url}}}}}
notify: {{slack_webhook: "http://127.0.0.1:1/services/hidden", webhook: "mailto:me"}}
""")
    wrong = {name: (check.exit_code, check.message) for name, check in checks.items() if not check.ok}
    expected = {
        "strong model": (3, "127.0.0.1"), "repository plain": (2, "`repositories.plain.path`"),
        "repository lost": (2, "`repositories.lost.remote`"), "pull requests of lost": (2, "'acme/gone'"),
        "pull requests of read": (2, "may not push"), "pull requests of deny": (2, "`repositories.deny.github.token`"),
        "notify slack": (3, "cannot be reached"), "notify webhook": (2, "`notify.webhook`"),
    }  # fmt: skip
    assert wrong.keys() == expected.keys()
    for name, (code, words) in expected.items():
        assert (wrong[name][0], words in wrong[name][1]) == (code, True), wrong[name]
    assert exit_code(list(checks.values())) == 2
    assert not {"hidden", TOKEN, "another-token"} & set(str(checks).split())
    assert "hidden" not in str(checks)


def test_an_environment_file_that_others_may_read_is_a_mistake(look: Any, tmp_path: Path) -> None:
    """O7, CF4: the service units read their secrets from it."""
    file = tmp_path / "environment"
    for mode, ok in ((0o644, False), (0o640, False), (0o600, True)):
        file.write_text("GITHUB_TOKEN=x\n")
        file.chmod(mode)
        check = look("model: openai/x\nmodel_url: http://127.0.0.1:1/v1\n")["environment file"]
        assert (check.ok, "chmod 600" in check.message) == (ok, not ok)


def test_boards_whose_token_is_refused_or_may_only_read_and_a_port_that_is_taken_are_said(
    look: Any, service: tuple[str, type[Service]]
) -> None:
    """O7: what has to be mended by a person is no fault of the machine, and no secret is printed."""
    url, _ = service
    with socket.create_server(("127.0.0.1", 0)) as taken:
        checks = look(f"""
model: openai/x
model_url: http://me:hunter2hunter2@127.0.0.1:1/v1
webhooks: {{port: {taken.getsockname()[1]}}}
boards:
  good: {{kind: github, project: acme/shop, token: $BOARD_TOKEN, url: "{url}"}}
  read: {{kind: github, project: acme/readonly, token: $BOARD_TOKEN, url: "{url}"}}
  deny: {{kind: github, project: acme/other, token: another-token-0123456789, url: "{url}"}}
""")
    said = {name: (check.exit_code, check.message) for name, check in checks.items()}
    assert said["board good"][0] == 0
    assert (said["board read"][0], "write access to issues" in said["board read"][1]) == (2, True)
    assert (said["board deny"][0], "`token`" in said["board deny"][1]) == (2, True)
    assert (said["webhooks"][0], "change `webhooks.port`" in said["webhooks"][1]) == (2, True)
    assert said["model"][0] == 3
    assert not [word for word in ("hunter2", TOKEN, "another-token") if word in str(checks)]


def test_the_token_of_an_app_is_not_said_to_lack_what_github_does_not_show(
    look: Any, service: tuple[str, type[Service]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """O7: to an app's token GitHub answers `push: false` whatever it may do."""
    url, _ = service
    monkeypatch.setenv("BOARD_TOKEN", APP_TOKEN)
    where = f'project: acme/readonly, token: $BOARD_TOKEN, url: "{url}"'
    checks = look(f"""
boards: {{app: {{kind: github, {where}}}}}
repositories: {{shop: {{path: /nowhere, github: {{{where}}}}}}}
""")
    assert (checks["board app"].exit_code, checks["pull requests of shop"].exit_code) == (0, 0)
    assert "does not say" in checks["pull requests of shop"].message


def test_a_board_that_nobody_may_announce_tickets_of_is_said_to_be_polled(look: Any) -> None:
    checks = look("boards: {eng: {kind: linear, team: ENG, token: $BOARD_TOKEN, url: 'http://127.0.0.1:1'}}\n")
    assert "without `webhooks.linear_secret`, boards are read every 120 s only" in checks["webhooks"].message


def test_a_clock_that_is_wrong_is_found(look: Any, service: tuple[str, type[Service]]) -> None:
    url, handler = service
    handler.skew_seconds = -3600
    check = look(f"model: openai/x\nmodel_url: {url}/v1\n")["clock"]
    assert check.exit_code == 3
    assert re.search(r"this clock is 36\d\d s ahead of that of 127.0.0.1", check.message)


def test_a_service_that_never_answers_holds_nothing_up(look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        checks = look(f"model: openai/x\nmodel_url: {address}/v1\nnotify: {{webhook: {address}/x}}\n")
    assert time.monotonic() - began < 10
    assert (checks["model"].exit_code, checks["notify webhook"].exit_code) == (3, 3)
    assert checks["database"].ok


def test_a_look_that_hangs_is_left_behind(look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    hanging = doctor._Look("slow", lambda: str(released.wait(30)), 0.2)
    monkeypatch.setattr(doctor, "_looks", lambda _: iter([hanging]))
    (check,) = examine(Settings())
    released.set()
    assert (check.name, check.exit_code, check.message.partition(";")[0]) == ("slow", 3, "no answer within 0.2 s")
