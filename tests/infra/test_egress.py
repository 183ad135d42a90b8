"""A command reaches what its egress names and nothing else. Real HTTP servers, real bubblewrap, hostile clients."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from infra.egress import Egress, Gateway, Upstream, may_answer_for
from infra.errors import ConfigError
from infra.sandbox import HOME, Bind, Bubblewrap, CommandResult, Limits, Unsandboxed

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

KEY = "sk-upstream-hunter2-hunter2"
BOX = Bubblewrap(Limits(timeout_seconds=20))
ASK = """
import http.client, json, os, sys, urllib.parse
base = urllib.parse.urlsplit(os.environ["BASE"])
def ask(path, method="GET", body=None, headers={}):
    inside = http.client.HTTPConnection(base.hostname, base.port, timeout=10)
    inside.request(method, base.path + path, body=body, headers=headers)
    return inside.getresponse()
def proxied(host, port, path="/echo"):
    tunnel = http.client.HTTPConnection(base.hostname, base.port, timeout=10)
    tunnel.set_tunnel(host, port)
    tunnel.request("GET", path)
    return tunnel.getresponse()
"""


class Service:
    """An HTTP server that tells what it was asked. `/events` goes on only after `/more` came: no chunk waits for the next."""

    def __init__(self) -> None:
        service, self.requests, self.more = self, list[dict[str, Any]](), threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                service.answer(self)

            def do_POST(self) -> None:
                service.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        route = handler.path.partition("?")[0].rpartition("/")[2]
        if route == "events":
            return self._events(handler)
        if route == "cut":
            return self._cut(handler)
        if route == "more":
            self.more.set()
        body = self._body(handler)
        seen = {"path": handler.path, "headers": {k.lower(): v for k, v in handler.headers.items()}, "bytes": len(body)}
        self.requests.append(seen)
        content = json.dumps(seen).encode()
        handler.send_response(302 if route == "elsewhere" else 200)
        if route == "elsewhere":
            handler.send_header("Location", "http://169.254.169.254/latest")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
        return None

    def _body(self, handler: BaseHTTPRequestHandler) -> bytes:
        if handler.headers.get("Transfer-Encoding") != "chunked":
            return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        body = b""
        while size := int(handler.rfile.readline(), 16):
            body += handler.rfile.read(size)
            handler.rfile.readline()
        handler.rfile.readline()
        return body

    def _events(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for number in range(3):
            handler.wfile.write(b"%x\r\ndata: %d\n\n\r\n" % (len(b"data: 0\n\n"), number))
            if not self.more.wait(5):
                break
            self.more.clear()
        handler.wfile.write(b"0\r\n\r\n")

    def _cut(self, handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
        handler.close_connection = True


@contextmanager
def running(service: Service) -> Iterator[Service]:
    thread = threading.Thread(target=service.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.server.shutdown()
        service.server.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    with running(Service()) as one:
        yield one


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    path = tmp_path / "worktree"
    path.mkdir()
    return path


def to(service: Service, *hosts: str, **headers: str) -> Egress:
    given = {"x-api-key": SecretStr(KEY), **{name: SecretStr(value) for name, value in headers.items()}}
    return Egress(hosts=hosts, upstreams={"model": Upstream(url=f"{service.url}/v1", headers=given)})


@pytest.fixture
def inside(worktree: Path) -> Callable[..., Any]:
    async def run(program: str, egress: Egress, box: Any = BOX, **options: Any) -> CommandResult:
        script = ASK + textwrap.dedent(program)
        environment = {"BASE": "{gateway}", **options.pop("environment", {})}
        result = await box.run(
            ["python", "-c", script], worktree=worktree, egress=egress, environment=environment, **options
        )
        assert isinstance(result, CommandResult)
        return result

    return run


@pytest.mark.parametrize("box", [BOX, Unsandboxed(Limits())], ids=lambda b: str(b.name))
async def test_the_gateway_adds_the_key_and_hands_the_rest_on(box: Any, inside: Any, service: Service) -> None:
    """WS7: the key is added outside."""
    program = """
    own = {"Authorization": "Bearer own", "X-Api-Key": "own", "Cookie": "own", "X-Thing": "kept", "Connection": "x-hop", "X-Hop": "1"}
    answer = ask("/model/messages?beta=true", "POST", b"x" * 5_000_000, own)
    print(answer.status, answer.read().decode())
    """
    result = await inside(program, to(service), box)
    assert result.exit_code == 0, result.output
    (request,) = service.requests
    assert (request["path"], request["bytes"]) == ("/v1/messages?beta=true", 5_000_000)
    headers = request["headers"]
    assert headers["x-api-key"] == KEY
    assert headers["x-thing"] == "kept"
    assert headers["host"] == f"127.0.0.1:{service.port}"
    assert "own" not in headers.values()
    assert not {"x-hop", "cookie", "authorization", "accept-encoding, gzip"} & set(headers)
    assert result.refused == ()


async def test_events_come_through_one_by_one(inside: Any, service: Service) -> None:
    """The service sends the next event only when the one before it has arrived inside: a buffer anywhere would hang."""
    program = """
    stream = ask("/model/events")
    for _ in range(3):
        print(stream.readline().decode().strip(), flush=True)
        stream.readline()
        ask("/model/more").read()
    print("end", repr(stream.read()))
    """
    heard: list[bytes] = []
    result = await inside(program, to(service), on_output=heard.append)
    assert result.output == "data: 0\ndata: 1\ndata: 2\nend b''\n"
    assert b"".join(heard).decode() == result.output


async def test_a_chunked_body_and_a_client_that_waits_for_100_continue(inside: Any, service: Service) -> None:
    program = """
    print(ask("/model/a", "POST", iter([b"x" * 100_000] * 20)).status)
    import socket
    raw = socket.create_connection((base.hostname, base.port), 10)
    raw.sendall(b"POST /model/b HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 3\\r\\nExpect: 100-continue\\r\\n\\r\\n")
    print(raw.recv(100).split(b"\\r\\n")[0].decode())
    raw.sendall(b"abc")
    print(raw.recv(100).split(b"\\r\\n")[0].decode())
    """
    result = await inside(program, to(service))
    assert result.output.splitlines() == ["200", "HTTP/1.1 100 ", "HTTP/1.1 200 "], result.output
    assert [request["bytes"] for request in service.requests] == [2_000_000, 3]


async def test_one_connection_carries_many_requests(inside: Any, service: Service) -> None:
    program = """
    one = http.client.HTTPConnection(base.hostname, base.port, timeout=10)
    for number in range(20):
        one.request("POST" if number % 2 else "GET", f"/model/{number}", body=b"x" * number)
        assert json.loads(one.getresponse().read())["bytes"] == number
    """
    result = await inside(program, to(service))
    assert result.exit_code == 0, result.output
    assert len(service.requests) == 20


async def test_the_proxy_lets_listed_hosts_pass(inside: Any, service: Service) -> None:
    program = f"""
    answer = proxied("localhost", {service.port})
    print(answer.status, json.loads(answer.read())["path"])
    plain = http.client.HTTPConnection(base.hostname, base.port, timeout=10)
    plain.request("GET", "http://127.0.0.1:{service.port}/plain?a=b", headers={{"Host": "forged"}})
    seen = json.loads(plain.getresponse().read())
    print(seen["path"], seen["headers"]["host"], "x-api-key" in seen["headers"])
    """
    egress = to(service, f"localhost:{service.port}", f"127.0.0.1:{service.port}")
    result = await inside(program, egress)
    assert result.output.splitlines() == ["200 /echo", f"/plain?a=b 127.0.0.1:{service.port} False"], result.output
    assert result.refused == ()


async def test_nothing_else_is_reached_and_what_was_refused_is_told(inside: Any, service: Service) -> None:
    """WS7: a command that a prompt talked into it can neither reach another host nor this machine's services."""
    other = service.port - 1
    program = f"""
    import socket, urllib.request
    for host, port in [("evil.example", 443), ("169.254.169.254", 80), ("127.0.0.1", {service.port}),
                       ("localhost", {other}), ("listed.example.evil.org", 443), ("2130706433", {service.port})]:
        try:
            proxied(host, port)
        except OSError as error:
            print(error)
    for address in [("127.0.0.1", {service.port}), ("1.1.1.1", 53), ("169.254.169.254", 80)]:
        try:
            socket.create_connection(address, 2)
            print("REACHED", address)
        except OSError:
            pass
    try:
        urllib.request.urlopen("http://evil.example/secret", timeout=5)
    except OSError as error:
        print(error.code)
    """
    result = await inside(program, to(service, "listed.example:443", "*.example.org:443", f"localhost:{service.port}"))
    assert "REACHED" not in result.output
    assert result.output.count("403") == 7, result.output
    assert result.refused == (
        "evil.example:443",
        "169.254.169.254:80",
        f"127.0.0.1:{service.port}",
        f"localhost:{other}",
        "listed.example.evil.org:443",
        f"2130706433:{service.port}",
        "evil.example:80",
    )
    assert service.requests == []


