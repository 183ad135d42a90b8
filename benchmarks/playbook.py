"""A playbook from its first sighting to its rollback, on a real little service, by the command line alone: nothing is scripted.

    python -m benchmarks.playbook

Three operations are carried out by hand and told to the factory, which makes a playbook of them; it is merged, approved and
run, made to fail at its third step, and killed with SIGKILL in the middle of a step. After each the service and its files are
compared with what they should be. Ends with 1 when something is not as it should be.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from deployments.engine import end_group, free_port, start_server, wait_for_server
from infra.postgres import stop_postgres
from infra.settings import Settings
from tests.shop import git, make_repository

ROOT = Path(__file__).parents[1]
SECONDS = 300.0
"""Longest wait for one command."""
SERVICES = ("shop", "blog", "mail")
SERVICE = """
import json, pathlib, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

state, port = pathlib.Path(sys.argv[1]), int(sys.argv[2])
services = {p.stem: {"version": p.read_text().strip(), "paused": False} for p in state.glob("*.conf")}

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass

    def answer(self, status, value):
        body = json.dumps(value, sort_keys=True).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except BrokenPipeError:
            pass  # who asked was killed

    def do_GET(self):
        self.answer(200, services)

    def do_POST(self):
        verb, name = self.path.strip("/").split("/")
        one = services[name]
        if verb == "pause" and (state / "slow").exists():
            one["paused"] = True
            time.sleep(60)
        if verb == "reload":
            version = (state / f"{name}.conf").read_text().strip()
            if int(version.removeprefix("v")) > 99:
                return self.answer(422, {"error": f"there is no {version}"})
            one["version"] = version
            (state / f"{name}.cache").write_text(f"made by {version}")
        one["paused"] = {"pause": True, "resume": False}.get(verb, one["paused"])
        self.answer(200, one)

ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class Demo:
    """A home, a scratch repository, and a service with three tenants whose files are below `state`."""

    def __init__(self, folder: Path, port: int, api_url: str, settings: Settings) -> None:
        self.state, self.port, self._home = folder / "state", port, settings.root
        self.repository = make_repository(folder / "ops", {"README.md": "# Operations\n", "service.py": SERVICE})
        self.state.mkdir()
        for name in SERVICES:
            (self.state / f"{name}.conf").write_text("v1\n")
            (self.state / f"{name}.cache").write_text("made by v1")
        operations = {"hosts": [f"127.0.0.1:{port}"], "folders": {"STATE": str(self.state)}}
        config = {
            "repositories": {"ops": {"path": str(self.repository), "operations": operations}},
            "memory": {"enabled": False},
        }
        (self._home / "factory.yaml").write_text(yaml.safe_dump(config))
        self._environment = {
            **os.environ,
            "DARKFACTORY_HOME": str(self._home),
            "PREFECT_API_URL": api_url,
            "PYTHONPATH": str(ROOT),
        }
        self.wrong: list[str] = []

    # --- the service, and a person at it ---

    @contextmanager
    def serving(self) -> Iterator[None]:
        program = [sys.executable, str(self.repository / "service.py"), str(self.state), str(self.port)]
        with subprocess.Popen(program) as service:
            try:
                deadline = time.monotonic() + 30
                while self.status() is None and time.monotonic() < deadline:
                    time.sleep(0.1)
                yield
            finally:
                service.kill()

    def status(self) -> Any:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/", timeout=5).json()
        except httpx.TransportError:
            return None

    def all_of_it(self) -> dict[str, Any]:
        """What the service says and every file of it."""
        return {"status": self.status(), **{p.name: p.read_text() for p in sorted(self.state.iterdir())}}

    def steps(self, name: str, version: str) -> list[dict[str, str]]:
        ask, conf = f"curl --noproxy '' -fsS -X POST http://127.0.0.1:{self.port}", f"$STATE/{name}.conf"
        return [
            {"run": f"{ask}/pause/{name}", "undo": f"{ask}/resume/{name}"},
            {"run": f"sed -i.before \"s/v.*/{version}/\" {conf}", "undo": f"test ! -e {conf}.before || mv {conf}.before {conf}"},
            {"run": f"{ask}/reload/{name}"},
            {"run": f"rm -f {conf}.before $STATE/{name}.cache"},
            {"run": f"{ask}/resume/{name}"},
        ]  # fmt: skip

    def by_hand(self, name: str, version: str, folder: Path) -> Path:
        """Carry the operation out as a person would, and write down what was done."""
        for step in self.steps(name, version):
            subprocess.run(
                step["run"], shell=True, check=True, env={**os.environ, "STATE": str(self.state)}, capture_output=True
            )
        path = folder / f"{name}.yaml"
        said = {
            "title": f"Roll {name} to {version}",
            "steps": self.steps(name, version),
            "verify": f"grep -q {version} $STATE/{name}.conf",
        }
        path.write_text(yaml.safe_dump(said, sort_keys=False))
        return path

    # --- the factory ---

    def command(self, *arguments: str) -> dict[str, Any]:
        """One command of the factory; its JSON answer."""
        with self.begun(*arguments) as child:
            answer, error = child.communicate(timeout=SECONDS)
        if not answer.strip():
            raise SystemExit(f"`darkfactory {' '.join(arguments)}` said nothing: {error[-2000:]}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def begun(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "deployments", "playbook", *arguments, "--json"]
        return subprocess.Popen(
            command,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def merge(self, name: str) -> None:
        git(
            self.repository,
            "pull",
            "--quiet",
            "--ff-only",
            str(self._home / "forge" / "ops" / "repo.git"),
            f"agent/playbook-{name}",
        )

    def expect(self, what: str, right: bool) -> None:
        print(f"  {'ok ' if right else 'NOT'} {what}", flush=True)
        self.wrong += [] if right else [what]


def observe(demo: Demo, folder: Path) -> str:
    """Three real operations. Returns the name of the playbook they make."""
    noted: dict[str, Any] = {}
    for name, version in zip(SERVICES, ("v2", "v3", "v4"), strict=True):
        noted = demo.command("observe", str(demo.by_hand(name, version, folder)))
        print(f"observed: Roll {name} to {version} (number {noted['operation']})")
    demo.expect("the third one makes a playbook, proposed as a pull request", noted["playbook"] is not None)
    print(f"\n{noted['content']}")
    return str(noted["playbook"])


def run_and_approve(demo: Demo, name: str) -> None:
    refused = demo.command("run", name, "--set", "target=shop", "--set", "target2=v5")
    demo.expect("nothing runs before a person merged and approved it", "error" in refused)
    demo.merge(name)
    demo.command("approve", name)
    print("\n".join(demo.command("run", name, "--dry-run", "--set", "target=shop", "--set", "target2=v5")["commands"]))
    waiting = demo.command("run", name, "--set", "target=shop", "--set", "target2=v5")
    demo.expect(f"it stops before the destructive step ({waiting.get('step')})", waiting.get("state") == "waiting")
    ran = demo.command("approve", str(waiting["run"]))
    print(f"  {ran}")
    demo.expect("approved, it ends well", ran.get("state") == "succeeded")
    demo.expect("the service runs v5 and is not paused", demo.status()["shop"] == {"version": "v5", "paused": False})


def fail_at_step_three(demo: Demo, name: str) -> None:
    before = demo.all_of_it()
    ran = demo.command("run", name, "--set", "target=blog", "--set", "target2=v100")
    print(f"  {ran}")
    demo.expect(f"step 3 fails and is rolled back: {ran.get('reason', '')[:90]}", ran.get("state") == "undone")
    demo.expect(
        f"in reverse: {ran.get('undone')}", [each.split("-")[1] for each in ran.get("undone", [])] == ["2", "1"]
    )
    demo.expect("service and files are as they were", demo.all_of_it() == before)


def kill_in_the_middle(demo: Demo, name: str) -> None:
    (demo.state / "slow").write_text("")
    with demo.begun("run", name, "--set", "target=mail", "--set", "target2=v6") as child:
        deadline = time.monotonic() + SECONDS
        while not demo.status()["mail"]["paused"] and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.1)
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    (demo.state / "slow").unlink()
    left = demo.command("list")["runs"][0]
    demo.expect(f"killed in its first step; the journal has run {left['id']}", left["state"] == "running")
    waiting = demo.command("run", "--resume", str(left["id"]))
    ran = demo.command("approve", str(waiting["run"]))
    print(f"  {ran}")
    demo.expect(
        "the step that was begun is taken back and done again, and the run ends well", ran.get("state") == "succeeded"
    )
    demo.expect("the service runs v6 and is not paused", demo.status()["mail"] == {"version": "v6", "paused": False})


def main() -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="darkfactory-playbook-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        folder.chmod(0o755)  # PostgreSQL's own account passes through when root runs this
        settings = Settings(home=folder / "home")
        settings.root.mkdir()
        port, log = free_port(), folder / "server.log"
        server = start_server(settings, port, log, ["--no-ui", "--no-scheduler", "--no-late-runs"])
        try:
            wait_for_server(f"http://127.0.0.1:{port}/api", server, log)
            demo = Demo(folder, free_port(), f"http://127.0.0.1:{port}/api", settings)
            with demo.serving():
                name = observe(demo, folder)
                run_and_approve(demo, name)
                fail_at_step_three(demo, name)
                kill_in_the_middle(demo, name)
        finally:
            end_group(server)
            stop_postgres(settings.root)
    print(f"\n{'all as it should be' if not demo.wrong else f'WRONG: {demo.wrong}'}, {time.monotonic() - began:.0f} s")
    return 1 if demo.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
