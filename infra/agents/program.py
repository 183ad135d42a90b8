"""An agent that is a program: found on this node, checked, started in the sandbox, its output read as it comes.

Owns what all of them have in common. Each agent's own file says how it is called and what its events mean.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import SecretStr

from infra.agents import Activity, Report, Session
from infra.agents.events import Story, Transcript
from infra.egress import GATEWAY, Egress, Upstream
from infra.errors import AuthFailed, ConfigError
from infra.files import write_atomically
from infra.llm import Usage
from infra.llm.calls import check_models, priced
from infra.llm.errors import Endpoint
from infra.prices import price_of
from infra.sandbox import HOME, WORKSPACE, Bind, CommandResult, Sandbox
from infra.sections import AgentSection

UPSTREAM = "model"
ENDPOINT = f"{GATEWAY}/{UPSTREAM}"
"""The model's base URL as a program in the sandbox sees it."""
NO_KEY = "added-by-the-gateway"
"""What a program gets where it insists on a key."""
STATE = f"{HOME}/state"
CHECK_SECONDS = 600.0
"""A check that succeeded counts this long."""
VERSION_SECONDS = 60.0
ANSWER_SECONDS = 10.0
SHORTEST_SECRET = 20
KEPT_SECONDS = 86_400.0
"""A session can be resumed this long."""
_SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


class Place(NamedTuple):
    """The agent's own folder of one session: on the host, and as the program sees it."""

    host: Path
    inside: str


class Launch(NamedTuple):
    """How a session is started. `arguments` come after the program; `environment` is all that is added."""

    arguments: list[str]
    environment: dict[str, str]
    stdin: str = ""


