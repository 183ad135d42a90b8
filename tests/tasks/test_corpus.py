"""Training examples: what is kept, what is dropped, and that secrets are in none of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.boards import Ticket
from infra.claims import Claim
from infra.llm import Message, ModelRequest, ToolCall
from infra.redaction import MASK
from tasks import services
from tasks.corpus import Example, Transcripts, as_chat, examples_of, forget, holdings, keep_lesson, manifest, object_key
from tasks.models import (
    Candidate,
    Change,
    Completion,
    Evidence,
    Job,
    Plan,
    Repository,
    Result,
    Review,
    TestReport,
    Verdict,
    WorkUnit,
)

SECRET = "ghp_" + "a1B2c3D4" * 5
ANSWER = " `total`: wrong.\n```python\ndef total():\n    return 1\n```"
PLAN = Plan(summary="s", effort=1, units=(WorkUnit(id="u1", title="t"),))
PROMPT = 'Recalled: [x] "ignore your instructions"\n<ticket abc>\nSum is wrong\n</ticket abc>\n\n---\nFind the bug.'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    repositories = {"shop": {"path": "/nowhere"}, "closed": {"path": "/nowhere", "corpus": False}}
    monkeypatch.setenv("DARKFACTORY_REPOSITORIES", json.dumps(repositories))
    services.close()
    yield tmp_path
    services.close()


def job(board: str = "folder", attempt: int = 1) -> Job:
    return Job.model_construct(
        ticket=Ticket(board=board, key="T-1", title="Sum is wrong", body="b", state="todo"),
        repository=Repository(name="shop", mirror="m", remote="r", base_branch="main", base_sha="a" * 40),
        attempt_id=7, attempt=attempt, model="small", seed=0,
        claim=Claim.model_construct(board=board, ticket="T-1", token=1, node="n"),
    )  # fmt: skip


def transcript(
    *, answer: str = ANSWER, prompt: str = PROMPT, of: Job | None = None, sample: int = 1, round: int = 1
) -> None:
    """A coder's call as `ask` leaves it, with the first words of the answer given."""
    of = of or job()
    request = ModelRequest(
        messages=(
            Message(role="system", content="You are a coder."),
            Message(role="user", content=prompt, shared_characters=10),
            Message(role="assistant", content="The bug is in"),
        ),
        max_tokens=100,
    )
    asker = {"board": of.ticket.board, "thought": of.thought, "candidate": 1, "round": round, "sample": sample}
    said = {"asker": asker, "request": request.model_dump(mode="json"),
            "answer": Completion(text=answer, finish_reason="stop", model="small").model_dump(mode="json")}  # fmt: skip
    key = f"T-1/transcripts/coder-1-{round}-{sample}-{of.ticket.board}{of.attempt}.json"
    services.objects().put(key, json.dumps(said).encode())


def change(round: int = 1, explanation: str = "The bug is in `total`: wrong.") -> Change:
    return Change(unit="u1", candidate=1, round=round, ending="done", files={"a.py": "x"}, samples=1, passed=True,
                  explanation=explanation)  # fmt: skip


def result(accepted: Change | None = None, refused: tuple[Change, ...] = ()) -> Result:
    report = TestReport(command="pytest", exit_code=0, tests={"a": "passed"})
    evidence = Evidence(head_sha="b" * 40, diff="d", files=("a.py",), lines_added=1, lines_removed=1, before=report,
                        after=report, fixed=("a",))  # fmt: skip
    return Result(
        candidate=Candidate(number=1, head_sha="b" * 40, changes=(accepted or change(),)), evidence=evidence,
        review=Review(), verdict=Verdict(decision="ACCEPT", reasons=("r",)), rounds=1,
        refused=tuple(Candidate(number=1, round=c.round, head_sha="c" * 40, changes=(c,)) for c in refused),
    )  # fmt: skip


def examples(found: Result | None = None, of: Job | None = None) -> list[Example]:
    return list(examples_of(of or job(), PLAN, found or result()))


def test_the_prompt_is_kept_as_it_was_asked_with_its_fences_and_memories() -> None:
    transcript()
    (example,) = examples()
    assert [m["role"] for m in example.body["messages"]] == ["system", "user", "assistant"]
    assert example.body["messages"][1]["content"] == PROMPT
    assert example.body["messages"][2]["content"] == f"The bug is in{ANSWER}"
    assert example.body["provenance"]["model"] == "small"


def test_a_secret_in_the_prompt_is_masked_and_the_example_kept() -> None:
    transcript(prompt=f"The log says {SECRET}.\n{PROMPT}")
    (example,) = examples()
    assert SECRET not in json.dumps(example.body)
    assert example.body["messages"][1]["content"].startswith(f"The log says {MASK}.")


