"""The GitHub board against a real HTTP server that holds both sides to GitHub's own OpenAPI document."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from infra.boards import Board, Ticket
from infra.boards.github import GitHubBoard
from infra.boards.markers import seal
from infra.errors import AuthFailed, BrokenPagination, ConfigError, FactoryError, ProviderFault, Unreachable
from infra.sections import States
from tests.fakes.github import FakeGitHub

QUEUE = ["todo", "agent queue"]


@pytest.fixture
def fake() -> Iterator[FakeGitHub]:
    with FakeGitHub() as server:
        yield server


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    return tmp_path / "answers"


@pytest.fixture
def board(fake: FakeGitHub) -> GitHubBoard:
    return GitHubBoard("gh", fake.section())


def one(board: GitHubBoard, key: str) -> Ticket:
    [ticket] = board.tickets_by_keys([key])
    return ticket


# Reading


def test_a_ticket_has_all_that_github_knows(fake: FakeGitHub, board: GitHubBoard) -> None:
    """TR3: labels are trimmed, lowercased and each there once."""
    blocker = fake.add_issue("First")
    labels = ["Agent  Queue", " Bug", "bug", "Priority: High"]
    number = fake.add_issue("Add a flag", "Do **this**\r\nnow", labels, author="ada", assignee="bob")
    fake.block(number, blocker)
    fake.add_comment(number, "Soon, please.", author="eve")

    ticket = one(board, "shop-2")

    assert (ticket.board, ticket.key, ticket.title, ticket.state) == ("gh", "shop-2", "Add a flag", "agent queue")
    assert ticket.body == "Do **this**\nnow"
    assert (ticket.labels, ticket.priority) == (("agent queue", "bug", "priority: high"), 2)
    assert (ticket.author, ticket.assignee, ticket.blocked_by) == ("ada", "bob", ("shop-1",))
    assert (ticket.closed, ticket.created_at) == (False, datetime(2026, 1, 1, 0, 0, 2, tzinfo=UTC))
    assert ticket.url == "https://github.com/acme/shop/issues/2"
    [comment] = ticket.comments
    assert (comment.author, comment.body, comment.marker) == ("eve", "Soon, please.", None)
    as_protocol: Board = board
    assert as_protocol.name == "gh"


@pytest.mark.parametrize(
    ("labels", "state"),
    [
        ([], "open"),
        (["bug"], "open"),
        (["IN PROGRESS"], "in progress"),
        (["todo", "in progress"], "in progress"),
        (["in progress", "needs human", "todo"], "needs human"),
        (["done"], "open"),
    ],
)
def test_a_state_is_a_label_and_the_queue_is_the_last_word(
    fake: FakeGitHub, board: GitHubBoard, labels: list[str], state: str
) -> None:
    """A move that died half way leaves two state labels; the ticket must not be dispatched again then."""
    fake.add_issue("x", labels=labels)

    assert one(board, "shop-1").state == state


@pytest.mark.parametrize(
    ("labels", "priority"),
    [
        *((["p1"], 1), (["P4"], 4), (["urgent"], 1), (["priority: high"], 2), (["Priority/Medium"], 3)),
        *((["priority:low"], 4), (["priority 2"], 2), (["p3", "critical"], 1), (["high"], None), (["2"], None)),
        *((["p7"], None), (["priority: soon"], None), ([], None)),
    ],
)
def test_priorities_are_labels(fake: FakeGitHub, board: GitHubBoard, labels: list[str], priority: int | None) -> None:
    fake.add_issue("x", labels=labels)

    assert one(board, "shop-1").priority == priority


def test_states_and_labels_are_left_to_github_in_one_request_per_state(fake: FakeGitHub) -> None:
    """TR1, TR4: comments and what is closed cost nothing."""
    board = GitHubBoard("gh", fake.section(required_labels=[" Factory"]))
    wanted = fake.add_issue("wanted", labels=["todo", "factory"])
    fake.add_comment(wanted, "not read")
    fake.add_issue("no label", labels=["todo"])
    fake.add_issue("other state", labels=["in progress", "factory"])
    for number in range(500):
        fake.add_issue(f"old {number}", labels=["todo", "factory"], state="closed")

    assert [t.key for t in board.tickets_in_states(["TODO", "Agent Queue", "banana", "closed", " "])] == ["shop-1"]
    assert [(a.path, a.query["labels"], a.query["state"]) for a in fake.log] == [
        ("/issues", "todo,Factory", "open"),
        ("/issues", "agent queue,Factory", "open"),
    ]


def test_open_issues_without_a_state_can_be_asked_for(fake: FakeGitHub, board: GitHubBoard) -> None:
    fake.add_issue("no state", labels=["bug"])
    fake.add_issue("in the queue", labels=["todo"])
    fake.add_issue("closed", state="closed")

    assert [t.key for t in board.tickets_in_states(["open"])] == ["shop-1"]
    assert [t.key for t in board.tickets_in_states(["open", "todo"])] == ["shop-1", "shop-2"]
    assert len(fake.log) == 2


def test_words_with_a_comma_are_compared_here(fake: FakeGitHub) -> None:
    """GitHub parts the labels of a query by commas."""
    board = GitHubBoard("gh", fake.section(states=States(queue=("ready, set",)), required_labels=["go, now"]))
    fake.add_issue("x", labels=["ready, set", "go, now"])
    fake.add_issue("y", labels=["ready, set"])

    assert [t.key for t in board.tickets_in_states(["ready, set"])] == ["shop-1"]
    assert "labels" not in fake.log[0].query


def test_nothing_asked_is_no_request(fake: FakeGitHub, board: GitHubBoard) -> None:
    """TR1"""
    assert board.tickets_in_states([]) == board.tickets_in_states([" "]) == board.tickets_by_keys([]) == []
    assert fake.log == []


def test_a_blank_required_label_matches_nothing(fake: FakeGitHub) -> None:
    """SM3"""
    fake.add_issue("x", labels=["todo"])

    assert GitHubBoard("gh", fake.section(required_labels=[" "])).tickets_in_states(QUEUE) == []
    assert fake.log == []


def test_all_pages_are_read_and_each_ticket_once(fake: FakeGitHub, board: GitHubBoard) -> None:
    """TR1"""
    fake.page = 3
    for number in range(8):
        fake.add_issue(f"number {number}", labels=["todo"])
    fake.issues[4].raw = {"number": 3}

    assert [t.key for t in board.tickets_in_states(["todo"])] == [f"shop-{n}" for n in (1, 2, 3, 5, 6, 7, 8)]
    assert len(fake.log) == 3


def test_a_failed_request_fails_the_scan(fake: FakeGitHub, board: GitHubBoard) -> None:
    """TR1"""
    fake.inject("GET /issues$", 502, after=1)

    with pytest.raises(Unreachable):
        board.tickets_in_states(QUEUE)


def test_ten_thousand_closed_issues_cost_an_idle_board_nothing(fake: FakeGitHub, answers: Path) -> None:
    """TR4: an hour of scans every two minutes, each a process of its own, stays under 100 calls of GitHub's budget, also
    with tickets that wait for others."""
    for number in range(10_000):
        fake.add_issue(f"old {number}", labels=["todo"], state="closed")
    blocker = fake.add_issue("blocker")
    for number in range(4):
        fake.block(fake.add_issue(f"waiting {number}", labels=["todo"]), blocker)

    scans = [GitHubBoard("gh", fake.section(), answers).tickets_in_states(QUEUE) for _ in range(30)]

    assert {len(scan) for scan in scans} == {4}
    assert all(ticket.blocked_by == ("shop-10001",) for ticket in scans[-1])
    assert (len(fake.log), fake.spent) == (30 * (2 + 4), 2 + 4)


def test_what_was_read_is_confirmed_and_never_believed(fake: FakeGitHub, answers: Path) -> None:
    """TR4: another process sees the change at once, page by page, and pays for what is new only."""
    fake.page = 2
    for number in range(5):
        fake.add_issue(f"number {number}", labels=["todo"])

    def look() -> list[str]:
        return [ticket.title for ticket in GitHubBoard("gh", fake.section(), answers).tickets_in_states(["todo"])]

    first = look()
    paid = fake.spent
    assert look() == first == [f"number {n}" for n in range(5)]
    fake.issues[5].title = "changed"
    assert look()[4] == "changed"
    assert (paid, fake.spent, len(fake.log)) == (3, 4, 9)


def test_a_list_that_grows_by_a_page_is_not_taken_for_unchanged(fake: FakeGitHub, answers: Path) -> None:
    """TR4: the full page is the same as before, and a 304 does not say that there is another one now."""
    for number in range(100):
        fake.add_issue(f"number {number}", labels=["todo"])

    def look() -> int:
        return len(GitHubBoard("gh", fake.section(), answers).tickets_in_states(["todo"]))

    assert look() == 100
    fake.add_issue("one more", labels=["todo"])
    assert [look(), look()] == [101, 101]
    assert [asked.status for asked in fake.log][-2:] == [304, 304]
    fake.issues[101].state = "closed"
    assert look() == 100


def test_a_kept_answer_is_for_its_own_token_and_query(fake: FakeGitHub, answers: Path) -> None:
    """WS7"""
    fake.add_issue("x", labels=["todo"])
    GitHubBoard("gh", fake.section(), answers).tickets_in_states(["todo"])
    assert fake.token not in "".join(f"{path.name} {path.read_text()}" for path in answers.iterdir())
    assert {path.stat().st_mode & 0o777 for path in answers.iterdir()} == {0o600}
    with pytest.raises(AuthFailed):
        GitHubBoard("gh", fake.section(token="ghp_another"), answers).tickets_in_states(["todo"])
    assert GitHubBoard("gh", fake.section(), answers).tickets_in_states(["agent queue"]) == []
    fake.token = "ghp_another"
    assert len(GitHubBoard("gh", fake.section(), answers).tickets_in_states(["todo"])) == 1
    assert fake.log[-1].status == 200, "what another token saw is not asked about"


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b'{"etag": 7}'])
def test_a_damaged_kept_answer_is_read_again(fake: FakeGitHub, answers: Path, damage: bytes) -> None:
    fake.add_issue("x", labels=["todo"])
    for _ in range(2):
        assert len(GitHubBoard("gh", fake.section(), answers).tickets_in_states(["todo"])) == 1
        [kept] = answers.iterdir()
        kept.write_bytes(damage)
    assert fake.spent == 2


def test_pull_requests_are_no_tickets(fake: FakeGitHub, board: GitHubBoard) -> None:
    fake.add_pull("feature")
    fake.add_issue("x")

    assert [t.key for t in board.tickets_in_states(["open"])] == ["shop-2"]
    assert board.tickets_by_keys(["shop-1"]) == []


def test_tickets_come_by_key_with_closed_and_without_missing_ones(fake: FakeGitHub, board: GitHubBoard) -> None:
    """TR1: in the order asked, each once."""
    fake.add_issue("open", labels=["todo"])
    fake.add_issue("closed", labels=["todo"], state="closed")

    tickets = board.tickets_by_keys(["shop-2", "shop-99", "shop-1", "shop-2"])

    assert [(t.key, t.state, t.closed) for t in tickets] == [("shop-2", "closed", True), ("shop-1", "todo", False)]
    assert fake.asked("comments") == [], "comments that are not there cost nothing"


@pytest.mark.parametrize(
    "key", ["", "other-1", "shop-0", "shop-01", "shop-1x", "shop-1/../2", "shop-", "SHOP-1", "shop-١"]
)
def test_only_keys_of_the_board_are_ever_asked_for(fake: FakeGitHub, board: GitHubBoard, key: str) -> None:
    fake.add_issue("x")

    assert board.tickets_by_keys([key]) == []
    with pytest.raises(ConfigError, match="shop-12"):
        board.move(key, "todo")
    assert fake.log == []


def test_keys_begin_with_the_configured_prefix(fake: FakeGitHub) -> None:
    fake.add_issue("x", labels=["todo"])

    assert [t.key for t in GitHubBoard("gh", fake.section(key_prefix="Web")).tickets_in_states(QUEUE)] == ["Web-1"]


def test_a_deleted_issue_is_absent(fake: FakeGitHub, board: GitHubBoard) -> None:
    fake.inject("GET /issues/7$", 410, {"message": "This issue was deleted"})

    assert board.tickets_by_keys(["shop-7"]) == []


def test_a_transferred_issue_is_gone_and_never_written_to(fake: FakeGitHub, board: GitHubBoard) -> None:
    """WS7: GitHub redirects to the issue in the other repository, and PyGithub follows."""
    fake.add_issue("x", labels=["todo"])
    fake.issues[1].raw = {"repository_url": f"{fake.url}/repos/acme/attic"}

    assert board.tickets_by_keys(["shop-1"]) == []
    with pytest.raises(ConfigError, match="moved"):
        board.comment("shop-1", "hello", "m")
    assert fake.writes == []


MALFORMED: list[dict[str, Any]] = [
    *({"title": None}, {"title": 7}, {"title": "\n\x00"}),
    *({"state": "strange"}, {"state": None}),
]


@pytest.mark.parametrize("raw", [*MALFORMED, {"number": "1"}, {"number": 0}, {"number": True}, {"number": None}])
def test_a_malformed_record_is_dropped_by_state_and_fails_by_key(
    fake: FakeGitHub, board: GitHubBoard, raw: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """TR2, TR3: required fields are never defaulted."""
    fake.add_issue("broken", labels=["todo"])
    fake.add_issue("fine", labels=["todo"])
    fake.issues[1].raw = raw

    with caplog.at_level(logging.WARNING):
        assert [t.key for t in board.tickets_in_states(QUEUE)] == ["shop-2"]
    assert [record.getMessage().split(" reason=")[0] for record in caplog.records] == ["board='gh' outcome=dropped"]
    assert next(iter(raw)) in caplog.text, "the message names the field"
    with pytest.raises(ProviderFault):
        board.tickets_by_keys(["shop-1"])


@pytest.mark.parametrize("record", [None, 7, "text", [], {}])
def test_a_record_that_is_no_issue_is_malformed(fake: FakeGitHub, board: GitHubBoard, record: object) -> None:
    """TR2"""
    fake.inject("GET /issues$", 200, [record])
    assert board.tickets_in_states(["todo"]) == []

    fake.inject("GET /issues/1$", 200, record)
    with pytest.raises(ProviderFault):
        board.tickets_by_keys(["shop-1"])


def test_unusable_optional_fields_are_left_out(fake: FakeGitHub, board: GitHubBoard) -> None:
    """TR3"""
    fake.add_issue("x")
    fake.issues[1].raw = {
        "body": 7,
        "labels": [None, 7, "plain", {"name": None}, {"name": " "}, {}],
        "user": None,
        "assignee": "bob",
        "created_at": "yesterday",
        "updated_at": 7,
        "html_url": None,
        "issue_dependencies_summary": [],
    }

    ticket = one(board, "shop-1")

    assert (ticket.body, ticket.labels, ticket.author, ticket.assignee) == ("", ("plain",), None, None)
    assert (ticket.created_at, ticket.updated_at, ticket.url, ticket.blocked_by) == (None, None, "", ())


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("../../etc/passwd", "../../etc/passwd"),
        ("red \x1b[31malarm\x07\r\noutcome=done", "red [31malarm outcome=done"),
        ("a\u202eb\u2028c", "a b c"),
        ("half \ud83d a character", "half a character"),
    ],
)
def test_a_title_cannot_bring_control_characters_into_logs_and_prompts(
    fake: FakeGitHub, board: GitHubBoard, title: str, shown: str
) -> None:
    fake.add_issue(title, "nul \x00 and \ud800 half", labels=["todo"])

    [ticket] = board.tickets_in_states(["todo"])

    assert (ticket.key, ticket.title, ticket.body) == ("shop-1", shown, "nul  and ? half")


# Blockers


def test_blockers_are_the_open_ones_also_of_other_repositories(fake: FakeGitHub, board: GitHubBoard) -> None:
    """SM12"""
    open_one, closed_one = fake.add_issue("open"), fake.add_issue("closed", state="closed")
    fake.elsewhere = {("acme/api", 9): "open", ("acme/api", 8): "closed"}
    number = fake.add_issue("blocked", labels=["todo"])
    for by, project in ((open_one, None), (closed_one, None), (9, "acme/api"), (8, "acme/api")):
        fake.block(number, by, project)

    assert one(board, "shop-3").blocked_by == ("shop-1", "acme/api#9")
    assert [t.blocked_by for t in board.tickets_in_states(["todo"])] == [("shop-1", "acme/api#9")]


def test_blockers_are_asked_for_only_when_there_are_open_ones(fake: FakeGitHub, board: GitHubBoard) -> None:
    """TR4"""
    fake.block(fake.add_issue("x", labels=["todo"]), fake.add_issue("done", state="closed"))

    assert [t.blocked_by for t in board.tickets_in_states(QUEUE)] == [()]
    assert fake.asked("dependencies") == []


def test_a_blocker_that_is_closed_frees_the_ticket_at_the_next_scan(fake: FakeGitHub, board: GitHubBoard) -> None:
    """SM12: what was read is kept only while the issue says the same about itself."""
    first, second, blocked = fake.add_issue("a"), fake.add_issue("b"), fake.add_issue("c", labels=["todo"])
    fake.block(blocked, first)
    fake.block(blocked, second)
    seen = [board.tickets_in_states(["todo"])[0].blocked_by]
    for number in (first, second):
        fake.issues[number].state = "closed"
        seen.append(board.tickets_in_states(["todo"])[0].blocked_by)

    assert seen == [("shop-1", "shop-2"), ("shop-2",), ()]


@pytest.mark.parametrize("blocker", [7, {}, {"number": 3, "repository_url": "x"}, {"number": None}])
def test_a_malformed_blocker_drops_the_ticket_and_never_frees_it(
    fake: FakeGitHub, board: GitHubBoard, blocker: object
) -> None:
    """TR2"""
    fake.block(fake.add_issue("x", labels=["todo"]), fake.add_issue("blocker"))
    fake.inject("blocked_by$", 200, [blocker], times=2)

    assert board.tickets_in_states(["todo"]) == []
    with pytest.raises(ProviderFault, match="blocker"):
        board.tickets_by_keys(["shop-1"])


def test_a_failed_page_of_blockers_fails_the_scan(fake: FakeGitHub, board: GitHubBoard) -> None:
    """TR1"""
    number = fake.add_issue("x", labels=["todo"])
    for _ in range(2):
        fake.block(number, fake.add_issue("blocker"))
    fake.page = 1
    fake.inject("blocked_by$", 502, after=1)

    with pytest.raises(BrokenPagination):
        board.tickets_in_states(["todo"])


# Moving


def test_a_move_replaces_the_label_of_the_state_and_no_other(fake: FakeGitHub, board: GitHubBoard) -> None:
    fake.add_issue("x", labels=["Todo", "bug"])

    board.move("shop-1", "in progress")
    assert fake.issues[1].labels == ["bug", "in progress"]
    assert one(board, "shop-1").state == "in progress"

    before = len(fake.writes)
    board.move("shop-1", "IN PROGRESS")
    assert len(fake.writes) == before


def test_the_new_label_is_there_before_the_old_one_goes(fake: FakeGitHub, board: GitHubBoard) -> None:
    """A move killed in between leaves a state; repeating it finishes it."""
    fake.add_issue("x", labels=["todo"])
    fake.inject("DELETE ", 0)

    with pytest.raises(Unreachable):
        board.move("shop-1", "in progress")
    assert fake.issues[1].labels == ["todo", "in progress"]
    assert one(board, "shop-1").state == "in progress"

    board.move("shop-1", "in progress")
    assert fake.issues[1].labels == ["in progress"]


def test_a_label_that_is_missing_is_made_once(fake: FakeGitHub, board: GitHubBoard) -> None:
    fake.add_issue("x", labels=["todo"])
    fake.add_issue("y", labels=["todo"])

    board.move("shop-1", "needs human")
    board.move("shop-2", "needs human")

    assert [asked.body for asked in fake.asked("POST /labels$")] == [{"name": "needs human"}]
    assert len(fake.asked("GET /labels/")) == 1


def test_a_label_that_somebody_else_just_made_is_fine(fake: FakeGitHub, board: GitHubBoard) -> None:
    fake.add_issue("x", labels=["todo", "In Progress"])
    fake.issues[1].labels = ["todo"]
    fake.inject("GET /labels/", 404, {"message": "Not Found"})

    board.move("shop-1", "in progress")

    assert fake.issues[1].labels == ["In Progress"]


def test_a_label_that_somebody_else_just_removed_is_fine(fake: FakeGitHub, board: GitHubBoard) -> None:
    fake.add_issue("x", labels=["todo"])
    fake.inject("DELETE ", 404, {"message": "Label does not exist"})

    board.move("shop-1", "in progress")

    assert "in progress" in fake.issues[1].labels


@pytest.mark.parametrize("word", ["done", "Cancelled", "closed"])
def test_a_finished_ticket_is_closed_and_can_be_opened_again(fake: FakeGitHub, board: GitHubBoard, word: str) -> None:
    fake.add_issue("x", labels=["in progress", "bug"])

    board.move("shop-1", word)
    board.move("shop-1", word)
    assert (fake.issues[1].state, fake.issues[1].labels) == ("closed", ["bug"])
    assert one(board, "shop-1").state == "closed"
    assert len(fake.writes) == 2

    board.move("shop-1", "todo")
    assert (fake.issues[1].state, fake.issues[1].labels) == ("open", ["bug", "todo"])


def test_a_ticket_goes_back_to_having_no_state(fake: FakeGitHub, board: GitHubBoard) -> None:
    """Where a person's `run` of an unlabelled issue found it."""
    fake.add_issue("x", labels=["in progress"])

    board.move("shop-1", "open")

    assert fake.issues[1].labels == []


