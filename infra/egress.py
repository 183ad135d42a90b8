"""The one way out of a sandbox: an HTTP proxy with an allowlist, and a gateway that adds keys which never go inside.

Owns what may be asked for, who answers, and how a command in a network of its own gets there. The answering runs outside;
it does not know what a command is for.
"""

from __future__ import annotations

import asyncio
import re
import socket
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import h11
import httpx
from pydantic import Field, SecretStr

from infra.llm import Frozen
from infra.llm.calls import is_loopback, tls
from infra.sections import HostPort

GATEWAY = "{gateway}"
"""In a command's arguments and environment: stands for the gateway's base address, without a slash at its end."""

_MAX_CONNECTIONS = 128
_MAX_HEAD_BYTES = 64 << 10
_MAX_REQUEST_BYTES = 64 << 20
_MAX_RESPONSE_BYTES = 1 << 30
_MAX_REFUSED = 50
_CONNECT_SECONDS = 15.0
_SILENCE_SECONDS = 900.0
"""Longest silence of who is asked. The command's own time limit is what usually ends a call."""
_CHUNK = 64 << 10
_HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"expect",
}  # fmt: skip
_CREDENTIALS = {b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"cookie"}

Address = IPv4Address | IPv6Address
Headers = list[tuple[bytes, bytes]]


class Upstream(Frozen):
    """Where `{gateway}/NAME/rest` goes: to `url`/rest, asked by the host, with `headers` added or put in place of the client's."""

    url: str = Field(pattern=r"^https?://")
    headers: dict[str, SecretStr] = {}


class Egress(Frozen):
    """What a command may reach.

    `hosts` are for `CONNECT` (https) and plain http through the proxy that its environment names; `upstreams` are the
    gateway's. The client's own credentials never reach an upstream.
    """

    hosts: tuple[HostPort, ...] = ()
    upstreams: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], Upstream] = {}


@dataclass(frozen=True)
class Door:
    """A command's way to its gateway: what it is started by, and which descriptors it is handed. By default there is none."""

    gateway: Gateway | None = None
    address: str = ""
    launcher: tuple[str, ...] = ()
    handed: tuple[int, ...] = ()
    folder: Path | None = None
    """What a command that can be handed no descriptor must see, read-only."""

    def filled(self, text: str) -> str:
        return text.replace(GATEWAY, self.address) if self.gateway else text

    def command(self, command: Sequence[str] | str) -> list[str] | str:
        return self.filled(command) if isinstance(command, str) else [self.filled(part) for part in command]

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """`given`, with the variables that send http and https through the proxy, except to the command's own machine."""
        proxies = {"HTTP_PROXY": self.address, "HTTPS_PROXY": self.address, "NO_PROXY": "127.0.0.1,localhost,::1"}
        named = {name: value for upper, value in proxies.items() for name in (upper, upper.lower())}
        return {**(named if self.gateway else {}), **{name: self.filled(value) for name, value in given.items()}}

    @property
    def refused(self) -> tuple[str, ...]:
        return self.gateway.refused if self.gateway else ()


@asynccontextmanager
async def door_beside(egress: Egress | None) -> AsyncIterator[Door]:
    """For a command in this process's network: a port of the loopback device, which every local user can reach."""
    if egress is None:
        yield Door()
        return
    gateway, listener = Gateway(egress), socket.create_server(("127.0.0.1", 0))
    async with gateway.serving(listener):
        yield Door(gateway, f"http://127.0.0.1:{listener.getsockname()[1]}")


@asynccontextmanager
async def door_inside(egress: Egress | None) -> AsyncIterator[Door]:
    """For a command in a network of its own: the launcher listens there and hands the socket out, then it is the command.

    So nothing of ours runs inside, nothing outside has a name, and all of it ends with this process.
    """
    if egress is None:
        yield Door()
        return
    gateway = Gateway(egress)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        launcher = (*_LAUNCHER, str(theirs.fileno()))
        async with _meanwhile(_serve(gateway, ours)):
            yield Door(gateway, _INSIDE, launcher, (theirs.fileno(),))


