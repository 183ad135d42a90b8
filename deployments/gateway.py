"""The gateway's HTTP side: receives signed webhooks, has them recorded, answers, and then tells Prefect which ticket was touched.

A lost event costs time only: the recorded delivery and polling stand behind it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import httpx
import uvicorn
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from deployments.engine import credentials, trusted
from deployments.metrics import routes
from infra import logs
from infra.database import open_database
from infra.deliveries import Deliveries
from infra.errors import ConfigError, InfraError
from infra.reloading import current_settings
from infra.sections import (
    BoardSection,
    GitHubBoardSection,
    JiraBoardSection,
    LinearBoardSection,
    RepositorySection,
    WebhooksSection,
)
from infra.settings import Settings
from infra.webhooks import Delivery, Refused, Source, check

BODY_BYTES = 1_000_000
DRAINED_BYTES = 25_000_000
"""GitHub sends no larger payload."""
READ_SECONDS = 10.0
ACCEPT_SECONDS = 4.0
"""Longest wait for the database: Linear gives up on an answer after 5 s, GitHub after 10 s."""
RETRY_AFTER_SECONDS = 30
EMIT_SECONDS = 5.0
STOP_SECONDS = 5
CONNECTION_SECONDS = 30.0
"""A connection is closed after this time, or with the answer that is under way then: longer than a delivery ever takes. An
answer that nobody took after twice this time is thrown away."""
TICKET_TOUCHED = "darkfactory.ticket.touched"
PULL_REQUEST_TOUCHED = "darkfactory.pull-request.touched"
REFINEMENT_ASKED = "darkfactory.refinement.asked"

Accept = Callable[[Delivery, str | None, str | None], Awaitable[bool]]
"""Records a delivery with its board and ticket key durably; False when its id was there before. Both None: a pull request's."""
Emit = Callable[[Delivery, str, str | None], Awaitable[bool]]
"""Sends the event: delivery, then board and ticket key, or repository and None for a pull request. True when it was taken."""
Sent = Callable[[Delivery], Awaitable[None]]

_log = logging.getLogger(__name__)


class Place(NamedTuple):
    """What a delivery touches: `ticket` of the board `name`, or (None) a pull request of the repository `name`."""

    name: str
    ticket: str | None


def make_app(
    secrets: WebhooksSection,
    boards: Mapping[str, BoardSection],
    accept: Accept,
    emit: Emit,
    *,
    repositories: Mapping[str, RepositorySection] | None = None,
    more: Sequence[Route] = (),
) -> Starlette:
    """POST /webhooks/{github,linear,jira} and GET /health. Every answer is one line of JSON, errors are `{"error": …}`.

    202 accepted (`dropped` says so when no board or repository of ours is meant), 200 seen before, 401, 400 and 409 as
    `infra.webhooks.check`, 404 no secret, 413 too large, 503 with Retry-After when the database does not answer.
    """
    receiver = _Receiver(secrets, boards, repositories or {}, accept, emit)
    return Starlette(
        routes=[
            Route("/webhooks/{source}", receiver.receive, methods=["POST"]),
            Route("/health", _health, methods=["GET"]),
            *more,
        ],
        exception_handlers=dict.fromkeys((Refused, HTTPException, Exception), _explain),
    )


async def serve(
    settings: Settings,
    api_url: str,
    accept: Accept,
    stop: threading.Event | asyncio.Event,
    *,
    sent: Sent | None = None,
    more: Sequence[Route] = (),
) -> None:
    """Receive webhooks at `settings.webhooks`, and answer `more`, until `stop` is set; then requests under way are finished.

    `sent` is told of every delivery whose event Prefect took. Raises ConfigError when the address cannot be listened on.
    """

    async def emit(delivery: Delivery, name: str, ticket: str | None) -> bool:
        taken = await emit_event(api_url, delivery, name, ticket)
        if taken and sent is not None:
            await sent(delivery)
        return taken

    app = make_app(
        settings.webhooks,
        settings.all_boards,
        accept,
        emit,
        repositories=settings.repositories,
        more=more,
    )
    with listen(settings.webhooks.host, settings.webhooks.port) as listener:
        await _run(app, listener, stop)