def test_an_unknown_state_is_refused_with_the_known_ones(fake: FakeGitHub, board: GitHubBoard) -> None:
    fake.add_issue("x")

    with pytest.raises(ConfigError, match=r"knows no state 'banana'.*'todo'.*'open'.*'merged'"):
        board.move("shop-1", "banana")
    assert fake.log == []


def test_a_token_that_may_not_label_is_found_out(fake: FakeGitHub, board: GitHubBoard) -> None:
    """GitHub answers 200 and drops the labels: the move would never happen, run after run."""
    fake.add_issue("x", labels=["todo", "in progress"])
    fake.issues[1].labels = ["todo"]
    fake.may_label = False

    with pytest.raises(AuthFailed, match="write access"):
        board.move("shop-1", "in progress")
    with pytest.raises(AuthFailed, match="write access"):
        board.create("t", "b", marker="m")


@pytest.mark.parametrize("write", ["move", "comment", "label"])
def test_a_write_to_a_missing_issue_says_so(fake: FakeGitHub, board: GitHubBoard, write: str) -> None:
    calls = {
        "move": lambda: board.move("shop-9", "todo"),
        "comment": lambda: board.comment("shop-9", "hello", "m"),
        "label": lambda: board.label("shop-9", add=["x"]),
    }
    with pytest.raises(ConfigError, match="no issue 'shop-9'"):
        calls[write]()