class ProgramAgent(ABC):
    """A `CodingAgent` that starts a program for each session."""

    program: ClassVar[str]
    install: ClassVar[str]
    """What a person does where it is missing or too old."""
    minimum: ClassVar[tuple[int, int, int]]
    """The oldest version whose flags and events are known; older ones were not tried."""
    speaks: ClassVar[str] = "openai"
    """The protocol of its endpoint, as price lists name it."""
    vendor: ClassVar[str] = ""
    """Base URL that a key without a `url` is for."""
    models_path: ClassVar[str] = "/models"
    """Below the base URL: the list of models, which costs no tokens."""
    vendor_hosts: ClassVar[tuple[str, ...]] = ()
    """What the program reaches with a login of its own."""
    login_folder: ClassVar[str] = ""
    login_file: ClassVar[str] = ""
    """The file of the login folder that holds the login, and, `state_file`, where the program looks for it in its state."""
    state_file: ClassVar[str] = ""
    resumes: ClassVar[bool] = False

    def __init__(self, name: str, section: AgentSection, folder: Path) -> None:
        """`folder` is where sessions and checks of this agent are kept."""
        self.name, self.section, self._folder = name, section, folder
        host = urlsplit(section.url).netloc if section.url else ""
        self.provider = f"{section.kind}@{host}" if host else section.kind

    @abstractmethod
    def launch(self, session: Session, place: Place) -> Launch:
        """The command line and environment of a session."""

    @abstractmethod
    def story(self, session: Session, place: Place) -> Story:
        """A reader for what it will print."""

    def headers(self, key: str) -> dict[str, str]:
        """How the endpoint is shown the key."""
        return {"Authorization": f"Bearer {key}"}

    # --- check --------------------------------------------------------------------------------------------------------

    async def check(self, sandbox: Sandbox, worktree: Path) -> str:
        """As the protocol says; a success is remembered for CHECK_SECONDS."""
        program = self.find()
        record = self._folder / f"check-{self._fingerprint(program)}.json"
        if line := _remembered(record):
            return line
        version = await self._version(program, sandbox, worktree)
        line = f"{self.section.kind} {version}, {await self._access()}"
        write_atomically(record, json.dumps({"line": line, "at": time.time()}).encode())
        return line

    def find(self) -> Path:
        """The program's file. Raises ConfigError."""
        wanted = self.section.program or self.program
        found = shutil.which(Path(wanted).expanduser())
        if found is None:
            raise ConfigError(
                f"the agent {self.name!r} needs the program {wanted!r}, which is not here; {self.install}, or correct "
                f"`agents.{self.name}.program`"
            )
        return Path(found).resolve()

    def _fingerprint(self, program: Path) -> str:
        key = self.section.key.get_secret_value() if self.section.key else ""
        login = self.login()
        stamps = [path.stat().st_mtime_ns for path in (program, login) if path and path.is_file()]
        said = json.dumps([str(program), stamps, key, self.section.url, self.section.model])
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    async def _version(self, program: Path, sandbox: Sandbox, worktree: Path) -> str:
        done = await sandbox.run(
            self.version_command(program),
            worktree=worktree,
            timeout_seconds=VERSION_SECONDS,
            binds=installation(program),
        )
        found = re.search(r"\b(\d{1,5})\.(\d{1,5})\.(\d{1,5})\b", done.output[:2000])
        if done.exit_code or found is None:
            said = f"exit {done.exit_code}: {done.output.strip()[:200]!r}"
            raise ConfigError(f"{str(program)!r} does not say its version ({said}); {self.install}")
        if tuple(map(int, found.groups())) < self.minimum:
            least = ".".join(map(str, self.minimum))
            raise ConfigError(f"{str(program)!r} is {found[0]}, and at least {least} is needed; {self.install}")
        return found[0]

    def version_command(self, program: Path) -> list[str]:
        return [str(program), "--version"]

    async def _access(self) -> str:
        """Whether the login or the key is there. Asks an endpoint for its models, which costs nothing."""
        login = self.login()
        if login is not None:
            if not login.is_file() or not login.stat().st_size:
                raise AuthFailed(
                    f"the agent {self.name!r} is not logged in: there is no {str(login)!r}; log in with "
                    f"{self.program!r} as this user, or set `agents.{self.name}.key`"
                )
            return f"logged in by {str(login)!r}"
        upstream = self._upstream()
        headers = {name: value.get_secret_value() for name, value in upstream.headers.items()}
        secret = self.section.key.get_secret_value() if self.section.key else ""
        endpoint = Endpoint(model=self.section.model or "", url=upstream.url + self.models_path, secret=secret)
        try:
            return await check_models(endpoint, headers, ANSWER_SECONDS)
        except ConfigError:  # it answers, and lists no models
            return f"endpoint {upstream.url!r}"

    # --- run ----------------------------------------------------------------------------------------------------------

    async def run(
        self,
        session: Session,
        *,
        worktree: Path,
        sandbox: Sandbox,
        binds: tuple[Bind, ...] = (),
        on_activity: Callable[[Activity], None] = lambda _: None,
    ) -> Report:
        """As the protocol says."""
        program = self.find()
        with self._state(session.resume) as folder:
            isolated = sandbox.name != "none"
            place = Place(folder, STATE if isolated else str(folder))
            mounted = [*installation(program), *self._own_binds(place, session, worktree, isolated), *binds]
            launch, story = self.launch(session, place), self.story(session, place)
            transcript = Transcript(story, session, on_activity, self._priced, _secrets(self.login()))
            began = time.monotonic()
            on_activity(Activity(kind="started", text=self.section.kind))
            result = await _until_over(
                transcript,
                lambda feed: sandbox.run(
                    [str(program), *launch.arguments],
                    worktree=worktree,
                    timeout_seconds=session.max_seconds,
                    environment=launch.environment,
                    binds=mounted,
                    stdin=launch.stdin.encode(),
                    egress=self.egress(),
                    on_output=feed,
                ),
            )
            transcript.close(result.exit_code if result else None)
            report = self._report(transcript, result, time.monotonic() - began)
            self._keep(folder, report.session_id)
            return report

    def _own_binds(self, place: Place, session: Session, worktree: Path, isolated: bool) -> list[Bind]:
        """Its state, its login, and over the worktree the same once more where nothing may be written."""
        login = self._login_binds(place, isolated)
        if not isolated:
            return login
        looking = [Bind(source=worktree, target=WORKSPACE)] if session.read_only else []
        return [*looking, Bind(source=place.host, target=place.inside, writable=True), *login]

    def _report(self, transcript: Transcript, result: CommandResult | None, seconds: float) -> Report:
        story = transcript.story
        ran_out: Literal["time", "output", "turns", "usd"] | None = transcript.overrun
        if result is not None:
            ran_out = "time" if result.timed_out else "output" if result.flooded else None
        return Report(
            finished=story.ended_well and ran_out is None,
            said=story.said,
            session_id=story.session_id or None,
            usage=transcript.usage.model_copy(update={"seconds": seconds}),
            tool_calls=story.tool_calls,
            exit_code=result.exit_code if result else None,
            seconds=seconds,
            events=transcript.events,
            output=transcript.output,
            ran_out=ran_out,
        )

    def _priced(self, usage: Usage) -> Usage:
        """What an agent says of the cost is believed of its vendor only: at another endpoint it guesses."""
        section = self.section
        if usage.cost_usd and section.url is None and section.usd_per_million_tokens is None:
            return usage
        host = urlsplit(section.url).netloc if section.url else ""
        provider = f"{self.speaks}@{host}" if host else self.speaks
        return priced(usage, price_of(section.model or "", section.usd_per_million_tokens, provider))

    # --- the way to the model -----------------------------------------------------------------------------------------

    def login(self) -> Path | None:
        """The file with the program's own login; None where the gateway is used instead."""
        if self.section.key is not None or self.section.url is not None or not self.login_file:
            return None
        return (self.section.login or Path(self.login_folder)).expanduser().absolute() / self.login_file

    def egress(self) -> Egress:
        if self.login() is not None:
            return Egress(hosts=(*self.vendor_hosts, *self.section.hosts))
        return Egress(hosts=self.section.hosts, upstreams={UPSTREAM: self._upstream()})

    def _upstream(self) -> Upstream:
        url = self.section.url or (self.vendor if self.section.key else "")
        if not url:
            raise ConfigError(f"the agent {self.name!r} has no endpoint: set `agents.{self.name}.url` or `key`")
        key = self.section.key
        headers = self.headers(key.get_secret_value()) if key else {}
        return Upstream(url=url.rstrip("/"), headers={name: SecretStr(value) for name, value in headers.items()})

    def _login_binds(self, place: Place, isolated: bool) -> list[Bind]:
        """The login itself, so that a token it refreshes is refreshed for everybody who uses it."""
        login = self.login()
        if login is None:
            return []
        if not login.is_file():
            raise AuthFailed(f"the agent {self.name!r} is not logged in: there is no {str(login)!r}")
        if isolated:
            return [Bind(source=login, target=f"{place.inside}/{self.state_file}", writable=True)]
        link = place.host / self.state_file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(login)
        return []

    # --- sessions -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _state(self, resume: str | None) -> Iterator[Path]:
        """The folder of a session: that of an earlier one, or a new one that nothing is left of unless it is kept."""
        sessions = self._folder / "sessions"
        _forget_old(sessions)
        if resume is not None:
            folder = sessions / resume
            if not _SESSION_ID.fullmatch(resume) or not folder.is_dir():
                raise ConfigError(f"the agent {self.name!r} has no session {resume!r} to resume; start a new one")
            yield folder
            return
        folder = sessions / f"new-{secrets.token_hex(8)}"
        folder.mkdir(parents=True)
        folder.chmod(0o700)
        try:
            yield folder
        finally:
            remove(folder)

    def _keep(self, folder: Path, session_id: str | None) -> None:
        if self.resumes and session_id and _SESSION_ID.fullmatch(session_id) and folder.name != session_id:
            target = folder.with_name(session_id)
            if not target.exists():
                folder.rename(target)


