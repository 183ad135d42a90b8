"""`/metrics` for Prometheus and `/status` as JSON: what the gateway answers to people and programs of this machine.

Both are read from the database at most every `KEPT_SECONDS`, and answered in bounded time whatever the database does.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.snapshot import snapshot_of
from infra.database import ReadOnly
from infra.errors import FactoryError
from infra.metrics import METRICS, SECONDS, SECTION_UP, SECTIONS, UP, Metric, Reading, Sample, read_metrics
from infra.postgres import open_databases
from infra.settings import Settings

KEPT_SECONDS = 5.0
"""However often somebody asks, the database is not read more often."""
WAIT_SECONDS = 8.0
"""Longest wait for the database; Prometheus gives up after 10 s."""
SHOWN_TICKETS = 50
LOOPBACK = ("127.0.0.1", "::1")
PASSED_ON = ("forwarded", "via", "x-real-ip")
NAMES = ("127.0.0.1", "localhost", "[::1]", "::1")

Answer = TypeVar("Answer")


class Kept(Generic[Answer]):
    """What `read` says, in a thread, one at a time and not more often than every `KEPT_SECONDS`."""

    def __init__(self, read: Callable[[], Answer]) -> None:
        self._read = read
        self._reading: asyncio.Task[Answer] | None = None
        self._since = 0.0

    async def get(self) -> Answer:
        """Raises what `read` raised, and TimeoutError when it is late; it is not started a second time meanwhile."""
        is_old = time.monotonic() - self._since >= KEPT_SECONDS
        if self._reading is None or (self._reading.done() and is_old):
            self._reading, self._since = asyncio.create_task(asyncio.to_thread(self._read)), time.monotonic()
        async with asyncio.timeout(WAIT_SECONDS):
            return await asyncio.shield(self._reading)


def routes(settings: Settings, latest: Callable[[], Settings]) -> list[Route]:
    """GET /metrics and GET /status, for clients on this machine only unless `webhooks.open_status`; nothing is written for
    them. Caps are told as in the `latest` settings."""
    metrics = Kept(lambda: _watch(latest(), read_metrics))
    status = Kept(lambda: _watch(latest(), lambda database, now: snapshot_of(database, now, SHOWN_TICKETS)))

    async def answer_metrics(request: Request) -> Response:
        _check(request, settings)
        try:
            reading = await metrics.get()
        except (TimeoutError, FactoryError):
            reading = Reading(up=dict.fromkeys((section.name for section in SECTIONS), False), seconds=WAIT_SECONDS)
        return Response(as_text(reading), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def answer_status(request: Request) -> Response:
        _check(request, settings)
        try:
            snapshot = await status.get()
        except (TimeoutError, FactoryError):
            raise HTTPException(503, "the database does not answer; look into `darkfactory doctor`") from None
        return Response(snapshot.model_dump_json(), media_type="application/json")

    return [Route("/metrics", answer_metrics, methods=["GET"]), Route("/status", answer_status, methods=["GET"])]


def as_text(reading: Reading) -> bytes:
    """The reading in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(reading))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterable[Family]:
        by_metric: dict[str, list[Sample]] = {}
        for sample in [*self._reading.samples, *_of_reading(self._reading)]:
            by_metric.setdefault(sample.metric.name, []).append(sample)
        return [family_of(each, by_metric[each.name]) for each in METRICS if each.name in by_metric]


def _of_reading(reading: Reading) -> list[Sample]:
    sections = [Sample(SECTION_UP, (name,), (float(up),)) for name, up in reading.up.items()]
    return [Sample(UP, (), (float(all(reading.up.values())),)), *sections, Sample(SECONDS, (), (reading.seconds,))]


def family_of(metric: Metric, samples: Iterable[Sample]) -> Family:
    """A metric with its samples, as Prometheus's own library writes it."""
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        bounds = [*(f"{bound:g}" for bound in metric.bounds), "+Inf"]
        for sample in samples:
            *counts, total = sample.values
            histogram.add_metric(sample.labels, list(zip(bounds, itertools.accumulate(counts), strict=True)), total)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for sample in samples:
        family.add_metric(sample.labels, sample.values[0])
    return family


def _watch(settings: Settings, read: Callable[[ReadOnly, Settings], Answer]) -> Answer:
    """A connection of its own for each reading: one that hangs keeps nobody from anything."""
    with ReadOnly(open_databases(settings).ledger) as database:
        return read(database, settings)


def _check(request: Request, settings: Settings) -> None:
    """Tell only this machine. A proxy in front speaks from this machine, too, and a page in somebody's browser may have its
    own name lead here: so nothing that was passed on, and no foreign name."""
    if settings.webhooks.open_status:
        return
    client = request.client.host if request.client else ""
    says_so = any(name in PASSED_ON or name.startswith("x-forwarded") for name in request.headers)
    passed_on = says_so or request.scope["http_version"] == "1.0"  # a plain nginx shows nothing else of itself
    host = request.headers.get("host", "")
    name = host if host in NAMES else host.rpartition(":")[0]
    if client not in LOOPBACK or passed_on or name not in NAMES:
        raise HTTPException(403, "this is for programs of the same machine; set webhooks.open_status to change that")