@pytest.mark.parametrize("name", ["..", "."])
def test_a_label_that_would_climb_up_the_path_is_refused(fake: FakeGitHub, board: GitHubBoard, name: str) -> None:
    """`DELETE …/labels/..` would take all labels away, or worse."""
    fake.add_issue("x", labels=[name, "bug"])

    with pytest.raises(ConfigError, match="label"):
        board.label("shop-1", remove=[name])
    assert fake.writes == []


def test_labels_are_added_and_removed_once_whatever_their_case(fake: FakeGitHub, board: GitHubBoard) -> None:
    fake.add_issue("x", labels=["Bug", "old/er", "keep"])

    for _ in range(2):
        board.label("shop-1", add=["bug", " new "], remove=["OLD/ER", "never there", "new"])

    assert fake.issues[1].labels == ["Bug", "keep", "new"]
    assert [f"{a.method} {a.path}" for a in fake.writes] == [
        "POST /labels",
        "POST /issues/1/labels",
        "DELETE /issues/1/labels/old%2Fer",
    ]


def test_a_label_github_refuses_is_a_mistake_of_the_settings(fake: FakeGitHub, board: GitHubBoard) -> None:
    fake.add_issue("x")

    with pytest.raises(ConfigError, match="name is too long"):
        board.label("shop-1", add=["x" * 51])