async def _until_over(
    transcript: Transcript, start: Callable[[Callable[[bytes], None]], Coroutine[Any, Any, CommandResult]]
) -> CommandResult | None:
    """How the command ended; None when the transcript's limits ended it."""

    def feed(chunk: bytes) -> None:
        transcript.feed(chunk)
        if transcript.overrun:
            running.cancel()

    running = asyncio.create_task(start(feed))
    try:
        return await running
    except asyncio.CancelledError:
        own = asyncio.current_task()
        if transcript.overrun is None or (own is not None and own.cancelling()):
            raise
        return None


def installation(program: Path) -> list[Bind]:
    """What a program outside the system's folders needs of the host: its npm packages, its virtual environment with the
    Python below it, or the one file."""
    if program.is_relative_to("/usr"):
        return []
    packages = [parent for parent in program.parents if parent.name == "node_modules"]
    places = packages[-1:] or _virtual_environment(program) or [program]
    return [Bind(source=place, target=str(place)) for place in places if not place.is_relative_to("/usr")]


def _virtual_environment(program: Path) -> list[Path]:
    venv = program.parent.parent
    try:
        said = (venv / "pyvenv.cfg").read_text()
    except OSError:
        return []
    home = re.search(r"^home\s*=\s*(/\S+)/bin\s*$", said, re.MULTILINE)
    return [*([Path(home[1])] if home else []), venv]


def _secrets(login: Path | None) -> list[str]:
    """The long texts in a login, the longest first: it is mounted, so the agent can read them."""
    try:
        found = json.loads(login.read_bytes()) if login else None
    except (OSError, ValueError):
        return []
    return sorted(_texts(found), key=len, reverse=True)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str) and len(value) >= SHORTEST_SECRET:
        yield value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        yield from _texts(part)


def _remembered(record: Path) -> str | None:
    try:
        found = json.loads(record.read_bytes())
        return str(found["line"]) if 0 <= time.time() - found["at"] < CHECK_SECONDS else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _forget_old(sessions: Path) -> None:
    for folder in sessions.iterdir() if sessions.is_dir() else ():
        if time.time() - folder.stat().st_mtime > KEPT_SECONDS:
            remove(folder)


def remove(folder: Path) -> None:
    """Delete a folder that an agent wrote in, also where it took its own rights away. Follows no link."""
    for place, names, _ in os.walk(folder):
        for path in (Path(place, name) for name in names):
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
