"""The pull request's text: words of models, tickets and tests cannot open structure of their own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from infra.claims import Claim
from infra.ledger import SeatUsage
from tasks.delivery import Costs, cost_table
from tasks.models import (
    Audit,
    Candidate,
    Change,
    Evidence,
    Finding,
    Job,
    Plan,
    Repository,
    Result,
    Review,
    TestReport,
    Threat,
    Ticket,
    Usage,
    Verdict,
    WorkUnit,
)  # fmt: skip
from tasks.scribe import (
    CHANGELOG_CHARS,
    TITLE_CHARS,
    DraftWords,
    Words,
    checked,
    pull_request_body,
    pull_request_title,
    quoted,
)

CLAIM = Claim(board="folder", ticket="T-1", state="running", token=1, holder="h", machine="m", node="n", repository="r",
              ticket_state="ready", content="c", claimed_at=datetime(2026, 1, 1, tzinfo=UTC), lease_until=datetime(2026, 1, 1, tzinfo=UTC), lease_seconds=60)  # fmt: skip


def seat_usage(role: str = "coder", model: str = "m", provider: str | None = None, **usage: Any) -> SeatUsage:
    return SeatUsage(role=role, candidate=1, model=model, provider=provider, usage=Usage(**usage))


REPORT = TestReport(command="pytest", exit_code=0, tests={"t1": "passed", "t2": "failed"})


def job(**more: Any) -> Job:
    ticket = Ticket(key="T-1", title="Fix\n it", body="", state="ready").model_copy(update=more)
    repository = Repository(name="r", mirror="m", remote="", base_branch="main", base_sha="a" * 40)
    return Job(ticket=ticket, repository=repository, attempt_id=1, attempt=1, model="m", tier="small",
               context_tokens=1, max_rounds=1, max_samples=1, seed=0, claim=CLAIM)  # fmt: skip


COSTS = Costs(seats=(seat_usage(calls=2, prompt_tokens=100, cached_tokens=50),))


def body(words: str = "words", own: Words | None = None, **more: Any) -> str:
    known: dict[str, Any] = {
        "head_sha": "c", "diff": "", "files": ("a.py",), "lines_added": 3, "lines_removed": 1, "before": REPORT,
        "after": REPORT, "fixed": ("t1",), "findings": (Finding(source="bandit", severity="low", message=words),),
    }  # fmt: skip
    plan = Plan(summary=words, effort=1, units=(WorkUnit(id="u", title="t"),))
    change = Change(unit="u", candidate=1, round=1, ending="done", explanation=words)
    verdict = Verdict(decision="ACCEPT", reasons=(words,), advice=words)
    audit = Audit(auditor=1, threats=(Threat(category="spoofing", vector=words, threat=words),))
    result = Result(
        candidate=Candidate(number=1, head_sha="c", changes=(change,)), evidence=Evidence(**{**known, **more}),
        review=Review(summary=words), audits=(audit,), verdict=verdict, rounds=1,
    )  # fmt: skip
    return pull_request_body(job(), plan, result, COSTS, own or Words())


def test_everything_measured_is_told() -> None:
    text = body()
    for part in ("Ticket: T-1", "+3 -1", "- `a.py`", "| the repository's | 1 passed, 1 failed |", "passes after: `t1`", "**ACCEPT**", "| m | 2 | 100 | 50% |"):  # fmt: skip
        assert part in text


@pytest.mark.parametrize("attack", ["# Heading", "> quote", "- item", "* item", "+ item", "1. item", "2) item"])
def test_quoted_words_open_no_block(attack: str) -> None:
    assert quoted(attack).startswith("\\") or quoted(attack)[1] == "\\"


def test_quoted_words_are_one_line_without_html_or_mentions() -> None:
    text = quoted("a\n\n# b\r\n<script>x</script> <!-- @owner --> @team/all")
    assert "\n" not in text
    assert "<" not in text
    assert "@owner" not in text
    assert "@team" not in text


@pytest.mark.parametrize("attack", ["![x](http://evil.example/pixel)", "[click](http://evil.example)", "```", "~~~"])
def test_quoted_words_make_no_link_image_or_fence(attack: str) -> None:
    assert quoted(attack) != attack


def test_quoted_words_close_no_issue() -> None:
    assert "Fixes #1" not in quoted("Fixes #1")


def test_no_line_of_the_page_is_a_heading_of_someone_else() -> None:
    text = body("# Verdict: merge\n## Now @all <b>")
    own = [line for line in text.splitlines() if line.startswith("#")]
    assert own == ["## Diff", "## Evidence", "## Findings", "## Verdict", "## Cost"]
    assert "<b>" not in text
    assert "@all" not in text


def test_a_test_id_cannot_leave_its_code_span() -> None:
    text = body(fixed=("t[`</code> @owner <img src=x>\n# Heading`]",))
    assert "\n# Heading" not in text
    assert "@owner" not in text


def test_an_error_with_a_pipe_keeps_the_table_whole() -> None:
    report = REPORT.model_copy(update={"error": "a | b"})
    row = next(line for line in body(after=report).splitlines() if line.startswith("| the repository's"))
    assert row.replace("\\|", "").count("|") == 4


def test_a_test_id_with_a_pipe_stays_out_of_tables() -> None:
    lines = body(fixed=("t[a|b]",), still_red=("t[c|d]",)).splitlines()
    assert [line for line in lines if "a|b" in line or "c|d" in line] == [
        "- fails before, passes after: `t[a|b]`",
        "- still fails (written by a model, may be wrong): `t[c|d]`",
    ]


def test_the_title_is_one_short_line() -> None:
    assert pull_request_title(job(), Words()) == "T-1: Fix it"
    assert len(pull_request_title(job(title="x" * 500), Words())) == 120
    assert pull_request_title(job(), Words(title="Mend the sum")) == "T-1: Mend the sum"


def test_cost_without_a_single_token_is_no_division_by_zero() -> None:
    assert "| all | 0 | 0 | 0% | 0 | 0 | 0.0000 |" in cost_table(Costs())[-1]


def test_the_cost_table_has_a_row_for_each_provider_and_model_and_one_for_all() -> None:
    """OB3: the sums are the providers' own; the cached share is shown where it was measured."""
    other = seat_usage(role="judge", model="n", provider="openai", calls=1, prompt_tokens=300, cached_tokens=30)
    again = seat_usage(role="tester", calls=1, prompt_tokens=100)
    assert cost_table(Costs(seats=(*COSTS.seats, other, again)))[2:] == [
        "| m | 3 | 200 | 25% | 0 | 0 | 0.0000 |",
        "| n (openai) | 1 | 300 | 10% | 0 | 0 | 0.0000 |",
        "| all | 4 | 500 | 16% | 0 | 0 | 0.0000 |",
    ]


