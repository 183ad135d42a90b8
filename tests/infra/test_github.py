"""What GitHub answers, and what the adapters make of it: every failure has its own error, and no message a secret."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infra.boards.github import GitHubBoard
from infra.errors import (
    AuthFailed,
    BrokenPagination,
    ConfigError,
    FactoryError,
    ProviderFault,
    RateLimited,
    UnexpectedStatus,
    Unreachable,
)
from infra.github import GitHub, one_line, sendable_title
from infra.pull_requests.github import GitHubForge
from tests.fakes.github import CONTRACT, FakeGitHub


@pytest.fixture
def fake() -> Iterator[FakeGitHub]:
    with FakeGitHub() as server:
        yield server


@pytest.fixture
def site(fake: FakeGitHub) -> GitHub:
    return GitHub(fake.project, fake.url, fake.token)


_MESSAGE = {"message": "Resource not accessible by integration"}
_LATER = {"message": "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."}

FAILURES: list[tuple[int, Any, dict[str, str], type[FactoryError], str]] = [
    (401, {"message": "Bad credentials"}, {}, AuthFailed, "secret"),
    (403, _MESSAGE, {}, AuthFailed, "secret"),
    (403, {"message": "API rate limit exceeded for user ID 1."}, {}, RateLimited, "rate-limited"),
    (403, _LATER, {}, RateLimited, "rate-limited"),
    (403, {"message": "You have triggered an abuse detection mechanism."}, {}, RateLimited, "rate-limited"),
    (403, {"message": "no"}, {"X-RateLimit-Remaining": "0"}, RateLimited, "rate-limited"),
    (403, {"message": "no"}, {"Retry-After": "3"}, RateLimited, "rate-limited"),
    (403, {"message": "Unable to create comment because issue is locked."}, {}, UnexpectedStatus, "status"),
    (429, {"message": "Too many requests"}, {}, RateLimited, "rate-limited"),
    (302, {"message": "Found"}, {"Location": "http://127.0.0.1:1/"}, ConfigError, "config"),
    (307, {"message": "Moved"}, {"Location": "/repositories/2"}, ConfigError, "config"),
    (301, {"message": "Moved"}, {"Location": "http://github.invalid/x"}, ConfigError, "config"),
    (404, {"message": "Not Found"}, {}, UnexpectedStatus, "status"),
    (409, {"message": "Git Repository is empty."}, {}, UnexpectedStatus, "status"),
    (418, b"I am a teapot", {}, UnexpectedStatus, "status"),
    (422, {"message": "Validation Failed", "errors": [{"code": "invalid"}]}, {}, UnexpectedStatus, "status"),
    (500, b"<html>", {}, Unreachable, "transport"),
    (502, b"", {}, Unreachable, "transport"),
    (503, {"message": "overloaded"}, {}, Unreachable, "transport"),
    (0, b"", {}, Unreachable, "transport"),
    (200, b"<html>hello</html>", {}, ProviderFault, "payload"),
    (200, b'[{"cut', {}, ProviderFault, "payload"),
    (200, b"[" * 100_000, {}, ProviderFault, "payload"),
    (200, b"\xff\xfe\xfd", {}, ProviderFault, "payload"),
    (200, b"not gzip", {"Content-Encoding": "gzip"}, ProviderFault, "payload"),
    (200, b"{}", {"X-RateLimit-Remaining": "many"}, ProviderFault, "payload"),
    (200, b"{}", {"X-RateLimit-Reset": "1e999"}, ProviderFault, "payload"),
    (200, {"message": "no list"}, {}, ProviderFault, "payload"),
    (200, b"", {}, ProviderFault, "payload"),
]


@pytest.mark.parametrize(("status", "body", "headers", "error", "category"), FAILURES)
def test_every_failure_has_its_error(
    fake: FakeGitHub,
    site: GitHub,
    status: int,
    body: Any,
    headers: dict[str, str],
    error: type[FactoryError],
    category: str,
) -> None:
    """TR4"""
    fake.inject("GET /issues$", status, body, headers)

    with pytest.raises(error) as caught:
        list(site.pages(f"{site.root}/issues"))

    assert caught.value.category == category
    assert fake.token not in str(caught.value)
    assert len(fake.log) == 1  # nothing is asked twice


def test_nobody_listening_is_unreachable() -> None:
    """TR4"""
    with pytest.raises(Unreachable, match="check the network"):
        GitHub("acme/shop", "http://127.0.0.1:1", "t").check_project()


def test_a_server_that_says_nothing_is_unreachable(fake: FakeGitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """TR4"""
    monkeypatch.setattr("infra.github.TIMEOUT_SECONDS", 1)
    site = GitHub(fake.project, fake.url, fake.token)
    fake.inject("GET /issues/1$", 0, {}, delay_seconds=1.5)

    with pytest.raises(Unreachable, match="Timeout"):
        site.ask("GET", f"{site.root}/issues/1")


def test_a_repository_that_is_not_there_is_a_mistake_of_the_settings(fake: FakeGitHub) -> None:
    """TR4: else every ticket of it would look gone."""
    board = GitHubBoard("gh", fake.section(project="acme/other"))
    forge = GitHubForge(fake.forge_section(project="acme/other"))
    reads: list[Callable[[], object]] = [
        lambda: board.tickets_in_states(["todo"]),
        lambda: board.tickets_by_keys(["other-1"]),
        lambda: board.comment("other-1", "hello", "m"),
        lambda: forge.find("x"),
    ]

    for read in reads:
        with pytest.raises(ConfigError, match="no repository 'acme/other'"):
            read()


def test_a_renamed_repository_is_a_mistake_of_the_settings(fake: FakeGitHub) -> None:
    """GitHub redirects, and PyGithub loses the query on the way: the answer is of all issues, not of those asked for."""
    fake.add_issue("x", labels=["todo"])
    fake.add_pull("x")
    board = GitHubBoard("gh", fake.section(project="old/name"))
    forge = GitHubForge(fake.forge_section(project="old/name"))
    for path in ("", "/issues", "/issues/1", "/pulls"):
        fake.moved[f"/repos/old/name{path}"] = f"{fake.root}{path}"
    reads: list[Callable[[], object]] = [
        lambda: board.tickets_in_states(["todo"]),
        lambda: board.tickets_by_keys(["name-1"]),
        lambda: forge.find("x"),
    ]

    for read in reads:
        with pytest.raises(ConfigError, match="is called 'acme/shop' now"):
            read()


def seconds_from_now(error: RateLimited) -> float | None:
    return None if error.reset_at is None else (error.reset_at - datetime.now(UTC)).total_seconds()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "90"}, 90),
        ({"Retry-After": "{date}"}, 300),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "999999999"}, None),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "{epoch}"}, 300),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "12"}, None),
        ({"X-RateLimit-Remaining": "0"}, None),
        ({"X-RateLimit-Remaining": "17", "X-RateLimit-Reset": "{epoch}"}, 60),
    ],
)
@pytest.mark.parametrize("status", [403, 429])
def test_a_rate_limit_says_when_to_come_back(
    fake: FakeGitHub, site: GitHub, status: int, headers: dict[str, str], seconds: float | None
) -> None:
    """TR4: with calls left it is a secondary limit, and the hour's end says nothing about it."""
    then = datetime.now(UTC) + timedelta(minutes=5)
    filled = {
        name: value.format(epoch=int(then.timestamp()), date=then.strftime("%a, %d %b %Y %H:%M:%S GMT"))
        for name, value in headers.items()
    }
    fake.inject("GET ", status, _LATER, filled)

    with pytest.raises(RateLimited) as caught:
        site.ask("GET", site.root)

    if seconds is None:
        assert caught.value.reset_at is None
    else:
        assert caught.value.reset_at is not None
        assert caught.value.reset_at.tzinfo is UTC
        assert seconds_from_now(caught.value) == pytest.approx(seconds, abs=5)