# Comments


def test_a_comment_is_written_once_and_replaced_in_place(fake: FakeGitHub, board: GitHubBoard) -> None:
    fake.add_issue("x")
    for body in ("one\r\nline \n", "one\nline", "another", "another"):
        board.comment("shop-1", body, "progress")
    board.comment("shop-1", "else", "outcome")

    assert [f"{a.method} {a.path}" for a in fake.writes] == [
        "POST /issues/1/comments",
        f"PATCH /issues/comments/{fake.issues[1].comments[0]['id']}",
        "POST /issues/1/comments",
    ]
    comments = one(board, "shop-1").comments
    assert [(c.author, c.body, c.marker) for c in comments] == [
        ("factory", "another", "progress"),
        ("factory", "else", "outcome"),
    ]


def test_two_processes_that_comment_at_once_leave_one_comment(fake: FakeGitHub, board: GitHubBoard) -> None:
    """SM10: the second one looked before the first one had written. What such a pair once left is mended, too."""
    fake.add_issue("x")
    for twins in (1, 2):
        board.comment("shop-1", "not routed", "route")
        for _ in range(twins):
            fake.inject("GET /issues/1/comments$", 200, [])
            fake.inject("DELETE ", 404, {"message": "Not Found"}, times=twins - 1)
            board.comment("shop-1", "not routed", "route")

    board.comment("shop-1", "not routed", "route")
    assert [c["body"].partition("\n")[0] for c in fake.issues[1].comments] == ["not routed"]