GOOD = DraftWords(
    title="Take the discount off.",
    summary="total() left it out. Now it is taken off in a.py.",
    changelog="Discounts count.",
)
EVIDENCE = Evidence(head_sha="c", diff="", files=("a.py",), lines_added=1, lines_removed=1, before=REPORT, after=REPORT)


def test_words_that_the_diff_can_show_are_kept() -> None:
    assert checked(GOOD, EVIDENCE) == Words(
        title="Take the discount off", summary=GOOD.summary, changelog="Discounts count."
    )


@pytest.mark.parametrize(
    "said",
    [
        "All tests pass now", "This is fully tested", "It is verified", "Now the shop is secure", "It never fails again",
        "A robust fix", "Approved by the team", "Mends other.py too", "Changes src/a.py", "See https://evil.invalid",
        "Thanks @owner", "Fixes #12", "# Heading", "<b>bold</b>", "[x](y)", "`code`", "a | b", "dark\u202etxet", "",
    ],
)  # fmt: skip
def test_words_that_claim_more_than_the_evidence_or_are_marked_up_are_left_out(said: str) -> None:
    words = checked(DraftWords(title=said, summary=said, changelog=said), EVIDENCE)
    assert words == Words()


def test_words_of_several_lines_become_one_and_long_ones_go() -> None:
    assert checked(DraftWords(title="One\ntwo"), EVIDENCE).title == "One two"
    assert (
        checked(DraftWords(title="x" * (TITLE_CHARS + 1), changelog="x" * (CHANGELOG_CHARS + 1)), EVIDENCE) == Words()
    )


def test_the_scribes_words_replace_the_rules_and_bring_a_line_for_the_changelog() -> None:
    text = body("By rule.", own=Words(title="t", summary="By the scribe.", changelog="For users."))
    assert "\nBy the scribe.\n" in text
    assert "## Changelog\nFor users.\n" in text
    assert "\nBy rule.\n" not in text
