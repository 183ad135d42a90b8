"""Looks at everything the factory stands on and is connected to. Each look says what is there or raises what is wrong."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from functools import partial
from typing import NamedTuple, get_args
from urllib.parse import urlsplit

import httpx

from infra.errors import (
    AuthFailed,
    ConfigError,
    DiskFull,
    FactoryError,
    InfraError,
    QuotaExhausted,
    RateLimited,
    UnexpectedStatus,
    Unreachable,
)
from infra.redaction import redact
from infra.sections import (
    BoardSection,
    FolderBoardSection,
    GitHubBoardSection,
    GitHubForgeSection,
    Level,
    ModelSection,
    RepositorySection,
)
from infra.settings import Settings

LOOK_SECONDS = 10.0
SLOW_SECONDS = 120.0
"""For what starts a server or reads the weights the first time."""
ANSWER_SECONDS = 8.0
"""Longest wait for one answer, so that a look can still say what did not answer."""
CLOCK_SECONDS = 30.0
"""Leases and signatures of webhooks stand a smaller difference between machines."""
FREE_BYTES_WANTED = 4 << 30
"""The weights twice while they are put together, the database, and room for worktrees."""


class Check(NamedTuple):
    """One line. `exit_code` is 0 when it is fine, 2 when a person has to change something, 3 for the machine's faults."""

    name: str
    message: str
    exit_code: int

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


class _Look(NamedTuple):
    """One thing to look at. `see` returns a line for people or raises a FactoryError."""

    name: str
    see: Callable[[], str]
    seconds: float = LOOK_SECONDS


def examine(settings: Settings) -> list[Check]:
    """Look at everything at once, whatever fails. Starts the embedded database, downloads nothing, writes no message.

    One that does not end in time is a fault of its own and is left behind: it ends with the process.
    """
    looks = list(_looks(settings))
    found: dict[str, Check] = {}
    threads = [threading.Thread(target=_note, args=(look, found), daemon=True) for look in looks]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for look, thread in zip(looks, threads, strict=True):
        thread.join(max(0.0, began + look.seconds - time.monotonic()))
    return [
        found.get(look.name) or _unseen(look, thread.is_alive()) for look, thread in zip(looks, threads, strict=True)
    ]


def _looks(settings: Settings) -> Iterator[_Look]:
    for name, see in (("python", _python), ("git", _git), ("settings", _settings_file), ("sandbox", _sandbox),
                      ("disk", _disk), ("clock", _clock)):  # fmt: skip
        yield _Look(name, partial(see, settings))
    if (settings.root / "environment").exists():
        yield _Look("environment file", partial(_environment_file, settings))
    yield _Look("database", partial(_database, settings), SLOW_SECONDS)
    yield _Look("prefect", partial(_prefect, settings))
    for level in get_args(Level):
        for name, section in settings.of_level(level).items():
            seconds = SLOW_SECONDS if section.model == "embedded" else LOOK_SECONDS
            yield _Look(_model_name(settings, name), partial(_model, settings, section), seconds)
    for name, board in settings.all_boards.items():
        yield _Look(f"board {name}", partial(_board, name, board))
    yield _Look("webhooks", partial(_webhooks, settings))
    if not settings.repositories:
        yield _Look("repositories", lambda: "none configured; pass --repo PATH or name one in the ticket")
    for name, known in settings.repositories.items():
        yield _Look(f"repository {name}", partial(_repository, name, known), 2 * LOOK_SECONDS)
        if known.github:
            yield _Look(f"pull requests of {name}", partial(_forge, name, known.github))
    for name, address in _sinks(settings).items():
        yield _Look(f"notify {name}", partial(_sink, name, address))


def _note(look: _Look, found: dict[str, Check]) -> None:
    try:
        found[look.name] = Check(look.name, redact(look.see()), 0)
    except FactoryError as error:
        person = isinstance(
            error, AuthFailed | QuotaExhausted
        )  # in a run it is the provider's fault; here, ours to mend
        found[look.name] = Check(look.name, redact(str(error)), ConfigError.exit_code if person else error.exit_code)


def _unseen(look: _Look, hangs: bool) -> Check:
    if hangs:
        return Check(look.name, f"no answer within {look.seconds:g} s; try again, then look at the other side", 3)
    return Check(look.name, "this check ended with a bug of the factory; the trace is above", 3)


def exit_code(checks: list[Check]) -> int:
    """2 when a person has to act on any, else 3 when the machine has a fault, else 0."""
    codes = {check.exit_code for check in checks}
    return next((code for code in (ConfigError.exit_code, InfraError.exit_code) if code in codes), 0)


def _python(_settings: Settings) -> str:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        raise ConfigError(
            f"Python {platform.python_version()} is not supported; use 3.11 to 3.13 and run `make demo` again"
        )
    return f"{platform.python_version()} at {sys.executable}"


def _git(_settings: Settings) -> str:
    found = shutil.which("git")
    if found is None:
        raise ConfigError("git is not installed; install the package git")
    plain = {"PATH": os.defpath, "GIT_CONFIG_GLOBAL": os.devnull}
    said = subprocess.run([found, "--version"], env=plain, capture_output=True, text=True, timeout=10, check=False)
    return f"{said.stdout.strip()} at {found}"