def test_a_copy_by_another_bot_is_no_twin(fake: FakeGitHub, board: GitHubBoard) -> None:
    """WS7: to the token of an app, every bot looks like itself; bots that translate or mirror comments copy the mark."""
    fake.login = "factory[bot]"
    fake.add_issue("x")
    board.comment("shop-1", "ours", "outcome")
    fake.add_comment(1, fake.issues[1].comments[0]["body"], author="translator[bot]")

    board.comment("shop-1", "ours, changed", "outcome")

    assert [c["user"]["login"] for c in fake.issues[1].comments] == ["factory[bot]", "translator[bot]"]
    assert fake.issues[1].comments[0]["body"].startswith("ours, changed")


def test_a_pasted_mark_is_a_strangers_and_is_left_alone(fake: FakeGitHub, board: GitHubBoard) -> None:
    """WS7: GitHub shows the hidden mark of our comment to whoever asks, so its author is looked at too."""
    fake.add_issue("x")
    fake.add_comment(1, "written first", author="eve")
    board.comment("shop-1", "ours", "outcome")
    stolen = fake.issues[1].comments[1]["body"].replace("ours", "accepted!")
    fake.issues[1].comments[0]["body"] = stolen

    board.comment("shop-1", "ours, changed", "outcome")

    [strangers, ours] = one(board, "shop-1").comments
    assert (strangers.author, strangers.body, strangers.marker) == ("eve", stolen, None)
    assert (ours.body, ours.marker) == ("ours, changed", "outcome")


