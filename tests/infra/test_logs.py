"""Log lines: whom they are about, one line each whatever they say, no secrets, and nothing that stops who logs."""

from __future__ import annotations

import asyncio
import io
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.logs import LONGEST, Lines, about
from infra.processes import MARK
from infra.redaction import redact
from infra.sections import NotifySection

ROOT = Path(__file__).parents[2]
TICKET = {"board": "shop", "ticket": "SHOP-7", "run": "run-1"}


@pytest.fixture
def said() -> Iterator[io.StringIO]:
    """What the logger `tasks.sample` writes, in our form."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(Lines())
    log.addHandler(handler)
    yield written
    log.removeHandler(handler)


log = logging.Logger("tasks.sample", logging.INFO)
"""Without parents: pytest's own capture would hand hostile text on unmasked, which its workers cannot send."""


def test_a_line_of_a_ticket_names_its_board_key_run_and_session_with_outcome_and_reason(said: io.StringIO) -> None:
    """OB1"""
    with about(**TICKET), about(session="ask-12ab", role="coder 1.1.1"):
        log.info("outcome=refused reason=%r", "overloaded")
    log.info("nobody's")
    first, second = said.getvalue().splitlines()
    words = "board=shop ticket=SHOP-7 run=run-1 session=ask-12ab role='coder 1.1.1' outcome=refused reason='overloaded'"
    assert first.endswith(f"Z level=info logger=tasks.sample {words}")
    assert second.endswith("logger=tasks.sample nobody's")


async def test_tasks_and_threads_of_asyncio_inherit_the_ticket_and_two_side_by_side_keep_their_own(
    said: io.StringIO,
) -> None:
    """OB1"""

    async def work(key: str) -> None:
        with about(ticket=key):
            await asyncio.sleep(0)
            await asyncio.to_thread(log.info, "from %s", key)
            await asyncio.create_task(told(key))

    async def told(key: str) -> None:
        log.info("from %s", key)

    await asyncio.gather(work("A"), work("B"))
    lines = said.getvalue().splitlines()
    assert len(lines) == 4
    assert all(line.endswith("ticket=A from A") or line.endswith("ticket=B from B") for line in lines)


def test_in_the_process_of_a_run_every_line_names_the_run(said: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """OB1"""
    monkeypatch.setenv(MARK, "0f" * 16)
    log.info("hello")
    assert f"run={'0f' * 16} hello" in said.getvalue()


@pytest.mark.parametrize(
    "hostile",
    ["x\n2026-11-21T00:00:00.000Z level=info ticket=T-1 outcome=accepted", "x\r\x1b[2J", "\u202eslive", "a\u2028b", "\0", "\ud800"],
)  # fmt: skip
def test_hostile_text_stays_on_its_line_and_does_nothing_to_a_terminal(said: io.StringIO, hostile: str) -> None:
    """OB1: neither message, nor key, nor the message of an error can begin a line or hide one."""
    with about(ticket=f"T-1 {hostile}' ticket=T-2"):
        log.info("reason=%s", hostile)
        try:
            raise ValueError(hostile)
        except ValueError:
            log.exception("it broke")
    lines = said.getvalue().removesuffix("\n").split("\n")
    assert [line for line in lines if "logger=tasks.sample" not in line and not line.startswith("    | ")] == []
    assert len([line for line in lines if "logger=tasks.sample" in line]) == 2
    assert said.getvalue().replace("\n", "").isprintable()
    assert "' ticket=T-2" not in said.getvalue()


def test_a_huge_text_is_cut(said: io.StringIO) -> None:
    log.info("x" * 10_000_000)
    assert len(said.getvalue()) < LONGEST + 200


def test_no_secret_is_logged_wherever_it_stands(said: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """OB1: in the message, in whom it is about, in a traceback; also one that is known only by factory.yaml."""
    monkeypatch.setenv("SHOP_TOKEN", "tok-12345678")
    monkeypatch.setenv("CHAT_ADDRESS", "https://hooks.example/odd-name-of-a-secret")
    NotifySection.model_validate({"slack_webhook": "$CHAT_ADDRESS"})
    with about(ticket="tok-12345678"):
        try:
            raise ValueError("refused by https://hooks.example/odd-name-of-a-secret")
        except ValueError:
            log.exception("sent tok-12345678 to %s", "https://hooks.example/odd-name-of-a-secret")
    log.warning("%(name)s", {"other": "tok-12345678"})  # what logging cannot put together, it would print as it is
    assert said.getvalue().count("***") == 6  # two of them: the line of code and the message in the traceback
    assert "tok-12345678" not in said.getvalue()
    assert "odd-name" not in said.getvalue()


def test_a_value_of_the_settings_is_masked_while_others_are_being_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading and remembering at the same time, from several threads, raises nothing."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                redact("a text")
        except BaseException as error:
            failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    monkeypatch.setattr("infra.redaction._remembered", frozenset())
    for number in range(300):
        monkeypatch.setenv("PLAIN", f"secret-number-{number}")
        NotifySection.model_validate({"slack_webhook": "$PLAIN"})
    stop.set()
    reader.join()
    assert failed == []
    assert redact("secret-number-299") == "***"


DEAD = """
import logging, os
from infra import logs
logs.start()
logging.getLogger("tasks").addHandler(logging.FileHandler("/dev/full"))
log = logging.getLogger("tasks.dispatching")
log.info("one")
log.info("too few %s %s", "arguments")
os.close(2)
log.warning("nobody hears this")
log.warning("closed", exc_info=ValueError("x"))
print("scheduled")
"""


def test_a_full_disk_a_closed_stderr_or_a_wrong_line_never_stops_who_logs(tmp_path: Path) -> None:
    """OB4"""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", DEAD], cwd=ROOT, stdout=subprocess.PIPE, stderr=full, text=True, timeout=60, check=False
        )  # fmt: skip
    assert done.stdout == "scheduled\n"
    assert done.returncode in (0, 120), "120 is Python's word for a stream that could not be flushed at the very end"