@asynccontextmanager
async def door_through(egress: Egress | None, seen_as: str) -> AsyncIterator[Door]:
    """As `door_inside`, for a command that can be handed no descriptor but sees the door's folder under `seen_as`."""
    if egress is None:
        yield Door()
        return
    gateway = Gateway(egress)
    with (
        tempfile.TemporaryDirectory(prefix="darkfactory-egress-", ignore_cleanup_errors=True) as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        path = Path(folder, "gateway")
        listener.bind(str(path))
        listener.listen(1)
        async with _meanwhile(_serve_next(gateway, listener, path)):
            yield Door(gateway, _INSIDE, (*_LAUNCHER, f"{seen_as}/{path.name}"), folder=Path(folder))


_PORT = 27199  # below the ports that a system gives out by itself
_INSIDE = f"http://127.0.0.1:{_PORT}"
# Python ignores these two signals and the command would inherit that; everything else is as it would be without us.
_LAUNCHER = (
    "python3", "-I", "-S", "-c",
    f"""
import os, signal, socket, sys
where, *command = sys.argv[1:]
if where.isdigit():
    channel = socket.socket(fileno=int(where))
else:
    channel = socket.socket(socket.AF_UNIX)
    channel.connect(where)
listener = socket.create_server(("127.0.0.1", {_PORT}))
socket.send_fds(channel, [b"."], [listener.fileno()])
channel.close(), listener.close()
signal.signal(signal.SIGPIPE, signal.SIG_DFL), signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
os.execvp(command[0], command)
""",
)  # fmt: skip


@asynccontextmanager
async def _meanwhile(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _serve_next(gateway: Gateway, listener: socket.socket, path: Path) -> None:
    """Serve what the first one who connects hands out: that is the launcher, and the command finds nothing any more."""
    await _readable(listener)
    channel, _ = listener.accept()
    listener.close()
    path.unlink()
    await _serve(gateway, channel)


async def _serve(gateway: Gateway, channel: socket.socket) -> None:
    """Serve the listening socket that comes through `channel`, until cancelled."""
    with channel:
        await _readable(channel)
        _, descriptors, *_ = socket.recv_fds(channel, 1, 1)
    if descriptors:
        async with gateway.serving(socket.socket(fileno=descriptors[0])):
            await asyncio.get_running_loop().create_future()


async def _readable(channel: socket.socket) -> None:
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(channel, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(channel)


class Gateway:
    """Answers one command's requests as its `Egress` says."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._refused: dict[str, None] = {}
        self._conversations: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._clients: dict[bool, httpx.AsyncClient] = {}

    @property
    def refused(self) -> tuple[str, ...]:
        """The `host:port` that were asked for and are not allowed, each once."""
        return tuple(self._refused)

    @asynccontextmanager
    async def serving(self, listener: socket.socket) -> AsyncIterator[None]:
        """Accept on `listener`, which is closed at the end, with all connections."""
        server = await asyncio.start_server(self._accepted, sock=listener, limit=_CHUNK, start_serving=False)
        try:
            await server.start_serving()  # not in the line above: cancelled there, nobody would close it
            yield
        finally:
            server.close()
            conversations = self._conversations.copy()
            for conversation, writer in conversations.items():
                conversation.cancel()
                writer.transport.abort()
            await asyncio.gather(*conversations, return_exceptions=True)
            for client in self._clients.values():
                await client.aclose()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._conversations) >= _MAX_CONNECTIONS:
            writer.transport.abort()
            return
        conversation = asyncio.create_task(self._converse(_Client(reader, writer)))
        self._conversations[conversation] = writer
        conversation.add_done_callback(self._conversations.pop)

    async def _converse(self, client: _Client) -> None:
        """All requests of one connection. What the client or its peer does wrong ends this connection and no more."""
        with closing(client), suppress(OSError, EOFError, h11.ProtocolError, httpx.HTTPError):
            while (request := await client.request()) is not None:
                try:
                    await self._answer(client, request)
                except _Refusal as refusal:
                    await client.refuse(refusal)
                if not client.is_ready_for_another():
                    return

    async def _answer(self, client: _Client, request: h11.Request) -> None:
        target = request.target.decode("ascii")
        if request.method == b"CONNECT":
            await self._tunnel(client, target)
        elif target.startswith("/"):
            await self._ask_upstream(client, request, target)
        else:
            await self._ask_host(client, request, target)

    async def _tunnel(self, client: _Client, target: str) -> None:
        host, port = _host_and_port(target)
        reader, writer = await _connected(await self._addresses(host, port), port)
        with closing(writer):
            await client.tunnel(reader, writer)

    async def _ask_host(self, client: _Client, request: h11.Request, target: str) -> None:
        """Plain http to a host of the list: the checked address is asked, so its name cannot point elsewhere meanwhile."""
        try:
            scheme, authority, path, query, _ = urlsplit(target)
        except ValueError:
            scheme = ""
        if scheme != "http":
            raise _Refusal(400, "only http:// addresses and paths of the gateway can be asked for here")
        host, port = _host_and_port(authority if re.search(r":\d+$", authority) else f"{authority}:80")
        address = (await self._addresses(host, port))[0]
        bracketed = f"[{address}]" if address.version == 6 else str(address)
        url = f"http://{bracketed}:{port}{path or '/'}{'?' if query else ''}{query}"
        headers = [(b"host", authority.encode()), *_end_to_end(request.headers, {b"host"})]
        await self._exchange(client, request, url, headers, self._http(trust_env=False))

    async def _ask_upstream(self, client: _Client, request: h11.Request, target: str) -> None:
        name, _, rest = target[1:].partition("/")
        upstream = self._egress.upstreams.get(name)
        if upstream is None:
            raise _Refusal(404, f"the gateway has no upstream {name!r:.100}")
        path = unquote(unquote(rest.partition("?")[0])).replace("\\", "/")
        if {".", ".."} & set(path.split("/")):
            raise _Refusal(400, "a path of the gateway must not hold dot segments")
        added = {name.lower().encode(): value.get_secret_value().encode() for name, value in upstream.headers.items()}
        headers = [*_end_to_end(request.headers, {b"host", *_CREDENTIALS, *added}), *added.items()]
        http = self._http(trust_env=not is_loopback(upstream.url))
        await self._exchange(client, request, f"{upstream.url.rstrip('/')}/{rest}", headers, http)

    def _http(self, trust_env: bool) -> httpx.AsyncClient:
        """One client without, one with the proxies of the host's own environment."""
        if trust_env not in self._clients:
            limits = httpx.Limits(max_connections=_MAX_CONNECTIONS)
            self._clients[trust_env] = httpx.AsyncClient(verify=tls(), trust_env=trust_env, limits=limits)
        return self._clients[trust_env]

    async def _exchange(
        self, client: _Client, request: h11.Request, url: str, headers: Headers, http: httpx.AsyncClient
    ) -> None:
        """Ask `url` and hand the answer on as it comes. Redirects are the client's to follow, through this same door.

        The request is built by hand: the client's own would get headers (`accept-encoding`) that nobody inside asked for.
        """
        timeout = httpx.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS).as_dict()
        try:
            asked = httpx.Request(
                request.method.decode(), url, headers=headers, content=await client.content(request),
                extensions={"timeout": timeout},
            )  # fmt: skip
            response = await http.send(asked, stream=True, follow_redirects=False)
        except (httpx.HTTPError, httpx.InvalidURL) as error:  # its text may quote a header, and that may be a key
            raise _Refusal(502, f"there is no answer from there ({type(error).__name__})") from None
        async with aclosing(response):
            await client.hand_on(response)

    async def _addresses(self, host: str, port: int) -> list[Address]:
        """Where `host` may be reached, in order. Raises _Refusal."""
        entry = _entry_for(host, port, self._egress.hosts)
        if entry and (allowed := [one for one in await _resolved(host, port) if may_answer_for(one, entry)]):
            return allowed
        target = f"{host}:{port}"[:200]
        if len(self._refused) < _MAX_REFUSED:
            self._refused[target] = None
        raise _Refusal(403, f"{target} is not among the hosts that this command may reach")


class _Refusal(Exception):
    """A request that is answered with `status` and a sentence, and not carried out."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class _Client:
    """The inside's end of one connection, in HTTP/1.1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)

    def close(self) -> None:
        self._writer.close()

    async def request(self) -> h11.Request | None:
        """The head of the next request; None at the end of the connection."""
        event = await self._event()
        return event if isinstance(event, h11.Request) else None

    async def content(self, request: h11.Request) -> AsyncIterator[bytes] | None:
        """The request's body as it comes, None when it has none. Reading it raises _Refusal when it is too long."""
        if {b"content-length", b"transfer-encoding"} & {name for name, _ in request.headers}:
            return self._body()
        await self._event()  # its end
        return None

    async def _body(self) -> AsyncIterator[bytes]:
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        total = 0
        while isinstance(event := await self._event(), h11.Data):
            total += len(event.data)
            if total > _MAX_REQUEST_BYTES:
                raise _Refusal(413, f"a request may have {_MAX_REQUEST_BYTES} bytes")
            yield bytes(event.data)

    async def hand_on(self, response: httpx.Response) -> None:
        headers = _end_to_end(response.headers.raw)
        await self._send(h11.Response(status_code=response.status_code, headers=headers))
        total = 0
        async for data in response.aiter_raw():
            total += len(data)
            if total > _MAX_RESPONSE_BYTES:
                raise EOFError
            await self._send(h11.Data(data=data))
        await self._send(h11.EndOfMessage())

    async def refuse(self, refusal: _Refusal) -> None:
        text = f"{refusal.reason}\n".encode()
        headers = {"content-type": "text/plain", "content-length": str(len(text)), "connection": "close"}
        await self._send(h11.Response(status_code=refusal.status, headers=list(headers.items())))
        await self._send(h11.Data(data=text))
        await self._send(h11.EndOfMessage())

    def is_ready_for_another(self) -> bool:
        """Whether this connection can have another request."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Say that the way is open, and carry bytes both ways until both sides have ended or one broke."""
        while await self._event() is not h11.PAUSED:
            pass
        await self._send(h11.Response(status_code=200, headers=[], reason=b"Connection established"))
        writer.write(self._http.trailing_data[0])
        both = [asyncio.create_task(_pump(self._reader, writer)), asyncio.create_task(_pump(reader, self._writer))]
        try:
            await asyncio.gather(*both)
        finally:
            for pump in both:
                pump.cancel()

    async def _event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(_CHUNK))
        return event

    async def _send(self, event: h11.Event) -> None:
        self._writer.write(self._http.send(event) or b"")
        await self._writer.drain()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


def _end_to_end(headers: Iterable[tuple[bytes, bytes]], besides: Iterable[bytes] = ()) -> Headers:
    """The headers that are not about one connection (RFC 9110, 7.6.1), without those named `besides`."""
    lower = [(name.lower(), value) for name, value in headers]
    named = {part.strip().lower() for name, value in lower if name == b"connection" for part in value.split(b",")}
    dropped = {*_HOP_BY_HOP, *named, *besides}
    return [(name, value) for name, value in lower if name not in dropped]


def _host_and_port(target: str) -> tuple[str, int]:
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})", target)
    if found is None:
        raise _Refusal(400, "the target must be host:port")
    return found[1].lower(), int(found[2])


