"""The corpus: what accepted runs leave to train a model with, one line of JSON per object below `corpus/` in the object store.

Prompts stay as they were asked, with their fences and memories, because a model will be asked like that again. A secret in
a prompt is masked; an example with a mask in what the model wrote is dropped, because it would teach to write masks.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

from prefect import task
from pydantic import ValidationError

from infra.git import directory_name
from infra.objects import Objects
from infra.redaction import MASK, redact
from tasks import services
from tasks.answers import continued
from tasks.coding import explanation
from tasks.models import Candidate, Change, Completion, FactoryError, Frozen, Job, Message, ModelRequest, Plan, Result

Kind = Literal["chat", "preferences", "lessons"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ROOT = "corpus"
LICENCE = "unknown"
"""Nobody looked at the repository's licence; who trains has to."""
_log = logging.getLogger(__name__)


class Example(Frozen):
    """One example to be kept. `key` names it: the same key again replaces it."""

    kind: Kind
    repository: str
    key: str
    body: dict[str, Any]


class Call(Frozen):
    """A question to the model and its answer, as the transcript has them. `sample` counts the calls of a coder."""

    sample: int
    request: ModelRequest
    answer: Completion

    @property
    def said(self) -> str:
        """The whole answer, with the words that were put into the model's mouth."""
        opening = self.request.messages[-1]
        return continued(opening.content, self.answer.text) if opening.role == "assistant" else self.answer.text

    @property
    def asked(self) -> tuple[Message, ...]:
        """The messages before the answer."""
        messages = self.request.messages
        return messages[:-1] if messages[-1].role == "assistant" else messages


def wanted(repository: str) -> bool:
    """Whether examples of this repository may be written."""
    settings = services.settings()
    section = settings.repositories.get(repository)
    return settings.learning.corpus and (section is None or section.corpus)


# --- writing ----------------------------------------------------------------------------------------------------------


async def keep_lesson(lesson_text: str, key: str, repository: str) -> None:
    """Keep a lesson of a repository; the same `key` again replaces it. Nothing where the corpus is turned off."""
    if lesson_text.strip() and wanted(repository):
        provenance = {"repository": repository, "key": key, "licence": LICENCE}
        body = {"lesson": redact(lesson_text), "provenance": provenance}
        await asyncio.to_thread(_keep, [Example(kind="lessons", repository=repository, key=key, body=body)])


async def drop_lesson(key: str, repository: str) -> None:
    """Keep a lesson no longer; nothing where there is none."""
    place = object_key(Example(kind="lessons", repository=repository, key=key, body={}))
    try:
        await asyncio.to_thread(services.objects().delete, place)
    except FactoryError as error:
        _log.warning("corpus outcome=not-dropped reason=%r", str(error))


@task(name="keep examples", task_run_name="keep examples")
async def keep_examples(job: Job, plan: Plan, result: Result) -> None:
    """Keep what an accepted run teaches. Running it again writes the same objects; no ticket fails for them."""
    if wanted(job.repository.name):
        await asyncio.to_thread(lambda: _keep(examples_of(job, plan, result)))


def _keep(examples: Iterable[Example]) -> None:
    try:
        for each in examples:
            services.objects().put(
                object_key(each), (json.dumps(each.body, ensure_ascii=False) + "\n").encode(errors="replace")
            )
    except FactoryError as error:
        _log.warning("corpus outcome=not-kept reason=%r", str(error))


def object_key(example: Example) -> str:
    """`corpus/KIND/REPOSITORY/NAME.jsonl`: files of a kind put together are one JSONL file."""
    name = hashlib.sha256(example.key.encode(errors="replace")).hexdigest()[:24]
    return f"{ROOT}/{example.kind}/{directory_name(example.repository)}/{name}.jsonl"


# --- examples of a run ------------------------------------------------------------------------------------------------