def test_a_used_up_budget_is_left_alone_until_its_hour_ends(fake: FakeGitHub, site: GitHub) -> None:
    """TR4: the answer that used it up was a good one; the next request would be refused."""
    then = int((datetime.now(UTC) + timedelta(minutes=5)).timestamp())
    fake.inject("GET ", 200, {}, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(then)})
    site.ask("GET", site.root)

    for _ in range(2):
        with pytest.raises(RateLimited) as caught:
            site.ask("GET", site.root)
        assert seconds_from_now(caught.value) == pytest.approx(300, abs=5)
    assert len(fake.log) == 1


@pytest.mark.parametrize("reset", ["12", "99999999999"])
def test_a_budget_whose_end_is_no_moment_stops_nothing(fake: FakeGitHub, site: GitHub, reset: str) -> None:
    """TR4"""
    fake.inject("GET ", 200, {}, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset})
    for _ in range(2):
        site.ask("GET", site.root)


@pytest.mark.parametrize("status", [401, 403, 404, 418, 422, 429, 500])
def test_no_message_holds_the_token(fake: FakeGitHub, site: GitHub, status: int) -> None:
    """WS7"""
    fake.inject("GET ", status, {"message": f"the token {fake.token}\x1b[31m is bad", "errors": [fake.token]})

    with pytest.raises(FactoryError) as caught:
        site.ask("GET", site.root)

    assert fake.token not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("url", ["", "api.github.com", "ftp://github.com", "https://", "https://[", "http://x:99999"])
