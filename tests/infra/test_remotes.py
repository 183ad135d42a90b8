"""Remotes over http and ssh with real git: a token reaches its own host and nothing else, and refusals say what to mend."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from infra.errors import AuthFailed, ConfigError, FactoryError, Unreachable
from infra.git import Mirror, Remote
from infra.remotes import count_branches, github_project, origin_of, remote_of, token_of
from infra.sandbox import Limits, Unsandboxed
from infra.sections import GitHubForgeSection, RepositorySection
from tests.shop import git, make_repository

TOKEN = "ghp_0123456789abcdefghijklmnopqrstuvwxyz"
BASIC = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
SECRET = SecretStr(TOKEN)
BACKEND = Path(subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True).stdout.strip())
needs_backend = pytest.mark.skipif(not (BACKEND / "git-http-backend").exists(), reason="git has no http-backend")


@dataclass
class GitHost:
    """What a test sets and sees of the server below."""

    root: Path
    url: str = ""
    redirect_to: str | None = None
    repeats: str = ""
    """Words that go before the header in the body of every answer, which is a refusal then."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Authorization of every request."""
    holders: set[str] = field(default_factory=set)
    """Names of the processes with the token in their environment while a request was answered."""
    shown: list[str] = field(default_factory=list)
    """Command lines with the token in them, at such a time."""