@pytest.mark.parametrize(
    ("address", "entry", "allowed"),
    [
        ("93.184.216.34", "api.example", True),
        ("10.0.0.5", "models.lan", True),
        ("127.0.0.1", "api.example", False),
        ("169.254.169.254", "metadata.example", False),
        ("0.0.0.0", "api.example", False),
        ("::1", "api.example", False),
        ("fe80::1", "api.example", False),
        ("10.0.0.5", "*.example", False),
        ("100.100.100.200", "*.example", False),
        ("fd00:ec2::254", "*.example", False),
        ("93.184.216.34", "*.example", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "localhost", True),
        ("::1", "[::1]", True),
        ("169.254.169.254", "169.254.169.254", True),
    ],
)
def test_a_name_must_not_lead_to_this_machine_or_the_metadata_unless_it_is_listed_as_such(
    address: str, entry: str, allowed: bool
) -> None:
    assert may_answer_for(ip_address(address), entry) is allowed


async def test_a_name_that_resolves_to_this_machine_is_refused(inside: Any, service: Service) -> None:
    name = next((n for n in ("ip6-localhost", "ip6-loopback", socket.gethostname()) if _is_here(n)), None)
    if name is None:
        pytest.skip("no other name of this machine resolves to its loopback address")
    result = await inside(f"print(proxied({name!r}, {service.port}).status)", to(service, f"{name}:{service.port}"))
    assert result.refused == (f"{name}:{service.port}",)