def test_a_url_that_is_none_is_a_mistake_of_the_settings(url: str) -> None:
    with pytest.raises(ConfigError, match="`url`"):
        GitHub("acme/shop", url, "t")


@pytest.mark.parametrize("token", ["", " ", "two words", "new\nline", "tokén"])
def test_a_token_no_header_can_carry_is_a_mistake_of_the_settings(token: str) -> None:
    """WS7: the message does not show it."""
    with pytest.raises(ConfigError, match="`token`") as caught:
        GitHub("acme/shop", "https://api.github.com", token)

    assert not token.strip() or token not in str(caught.value)


# Pages


def test_all_pages_are_read(fake: FakeGitHub, site: GitHub) -> None:
    """TR1"""
    fake.page = 3
    for number in range(8):
        fake.add_issue(f"number {number}")

    assert len(list(site.pages(f"{site.root}/issues"))) == 8
    assert len(fake.log) == 3


@pytest.mark.parametrize(
    ("status", "body"), [(502, b""), (404, {"message": "Not Found"}), (200, b"<html>"), (200, {"no": "list"}), (0, b"")]
)
def test_a_failed_page_fails_the_whole_read(fake: FakeGitHub, site: GitHub, status: int, body: Any) -> None:
    """TR1, TR4"""
    fake.page = 1
    for number in range(3):
        fake.add_issue(f"number {number}")
    fake.inject("GET /issues$", status, body, after=1)

    with pytest.raises(BrokenPagination) as caught:
        list(site.pages(f"{site.root}/issues"))
    assert caught.value.category == "pagination"


def test_a_rate_limit_on_a_later_page_still_says_when_to_come_back(fake: FakeGitHub, site: GitHub) -> None:
    """TR4"""
    fake.page = 1
    fake.add_issue("one")
    fake.add_issue("two")
    fake.inject("GET /issues$", 429, {"message": "slow"}, {"Retry-After": "60"}, after=1)

    with pytest.raises(RateLimited) as caught:
        list(site.pages(f"{site.root}/issues"))
    assert seconds_from_now(caught.value) == pytest.approx(60, abs=5)


@pytest.mark.parametrize("target", ["{url}/repos/acme/shop/issues?page=2", "http://evil.example/x", "/relative", ""])
def test_a_list_that_runs_in_a_circle_or_away_fails(fake: FakeGitHub, site: GitHub, target: str) -> None:
    """TR4: and nobody else ever sees the token."""
    link = {"Link": f'<{target.format(url=fake.url)}>; rel="next"'}
    fake.inject("GET /issues$", 200, [], link, times=5)

    with pytest.raises(BrokenPagination, match="does not end"):
        list(site.pages(f"{site.root}/issues"))
    assert len(fake.log) <= 2


# Threads and words


def test_threads_take_turns(fake: FakeGitHub, site: GitHub) -> None:
    """PyGithub keeps a request in its one connection before it sends it: two at once could be mixed up."""
    fake.inject("GET /issues/", 200, {}, times=4, delay_seconds=0.05)
    threads = [threading.Thread(target=site.ask, args=("GET", f"{site.root}/issues/{n}")) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert sorted(asked.path for asked in fake.log) == [f"/issues/{n}" for n in range(1, 5)]
    assert fake.most_at_once == 1


def test_words_from_outside_become_one_printable_line() -> None:
    assert one_line("a\x00b\x1b[2J\n\u202ec\ud800") == "a b [2J c"
    assert one_line(" \n\u200b ") is one_line(7) is None


def test_a_title_is_cut_to_what_github_takes() -> None:
    assert sendable_title("x" * 300) == "x" * 256
    assert sendable_title("\n") == "Untitled"


# The fake itself


@pytest.mark.skipif(not CONTRACT.is_file(), reason="GitHub's document is not here")
@pytest.mark.parametrize(
    ("path", "payload"),
    [
        ("/issues", {"body": "no title"}),
        ("/issues", {"title": "x", "lables": ["misspelt"]}),
        ("/issues?perpage=9", {"title": "x"}),
        ("/pulls", {"title": "no branches"}),
        ("/issues/1/comments", {}),
        ("/nowhere", {"x": 1}),
    ],
)
def test_the_fake_fails_a_test_that_breaks_the_contract(path: str, payload: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        _post(path, payload)


def _post(path: str, payload: dict[str, Any]) -> None:
    with FakeGitHub() as server:
        server.add_issue("x")
        site = GitHub(server.project, server.url, server.token)
        with suppress(FactoryError):
            site.ask("POST", f"{site.root}{path}", payload)