def listen(host: str, port: int) -> socket.socket:
    """Where webhooks arrive. Raises ConfigError for an address that cannot be had."""
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"webhooks cannot be received at {host}:{port}: {error}; change `webhooks.port` or `webhooks.host` in factory.yaml"
        ) from None
    # connections inherit it; without, each answer's second packet waits 40 ms for the sender's acknowledgement
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def _run(app: Starlette, listener: socket.socket, stop: threading.Event | asyncio.Event) -> None:
    config = uvicorn.Config(
        app,
        http=_Connection,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not stop.is_set() and not serving.done():  # noqa: ASYNC110 - a threading.Event cannot be awaited
            await asyncio.sleep(0.1)
    finally:
        server.should_exit = True
        await serving


class _Connection(H11Protocol):
    """uvicorn waits without end for the head of a request, and for answers to be read: who sends byte by byte, or asks and
    never reads, would keep a connection for good."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as its base does
        super().connection_made(transport)
        self._closing = self.loop.call_later(CONNECTION_SECONDS, self.shutdown)
        self._cutting = self.loop.call_later(2 * CONNECTION_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing.cancel()
        self._cutting.cancel()
        super().connection_lost(exc)


class _Receiver:
    def __init__(
        self,
        secrets: WebhooksSection,
        boards: Mapping[str, BoardSection],
        repositories: Mapping[str, RepositorySection],
        accept: Accept,
        emit: Emit,
    ) -> None:
        self._secrets: dict[Source, tuple[str, ...]] = {
            "github": _plain(secrets.github_secret),
            "linear": _plain(secrets.linear_secret),
            "jira": _plain(secrets.jira_secret),
        }
        self._boards, self._repositories = boards, repositories
        self._accept, self._emit = accept, emit

    async def receive(self, request: Request) -> Response:
        source, secrets = self._source(request.path_params["source"])
        body = await _read(request)
        delivery = check(source, request.headers, body, secrets, datetime.now(UTC))
        place = place_of(delivery, self._boards, self._repositories)
        if place is None:
            dropped = "it is about no ticket of a configured board and no pull request of a configured repository"
            return JSONResponse({"accepted": True, "dropped": dropped}, 202)
        if not await self._accepted(delivery, place):
            return JSONResponse({"accepted": False, "reason": "seen before"}, 200)
        _log.info("webhook accepted: %s", _words(delivery, place))
        if delivery.about != "refinement":
            return JSONResponse({"accepted": True}, 202, background=BackgroundTask(self._tell, delivery, place))
        if not await self._tell(delivery, place):  # a wish stands nowhere else, so no poll would find it
            raise _later("Prefect does not answer")
        return JSONResponse({"accepted": True}, 202)

    def _source(self, name: str) -> tuple[Source, tuple[str, ...]]:
        for source, secrets in self._secrets.items():
            if source == name and secrets:
                return source, secrets
            if source == name:
                raise HTTPException(404, f"no secret is configured for {name}, set webhooks.{name}_secret")
        raise HTTPException(404, f"unknown service; use one of {', '.join(self._secrets)}")

    async def _accepted(self, delivery: Delivery, place: Place) -> bool:
        try:
            async with asyncio.timeout(ACCEPT_SECONDS):
                return await self._accept(delivery, place.name if place.ticket else None, place.ticket)
        except (InfraError, TimeoutError) as error:
            _log.warning("webhook refused for now: %s reason=%r", _words(delivery, place), str(error) or "timed out")
            raise _later("the database does not answer") from None

    async def _tell(self, delivery: Delivery, place: Place) -> bool:
        try:
            return await self._emit(delivery, place.name, place.ticket)
        except InfraError as error:  # the database: Prefect has the event, a repeat would be the same one
            _log.warning("webhook's event was not noted: %s reason=%r", _words(delivery, place), str(error))
            return True


def _plain(secrets: tuple[SecretStr, ...]) -> tuple[str, ...]:
    return tuple(value for secret in secrets if (value := secret.get_secret_value()).strip())


def _later(reason: str) -> HTTPException:
    return HTTPException(503, f"{reason}; send it again later", {"Retry-After": str(RETRY_AFTER_SECONDS)})


def place_of(
    delivery: Delivery, boards: Mapping[str, BoardSection], repositories: Mapping[str, RepositorySection]
) -> Place | None:
    """What of ours the delivery touches, or None."""
    match delivery.about:
        case "ticket":
            return next((Place(name, key) for name, board in boards.items() if (key := _key(delivery, board))), None)
        case "pull-request" | "refinement" if delivery.branch or delivery.number_or_key:
            ours = (name for name, repository in repositories.items() if _is_in(delivery, repository))
            return next((Place(name, None) for name in ours), None)
        case _:
            return None


def _key(delivery: Delivery, board: BoardSection) -> str | None:
    """The ticket's key on this board, or None when it is not this board's."""
    project = delivery.project or ""
    match delivery.source, board:
        case "github", GitHubBoardSection() if project.lower() == board.project.lower():
            return f"{board.key_prefix or board.project.partition('/')[2]}-{delivery.number_or_key}"
        case "linear", LinearBoardSection() if project == board.team:
            return str(delivery.number_or_key)
        case "jira", JiraBoardSection() if project == board.project:
            return str(delivery.number_or_key)
    return None


def _is_in(delivery: Delivery, repository: RepositorySection) -> bool:
    forge = repository.github
    return forge is not None and delivery.project is not None and forge.project.lower() == delivery.project.lower()


async def emit_event(api_url: str, delivery: Delivery, board: str, ticket: str | None) -> bool:
    """Send Prefect's server at `api_url` (with `/api`) the event of a delivery; True when it took it.

    `board` is the repository's name and `ticket` None for a pull request. A repeat is the same event to Prefect. Failures
    are logged: polling finds the ticket too.
    """
    event = _event(delivery, board, ticket)
    try:
        # httpx's own time limit begins anew with every byte
        async with (
            asyncio.timeout(EMIT_SECONDS),
            httpx.AsyncClient(timeout=None, verify=trusted(), headers=credentials()) as client,  # noqa: S113
        ):
            (await client.post(f"{api_url}/events", json=[event])).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        _log.warning("event not sent: %s reason=%s", _words(delivery, Place(board, ticket)), type(error).__name__)
        return False
    return True


def _event(delivery: Delivery, name: str, ticket: str | None) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    said: dict[str, Any] = {"kind": delivery.kind, "delivery": delivery.id, "received_at": now}
    if ticket is not None:
        kind, resource = TICKET_TOUCHED, f"darkfactory.ticket.{name}.{ticket}"
        said |= {"board": name, "ticket": ticket}
    else:
        number = delivery.number_or_key
        kind, resource = PULL_REQUEST_TOUCHED, f"darkfactory.pull-request.{name}.{delivery.branch or number}"
        # texts: they become parameters of a run, and None would become the word
        said |= {"repository": name, "branch": delivery.branch or "", "number": str(number or "")}
        if delivery.about == "refinement":
            kind, resource = REFINEMENT_ASKED, resource.replace("pull-request", "refinement", 1)
            said |= {"instructions": delivery.instructions, "asked_by": f"delivery {delivery.id}"}
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"darkfactory:{delivery.source}:{delivery.id}")),
        "event": kind,
        "occurred": now,
        "resource": {"prefect.resource.id": resource},
        "payload": said,
    }


async def _read(request: Request) -> bytes:
    """The whole body. Counts what arrives: a Content-Length may be absent or lie."""
    try:
        async with asyncio.timeout(READ_SECONDS):
            body = await _bounded(request)
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {READ_SECONDS:.0f} seconds") from None
    except ClientDisconnect:
        raise HTTPException(400, "the body ended early") from None
    if body is None:
        raise HTTPException(413, f"the body is larger than {BODY_BYTES} bytes", {"Connection": "close"})
    return body


async def _bounded(request: Request) -> bytes | None:
    """The body, or None when it is too large. What is too much is read and thrown away, up to DRAINED_BYTES: a sender
    that is cut off while it still sends does not see the answer."""
    body, total = bytearray(), 0
    async for chunk in request.stream():
        total += len(chunk)
        if total <= BODY_BYTES:
            body += chunk
        elif total > DRAINED_BYTES:
            break
    return bytes(body) if total <= BODY_BYTES else None


def _words(delivery: Delivery, place: Place) -> str:
    touched = f"board={place.name!r} ticket={place.ticket!r}" if place.ticket else f"repository={place.name!r}"
    return f"{touched} source={delivery.source} kind={delivery.kind!r} delivery={delivery.id!r}"


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _explain(request: Request, error: Exception) -> Response:
    match error:
        case Refused():
            return JSONResponse({"error": str(error)}, error.status)
        case HTTPException():
            return JSONResponse({"error": error.detail}, error.status_code, error.headers)
        case _:
            return JSONResponse({"error": "the gateway failed; its log says why"}, 500)


def main() -> None:
    """Receive webhooks for the factory of this home until SIGTERM (`darkfactory up` starts this)."""
    logs.start()
    settings = current_settings().settings
    with open_database(settings) as database:
        deliveries = Deliveries(database)

        async def accept(delivery: Delivery, board: str | None, ticket: str | None) -> bool:
            said = (delivery.source, delivery.id, delivery.kind, board, ticket)
            return await asyncio.to_thread(deliveries.accept, *said)

        async def sent(delivery: Delivery) -> None:
            await asyncio.to_thread(deliveries.emitted, delivery.source, delivery.id)

        more = routes(settings, latest=lambda: current_settings().settings)
        asyncio.run(serve(settings, os.environ["PREFECT_API_URL"], accept, asyncio.Event(), sent=sent, more=more))


if __name__ == "__main__":
    main()