def test_a_mark_for_another_ticket_is_nobodys(fake: FakeGitHub, board: GitHubBoard) -> None:
    fake.add_issue("x")
    fake.add_comment(1, seal(fake.token, "shop-2", "outcome", "moved here"), author="factory")

    assert one(board, "shop-1").comments[0].marker is None


def test_a_quoted_mark_inside_a_comment_is_made_visible(fake: FakeGitHub, board: GitHubBoard) -> None:
    fake.add_issue("x")

    board.comment("shop-1", "the ticket says <!-- df:outcome 0123456789abcdef -->", "progress")

    [comment] = one(board, "shop-1").comments
    assert (comment.body, comment.marker) == (
        "the ticket says &lt;!-- df:outcome 0123456789abcdef -->",
        "progress",
    )


def test_the_token_of_an_app_knows_its_comments(fake: FakeGitHub, board: GitHubBoard) -> None:
    """It may not ask for its own name."""
    fake.login = "darkfactory[bot]"
    fake.add_issue("x")
    board.comment("shop-1", "ours", "m")
    fake.add_comment(1, fake.issues[1].comments[0]["body"], author="eve")

    board.comment("shop-1", "ours, changed", "m")

    assert [(c.author, c.marker) for c in one(board, "shop-1").comments] == [("darkfactory[bot]", "m"), ("eve", None)]
    assert len(fake.asked("GET /user$")) == 1


