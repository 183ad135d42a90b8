"""One question to the model: a box in the Prefect UI, asked once, answered once, paid once.

The cache key holds everything that makes the answer what it is and no run id, so a killed run that starts again
replays finished answers and a new round, attempt, sample or prompt asks anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import task

from infra.errors import BudgetExhausted, CapacityUnavailable, RateLimited, Unreachable
from infra.llm import ModelClient
from infra.llm.router import Purpose
from infra.logs import about
from infra.redaction import redact
from infra.slots import slot
from tasks import progress, services
from tasks.models import Completion, Frozen, Job, Message, ModelRequest

MODEL_SLOTS = "model-slots"
"""Folder in `<home>/run` of the node's model slots. Not a Prefect limit: its server keeps leases in memory, so the slot of
a run that was killed together with its temporary server stayed taken for ever (measured on 3.8.8)."""
_log = logging.getLogger(__name__)
WAIT_FOR_RESET_SECONDS = 30.0
"""A rate limit that resets later than this ends the run (nothing burnt) instead of holding a slot."""


class Asker(Frozen):
    """Who asks, for the ledger, the progress line and the cache key. `thought` counts what must be thought anew."""

    ticket: str
    attempt_id: int
    thought: str
    """Ticket revision, base commit and attempt number: the same words in the same thought get the same answer."""
    role: str
    prompt_version: str
    candidate: int = 1
    round: int = 1
    sample: int = 1
    board: str = "folder"
    effort: int | None = None
    public: bool = False
    """The repository may be shown to anybody."""

    @property
    def label(self) -> str:
        return f"{self.role} {self.candidate}.{self.round}.{self.sample}"


def asker_for(
    job: Job, role: str, prompt_version: str, *, candidate: int = 1, round: int = 1, effort: int | None = None
) -> Asker:
    """A role of this job, about to ask its first sample. `effort` is the plan's, for the ledger."""
    configured = services.settings().repositories.get(job.repository.name)
    return Asker(ticket=job.ticket.key, attempt_id=job.attempt_id, thought=job.thought, role=role,
                 prompt_version=prompt_version, candidate=candidate, round=round, board=job.ticket.board, effort=effort,
                 public=configured is not None and configured.public)  # fmt: skip


def ask_key(asker: Asker, request: ModelRequest, model: str) -> str:
    """Cache key and ledger key of one question."""
    asked = asker.model_dump_json(exclude={"attempt_id", "board", "effort", "public"})
    said = "\0".join([asked, request.model_dump_json(), model])
    return f"ask-{hashlib.sha256(said.encode()).hexdigest()}"


def worth_waiting_for(error: BaseException) -> bool:
    """True for faults of a provider and budgets that pass in seconds; never for auth, bad requests or the model's work."""
    if isinstance(error, RateLimited | BudgetExhausted):
        soon = datetime.now(UTC) + timedelta(seconds=WAIT_FOR_RESET_SECONDS)
        return error.reset_at is not None and error.reset_at <= soon
    return isinstance(error, Unreachable | CapacityUnavailable)


async def _passes(task: Any, run: Any, state: Any) -> bool:
    try:
        await state.result()
    except Exception as error:  # noqa: BLE001  the state re-raises whatever the step raised; only its class is read
        return worth_waiting_for(error)
    return False


@task(
    name="ask",
    task_run_name="{asker.role} {asker.candidate}.{asker.round}.{asker.sample}",
    tags={"model"},
    persist_result=True,
    cache_key_fn=lambda _, arguments: ask_key(**arguments),
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=_passes,
)
async def ask(asker: Asker, request: ModelRequest, model: str) -> Completion:
    """Ask the level that has the name `model`. Raises what `ModelClient.complete` raises, and BudgetExhausted."""
    router, key = await services.model_named(model), ask_key(asker, request, model)
    purpose = Purpose(key=key, board=asker.board, ticket=asker.ticket, role=asker.role, public=asker.public)
    started = time.monotonic()
    pieces = 0

    def on_text(_: str) -> None:
        nonlocal pieces
        pieces += 1
        if pieces % 8 == 0:
            elapsed = max(time.monotonic() - began, 0.001)
            progress.report(asker.ticket, phase="", role=asker.label, tokens=pieces, tokens_per_second=pieces / elapsed)

    settings = services.settings()
    async with AsyncExitStack() as held:
        held.enter_context(about(session=key, role=asker.label))
        with progress.may_be_silent(settings.dispatch.session_seconds):  # a run that waits its turn is not stuck
            await held.enter_async_context(slot(settings.root / "run" / MODEL_SLOTS, settings.model_slots))
        began = time.monotonic()
        with progress.may_be_silent(settings.model_timeout_seconds):  # the time before the first token
            completion = await router.for_call(purpose).complete(request, on_text)
        used = completion.usage
        _log.info("model=%s outcome=answered prompt_tokens=%d completion_tokens=%d usd=%.6f", ascii(completion.model), used.prompt_tokens, used.completion_tokens, used.cost_usd)  # fmt: skip
    services.ledger().record_session(
        asker.attempt_id,
        key,
        asker.role,
        completion.usage,
        completion.model,
        asker.candidate,
        asker.round,
        router.provider(completion.model),
        asker.effort,
    )
    keep_transcript(asker, request, completion, key)
    progress.report(asker.ticket, phase="", role=asker.label, tokens=completion.usage.completion_tokens, done=True,
                    message=f"answered in {time.monotonic() - started:.0f} s")  # fmt: skip
    return completion


def keep_transcript(asker: Asker, request: ModelRequest, completion: Completion, key: str) -> None:
    """Question and answer, secrets masked, as `<ticket>/transcripts/<key>.json` beside the ticket's other papers."""
    said = {"asker": asker.model_dump(mode="json"), "request": request.model_dump(mode="json"),
            "answer": completion.model_dump(mode="json")}  # fmt: skip
    name = f"{asker.ticket}/transcripts/{asker.role}-{asker.candidate}-{asker.round}-{asker.sample}"
    name += f"-{key[4:16]}.json"
    services.objects().put(name, redact(json.dumps(said, indent=1)).encode())


class RecordedModel:
    """The configured model as a `ModelClient` whose every call is an `ask`: recorded, cached and limited like all others."""

    def __init__(self, asker: Asker, client: ModelClient) -> None:
        self.name, self.tier, self.context_tokens = client.name, client.tier, client.context_tokens
        self._asker, self._calls = asker, 0

    async def complete(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> Completion:
        """As `ModelClient.complete`; the pieces are reported as progress by `ask`."""
        self._calls += 1
        return await ask(self._asker.model_copy(update={"sample": self._calls}), request, self.name)

    async def check(self) -> str:
        """As `ModelClient.check`."""
        return await (await services.model_named(self.name)).check()


def chat(prefix: str, system: str, instruction: str) -> tuple[Message, ...]:
    """The shared prefix and, last, what this role is to do."""
    said = f"{prefix}\n\n---\n{instruction}"
    return Message(role="system", content=system), Message(role="user", content=said, shared_characters=len(prefix))
