"""The bug hunter's guesses: a capable model names a bug in a function, and code proves it or forgets it.

The proof is a test that fails twice on the untouched base branch because of the repository's code. A small model is not
asked: its tests say more about itself than about the code.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
from collections.abc import Iterator

from pydantic import BaseModel, Field

from infra.code_index import Place
from infra.housekeeping import fingerprint
from infra.test_runners import TestResult, is_test_path, shorten
from tasks import services
from tasks.answers import code_blocks, parse
from tasks.asking import Asker, ask
from tasks.context import SYSTEM, fenced, nonce_for
from tasks.evidence import is_red, new_tests_on_base
from tasks.finders import Found, Look, all_branches
from tasks.models import Brief, Message, ModelRequest, TestReport, Ticket

CHORE = "bug-hunter"
KIND = "proven-bug"
PROMPT_VERSION = "bug-hunter-1"
FUNCTIONS = 3
"""Functions that one hunt asks about. Each is asked about once while its text stays the same."""
LEAST_LINES = 3
CODE_CHARS = 12_000
ANSWER_TOKENS = 1_500
INSTRUCTION = """\
The file {path} of a repository:
{code}

You are the bug hunter. Look at the function {name}. Is there an input for which it does not do what its name, its \
documentation or its callers promise? Answer with one JSON object: {{"bug": one sentence, or "" when there is none}}. When \
there is one, add one ```python block: a pytest file that imports the code by its package, with one short test that fails \
because of this bug and passes once it is mended. No mocks, nothing private, nothing that nobody promised."""


class Suspicion(BaseModel):
    bug: str = Field(default="", max_length=400)


async def hunted(look: Look) -> list[Found]:
    """Bugs that a model suspects and a test proves; nothing without a capable model or without pytest."""
    if look.policy.test_runner != "pytest":
        return []
    model = await services.model()
    if model.tier == "small":
        look.notes.append("the model is small, so it was not asked for bugs; only tools looked")
        return []
    chosen = await asyncio.to_thread(lambda: list(_prey(look))[:FUNCTIONS])
    asker = await asyncio.to_thread(_asker, look) if chosen else None
    found = [await _hunt(look, place, asker, model.name) for place in chosen if asker is not None]
    if asker is not None:
        await asyncio.to_thread(services.ledger(asker.board).end_attempt, asker.attempt_id, "cancelled")
    return [each for each in found if each is not None]


def _prey(look: Look) -> Iterator[Place]:
    """Functions that were not asked about as they are now, those with most ways through them first."""
    branches = all_branches(look.texts)
    fit = [
        p for p in look.places
        if p.kind in ("function", "method") and p.path.endswith(".py") and not is_test_path(p.path)
        and p.end_line - p.start_line + 1 >= LEAST_LINES
    ]  # fmt: skip
    store, name = services.housekeeping(), look.repository.name
    for place in sorted(fit, key=lambda p: (-branches.get((p.path, p.start_line), 1), p.path, p.start_line)):
        asked = store.mark_of(CHORE, name, _subject(place)) == _text_hash(look, place)
        if not asked and not store.known([fingerprint(name, KIND, place.path, place.qualified_name)]):
            yield place


def _subject(place: Place) -> str:
    return f"{place.path}::{place.qualified_name}"


def _text_hash(look: Look, place: Place) -> str:
    lines = look.texts.get(place.path, "").splitlines()[place.start_line - 1 : place.end_line]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "replace")).hexdigest()[:16]


def _ticket(look: Look) -> Ticket:
    """What the ledger and the budgets know the hunt's calls by; it is on no board."""
    return Ticket(
        board=services.housekeeping_board(),
        key=look.key,
        title=f"Bug hunt in {look.repository.name}",
        body="",
        state="housekeeping",
    )


def _asker(look: Look) -> Asker:
    ticket, ledger = _ticket(look), services.ledger(services.housekeeping_board())
    ledger.record_ticket(ticket, look.repository.name)
    attempt = ledger.start_attempt(ticket.key, look.sha, ticket.revision)
    configured = services.settings().repositories.get(look.repository.name)
    return Asker(ticket=ticket.key, attempt_id=attempt.id, thought=look.sha, role=CHORE, prompt_version=PROMPT_VERSION,
                 board=services.housekeeping_board(), public=configured is not None and configured.public)  # fmt: skip


async def _hunt(look: Look, place: Place, asker: Asker, model: str) -> Found | None:
    """Ask about one function and run the proof. Without a proof the function is left alone until its text changes."""
    completion = await ask(asker, _request(look, place), model)
    suspicion, blocks = parse(completion.text, Suspicion), code_blocks(completion.text)
    if suspicion is not None and suspicion.bug.strip() and blocks and (proof := await _proof(look, place, blocks[-1])):
        return _found(look, place, suspicion.bug, blocks[-1], *proof)
    await asyncio.to_thread(services.housekeeping().mark, CHORE, look.repository.name, _subject(place), _text_hash(look, place))  # fmt: skip
    return None


def _request(look: Look, place: Place) -> ModelRequest:
    nonce = nonce_for(services.home_secret(), _ticket(look))
    code = fenced(shorten(look.texts.get(place.path, ""), CODE_CHARS), nonce)
    told = INSTRUCTION.format(path=place.path, code=code, name=place.qualified_name)
    messages = (Message(role="system", content=SYSTEM), Message(role="user", content=told))
    return ModelRequest(messages=messages, max_tokens=ANSWER_TOKENS, seed=services.settings().seed)


async def _proof(look: Look, place: Place, text: str) -> tuple[str, str, str] | None:
    """(path, test, output) of a test that fails on base both times; None when it proves nothing."""
    if not _parses(text):
        return None
    folder = "tests/" if any(path.startswith("tests/") for path in look.texts) else ""
    path = f"{folder}test_hunt_{hashlib.sha256(_subject(place).encode()).hexdigest()[:8]}.py"
    brief = Brief(ticket=_ticket(look), repository=look.repository, policy=look.policy,
                  baseline=TestReport(command="", exit_code=0))  # fmt: skip
    runs = [
        await new_tests_on_base(look.mirror, services.sandbox(), services.worktrees(), brief, {path: text})
        for _ in range(2)
    ]
    red = [name for name, result in runs[0][1].items() if _contradicts(result) and _contradicts(runs[1][1].get(name))]
    return (path, red[0], runs[0][0].output) if red else None


def _contradicts(result: TestResult | None) -> bool:
    """An assertion that does not hold, or an error inside of the repository's code. Using it wrongly proves nothing."""
    if result is None or not is_red(result):
        return False
    return result.exception in ("AssertionError", "Timeout") or any(not is_test_path(f) for f in result.frames)


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return False
    return True


def _found(look: Look, place: Place, bug: str, test: str, path: str, name: str, output: str) -> Found:
    plain = " ".join(bug.split())[:300]
    return Found(
        kind=KIND, subject=place.qualified_name, path=place.path, line=place.start_line, name=place.name,
        title=f"Bug in {place.qualified_name} of {place.path}, proven by a test",
        what=f"This test fails on the untouched base branch. The hunter's explanation, which may be wrong: {plain}",
        evidence=f"# {path}\n{test.strip()}\n\n{output}",
        acceptance="The test above is part of the suite and passes; or the change says why the test is wrong.", weight=95,
    )  # fmt: skip