def _is_here(name: str) -> bool:
    try:
        return all(ip_address(str(found[4][0])).is_loopback for found in socket.getaddrinfo(name, None))
    except OSError:
        return False


async def test_the_key_is_nowhere_inside(inside: Any, service: Service) -> None:
    """WS7: not in the environment, arguments or open files of any process there, nor in any other file."""
    program = """
    import glob
    ask("/model/x").read()
    word, seen = b"hunt" + b"er2-", b""
    def read(path):
        try:
            return os.read(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 1 << 20)
        except OSError:
            return b""
    for name in ("environ", "cmdline", "fd/*"):
        seen += b"".join(read(path) for path in glob.glob(f"/proc/[0-9]*/{name}"))
    for folder, below, names in os.walk("/"):
        below[:] = [one for one in below if os.path.join(folder, one) not in {"/proc", "/usr", sys.prefix, sys.base_prefix}]
        seen += b"".join(read(os.path.join(folder, name)) for name in names[:1000])
    print(len(seen) > 1000, b"BASE=http" in seen, word in seen)
    """
    result = await inside(program, to(service))
    assert service.requests[0]["headers"]["x-api-key"] == KEY
    assert result.output == "True True False\n"


async def test_a_model_cannot_lead_the_gateway_astray(inside: Any, service: Service) -> None:
    program = """
    import socket
    for path in ("/model/../admin", "/model/%2e%2e/admin", "/model/a/%252e%252e/%252e%252e/admin", "/model/..%5cadmin",
                 "/other/x", "/", "/model/elsewhere"):
        print(ask(path).status, end=" ")
    for text in (b"nonsense\\r\\n\\r\\n", b"GET / HTTP/1.1\\r\\n" + b"a: b\\r\\n" * 20_000, b"GET ftp://x/ HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n",
                 b"GET http://[ HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n", b"CONNECT nowhere HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n",
                 b"POST /model/x HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 5\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n"):
        raw = socket.create_connection((base.hostname, base.port), 10)
        raw.sendall(text)
        raw.close()
    print(ask("/model/alive").status)
    """
    result = await inside(program, to(service))
    assert result.output == "400 400 400 400 404 404 302 200\n", result.output
    assert all("admin" not in request["path"] for request in service.requests)