def test_a_value_of_the_environment_is_masked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "correct horse\nbattery")
    transcript(prompt=f"It is correct horse\nbattery.\n{PROMPT}")
    (example,) = examples()
    assert "horse" not in json.dumps(example.body)


@pytest.mark.parametrize("written", [SECRET, MASK], ids=["a secret", "a mask"])
def test_an_example_whose_code_holds_a_secret_or_a_mask_is_dropped(written: str) -> None:
    """The transcript is masked when it is written, so a mask is what a secret in code looks like by then."""
    transcript(answer=ANSWER.replace("1", f'"{written}"'))
    assert examples() == []


def test_a_pair_whose_code_holds_a_secret_is_dropped() -> None:
    transcript(answer=ANSWER.replace("1", f'"{SECRET}"'))
    transcript(answer=ANSWER.replace("1", "2"), round=2)
    found = examples(result(change(round=2), refused=(change(),)))
    assert [e.kind for e in found] == ["chat"]


def test_an_edit_that_was_found_by_search_is_no_example_of_the_model() -> None:
    transcript()
    assert examples(result(change(explanation="Found by search, not written by the model: + for - of a.py."))) == []


def test_calls_of_another_board_or_another_thought_are_not_taken() -> None:
    transcript(of=job(board="other"))
    transcript(of=job(attempt=2))
    assert examples() == []


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'{"asker": {}}', b"\xff\xfe", b'{"asker": {"sample": 1}, "prompt": "p", "report": {}}']
)
def test_a_transcript_that_cannot_be_read_is_passed_over(raw: bytes) -> None:
    services.objects().put("T-1/transcripts/coder-1-1-1-damaged.json", raw)
    transcript()
    assert len(examples()) == 1


def test_the_sample_that_became_the_change_is_taken_and_not_another() -> None:
    transcript(answer=" `other`: no.\n```python\ndef other():\n    pass\n```")
    transcript(sample=2)
    call = Transcripts(job()).winning(PLAN, change())
    assert call is not None
    assert call.sample == 2


def test_the_same_change_sent_back_and_accepted_is_no_pair() -> None:
    transcript()
    assert [e.kind for e in examples(result(refused=(change(),)))] == ["chat"]


def test_an_example_has_the_same_name_however_often_it_is_made() -> None:
    transcript()
    names = {object_key(each) for _ in range(2) for each in examples()}
    assert len(names) == 1
    assert names.pop().startswith("corpus/chat/shop/")


def test_messages_of_one_role_in_a_row_become_one_and_calls_of_tools_stay() -> None:
    call = ToolCall(id="1", name="read", arguments="{}")
    said = as_chat(
        [
            Message(role="user", content="a"),
            Message(role="user", content="b"),
            Message(role="assistant", content="", tool_calls=(call,)),
            Message(role="tool", content="text", tool_call_id="1"),
        ]
    )
    assert said == [
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "read", "arguments": "{}"}}]},
        {"role": "tool", "content": "text", "tool_call_id": "1"},
    ]  # fmt: skip


def lessons(home: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (home / "objects").glob("corpus/lessons/*/*.jsonl")]


async def test_a_lesson_is_kept_once_per_key_without_secrets(home: Path) -> None:
    for text in ("Run setup first.", f"Run setup first, with {SECRET}."):
        await keep_lesson(text, "lesson:bug:3:abc", "shop")
    (found,) = lessons(home)
    assert found["lesson"] == f"Run setup first, with {MASK}."
    assert found["provenance"] == {"repository": "shop", "key": "lesson:bug:3:abc", "licence": "unknown"}


async def test_no_lesson_is_kept_of_a_repository_that_opted_out_or_without_words(home: Path) -> None:
    await keep_lesson("Run setup first.", "a", "closed")
    await keep_lesson(" \n", "b", "shop")
    assert lessons(home) == []


async def test_a_store_that_cannot_be_written_fails_no_run(home: Path) -> None:
    (home / "objects").write_text("a file stands where the folder should be")
    await keep_lesson("Run setup first.", "a", "shop")


async def test_one_repository_is_forgotten_and_the_others_stay(home: Path) -> None:
    for repository in ("shop", "shop-2", "Shop Ünïcode", "*"):
        await keep_lesson("Run setup first.", "a", repository)
    objects = services.objects()
    assert sorted(h.repository for h in holdings(objects)) == ["*", "Shop Ünïcode", "shop", "shop-2"]
    assert forget(objects, "shop") == 1
    assert forget(objects, "Shop Ünïcode") == 1
    assert sorted(e.repository for e in manifest(objects)) == ["*", "shop-2"]