def _settings_file(_settings: Settings) -> str:
    from infra.reloading import literal_secrets
    from infra.settings import config_path, load_settings, read_settings_file

    path = config_path()
    warnings = literal_secrets(load_settings(), read_settings_file(path))
    told = "".join(f"; WARNING: {warning}" for warning in warnings)
    return f"{path}{told}" if path else "no factory.yaml, so defaults and environment; `darkfactory init` writes one"


def _environment_file(settings: Settings) -> str:
    """What the service units read (docs/nodes.md); it holds the secrets."""
    path = settings.root / "environment"
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"others may read {str(path)!r}, which holds secrets; run `chmod 600 {path}`")
    return f"{path}, readable by its owner only"


def _sandbox(settings: Settings) -> str:
    from infra.sandbox import open_sandbox

    open_sandbox(settings)
    if settings.sandbox == "none":
        return "NONE, by `sandbox: none`: commands of tickets and repositories run as you, with your files and network"
    if settings.sandbox != "bubblewrap":
        return f"{settings.sandbox} isolates commands, in {settings.sandbox_image}"
    return f"bubblewrap at {shutil.which('bwrap')} isolates commands"


def _disk(settings: Settings) -> str:
    place = settings.root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < FREE_BYTES_WANTED:
        raise DiskFull(
            f"{free / 1e9:.1f} GB are free for {settings.root}; free {FREE_BYTES_WANTED / 1e9:.1f} GB or set `home`"
        )
    return f"{free / 1e9:.0f} GB free for {settings.root}"


def _database(settings: Settings) -> str:
    from infra.database import open_database
    from infra.ledger import Ledger

    with open_database(settings) as database:
        known = sum(len(Ledger(database, board).overview(10_000)) for board in settings.all_boards)
    return (
        f"{'database_url' if settings.database_url else 'embedded PostgreSQL'} answers, {known} ticket(s) in the ledger"
    )


def _clock(settings: Settings) -> str:
    """Against the date that a service states; without one there is nothing to compare with."""
    for address in _addresses(settings)[:2]:
        try:
            answered = httpx.head(_origin(address), timeout=ANSWER_SECONDS / 2)
        except httpx.HTTPError:
            continue
        if "date" in answered.headers:
            return _compared(parsedate_to_datetime(answered.headers["date"]).timestamp(), urlsplit(address).netloc)
    return f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, compared with nobody"


def _compared(theirs: float, host: str) -> str:
    ahead = time.time() - theirs
    if abs(ahead) > CLOCK_SECONDS:
        word = "ahead of" if ahead > 0 else "behind"
        raise InfraError(f"this clock is {abs(ahead):.0f} s {word} that of {host}; let it be set by NTP")
    return f"agrees with {host}"


def _addresses(settings: Settings) -> list[str]:
    """Every service that is configured by address, each once."""
    boards = [board.url for board in settings.all_boards.values() if not isinstance(board, FolderBoardSection)]
    forges = [known.github.url for known in settings.repositories.values() if known.github]
    models = [each.url for level in get_args(Level) for each in settings.of_level(level).values() if each.url]
    return [each for each in dict.fromkeys([*models, *boards, *forges]) if urlsplit(each).scheme in ("http", "https")]


def _prefect(settings: Settings) -> str:
    from deployments.engine import is_healthy, read_record

    record = read_record(settings.root)
    named = os.environ.get("PREFECT_API_URL")
    if record is None or not record.up.alive:
        if named and not is_healthy(named):
            raise InfraError(f"PREFECT_API_URL is {named!r}, which does not answer; correct or unset it")
        if named:
            return f"the server at {named} answers"
        return "no server is up; each run starts its own (`darkfactory up` starts one with pages and a worker)"
    if not is_healthy(record.api_url):
        raise InfraError(
            f"the server at {record.api_url} does not answer; run `darkfactory down`, then `darkfactory up`"
        )
    return f"up at {record.ui_url}"


def _model_name(settings: Settings, name: str) -> str:
    return f"model {name}" if settings.models else {"model": "model", "strong": "strong model"}[name]


def _model(settings: Settings, section: ModelSection) -> str:
    from infra.llm.opening import open_model, plain_settings
    from infra.llm.weights import EMBEDDED, verify_weights

    settings = plain_settings(settings, section)
    if settings.model != "embedded":
        bounded = min(settings.model_timeout_seconds, ANSWER_SECONDS)
        return asyncio.run(open_model(settings.model_copy(update={"model_timeout_seconds": bounded})).check())
    folder = settings.root / "weights"
    if settings.weights_path:
        return f"embedded, verified weights at {verify_weights(settings.weights_path.expanduser(), folder)}"
    weights = folder / EMBEDDED.file_name
    return (
        f"embedded, weights at {weights}" if weights.exists() else "embedded; the first run downloads 1.1 GB of weights"
    )