async def test_hundreds_of_connections_get_no_more_than_their_share_of_descriptors(
    inside: Any, service: Service
) -> None:
    program = """
    held = [http.client.HTTPConnection(base.hostname, base.port, timeout=10) for _ in range(300)]
    answered = 0
    for one in held:
        try:
            one.request("GET", "/model/x")
            answered += one.getresponse().status == 200
        except OSError:
            pass
    for one in held:
        one.close()
    print(answered)
    for _ in range(50):
        try:
            print(ask("/model/alive").status)
            break
        except OSError:
            pass
    """
    assert (await inside(program, to(service))).output == "128\n200\n"


async def test_a_failing_upstream_is_told_without_its_key(inside: Any, service: Service) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    program = """
    for name in ("gone", "broken"):
        answer = ask(f"/{name}/x")
        print(answer.status, answer.read().decode().strip())
    try:
        ask("/model/cut").read()
    except http.client.IncompleteRead as error:
        print("cut after", len(error.partial))
    """
    broken = {"authorization": SecretStr(f"{KEY}\nx")}
    upstreams = {
        "gone": Upstream(url=nobody),
        "broken": Upstream(url=service.url, headers=broken),
        **to(service).upstreams,
    }
    result = await inside(program, Egress(upstreams=upstreams))
    gone, bad, cut = result.output.splitlines()
    assert gone.startswith("502 ")
    assert bad.startswith("502 ")
    assert cut == "cut after 4"
    assert "hunter2" not in result.output


async def test_the_command_is_the_one_it_would_be_without_a_gateway(worktree: Path, service: Service) -> None:
    """No process beside it, no descriptor, no ignored signal, no variable but the proxy's."""
    look = "grep -E '^Sig(Ign|Blk)' /proc/self/status; ls /proc/self/fd | wc -l; grep -la python /proc/[0-9]*/cmdline; env | sort | grep -vi proxy"
    plain = await BOX.run(look, worktree=worktree)
    with_one = await BOX.run(look, worktree=worktree, egress=to(service))
    assert with_one.output == plain.output
    proxies = await BOX.run("env | grep -i proxy | sort", worktree=worktree, egress=to(service))
    names = [line.partition("=")[0] for line in proxies.output.splitlines()]
    assert sorted(names) == sorted(["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"])


async def test_the_address_is_put_into_arguments_and_environment_only_with_a_gateway(
    worktree: Path, service: Service
) -> None:
    for command in ("echo {gateway} $A", ["/bin/sh", "-c", "echo {gateway} $A"]):
        with_one = await BOX.run(
            command, worktree=worktree, egress=to(service), environment={"A": "{gateway}/model"}, timeout_seconds=10
        )
        assert with_one.output == "http://127.0.0.1:27199 http://127.0.0.1:27199/model\n"
    assert (await BOX.run(["echo", "{gateway}"], worktree=worktree)).output == "{gateway}\n"


