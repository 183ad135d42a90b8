"""Notifications over real HTTP: what is sent, and that no sink, however broken, raises or holds anybody up."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr

from infra import notify as module
from infra.notify import notify
from infra.sections import NotifySection

Answer = Callable[[BaseHTTPRequestHandler], None]


class Sink:
    """A server on 127.0.0.1 that keeps what it gets and answers as told."""

    def __init__(self, answer: Answer) -> None:
        self.got: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                sink.raw.append(body)
                sink.got.append(json.loads(body))
                answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/services/T0/B0/very-secret-path"

    @contextmanager
    def open(self) -> Iterator[Sink]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


def says(status: int, body: bytes = b"ok", length: int | None = None) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.send_header("Location", "http://127.0.0.1:1/")
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def hangs(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(1.5)


def drips(handler: BaseHTTPRequestHandler) -> None:
    """Each byte comes within any time-out of one read."""
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(30):
            handler.wfile.write(b" ")
            time.sleep(0.1)
    except OSError:
        pass


@contextmanager
def sink(answer: Answer | None = None) -> Iterator[Sink]:
    with Sink(answer or says(200)).open() as opened:
        yield opened


def slack(url: str) -> NotifySection:
    return NotifySection(slack_webhook=SecretStr(url))


def test_slack_and_a_plain_webhook_both_get_the_text() -> None:
    with sink() as chat, sink(says(204, b"")) as plain:
        section = NotifySection(slack_webhook=SecretStr(chat.url), webhook=plain.url)
        assert notify(section, "dispatch paused itself", "5 of 6 launches failed", key="pause:dispatch")
    whole = "dispatch paused itself\n5 of 6 launches failed"
    assert chat.got == [
        {
            "text": "dispatch paused itself",
            "blocks": [{"type": "section", "text": {"type": "plain_text", "text": whole}}],
        }
    ]
    assert plain.got == [{"title": "dispatch paused itself", "text": "5 of 6 launches failed", "key": "pause:dispatch"}]


def test_without_a_sink_nothing_happens_and_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert not notify(NotifySection(), "title", "text", key="none")
    assert caplog.records == []


@pytest.mark.parametrize(
    "answer",
    [
        says(500),
        says(404),
        says(302),
        says(200, b'{"ok":false,"error":"no_service"}'),
        says(200, b"ok", length=99),
        hangs,
        drips,
    ],
    ids=["500", "404", "302", "ok:false", "cut short", "hangs", "drips"],
)
def test_a_broken_sink_is_logged_and_never_raises_or_holds_up(
    answer: Answer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OB4"""
    monkeypatch.setattr(module, "SECONDS", 0.5)
    with sink(answer) as broken:
        began = time.monotonic()
        assert not notify(slack(broken.url), "title", "text", key="broken")
        assert time.monotonic() - began < 1.2
    assert "notify.slack_webhook" in caplog.text
    assert "very-secret-path" not in caplog.text


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "", "nonsense", "ftp://x/", "http://[", "http://a:b/", "http://\udcff/", "http://xn--\u0130/", "http://x\x00/"])  # fmt: skip
def test_an_address_that_is_none_never_raises(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """OB4"""
    assert not notify(NotifySection(webhook=url), "title", "text", key="address")


def test_one_dead_sink_does_not_keep_the_other_from_being_told() -> None:
    """OB4"""
    with sink() as plain:
        section = NotifySection(slack_webhook=SecretStr("http://127.0.0.1:1/"), webhook=plain.url)
        assert not notify(section, "title", "text", key="half")
    assert len(plain.got) == 1


def test_secrets_reach_neither_the_sink_nor_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """OB1"""
    monkeypatch.setenv("SHOP_TOKEN", "tracker-token-value")
    with sink() as chat, sink(says(500)) as plain:
        section = NotifySection(slack_webhook=SecretStr(chat.url), webhook=plain.url)
        with caplog.at_level(logging.DEBUG):
            notify(section, "tracker-token-value", f"see {chat.url} tracker-token-value", key="tracker-token-value")
    sent = b"".join(chat.raw + plain.raw).decode()
    for secret in ("tracker-token-value", "very-secret-path"):
        assert secret not in sent
        assert secret not in "\n".join(r.getMessage() for r in caplog.records)
    assert "***" in sent


def test_text_of_a_ticket_can_neither_call_the_channel_nor_hide_a_link() -> None:
    with sink() as chat:
        assert notify(slack(chat.url), "<!channel>", "<https://evil.example|your login> & more", key="hostile")
    said = chat.got[0]["blocks"][0]["text"]
    assert said["type"] == "plain_text"
    assert not {"<", ">"} & set(said["text"] + chat.got[0]["text"])
    assert "&amp; more" in said["text"]


@pytest.mark.parametrize("character", ["x", "&", "é", "\ud800", "\0", "\n"])
def test_a_text_of_any_length_fits_into_a_block_of_slack(character: str) -> None:
    with sink() as chat:
        assert notify(slack(chat.url), character * 100_000, character * 100_000, key="long")
    said = chat.got[0]["blocks"][0]["text"]["text"]
    assert 0 < len(said) <= 3000
    assert "&amp;" * len(said) >= said or "&" not in said  # no half of an entity
    assert len(chat.got[0]["text"]) <= 3000


def test_the_same_text_under_the_same_key_is_told_once() -> None:
    with sink() as chat:
        for text in ("line 3: no such setting", "line 3: no such setting", "line 4: no such setting"):
            assert notify(slack(chat.url), "factory.yaml is not valid", text, key="config")
    assert len(chat.got) == 2


def test_what_was_not_taken_is_told_again() -> None:
    answers = iter([says(500), says(200)])
    with sink(lambda handler: next(answers)(handler)) as chat:
        assert not notify(slack(chat.url), "title", "text", key="again")
        assert notify(slack(chat.url), "title", "text", key="again")
    assert len(chat.got) == 2