def test_comments_of_all_pages_are_read(fake: FakeGitHub, board: GitHubBoard) -> None:
    """TR1: ours is found wherever it stands."""
    fake.add_issue("x")
    for number in range(5):
        fake.add_comment(1, f"number {number}")
    board.comment("shop-1", "ours", "m")
    fake.page = 2

    board.comment("shop-1", "changed", "m")

    assert [c.body for c in one(board, "shop-1").comments] == [*(f"number {n}" for n in range(5)), "changed"]


@pytest.mark.parametrize("comment", [7, {}, {"id": "1"}, {"id": True, "body": "x"}])
def test_a_malformed_comment_fails_the_ticket(fake: FakeGitHub, board: GitHubBoard, comment: object) -> None:
    """TR2"""
    fake.add_comment(fake.add_issue("x"), "hello")
    fake.inject("/comments$", 200, [comment])

    with pytest.raises(ProviderFault, match="comment"):
        board.tickets_by_keys(["shop-1"])


def test_a_comment_of_a_deleted_account_is_read(fake: FakeGitHub, board: GitHubBoard) -> None:
    """TR3"""
    fake.add_comment(fake.add_issue("x"), "hello", user=None)

    assert [(c.author, c.body) for c in one(board, "shop-1").comments] == [("unknown", "hello")]