async def test_network_and_egress_exclude_each_other(worktree: Path) -> None:
    for box in (BOX, Unsandboxed(Limits())):
        with pytest.raises(ConfigError, match="egress"):
            await box.run("true", worktree=worktree, network=True, egress=Egress())


@pytest.mark.parametrize("host", ["", "example", "example:https", "*:443", "*example.org:443", "a b:1", "http://x:1"])
def test_a_host_that_cannot_be_meant_is_refused(host: str) -> None:
    with pytest.raises(ValidationError):
        Egress(hosts=(host,))


async def test_output_is_told_while_the_command_runs(worktree: Path) -> None:
    """The command ends only when its first output was heard, and everything is heard that the result leaves out."""
    heard = bytearray()

    def listen(data: bytes) -> None:
        heard.extend(data)
        (worktree / "heard").touch()

    box = Bubblewrap(Limits(timeout_seconds=20, output_bytes=1000))
    result = await box.run(
        "echo first; until [ -e heard ]; do sleep 0.01; done; seq 3000", worktree=worktree, on_output=listen
    )
    assert not result.timed_out
    assert heard.decode() == "first\n" + "".join(f"{number}\n" for number in range(1, 3001))
    assert len(result.output) <= 1000


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
async def test_a_whole_node_program_works_with_its_own_folder_and_its_state_at_home(
    worktree: Path, tmp_path: Path, service: Service
) -> None:
    """A2: what an agent is: a program outside /usr, its state in HOME, its model behind the gateway, tools of its own."""
    program, state = tmp_path / "agent", tmp_path / "state"
    program.mkdir()
    state.mkdir()
    (program / "cli.mjs").write_text("""
        import { execFileSync } from "node:child_process"
        import { appendFileSync } from "node:fs"
        const answer = await fetch(process.env.BASE_URL + "/v1/messages", { method: "POST", body: "{}" })
        appendFileSync(process.env.HOME + "/.agent/log", String(answer.status))
        execFileSync("sh", ["-c", "echo made > file"])
        console.log(JSON.stringify(await answer.json()).includes("hunter2"), process.cwd())
        try { await fetch("http://169.254.169.254/"); console.log("REACHED") } catch {}
    """)
    result = await BOX.run(
        ["node", "/opt/agent/cli.mjs"],
        worktree=worktree,
        environment={"BASE_URL": "{gateway}/model"},
        binds=[
            Bind(source=program, target="/opt/agent"),
            Bind(source=state, target=f"{HOME}/.agent", writable=True),
        ],
        egress=to(service),
    )
    assert result.output == "true /workspace\n"
    assert (state / "log").read_text() == "200"
    assert (worktree / "file").read_text() == "made\n"
    assert service.requests[0]["path"] == "/v1/v1/messages"


async def test_the_gateway_ends_with_its_command_even_in_the_middle_of_an_answer(inside: Any, service: Service) -> None:
    before, started = len(list(Path("/proc/self/fd").iterdir())), time.monotonic()
    result = await inside('ask("/model/events").readline(); os._exit(0)', to(service))
    assert result.exit_code == 0
    result = await inside(
        'ask("/model/events").readline(); import time; time.sleep(30)', to(service), timeout_seconds=1
    )
    assert result.timed_out
    assert time.monotonic() - started < 4  # the service would go on for longer
    service.more.set()
    for _ in range(100):
        if len(list(Path("/proc/self/fd").iterdir())) <= before:
            return
        service.more.set()
        await asyncio.sleep(0.05)
    raise AssertionError("descriptors are left open")


async def test_a_gateway_serves_whatever_socket_it_is_given_and_closes_it() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    async with Gateway(Egress()).serving(listener):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", port)