def examples_of(job: Job, plan: Plan, result: Result) -> Iterator[Example]:
    """The call that wrote each accepted change, and each change that the judge sent back against the accepted one."""
    calls = Transcripts(job)
    for change in result.candidate.changes:
        call = calls.winning(plan, change)
        if call is not None and (body := chat(call)) is not None:
            which = f"{change.candidate}.{change.round}.{change.unit}"
            yield _example("chat", job, result, call, which, body)
    for refused in result.refused:
        call = _alone(plan, refused, calls)
        accepted = _alone(plan, result.candidate, calls)
        if call is not None and (body := preference(job, call, refused, accepted, result.candidate)) is not None:
            yield _example("preferences", job, result, call, f"{refused.number}.{refused.round}", body)


def _example(kind: Kind, job: Job, result: Result, call: Call, which: str, body: dict[str, Any]) -> Example:
    key = "\0".join([job.ticket.board, job.ticket.key, job.thought, which])
    said = {**body, "provenance": {"model": call.answer.model, **provenance(job, result)}}
    return Example(kind=kind, repository=job.repository.name, key=key, body=said)


def provenance(job: Job, result: Result) -> dict[str, Any]:
    """Where an example comes from and what was measured about the accepted change."""
    evidence = result.evidence
    return {
        "ticket": job.ticket.key,
        "board": job.ticket.board,
        "repository": job.repository.name,
        "attempt": job.attempt,
        "base_sha": job.repository.base_sha,
        "head_sha": evidence.head_sha,
        "rounds": result.rounds,
        "evidence": {
            "fixed": len(evidence.fixed),
            "broken": len(evidence.broken),
            "passed": len(evidence.after.ids("passed")),
            "files": len(evidence.files),
            "lines_added": evidence.lines_added,
            "lines_removed": evidence.lines_removed,
        },
        "decided_by": result.verdict.decided_by,
        "licence": LICENCE,
    }


def chat(call: Call) -> dict[str, Any] | None:
    """The call in the chat format that trainers take, `tools` included; None when what the model wrote holds a mask, or it
    wrote nothing."""
    answer = Message(role="assistant", content=call.said, tool_calls=call.answer.tool_calls)
    messages = as_chat((*call.asked, answer))
    written = json.dumps([message for message in messages if message["role"] == "assistant"])
    if MASK in written or not (answer.content.strip() or answer.tool_calls):
        return None
    tools = [{"type": "function", "function": tool.model_dump()} for tool in call.request.tools]
    return {"messages": messages, **({"tools": tools} if tools else {})}


