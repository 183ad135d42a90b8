"""Telling people through Slack or a webhook of theirs. A notification is never worth a run: nothing here raises (OB4)."""

from __future__ import annotations

import html
import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
from pydantic import SecretStr

from infra.redaction import MASK, redact
from infra.sections import NotifySection

SECONDS = 5.0
"""Longest wait for all sinks together, name look-up included."""
REPEAT_SECONDS = 3600.0
"""The same text under the same key is not sent again by this process within this time."""
_LONGEST_TITLE = 200
_LONGEST_TEXT = 2500
"""Slack takes 3000 characters in a block, title included."""
_LONGEST_ANSWER = 10_000

_log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs whole addresses, and Slack's is a secret

_told: dict[tuple[str, str], float] = {}
"""(key, text) -> when it was sent, on the monotonic clock."""
_telling = threading.Lock()


def notify(section: NotifySection, title: str, text: str, *, key: str) -> bool:
    """Tell people; True when every configured sink took it, or took it within REPEAT_SECONDS before.

    `key` names the matter (`pause:dispatch`) for receivers that group. Blocks for at most SECONDS; failures are logged.
    """
    sinks = dict(_sinks(section))
    if not sinks:
        return False
    title, text = _clean(section, title)[:_LONGEST_TITLE], _clean(section, text)[:_LONGEST_TEXT]
    if _was_told(key, text):
        return True
    bodies = {
        "slack_webhook": _slack(title, text),
        "webhook": {"title": title, "text": text, "key": _clean(section, key)},
    }
    done = _post_all({name: (url, bodies[name]) for name, url in sinks.items()})
    for name in sorted(set(sinks) - done):
        _log.warning("notification was not taken: sink=notify.%s key=%r", name, _clean(section, key)[:_LONGEST_TITLE])
    if done == set(sinks):
        _remember(key, text)
    return done == set(sinks)


def _sinks(section: NotifySection) -> Iterator[tuple[str, str]]:
    """The configured ones by the name of their setting."""
    if section.slack_webhook:
        yield "slack_webhook", section.slack_webhook.get_secret_value()
    if section.webhook:
        yield "webhook", section.webhook


def _clean(section: NotifySection, text: str) -> str:
    """Without secrets, and valid UTF-8."""
    address = (section.slack_webhook or SecretStr("")).get_secret_value()
    hidden = text.replace(address, MASK) if address else text
    return redact(hidden).encode(errors="replace").decode()


def _slack(title: str, text: str) -> dict[str, Any]:
    """Plain text with Slack's three characters escaped: ticket text must neither call a channel nor hide a link."""
    whole = _escaped(f"{title}\n{text}" if text else title)
    return {"text": _escaped(title), "blocks": [{"type": "section", "text": {"type": "plain_text", "text": whole}}]}


def _escaped(text: str) -> str:
    escaped = html.escape(text, quote=False)
    longest = _LONGEST_TITLE + _LONGEST_TEXT
    return escaped if len(escaped) <= longest else re.sub(r"&[a-z]{0,4}$", "", escaped[:longest]) + "…"


def _post_all(posts: dict[str, tuple[str, dict[str, Any]]]) -> set[str]:
    """The names of those that were taken in time.

    A thread each, left behind when it is late: httpx bounds neither a slow name look-up nor an answer that drips.
    """
    taken: set[str] = set()
    threads = [
        threading.Thread(target=_post, args=(name, url, body, taken), name=f"notify-{name}", daemon=True)
        for name, (url, body) in posts.items()
    ]
    deadline = time.monotonic() + SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return set(taken)


def _post(name: str, url: str, body: dict[str, Any], taken: set[str]) -> None:
    """Logs no address and no message of an error, which may quote it."""
    try:
        with httpx.Client(timeout=SECONDS) as client, client.stream("POST", url, json=body) as response:
            if response.is_success and not _is_refusal(_start_of(response)):
                taken.add(name)
            else:
                _log.warning("sink=notify.%s refused a notification: status=%s", name, response.status_code)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        _log.warning("sink=notify.%s cannot be reached: %s", name, type(error).__name__)


def _start_of(response: httpx.Response) -> bytes:
    found = b""
    for chunk in response.iter_bytes():
        found += chunk
        if len(found) > _LONGEST_ANSWER:
            break
    return found[:_LONGEST_ANSWER]


def _is_refusal(answer: bytes) -> bool:
    """Slack says no with status 200 and `{"ok": false}`."""
    try:
        said = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("ok") is False


def _was_told(key: str, text: str) -> bool:
    with _telling:
        for old in [told for told, at in _told.items() if time.monotonic() - at > REPEAT_SECONDS]:
            del _told[old]
        return (key, text) in _told


def _remember(key: str, text: str) -> None:
    with _telling:
        _told[key, text] = time.monotonic()
