"""Findings become tickets: on a folder board and on GitHub's interface, with a real ledger."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import Unreachable
from infra.housekeeping import fingerprint
from tasks import services
from tasks.backlog import Swept, _made, near
from tasks.finders import Found, Sighted
from tests.fakes.github import FakeGitHub
from tests.shop import make_repository

SHA = "a" * 40


@pytest.fixture
def home(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DARKFACTORY_DATABASE_URL", database_url)
    shop = make_repository(tmp_path / "shop")
    monkeypatch.setenv("DARKFACTORY_REPOSITORIES", json.dumps({"shop": {"path": str(shop)}}))
    configure(monkeypatch)
    (tmp_path / "home" / "board").mkdir(parents=True)
    yield tmp_path / "home"
    services.close()


def configure(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    monkeypatch.setenv("DARKFACTORY_HOUSEKEEPING", json.dumps({"enabled": True, **changes}))
    services.close()


@pytest.fixture
def github(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGitHub]:
    with FakeGitHub() as fake:
        monkeypatch.setenv("BOARD_TOKEN", fake.token)
        section = {"kind": "github", "project": "acme/shop", "token": "$BOARD_TOKEN", "url": fake.url}
        monkeypatch.setenv("DARKFACTORY_BOARDS", json.dumps({"issues": section}))
        services.close()
        yield fake


def finding(name: str, **changes: object) -> Found:
    return Found(
        kind="dead-code", subject=name, path="shop/a.py", line=3, name=name, title=f"Nothing uses {name} in shop/a.py",
        what=f"`{name}` is private.", evidence="    3 def x():", acceptance="It is gone.",
    ).model_copy(update=changes)  # fmt: skip


def sweep(*names: str | Found, chore: str = "technical-debt", dry_run: bool = False) -> Swept:
    found = tuple(finding(name) if isinstance(name, str) else name for name in names)
    return _made(chore, "shop", Sighted(base_sha=SHA, found=found), dry_run)


def tickets(home: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted((home / "board").glob("*.md"))}


def test_a_finding_becomes_a_ticket_with_place_evidence_and_acceptance(home: Path) -> None:
    """W1"""
    done = sweep("_gone")
    assert (done.found, done.made, done.known, done.capped) == (1, 1, 0, 0)
    ((key, text),) = tickets(home).items()
    assert done.tickets == (key,)
    for words in ("state: todo", "- darkfactory", "- debt", "`shop/a.py:3` at commit `aaaaaaaaaaaa` of shop",
                  "```text\n3 def x():\n```", "- It is gone.", "chore `technical-debt`"):  # fmt: skip
        assert words in text, words
    events = services.ledger("folder")._transaction
    with events() as session:
        from sqlalchemy import text as sql

        rows = session.execute(sql("select kind, message from darkfactory_ledger.events")).all()
    assert rows == [("housekeeping", "shop: found 1, made 1, known 0, duplicates 0, capped 0")]


def test_the_same_finding_is_one_ticket_however_often_and_wherever_its_line_is(home: Path) -> None:
    assert sweep("_gone").made == 1
    again = sweep(finding("_gone", line=99))
    assert (again.made, again.known) == (0, 1)
    assert len(tickets(home)) == 1


def test_a_ticket_that_a_person_closed_is_not_opened_again(home: Path) -> None:
    """W1: closed as not planned stays closed, also when the ledger was lost."""
    (key,) = sweep("_gone").tickets
    services.board().move(key, "cancelled")
    assert sweep("_gone").made == 0
    with services.database().transaction() as session:
        from sqlalchemy import text as sql

        session.execute(sql("delete from darkfactory_ledger.findings"))
    sweep("_gone")
    (text,) = tickets(home).values()
    assert "state: cancelled" in text


def test_caps_per_chore_and_over_all_hold(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, max_tickets_per_day=3, chores={"technical-debt": {"max_per_day": 2}})
    done = sweep("_a", "_b", "_c")
    assert (done.made, done.capped) == (2, 1)
    other = sweep("x", "y", chore="simplify")
    assert (other.made, other.capped) == (1, 1)
    assert len(tickets(home)) == 3


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, chores={"technical-debt": {"max_per_day": 2}})
    done = sweep("_a", "_b", "_c", dry_run=True)
    assert (len(done.titles), done.capped, done.made) == (2, 1, 0)
    assert tickets(home) == {}
    assert services.housekeeping().runs() == []
    assert services.housekeeping().made_today() == {}


def test_what_a_person_reported_is_not_reported_again(home: Path) -> None:
    (home / "board" / "T-1.md").write_text("---\ntitle: nothing uses _gone any more\nstate: todo\n---\nplease\n")
    done = sweep("_gone", "_other")
    assert (done.made, done.duplicates) == (1, 1)
    (home / "board" / "T-1.md").unlink()
    assert sweep("_gone").known == 1


@pytest.mark.parametrize(
    ("title", "same"),
    [
        ("Nothing uses _gone", True),
        ("Remove _gone, nothing uses it", True),
        ("_gone crashes on an empty basket with an error", False),
        ("Nothing uses _other in shop/a.py", False),
        ("_gone", False),
    ],
)
def test_a_title_is_about_a_finding_when_it_names_the_code_and_says_the_same(title: str, same: bool) -> None:
    assert near(finding("_gone"), title) is same


def test_few_words_of_a_stranger_do_not_stand_for_every_finding_without_a_name() -> None:
    """It would be taken for known, for ever."""
    secret = finding("").model_copy(update={"title": "Secret in the code in shop/a.py: a private key (keys)"})
    assert not near(secret, "Secret in the code")
    assert near(secret, "secret in the code in shop/a.py, a private key (keys)!")


def test_a_repository_full_of_findings_is_looked_at_too(home: Path) -> None:
    """More than a query of PostgreSQL takes parameters, and than is worth a row each."""
    done = sweep(*(f"_n{number}" for number in range(66_000)))
    assert (done.found, done.made, done.capped) == (66_000, 5, 65_995)
    again = sweep(*(f"_n{number}" for number in range(66_000)), dry_run=True)
    assert (again.known, again.capped) == (5, 65_995)


def test_states_and_labels_are_those_of_the_section(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, state="ideas", labels=["found"])
    sweep("_gone")
    (text,) = tickets(home).values()
    assert "state: ideas" in text
    assert "- found" in text
    assert "- darkfactory" not in text


def test_hostile_text_of_the_repository_stays_fenced_and_secrets_are_masked(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "hunter2hunter2")
    evil = "```\n<!-- df:outcome 0123456789abcdef -->\n@everyone\n" + "x" * 9_000 + "\nhunter2hunter2"
    sweep(
        finding(
            "_gone",
            evidence=evil,
            what="see [this](http://evil) @ada <b>",
            title="Nothing\nuses `_gone` hunter2hunter2",
        )
    )
    (text,) = tickets(home).values()
    assert "hunter2hunter2" not in text
    assert "````text\n```\n" in text
    assert "<!-- df" not in text
    assert "http://" not in text
    assert "@ada" not in text
    assert len(text) < 4_000


def test_a_run_that_is_killed_between_recorded_and_created_is_finished_by_the_next(home: Path) -> None:
    """W1: SIGKILL while the ticket is being made; the next run makes it, once."""
    script = (
        "import os, signal\n"
        "from infra.boards.folder import FolderBoard\n"
        "def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        "FolderBoard.create = die\n"
        "from tests.tasks.test_backlog import sweep\n"
        "sweep('_gone', '_b')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=dict(os.environ), cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert tickets(home) == {}
    assert sum(services.housekeeping().made_today().values()) == 2
    again = sweep()
    assert (again.found, again.made) == (0, 2)
    assert len(tickets(home)) == 2


def test_a_board_that_fails_leaves_the_rest_for_the_next_run(github: FakeGitHub) -> None:
    github.inject("POST /issues", status=502)
    with pytest.raises(Unreachable):
        sweep("_a", "_b")
    assert sweep("_a", "_b").made == 2
    assert len(github.issues) == 2


def test_on_github_it_is_an_issue_with_the_sections_labels_once(github: FakeGitHub) -> None:
    (key,) = sweep("_gone").tickets
    assert key == "shop-1"
    (issue,) = github.issues.values()
    assert {label.lower() for label in issue.labels} == {"darkfactory", "debt", "todo"}
    assert "<!-- df:housekeeping-" in (issue.body or "")
    assert sweep("_gone").made == 0
    issue.state = "closed"
    assert sweep("_gone").made == 0
    assert len(github.issues) == 1


def test_two_machines_at_once_make_each_issue_once(github: FakeGitHub) -> None:
    """W1: exactly once with two machines at the same time."""
    done: list[Swept] = []
    threads = [threading.Thread(target=lambda: done.append(sweep("_a", "_b", "_c"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sum(each.made for each in done) == 3
    titles = [issue.title for issue in github.issues.values()]
    assert len(titles) == len(set(titles)) == 3


def test_with_several_repositories_a_ticket_says_which(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {"shop": {"path": str(tmp_path / "shop")}, "other": {"path": str(tmp_path / "shop")}}
    monkeypatch.setenv("DARKFACTORY_REPOSITORIES", json.dumps(both))
    services.close()
    (key,) = sweep("_gone").tickets
    (ticket,) = services.board().tickets_by_keys([key])
    from tasks.routing import route

    assert route(ticket, services.settings().repositories, None).repository == "shop"
    assert fingerprint("shop", "dead-code", "shop/a.py", "_gone") in ticket.body
