"""The GitHub forge against a real HTTP server that holds both sides to GitHub's own OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigError, ProviderFault, UnexpectedStatus, Unreachable
from infra.pull_requests import Forge, PullRequest
from infra.pull_requests.github import GitHubForge
from tests.fakes.github import FakeGitHub
from tests.shop import git, make_repository

BRANCH = "darkfactory/SHOP-1"
SHA = "c0ffee" + "0" * 34


@pytest.fixture
def fake() -> Iterator[FakeGitHub]:
    with FakeGitHub() as server:
        server.branches[BRANCH] = SHA
        yield server


@pytest.fixture
def forge(fake: FakeGitHub) -> GitHubForge:
    return GitHubForge(fake.forge_section())


def publish(forge: Forge, **changes: str) -> PullRequest:
    wanted = {"branch": BRANCH, "base": "main", "head_sha": SHA, "title": "Add a flag", "body": "Because."}
    return forge.publish(**(wanted | changes))


# Publishing


def test_a_branch_becomes_a_draft(fake: FakeGitHub, forge: GitHubForge) -> None:
    published = publish(forge)

    assert published == PullRequest(
        branch=BRANCH,
        title="Add a flag",
        body="Because.",
        base="main",
        head_sha=SHA,
        url="https://github.com/acme/shop/pull/1",
        draft=True,
        state="open",
    )
    assert forge.find(BRANCH) == published


def test_publishing_again_never_makes_a_second(fake: FakeGitHub, forge: GitHubForge) -> None:
    publish(forge)
    before = len(fake.writes)
    again = publish(forge)
    assert len(fake.writes) == before

    changed = publish(forge, title="Add two flags", body="Better.")

    assert list(fake.pulls) == [1]
    assert (again.url, changed.url) == ("https://github.com/acme/shop/pull/1",) * 2
    assert (changed.title, changed.body) == ("Add two flags", "Better.")
    assert fake.writes[-1].body == {"title": "Add two flags", "body": "Better."}


def test_what_a_person_made_ready_stays_ready(fake: FakeGitHub, forge: GitHubForge) -> None:
    publish(forge)
    fake.pulls[1].draft = False

    assert publish(forge, body="Better.").draft is False


def test_a_lost_race_updates_the_winners(fake: FakeGitHub, forge: GitHubForge) -> None:
    """Both looked, saw none, and GitHub refused the second."""
    fake.add_pull(BRANCH, title="theirs")
    fake.inject("GET /pulls$", 200, [])

    published = publish(forge)

    assert list(fake.pulls) == [1]
    assert (published.title, fake.pulls[1].title) == ("Add a flag",) * 2


def test_an_answer_that_got_lost_makes_no_second(fake: FakeGitHub, forge: GitHubForge) -> None:
    fake.add_pull(BRANCH)
    fake.inject("POST /pulls$", 0)
    fake.inject("GET /pulls$", 200, [])
    with pytest.raises(Unreachable):
        publish(forge)

    publish(forge)

    assert list(fake.pulls) == [1]


def test_a_closed_one_is_opened_again(fake: FakeGitHub, forge: GitHubForge) -> None:
    publish(forge)
    forge.close(BRANCH, "not now")

    published = publish(forge, body="Better.")

    assert list(fake.pulls) == [1]
    assert (published.state, published.body) == ("open", "Better.")


def test_a_closed_one_that_cannot_be_opened_makes_room_for_a_new_one(fake: FakeGitHub, forge: GitHubForge) -> None:
    """Its branch was written anew since."""
    fake.add_pull(BRANCH, state="closed")
    fake.reopens = False

    published = publish(forge)

    assert (published.url, published.state) == ("https://github.com/acme/shop/pull/2", "open")
    assert forge.find(BRANCH) == published


def test_one_on_another_base_is_moved_to_the_wanted_one(fake: FakeGitHub, forge: GitHubForge) -> None:
    """T8: a person, or a changed setting, had it on another branch; a second one would not be what was asked for."""
    fake.add_pull(BRANCH, base="release", title="Add a flag", body="Because.")

    assert publish(forge).base == publish(forge).base == "main"
    assert [(asked.method, asked.body) for asked in fake.writes] == [("PATCH", {"base": "main"})]


def test_a_merged_one_stays_as_it_is(fake: FakeGitHub, forge: GitHubForge) -> None:
    fake.add_pull(BRANCH, title="Done", state="closed", merged=True)

    published = publish(forge)

    assert (published.state, published.title, published.head_sha) == ("merged", "Done", SHA)
    assert fake.writes == []


def test_work_after_a_merge_gets_a_pull_request_of_its_own(fake: FakeGitHub, forge: GitHubForge) -> None:
    """T8: the merged one shows nobody what was pushed since. The same call again updates the new one."""
    fake.add_pull(BRANCH, title="Done", state="closed", merged=True)
    fake.branches[BRANCH] = "b" * 40

    urls = {publish(forge, head_sha="b" * 40).url for _ in range(2)}

    assert urls == {"https://github.com/acme/shop/pull/2"}
    assert len(fake.pulls) == 2


def test_a_repository_without_drafts_gets_a_pull_request_that_is_none(fake: FakeGitHub, forge: GitHubForge) -> None:
    fake.drafts = False

    assert publish(forge).draft is False


def test_a_refusal_says_why(fake: FakeGitHub, forge: GitHubForge) -> None:
    errors = [{"resource": "PullRequest", "field": "base", "code": "invalid"}]
    fake.inject("POST /pulls$", 422, {"message": "Validation Failed", "errors": errors})

    with pytest.raises(UnexpectedStatus, match="Validation Failed; base invalid"):
        publish(forge)


def test_hostile_words_reach_github_as_text(fake: FakeGitHub, forge: GitHubForge) -> None:
    publish(forge, title="a\x1b[31m\r\nb\ud800" + "x" * 300, body="nul \x00 " + "y" * 100_000)

    assert fake.pulls[1].title.startswith("a [31m b xxx")
    assert len(fake.pulls[1].title) == 256
    assert "\x00" not in fake.pulls[1].body
    assert len(fake.pulls[1].body) < 65_536


# Finding


def test_the_open_one_counts_then_the_newest(fake: FakeGitHub, forge: GitHubForge) -> None:
    assert forge.find(BRANCH) is None
    fake.add_pull(BRANCH, title="merged", state="closed", merged=True)
    fake.add_pull(BRANCH, title="open")
    fake.add_pull(BRANCH, title="closed", state="closed")

    found = [forge.find(BRANCH)]
    fake.pulls[2].state = "closed"
    found.append(forge.find(BRANCH))

    assert [(pull.title, pull.state) for pull in found if pull] == [("open", "open"), ("closed", "closed")]


def test_other_branches_and_forks_are_not_the_factorys(fake: FakeGitHub, forge: GitHubForge) -> None:
    """GitHub may ignore `head` and list everything."""
    fake.add_pull("darkfactory/SHOP-10")
    fake.add_pull(BRANCH, repository="eve/shop")
    fake.add_pull(BRANCH, repository=None)
    fake.inject("GET /pulls$", 200, [fake.pull_record(pull) for pull in fake.pulls.values()])

    assert forge.find(BRANCH) is None


@pytest.mark.parametrize(
    "raw",
    [
        *({"number": "1"}, {"title": None}, {"html_url": 7}, {"base": {}}),
        {"head": {"ref": BRANCH, "sha": "../../x", "repo": {"full_name": "acme/shop"}}},
    ],
)
def test_a_malformed_pull_request_fails_the_read(fake: FakeGitHub, forge: GitHubForge, raw: dict[str, Any]) -> None:
    """TR2: a hole would look like "none yet"."""
    fake.add_pull(BRANCH, raw=raw)

    with pytest.raises(ProviderFault):
        forge.find(BRANCH)


# Talking


def test_a_comment_is_written_once_and_replaced_in_place(fake: FakeGitHub, forge: GitHubForge) -> None:
    publish(forge)
    for body in ("one", "one", "two"):
        forge.comment(BRANCH, body, "outcome")

    [comment] = fake.pulls[1].comments
    assert comment["body"].startswith("two\n")
    assert len(fake.writes) == 3


@pytest.mark.parametrize("state", [None, "closed"])
def test_nobody_is_told_where_nothing_is_open(fake: FakeGitHub, forge: GitHubForge, state: str | None) -> None:
    if state:
        fake.add_pull(BRANCH, state=state)

    forge.comment(BRANCH, "hello", "m")
    forge.close(BRANCH, "because")

    assert fake.writes == []


def test_reviews_are_all_that_people_said_in_order(fake: FakeGitHub, forge: GitHubForge) -> None:
    assert forge.reviews(BRANCH) == []
    publish(forge)
    forge.comment(BRANCH, "ours", "outcome")
    fake.add_comment(1, "looks odd", author="ada")
    fake.add_remark(1, "why?", "a.py", 3, author="bob")
    fake.add_remark(1, "gone line", "b.py", None, author="bob")
    fake.add_review(1, "CHANGES_REQUESTED", "please", author="bob")
    fake.add_review(1, "COMMENTED", "", author="bob")
    fake.add_review(1, "PENDING", "not sent", author="bob")
    fake.add_review(1, "DISMISSED", "old", author="bob")
    fake.add_review(1, "APPROVED", author="eve")
    stolen = fake.pulls[1].comments[0]["body"]
    fake.add_comment(1, stolen, author="eve")

    said = [(r.author, r.verdict, r.body, r.path, r.line) for r in forge.reviews(BRANCH)]

    assert said == [
        ("ada", "commented", "looks odd", None, None),
        ("bob", "commented", "why?", "a.py", 3),
        ("bob", "commented", "gone line", "b.py", 7),
        ("bob", "changes-requested", "please", None, None),
        ("bob", "commented", "old", None, None),
        ("eve", "approved", "", None, None),
        ("eve", "commented", stolen, None, None),
    ]


def test_reviews_of_all_pages_are_read(fake: FakeGitHub, forge: GitHubForge) -> None:
    """TR1"""
    publish(forge)
    fake.page = 2
    for number in range(5):
        fake.add_review(1, "COMMENTED", f"review {number}")
        fake.add_remark(1, f"remark {number}", "a.py", 1)
        fake.add_comment(1, f"comment {number}")

    assert len(forge.reviews(BRANCH)) == 15


def test_checks_are_runs_and_statuses_of_the_head_by_name(fake: FakeGitHub, forge: GitHubForge) -> None:
    assert forge.checks(BRANCH) == []
    publish(forge)
    for name, status, conclusion in [
        *(("b-tests", "completed", "success"), ("c-lint", "completed", "failure"), ("d-docs", "in_progress", None)),
        *(("e-skipped", "completed", "skipped"), ("f-cancelled", "completed", "cancelled")),
        *(("g-neutral", "completed", "neutral"), ("h-slow", "completed", "timed_out"), ("i-queued", "queued", None)),
    ]:
        fake.add_run(SHA, name, status, conclusion)
    for name, state in [("a-ci", "pending"), ("j-ci", "error"), ("k-ci", "failure"), ("l-ci", "success")]:
        fake.add_status(SHA, name, state, "it said")
    fake.add_run("d" * 40, "another commit", conclusion="failure")

    checks = forge.checks(BRANCH)

    assert [(c.name[0], c.state) for c in checks] == [
        *(("a", "pending"), ("b", "passed"), ("c", "failed"), ("d", "pending"), ("e", "passed"), ("f", "failed")),
        *(("g", "passed"), ("h", "failed"), ("i", "pending"), ("j", "failed"), ("k", "failed"), ("l", "passed")),
    ]
    assert (checks[0].url, checks[0].summary) == ("https://ci.example/7", "it said")
    assert checks[1].summary == "b-tests ran"


def test_checks_of_all_pages_are_read(fake: FakeGitHub, forge: GitHubForge) -> None:
    """TR1: a failure on the second page is not missed."""
    publish(forge)
    fake.page = 2
    for number in range(5):
        fake.add_run(SHA, f"run {number}")
        fake.add_status(SHA, f"status {number}", "success")

    assert len(forge.checks(BRANCH)) == 10


def test_an_unknown_outcome_is_no_success(fake: FakeGitHub, forge: GitHubForge) -> None:
    publish(forge)
    run = {"name": "x", "status": "completed", "conclusion": "marvellous"}
    fake.inject("/check-runs$", 200, {"check_runs": [run]})

    assert [c.state for c in forge.checks(BRANCH)] == ["failed"]


def test_closing_says_why_and_is_repeatable(fake: FakeGitHub, forge: GitHubForge) -> None:
    """Also when the first try died between the comment and the closing."""
    publish(forge)
    fake.inject("PATCH /pulls/1$", 0)
    with pytest.raises(Unreachable):
        forge.close(BRANCH, "the ticket is gone")

    for _ in range(2):
        forge.close(BRANCH, "the ticket is gone")

    assert fake.pulls[1].state == "closed"
    [comment] = fake.pulls[1].comments
    assert comment["body"].startswith("the ticket is gone\n")


def test_an_unknown_repository_is_a_mistake_of_the_settings(fake: FakeGitHub) -> None:
    forge = GitHubForge(fake.forge_section(project="acme/nothing"))

    with pytest.raises(ConfigError, match="acme/nothing"):
        publish(forge)
    assert fake.writes == []


# Looking after


def test_open_ones_are_listed_in_one_request_with_labels_and_without_forks(
    fake: FakeGitHub, forge: GitHubForge
) -> None:
    number = fake.add_pull(BRANCH, title="One")
    fake.add_pull("fork", repository="mallory/shop")
    fake.pulls[number].labels = ["Dark-Factory-Refine"]
    fake.labels["dark-factory-refine"] = "Dark-Factory-Refine"
    closed = fake.add_pull("old")
    fake.pulls[closed].state = "closed"
    (found,) = forge.open()
    assert (found.branch, found.number, found.labels) == (BRANCH, number, ("dark-factory-refine",))
    assert found.updated_at is not None
    assert len(fake.log) == 1


@pytest.mark.parametrize(
    ("change", "merged"),
    [({}, True), ({"draft": True}, False), ({"state": "closed"}, False), ({"sha": "moved"}, False)],
)
def test_merging_is_githubs_to_refuse(
    fake: FakeGitHub, forge: GitHubForge, change: dict[str, Any], merged: bool, tmp_path: Path
) -> None:
    source = make_repository(tmp_path / "shop")
    git(source, "branch", BRANCH)
    git(tmp_path, "clone", "--quiet", "--bare", str(source), "shop.git")
    fake.git = tmp_path / "shop.git"
    head = git(source, "rev-parse", BRANCH).strip()
    number = fake.add_pull(BRANCH, draft=change.get("draft", False), state=change.get("state", "open"))
    assert forge.merge(BRANCH, "0" * 40 if "sha" in change else head) is merged
    assert fake.pulls[number].merged is merged
    if merged:
        assert forge.merge(BRANCH, head)


def test_a_failed_check_says_what_its_notes_say(fake: FakeGitHub, forge: GitHubForge) -> None:
    fake.add_pull(BRANCH)
    fake.add_run(SHA, "build", conclusion="failure")
    fake.annotate(SHA, "build", "shop.py", 7, "cents are lost")
    fake.add_run(SHA, "lint")
    build, lint = forge.checks(BRANCH)
    assert (build.state, lint.state) == ("failed", "passed")
    assert build.summary == "build ran\nshop.py:7: cents are lost"


def test_reviews_say_who_belongs_to_the_repository_and_what_was_looked_at(fake: FakeGitHub, forge: GitHubForge) -> None:
    number = fake.add_pull(BRANCH)
    fake.members = {"ada"}
    fake.add_review(number, "APPROVED", author="ada")
    fake.add_comment(number, "Looks right.", author="ada")
    fake.add_comment(number, "Nice.", author="mallory")
    assert [(r.author, r.member, r.head_sha) for r in forge.reviews(BRANCH)] == [
        ("ada", True, SHA),
        ("ada", True, None),
        ("mallory", False, None),
    ]