def test_a_long_comment_is_shortened_and_still_repeatable(fake: FakeGitHub, board: GitHubBoard) -> None:
    """GitHub takes 65 536 characters."""
    fake.add_issue("x")
    for _ in range(2):
        board.comment("shop-1", "x\x00\ud800" + "y" * 100_000, "m")

    assert len(fake.issues[1].comments[0]["body"]) < 65_536
    assert len(fake.writes) == 1


# Creating


def test_an_issue_is_created_once_in_the_first_queue_state(fake: FakeGitHub, board: GitHubBoard) -> None:
    marks = ("finding-1", "finding-1", "finding-2")
    tickets = [board.create("A\ntitle", "text", marker=m, labels=["Bug", "TODO"], priority=2) for m in marks]

    assert [t.key for t in tickets] == ["shop-1", "shop-1", "shop-2"]
    assert fake.issues[1].labels == ["darkfactory", "todo", "Bug", "p2"]
    for ticket in (tickets[0], tickets[1], one(board, "shop-1")):
        assert (ticket.title, ticket.body, ticket.state, ticket.priority) == ("A title", "text", "todo", 2)
    assert one(board, "shop-1").revision == tickets[0].revision


def test_creating_again_leaves_a_ticket_where_it_went(fake: FakeGitHub, board: GitHubBoard) -> None:
    """Also behind many that were created later."""
    board.create("t", "b", marker="m")
    board.move("shop-1", "done")
    for number in range(7):
        board.create(f"t{number}", "b", marker=f"m{number}")
    fake.page = 3
    before = len(fake.writes)

    again = board.create("t", "b", marker="m")

    assert (again.key, again.closed) == ("shop-1", True)
    assert len(fake.writes) == before


def test_an_issue_with_a_pasted_mark_is_not_the_factorys(fake: FakeGitHub, board: GitHubBoard) -> None:
    board.create("t", "b", marker="m")
    fake.add_issue("mine!", fake.issues[1].body, ["darkfactory"], author="eve")

    assert board.create("t", "b", marker="m").key == "shop-1"


# Errors


@pytest.mark.parametrize(("status", "error"), [(401, AuthFailed), (500, Unreachable), (429, FactoryError)])
def test_a_failed_write_has_its_error_and_can_be_repeated(
    fake: FakeGitHub, board: GitHubBoard, status: int, error: type[FactoryError]
) -> None:
    """TR4"""
    fake.add_issue("x")
    fake.inject("POST /issues/1/comments", status, {"message": "no"})

    with pytest.raises(error):
        board.comment("shop-1", "hello", "m")
    board.comment("shop-1", "hello", "m")

    assert len(fake.issues[1].comments) == 1


def test_a_repository_without_issues_is_a_mistake_of_the_settings(fake: FakeGitHub, board: GitHubBoard) -> None:
    """TR2: its tickets are not gone."""
    fake.has_issues = False

    with pytest.raises(ConfigError, match="enable issues"):
        board.tickets_in_states(["todo"])
    with pytest.raises(ConfigError, match="enable issues"):
        board.tickets_by_keys(["shop-1"])