def _board(name: str, section: BoardSection) -> str:
    from infra.boards.opening import open_section

    if isinstance(section, FolderBoardSection) and not section.path.expanduser().is_dir():
        return f"{section.path} does not exist yet; put Markdown tickets there or pass a .md file to `darkfactory run`"
    queue = list(section.states.queue)
    waiting = open_section(name, section).tickets_in_states(queue)
    if isinstance(section, GitHubBoardSection):
        rights = _rights(f"boards.{name}", section)
        if rights is not None and not rights & {"push", "triage"}:
            raise ConfigError(
                f"the token may read the issues of {section.project!r}, but not label them; give it write access to issues"
            )
    return f"{section.kind}, {len(waiting)} ticket(s) in {', '.join(map(repr, queue))}"


def _webhooks(settings: Settings) -> str:
    """Whether `up` can listen, and which boards have to wait for the next tick because nobody may announce their tickets."""
    from deployments.engine import read_record
    from deployments.gateway import listen

    where, record = settings.webhooks, read_record(settings.root)
    address = f"{where.host}:{where.port}"
    if record is not None and record.up.alive:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(where.host, where.host)  # noqa: S104  where it listens
        _asked(f"http://{host}:{where.port}/health")
    else:
        listen(where.host, where.port).close()
    kinds = dict.fromkeys(b.kind for b in settings.all_boards.values() if not isinstance(b, FolderBoardSection))
    silent = [f"`webhooks.{kind}_secret`" for kind in kinds if not getattr(where, f"{kind}_secret")]
    polled = f"; without {', '.join(silent)}, boards are read every {settings.dispatch.every_seconds:.0f} s only"
    return f"received at {address}{polled if silent else ''}"


def _repository(name: str, known: RepositorySection) -> str:
    from infra.remotes import count_branches, remote_of, token_of

    try:
        branches = count_branches(str(known.path.expanduser()), ANSWER_SECONDS)
        if not branches:
            raise ConfigError("the repository has no branch with a commit; commit something")
    except ConfigError as error:
        raise ConfigError(f"{error} (`repositories.{name}.path` in factory.yaml)") from None
    remote = remote_of(known)
    if remote is None:
        return f"{branches} branch(es) at {known.path}; branches are pushed to a repository in home"
    try:
        count_branches(remote, ANSWER_SECONDS, token_of(known))
    except FactoryError as error:
        raise type(error)(f"{error} (`repositories.{name}.remote` in factory.yaml)") from None
    return f"{branches} branch(es) at {known.path}; its remote answers"


def _forge(name: str, forge: GitHubForgeSection) -> str:
    rights = _rights(f"repositories.{name}.github", forge)
    if rights is None:
        return f"the token sees {forge.project}; whether it may push, GitHub does not say about the tokens of apps"
    if "push" in rights:
        return f"the token may push to {forge.project}"
    raise ConfigError(
        f"the token may not push to {forge.project!r}; give it write access to contents and pull requests"
    )


def _rights(place: str, forge: GitHubForgeSection | GitHubBoardSection) -> set[str] | None:
    """What the token may do in the project: GitHub says so in one free request. None for the token of an app: what GitHub
    shows are the rights of a user, which an app is not."""
    headers = {"authorization": f"Bearer {forge.token.get_secret_value()}", "accept": "application/vnd.github+json"}
    answer = _asked(f"{forge.url.rstrip('/')}/repos/{forge.project}", headers)
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise AuthFailed(f"GitHub refuses the token; renew the variable that `{place}.token` names")
    if answer.headers.get("x-ratelimit-remaining") == "0" or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        raise RateLimited("GitHub's rate limit is used up; wait, and use a token of the factory's own")
    if answer.status_code in (httpx.codes.NOT_FOUND, httpx.codes.FORBIDDEN):
        raise ConfigError(f"there is no {forge.project!r}, or the token may not see it; correct `{place}`")
    if answer.status_code != httpx.codes.OK:
        raise UnexpectedStatus(f"{forge.url} answers {answer.status_code}; try again, or correct `{place}.url`")
    if forge.token.get_secret_value().startswith("ghs_"):
        return None
    try:
        return {right for right, has in answer.json()["permissions"].items() if has}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()


def _sinks(settings: Settings) -> dict[str, str]:
    slack, webhook = settings.notify.slack_webhook, settings.notify.webhook
    named = {"slack": slack.get_secret_value() if slack else None, "webhook": webhook}
    return {name: address for name, address in named.items() if address}


def _sink(name: str, address: str) -> str:
    """Syntax, and whether the host answers at all. Asks for the host's front page: the address may be a secret."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"`notify.{name}` is no http address; write https://HOST/PATH")
    status = _asked(_origin(address)).status_code
    return f"{parts.hostname} answers ({status}); no message was sent"


def _asked(address: str, headers: dict[str, str] | None = None) -> httpx.Response:
    host = urlsplit(address).netloc.rpartition("@")[2]
    try:
        return httpx.get(address, headers=headers, timeout=ANSWER_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable(f"{host} cannot be reached: {type(error).__name__}; check address and network") from None


def _origin(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/"