def as_chat(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as `{"role", "content"}`, secrets masked, those of one role in a row as one."""
    said: list[dict[str, Any]] = []
    for message in messages:
        if said and message.role == said[-1]["role"] in ("user", "assistant") and "tool_calls" not in said[-1]:
            said[-1]["content"] += f"\n\n{redact(message.content)}"
        else:
            said.append({"role": message.role, "content": redact(message.content)})
        if message.tool_calls:
            said[-1]["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": redact(call.arguments)},
                }
                for call in message.tool_calls
            ]
        if message.tool_call_id is not None:
            said[-1]["tool_call_id"] = message.tool_call_id
    return said


def preference(
    job: Job, first: Call, refused: Candidate, second: Call | None, accepted: Candidate
) -> dict[str, Any] | None:
    """A refused change against the accepted one, after the prompt of `first`, the call that wrote the refused one.

    Two plain answers stand as they were given; work with tools, or of which only one was an answer, as the diffs it came
    to. None when they are the same, or hold a mask.
    """
    if second is not None and not (first.request.tools or second.request.tools):
        form, rejected, chosen = "answer", first.said, second.said
    else:
        mirror, base = services.mirror(job.repository), job.repository.base_sha
        form, rejected, chosen = "diff", mirror.diff(base, refused.head_sha), mirror.diff(base, accepted.head_sha)
    rejected, chosen = redact(rejected), redact(chosen)
    if MASK in rejected + chosen or rejected == chosen or not (rejected.strip() and chosen.strip()):
        return None
    prompt = [each for each in as_chat(first.asked) if each["role"] in ("system", "user")][:2]
    return {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "form": form,
    }


def _alone(plan: Plan, candidate: Candidate, calls: Transcripts) -> Call | None:
    """The call that wrote a candidate, or the first unit of one that several made."""
    return calls.winning(plan, candidate.changes[0]) if candidate.changes else None


# --- transcripts ------------------------------------------------------------------------------------------------------


class Transcripts:
    """The coder's calls of a job. A run that was resumed, or repeated after a fault, thinks the same thought, so its calls may
    have been made by an earlier attempt."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._calls: dict[tuple[int, int], list[Call]] = {}
        folder = f"{job.ticket.key}/transcripts/coder-"
        for key in services.objects().list(folder):
            self._read(services.objects().get(key) or b"")

    def _read(self, raw: bytes) -> None:
        """One that is damaged, of another ticket, or an agent's own session is passed over."""
        try:
            kept = json.loads(raw)
            asker = kept["asker"]
            call = Call.model_validate(
                {"sample": asker["sample"], "request": kept["request"], "answer": kept["answer"]}
            )
        except (ValueError, ValidationError, KeyError, TypeError):
            return
        ours = (asker.get("board"), asker.get("thought")) == (self._job.ticket.board, self._job.thought)
        if ours and call.request.messages:
            self._calls.setdefault((asker.get("candidate"), asker.get("round")), []).append(call)

    def winning(self, plan: Plan, change: Change) -> Call | None:
        """The call that ended a coder's work with tools, or the plain answer that became the change; None when no call
        did (an edit found by search, another agent's session, a runner)."""
        calls = self._calls.get((change.candidate, change.round), [])
        unit = next((unit for unit in plan.units if unit.id == change.unit), None)
        told = unit.model_dump_json() if unit else ""
        looped = [call for call in calls if call.request.tools and any(told in m.content for m in call.asked)]
        if looped:
            return max(looped, key=lambda call: call.sample)
        plain = [call for call in calls if not call.request.tools and explanation(call.said) == change.explanation]
        return max(plain, key=lambda call: (call.sample == change.samples, len(call.said)), default=None)


# --- reading ----------------------------------------------------------------------------------------------------------


class Entry(Frozen):
    """One example that is kept. `size` in bytes."""

    key: str
    kind: Kind
    repository: str
    size: int


class Holding(Frozen):
    """The examples of one kind and repository. `size` in bytes."""

    kind: Kind
    repository: str
    examples: int
    size: int


def manifest(objects: Objects) -> list[Entry]:
    """All examples that are kept, by key."""
    found = []
    for kind in KINDS:
        for key in objects.list(f"{ROOT}/{kind}/"):
            raw = objects.get(key) or b""
            found.append(Entry(key=key, kind=kind, repository=_repository(key, raw), size=len(raw)))
    return found


def _repository(key: str, raw: bytes) -> str:
    """The repository's own name; of an example that cannot be read, its folder's."""
    try:
        return str(json.loads(raw)["provenance"]["repository"])
    except (ValueError, KeyError, TypeError):
        return key.split("/")[2]


def holdings(objects: Objects) -> list[Holding]:
    """How many examples there are, and how large, by kind and repository."""
    grouped: dict[tuple[Kind, str], list[int]] = {}
    for entry in manifest(objects):
        grouped.setdefault((entry.kind, entry.repository), []).append(entry.size)
    return [
        Holding(kind=kind, repository=repository, examples=len(sizes), size=sum(sizes))
        for (kind, repository), sizes in sorted(grouped.items())
    ]


def forget(objects: Objects, repository: str) -> int:
    """Delete all examples of a repository; returns how many there were."""
    folder = directory_name(repository)
    keys = [key for kind in KINDS for key in objects.list(f"{ROOT}/{kind}/{folder}/")]
    for key in keys:
        objects.delete(key)
    return len(keys)