def _entry_for(host: str, port: int, hosts: Sequence[str]) -> str | None:
    """The name in the list that lets `host` pass; an exact one before a wildcard."""
    names = [name for name, _, number in (entry.lower().rpartition(":") for entry in hosts) if int(number) == port]
    below = [name for name in names if name.startswith("*.") and host.endswith(name[1:])]
    return host if host in names else next(iter(below), None)


def may_answer_for(address: Address, entry: str) -> bool:
    """Whether a name of the list may lead to this address.

    Who listed an address, or `localhost`, means it. Another name must not lead to this machine or to the cloud's metadata,
    and what a wildcard lets pass, somebody else's name server answers for: it must not lead into a private network.
    """
    if entry == "localhost" or not re.search(r"[^0-9.]", entry) or entry.startswith("["):
        return True
    if entry.startswith("*."):
        return address.is_global and not address.is_multicast
    return not (address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast)


async def _resolved(host: str, port: int) -> list[Address]:
    """The addresses of `host`, in the system's order; those of version 4 in their own form. Raises _Refusal."""
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # UnicodeError: a label that is too long
        raise _Refusal(502, f"{host:.200} cannot be resolved") from None
    addresses = [ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found]
    return list(dict.fromkeys(getattr(one, "ipv4_mapped", None) or one for one in addresses))


async def _connected(addresses: Sequence[Address], port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    for address in addresses:
        with suppress(OSError):
            async with asyncio.timeout(_CONNECT_SECONDS):
                return await asyncio.open_connection(str(address), port, limit=_CHUNK)
    raise _Refusal(502, "no connection there")