class _Handler(BaseHTTPRequestHandler):
    """`git http-backend` behind the one right Authorization header."""

    host: GitHost

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        given = self.headers.get("authorization")
        self.host.asked.append((self.path, given))
        _look_around(self.host)
        if self.host.redirect_to:
            self._refuse(302, b"", Location=self.host.redirect_to + self.path)
        elif self.host.repeats:
            self._refuse(403, f"{self.host.repeats} {given} {TOKEN}".encode())
        elif given != f"Basic {BASIC}":
            self._refuse(401, b"", **{"WWW-Authenticate": 'Basic realm="git"'})
        else:
            self._answer()

    def do_POST(self) -> None:
        self.do_GET()

    def _refuse(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "text/plain", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        environment = {
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(self.host.root), "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command, "REMOTE_USER": "someone",
            "CONTENT_TYPE": self.headers.get("content-type", ""), "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": self.headers.get("git-protocol", ""), "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
        }  # fmt: skip
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _look_around(host: GitHost) -> None:
    """Who holds the token right now. This process and its threads do, and may."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            name = (entry / "comm").read_text().strip()
        except OSError:
            continue
        if TOKEN.encode() in line or BASIC.encode() in line:
            host.shown.append(line.decode(errors="replace"))
        if int(entry.name) != os.getpid() and (TOKEN.encode() in environment or BASIC.encode() in environment):
            host.holders.add(name)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[], GitHost]]:
    """Starts servers of the bare repositories below `tmp_path/served` on ports of their own."""
    servers: list[ThreadingHTTPServer] = []

    def started() -> GitHost:
        host = GitHost(root=tmp_path / "served")
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"host": host}))
        servers.append(server)
        host.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return host

    yield started
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A person's checkout, and its copy `acme/shop.git` on the server."""
    made = make_repository(tmp_path / "shop")
    git(tmp_path, "clone", "--quiet", "--bare", str(made), "served/acme/shop.git")
    return made


@pytest.fixture
def host(serve: Callable[[], GitHost], source: Path) -> GitHost:
    return serve()


def opened(tmp_path: Path, source: Path | str, token: SecretStr | None = SECRET) -> Mirror:
    return Mirror.open(tmp_path / "mirrors", "shop", str(source), token)


async def committed(mirror: Mirror, tmp_path: Path, text: str = "new\n") -> str:
    with mirror.worktree(tmp_path / "trees", "T-1", "c", mirror.base(None)[1]) as tree:
        tree.write("new.txt", text)
        return await tree.commit(Unsandboxed(Limits()), "new")


def refusal(expected: type[FactoryError], act: Callable[[], Any]) -> str:
    """The message of the error, which holds no token in any form."""
    with pytest.raises(expected) as caught:
        act()
    told = f"{caught.value!r} {caught.value.__context__!r} {vars(caught.value.__context__ or caught.value)}"
    assert TOKEN not in told
    assert BASIC not in told
    return str(caught.value)


# With a token


@needs_backend
async def test_a_token_fetches_and_pushes_and_is_nowhere_but_in_git(
    host: GitHost, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """WS7: not in an argument list, a file, a log, or a process other than git's own."""
    caplog.set_level(0)
    address = f"{host.url}/acme/shop.git"
    mirror = opened(tmp_path, address)
    assert mirror.base(None)[0] == "main"
    for text in ("one\n", "two\n"):  # the second one looks at the first before it replaces it
        head = await committed(mirror, tmp_path, text)
        mirror.push(address, "agent/T-1", head)
        assert git(host.root / "acme/shop.git", "rev-parse", "agent/T-1").strip() == head
    assert count_branches(address, 30, SECRET) == 2
    assert {given for _, given in host.asked} == {f"Basic {BASIC}"}
    assert host.shown == []
    assert host.holders
    assert all(name.startswith("git") for name in host.holders)
    kept = b"".join(f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())
    assert TOKEN.encode() not in kept
    assert BASIC.encode() not in kept
    assert BASIC not in caplog.text


async def test_git_that_does_not_talk_to_the_host_knows_nothing_of_the_token(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WS7: also when both sides are folders, with commits and reads in between."""
    shim, log = tmp_path / "bin/git", tmp_path / "environments"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\necho "$@" >> {log}\nenv >> {log}\nexec {shutil.which("git")} "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/agent")
    mirror = opened(tmp_path, source)
    mirror.push(str(tmp_path / "served/acme/shop.git"), "agent/T-1", await committed(mirror, tmp_path))
    text = log.read_text()
    assert "push" in text
    assert "ls-remote" in text
    for word in (TOKEN, BASIC, "extraHeader", "SSH_AUTH_SOCK", "GIT_CONFIG_COUNT"):
        assert word not in text


@needs_backend
async def test_a_wrong_token_is_named_with_what_to_mend(host: GitHost, source: Path, tmp_path: Path) -> None:
    address = f"{host.url}/acme/shop.git"
    wrong = SecretStr("ghp_wrongwrongwrongwrong")
    mirror = opened(tmp_path, source, wrong)
    head = await committed(mirror, tmp_path)
    for act in (
        lambda: opened(tmp_path, address, wrong),
        lambda: mirror.push(address, "agent/T-1", head),
        lambda: count_branches(address, 30, wrong),
    ):
        said = refusal(AuthFailed, act)
        assert address in said
        assert "renew its `github.token`" in said
        assert "ghp_wrong" not in said
    assert "set `github: {project, token}`" in refusal(AuthFailed, lambda: opened(tmp_path, address, None))


@needs_backend
async def test_what_is_not_there_is_not_taken_for_what_does_not_answer(
    host: GitHost, source: Path, tmp_path: Path
) -> None:
    mirror = opened(tmp_path, source)
    head = await committed(mirror, tmp_path)
    gone = f"{host.url}/acme/gone.git"
    assert gone in refusal(ConfigError, lambda: mirror.push(gone, "agent/T-1", head))
    assert gone in refusal(ConfigError, lambda: opened(tmp_path, gone))
    down = "http://127.0.0.1:1/acme/shop.git"
    assert down in refusal(Unreachable, lambda: mirror.push(down, "agent/T-1", head))
    assert down in refusal(Unreachable, lambda: opened(tmp_path, down))


@needs_backend
@pytest.mark.parametrize("words", ["you sent", "fatal: Authentication failed, not found, rejected:"])
def test_a_server_that_repeats_the_token_does_not_get_it_into_the_message(
    host: GitHost, tmp_path: Path, words: str
) -> None:
    """WS7."""
    host.repeats = words
    said = refusal(AuthFailed, lambda: opened(tmp_path, f"{host.url}/acme/shop.git"))
    assert f"{words} Basic *** ***" in said


@needs_backend
def test_a_redirect_does_not_carry_the_token_away(serve: Callable[[], GitHost], host: GitHost, tmp_path: Path) -> None:
    """WS7: a fetch that followed it would hand the header to the next port with its second request."""
    other = serve()
    host.redirect_to = other.url
    said = refusal(ConfigError, lambda: opened(tmp_path, f"{host.url}/acme/shop.git"))
    assert "set `remote` to its new address" in said
    assert other.asked == []


def test_a_token_does_not_go_over_the_network_in_the_clear(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="https address") as caught:
        opened(tmp_path, "http://ann:hidden@forge.example/acme/shop.git")
    assert "hidden" not in str(caught.value)
    assert Remote.checked("http://forge.example/acme/shop.git").environment() == {}


@pytest.mark.parametrize(
    ("address", "scope"),
    [
        ("https://github.com/acme/shop.git", "https://github.com/"),
        ("https://ann@forge.example:8443/git/shop", "https://forge.example:8443/"),
        ("https://forge.example/a@b/shop", "https://forge.example/"),
    ],
)
def test_the_header_is_for_the_host_of_the_address_only(address: str, scope: str) -> None:
    environment = Remote.checked(address, SECRET).environment()
    assert environment["GIT_CONFIG_KEY_0"] == f"http.{scope}.extraHeader"
    for other in ("https://github.com.evil.example/", "https://evil.example/", "https://forge.example:1/", scope):
        done = subprocess.run(
            ["git", "config", "--get-urlmatch", "http.extraHeader", f"{other}acme/shop.git"],
            env={"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/nonexistent", **environment},
            capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
        assert (BASIC in done.stdout) == (other == scope)


# Over ssh


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program `ssh` that writes down how it was called and runs the command here, or fails with the words in `says`."""
    program = tmp_path / "bin/ssh"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\n{{ echo "called $*"; env; }} >> {tmp_path}/calls\n'
        f"[ -e {tmp_path}/says ] && {{ cat {tmp_path}/says >&2; exit 255; }}\n"
        'for last; do :; done\nexec sh -c "$last"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    monkeypatch.setenv("OTHER_TOKEN", TOKEN)
    return tmp_path


@pytest.mark.parametrize("form", ["ssh://git@forge.example{path}", "git@forge.example:{path}"])
async def test_ssh_gets_the_agent_and_asks_nobody(ssh: Path, source: Path, form: str, tmp_path: Path) -> None:
    address = form.format(path=tmp_path / "served/acme/shop.git")
    mirror = opened(tmp_path, address)
    head = await committed(mirror, tmp_path)
    mirror.push(address, "agent/T-1", head)
    assert git(tmp_path / "served/acme/shop.git", "rev-parse", "agent/T-1").strip() == head
    calls = (ssh / "calls").read_text()
    assert calls.count("called -o BatchMode=yes") == calls.count("called ") == 4
    assert calls.count(f"SSH_AUTH_SOCK={tmp_path}/agent\n") == 4
    assert TOKEN not in calls
    assert BASIC not in calls


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ("git@forge.example: Permission denied (publickey).", AuthFailed, "`ssh-add` the key"),
        ("Host key verification failed.", ConfigError, "does not know the host"),
        ("ssh: connect to host forge.example port 22: Connection refused", Unreachable, "cannot be reached"),
        ("ERROR: Repository not found.", ConfigError, "cannot be used as it is set"),
    ],
)
def test_what_ssh_says_decides_what_to_do(
    ssh: Path, tmp_path: Path, said: str, error: type[FactoryError], words: str
) -> None:
    (ssh / "says").write_text(f"{said}\n")
    message = refusal(error, lambda: opened(tmp_path, "git@forge.example:acme/shop.git"))
    assert words in message
    assert "'git@forge.example:acme/shop.git'" in message


# Where repositories are


def forge(url: str = "https://api.github.com") -> GitHubForgeSection:
    return GitHubForgeSection(project="acme/shop", token=SECRET, url=url)


@pytest.mark.parametrize(
    ("section", "remote"),
    [
        (RepositorySection(path=Path("/x")), None),
        (RepositorySection(path=Path("/x"), github=forge()), "https://github.com/acme/shop.git"),
        (RepositorySection(path=Path("/x"), github=forge(), remote="git@github.com:a/b"), "git@github.com:a/b"),
        (
            RepositorySection(path=Path("/x"), github=forge("https://git.acme.example/api/v3")),
            "https://git.acme.example/acme/shop.git",
        ),
    ],
)
def test_a_project_on_github_is_its_own_remote(section: RepositorySection, remote: str | None) -> None:
    assert remote_of(section) == remote
    assert token_of(section) == (SECRET if section.github else None)
    assert token_of(None) is None


def test_where_a_checkout_came_from_is_told_without_its_password(source: Path) -> None:
    assert origin_of(source) is None
    git(source, "remote", "add", "origin", "https://ann:hidden@github.com/acme/shop.git")
    assert origin_of(source) == "https://github.com/acme/shop.git"
    assert github_project("https://github.com/acme/shop.git") == "acme/shop"
    assert github_project("https://github.com.evil.example/acme/shop") is None


def test_branches_of_a_folder_are_counted(source: Path, tmp_path: Path) -> None:
    git(source, "branch", "side")
    assert count_branches(str(source), 30) == 2
    with pytest.raises(ConfigError, match="no folder"):
        count_branches(str(tmp_path / "nowhere"), 30)
