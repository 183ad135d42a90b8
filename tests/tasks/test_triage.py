"""Triage on a folder board with a real ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import services
from tasks.models import Ticket
from tasks.triage import Triaged, _tell, _untriaged, as_comment, consider


@pytest.fixture
def board(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    monkeypatch.setenv("DARKFACTORY_DATABASE_URL", database_url)
    monkeypatch.setenv("DARKFACTORY_HOUSEKEEPING", json.dumps({"enabled": True}))
    (tmp_path / "board").mkdir()
    services.close()
    yield tmp_path / "board"
    services.close()


def write(board: Path, key: str, title: str, body: str = "", **front: object) -> None:
    head = "".join(
        f"{name}: {json.dumps(value)}\n" for name, value in {"title": title, "state": "todo", **front}.items()
    )
    (board / f"{key}.md").write_text(f"---\n{head}---\n{body}\n")


def run() -> list[str]:
    looked = []
    for ticket, older in _untriaged(None):
        _tell(consider(ticket, older), older)
        looked.append(ticket.key)
    return looked


LONG = "When a basket is empty the total raises an error, and it should be zero instead."


def test_a_new_ticket_gets_its_kind_once_and_nothing_else_of_it_changes(board: Path) -> None:
    """W2: never closed, never moved."""
    write(board, "T-1", "total crashes on an empty basket", LONG)
    before = (board / "T-1.md").read_text()
    assert run() == ["T-1"]
    text = (board / "T-1.md").read_text()
    assert text == before.replace("---\nWhen", "labels: [bug]\n---\nWhen")
    assert run() == []


def test_labelled_tickets_and_those_that_housekeeping_made_are_left_alone(board: Path) -> None:
    write(board, "T-1", "total crashes", LONG, labels=["frontend"])
    write(board, "T-2", "total crashes too", LONG, state="done")
    write(board, "T-3", "another crash", LONG, state="in progress")
    assert run() == []


def test_a_likely_duplicate_is_pointed_out_with_what_it_says_and_the_older_one_hears_nothing(board: Path) -> None:
    write(board, "T-1", "total crashes on an empty basket", LONG, created="2026-01-01", labels=["bug"])
    write(board, "T-2", "crash of total when the basket is empty", LONG, created="2026-01-02")
    assert run() == ["T-2"]
    text = (board / "T-2.md").read_text()
    assert "`T-1`: total crashes on an empty basket" in text
    assert "state: todo" in text.replace('"', "")
    assert "triage" not in (board / "T-1.md").read_text()


def test_what_is_missing_is_asked_once(board: Path) -> None:
    write(board, "T-1", "total is wrong", "please fix")
    run()
    write_again = (board / "T-1.md").read_text()
    assert "What did you do, what did you see" in write_again
    run()
    assert (board / "T-1.md").read_text() == write_again


def test_a_label_that_decides_what_the_factory_does_is_only_for_people(
    board: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's title must not opt a ticket in, nor hand it to playbooks."""
    ticket = Ticket(key="T-1", title="restart the server", body=LONG, state="todo")
    assert consider(ticket, ()).label is None
    boards = {"main": {"kind": "folder", "path": str(board), "required_labels": ["bug"]}}
    monkeypatch.setenv("DARKFACTORY_BOARDS", json.dumps(boards))
    services.close()
    assert consider(ticket.model_copy(update={"title": "total crashes"}), ()).label is None
    assert consider(ticket.model_copy(update={"title": "Add docs"}), ()).label is not None


def test_hostile_titles_are_quoted(board: Path) -> None:
    older = Ticket(key="T-1", title="@everyone [x](http://evil) <b> total", body="", state="todo")
    said = as_comment(Triaged(ticket="T-2", label="bug", duplicates=("T-1",)), [older])
    assert "@everyone" not in said
    assert "http://" not in said
    assert "<b>" not in said
