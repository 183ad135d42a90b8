"""Webhook deliveries of GitHub, Linear and Jira: signature first, then one normalised `Delivery`. Knows no web framework.

A delivery says that something was touched, never what to do: whoever gets it reads the ticket again from its board. So a
captured body that is sent again under another id (ids stand in headers, which no service signs) can wake, but not instruct.
The one exception is `repository_dispatch: dark-factory-refine`, which carries a wish, and only who may write can send it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, TypeVar

from infra.errors import FactoryError
from infra.llm import Frozen

Source = Literal["github", "linear", "jira"]
Payload = dict[str, Any]
_Kind = TypeVar("_Kind", int, str, dict[str, Any], list[Any])

STALE_SECONDS = 60
"""Linear's own SDK refuses a `webhookTimestamp` that is further away."""
REFINE = "dark-factory-refine"
_LONGEST_WISH = 4_000
_LONGEST_TEXT = 255
_LAST_MILLISECOND = 253_402_300_799_000
"""The end of year 9999, where `datetime` ends."""
_SIGNATURES: dict[Source, tuple[str, str]] = {
    "github": ("X-Hub-Signature-256", "sha256="),
    "linear": ("Linear-Signature", ""),
    "jira": ("X-Hub-Signature", "sha256="),
}
_DELIVERY_ID = re.compile(r"[\x21-\x7e]{1,200}")
_GITHUB_PROJECT = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+")
_LINEAR_IDENTIFIER = re.compile(r"[A-Z][A-Z0-9]*-[1-9][0-9]{0,11}")
_LINEAR_ADDRESS = re.compile(r"/issue/([A-Z][A-Z0-9]*-[1-9][0-9]{0,11})(?=[/#?]|$)")
_JIRA_KEY = re.compile(r"[A-Z][A-Z0-9_]*-[1-9][0-9]{0,11}")


class Delivery(Frozen):
    """One delivery of a service.

    `id` is the service's own (Linear and Jira without one: the SHA-256 of the body); `kind` is the service's word for the
    event, `issues.labeled`, `Issue.update` or `jira:issue_updated`. `project` is `owner/name`, a Linear team key or a Jira
    project key; `number_or_key` the number of a GitHub issue or pull request, else the identifier or key; `branch` the
    head branch of a pull request or check, None when it lies in another repository. `at` is when it happened.
    """

    source: Source
    id: str
    kind: str
    project: str | None = None
    number_or_key: int | str | None = None
    at: datetime | None = None
    about: Literal["ticket", "pull-request", "refinement", "other"] = "other"
    branch: str | None = None
    instructions: str = ""
    """Of a refinement: text from outside, at most 4,000 characters."""


class Refused(FactoryError):
    """A delivery that must not be believed or cannot be read. `status` is the HTTP answer: 400, 401 or 409.

    The message names the header or field, never its value: it goes back to whoever sent the request.
    """

    category = "payload"

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Subject(NamedTuple):
    about: Literal["ticket", "pull-request", "refinement", "other"] = "other"
    number: int | None = None
    branch: str | None = None
    at: datetime | None = None
    instructions: str = ""


def check(source: Source, headers: Mapping[str, str], body: bytes, secrets: tuple[str, ...], now: datetime) -> Delivery:
    """Verify the signature over the raw body, then read it. `headers` in any case; `now` is aware; one of `secrets` has to
    fit, and an empty one never does.

    Raises Refused: 401 signature missing or wrong, 400 malformed, 409 stale. Only Linear signs a time: a replay of the
    others is for the caller to find by `id`.
    """
    given = {name.lower(): value for name, value in headers.items()}
    _verify(source, given, body, secrets)
    if given.get("content-type", "").lower().startswith("application/x-www-form-urlencoded"):
        raise Refused(400, "the header Content-Type says that the body is a form; choose application/json")
    return _READERS[source](given, body, _parsed(body), now)


def _verify(source: Source, headers: Mapping[str, str], body: bytes, secrets: tuple[str, ...]) -> None:
    name, prefix = _SIGNATURES[source]
    given = headers.get(name.lower())
    if not given:
        raise Refused(401, f"the header {name} is missing; give the webhook the secret of webhooks.{source}_secret")
    fitting = (prefix + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest() for secret in secrets if secret)
    if not any(hmac.compare_digest(given.encode(errors="replace"), each.encode()) for each in fitting):
        raise Refused(
            401, f"the header {name} does not fit the body; compare the webhook's secret with webhooks.{source}_secret"
        )


def _parsed(body: bytes) -> Payload:
    try:
        value = json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise Refused(400, "the body is not UTF-8") from None
    except RecursionError:
        raise Refused(400, "the body is nested too deep") from None
    except ValueError:  # bad JSON, and numbers of thousands of digits
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(value, dict):
        raise Refused(400, "the body is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> Payload:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Refused(400, "the body names a field twice")
    return found


def _no_constant(_: str) -> None:
    raise Refused(400, "the body holds NaN or Infinity, which are not JSON")


def _github(headers: Mapping[str, str], body: bytes, payload: Payload, now: datetime) -> Delivery:
    event, action = _header(headers, "X-GitHub-Event"), _text(payload, "action")
    project = _text(payload, "repository.full_name")
    if project is not None and not _GITHUB_PROJECT.fullmatch(project):
        raise Refused(400, "the field repository.full_name is not of the form owner/name")
    subject = _github_subject(event, payload, project)
    return Delivery(
        source="github",
        id=_header(headers, "X-GitHub-Delivery"),
        kind=f"{event}.{action}" if action else event,
        project=project,
        number_or_key=subject.number,
        at=subject.at,
        about=subject.about,
        branch=subject.branch,
        instructions=subject.instructions,
    )


def _github_subject(event: str, payload: Payload, project: str | None) -> _Subject:
    match event:
        case "issues" | "issue_comment":
            # GitHub counts a pull request as an issue: the field pull_request tells them apart
            is_ticket = _field(payload, "issue.pull_request", dict) is None
            number, at = _number(payload, "issue.number"), _time(payload, "issue.updated_at")
            return _Subject("ticket" if is_ticket else "pull-request", number, None, at)
        case "pull_request" | "pull_request_review" | "pull_request_review_comment" | "pull_request_review_thread":
            number, at = _number(payload, "pull_request.number"), _time(payload, "pull_request.updated_at")
            is_ours = _text(payload, "pull_request.head.repo.full_name") == project
            return _Subject("pull-request", number, _branch(payload, "pull_request.head.ref") if is_ours else None, at)
        case "check_run":
            return _Subject("pull-request", branch=_branch(payload, "check_run.check_suite.head_branch"))
        case "check_suite":
            return _Subject("pull-request", branch=_branch(payload, "check_suite.head_branch"))
        case "workflow_run":
            is_ours = _text(payload, "workflow_run.head_repository.full_name") == project
            return _Subject("pull-request", branch=_branch(payload, "workflow_run.head_branch") if is_ours else None)
        case "status":
            return _Subject("pull-request", branch=_only_branch(payload))
        case "repository_dispatch" if _text(payload, "action") == REFINE:
            return _refinement(payload)
        case _:
            return _Subject()


def _refinement(payload: Payload) -> _Subject:
    """`client_payload` is free: `branch` or `pr` (a number, also as text), and `instructions`."""
    wish = _field(payload, "client_payload", dict) or {}
    number = re.fullmatch(r"#?([1-9][0-9]{0,11})", str(wish.get("pr", "")))
    words = _field(wish, "instructions", str) or ""
    said = words.encode("utf-8", "replace").decode().replace("\0", " ")[:_LONGEST_WISH]
    return _Subject("refinement", int(number[1]) if number else None, _branch(wish, "branch"), instructions=said)


def _only_branch(payload: Payload) -> str | None:
    """The branch of a commit status, None when the commit is the head of several."""
    branches = _field(payload, "branches", list) or []
    if len(branches) != 1 or not isinstance(branches[0], dict):
        return None
    return _branch(branches[0], "name")


def _linear(headers: Mapping[str, str], body: bytes, payload: Payload, now: datetime) -> Delivery:
    at = _fresh(payload, now)
    of = _needed(_text(payload, "type"), "type")
    action = _needed(_text(payload, "action"), "action")
    identifier = _linear_identifier(of, payload)
    return Delivery(
        source="linear",
        id=_id_or_digest(headers, "Linear-Delivery", body),
        kind=f"{of}.{action}",
        project=identifier.rpartition("-")[0] if identifier else _text(payload, "data.team.key"),
        number_or_key=identifier,
        at=at,
        about="ticket" if identifier else "other",
    )


def _fresh(payload: Payload, now: datetime) -> datetime:
    """When Linear sent this. Only the signed body counts: a header could be renewed by whoever replays it."""
    sent = _needed(_field(payload, "webhookTimestamp", int), "webhookTimestamp")
    if abs(now.timestamp() * 1000 - sent) > STALE_SECONDS * 1000:
        raise Refused(409, f"the field webhookTimestamp is more than {STALE_SECONDS} seconds away from this clock")
    return datetime.fromtimestamp(sent / 1000, UTC)


def _linear_identifier(of: str, payload: Payload) -> str | None:
    """Old deliveries carry team and number instead of an identifier, and comments neither: their address has it."""
    if of == "Issue":
        found = _text(payload, "data.identifier") or _team_and_number(payload, "data")
        return _matched(_needed(found, "data.identifier"), _LINEAR_IDENTIFIER, "data.identifier")
    if of == "Comment":
        found = _text(payload, "data.issue.identifier") or _team_and_number(payload, "data.issue")
        return _matched(found, _LINEAR_IDENTIFIER, "data.issue.identifier") if found else _in_address(payload)
    return None


def _team_and_number(payload: Payload, place: str) -> str | None:
    team, number = _text(payload, f"{place}.team.key"), _field(payload, f"{place}.number", int)
    return f"{team}-{number}" if team and number else None


def _in_address(payload: Payload) -> str | None:
    found = _LINEAR_ADDRESS.search(_field(payload, "url", str) or "")
    return found[1] if found else None


def _jira(headers: Mapping[str, str], body: bytes, payload: Payload, now: datetime) -> Delivery:
    key = _text(payload, "issue.key")
    if key is not None:
        _matched(key, _JIRA_KEY, "issue.key")
    return Delivery(
        source="jira",
        id=_id_or_digest(headers, "X-Atlassian-Webhook-Identifier", body),
        kind=_needed(_text(payload, "webhookEvent"), "webhookEvent"),
        project=key.rpartition("-")[0] if key else None,
        number_or_key=key,
        at=_milliseconds(payload, "timestamp"),
        about="ticket" if key else "other",
    )


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name.lower(), "")
    if not _DELIVERY_ID.fullmatch(value):
        raise Refused(400, f"the header {name} is missing or is not one short word")
    return value


def _id_or_digest(headers: Mapping[str, str], name: str, body: bytes) -> str:
    return _header(headers, name) if name.lower() in headers else hashlib.sha256(body).hexdigest()


def _field(payload: Payload, path: str, kind: type[_Kind]) -> _Kind | None:
    """The value at the dotted path; None when it, or something above it, is absent or null."""
    value: Any = payload
    walked: list[str] = []
    for name in path.split("."):
        if value is None:
            return None
        if not isinstance(value, dict):
            raise Refused(400, f"the field {'.'.join(walked)} is not an object")
        value = value.get(name)
        walked.append(name)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise Refused(400, f"the field {path} is not {_WORDS[kind]}")
    return value


_WORDS: dict[type, str] = {int: "a whole number", str: "a text", dict: "an object", list: "a list"}


def _text(payload: Payload, path: str) -> str | None:
    """A short printable text: it goes into keys, logs and the database, which takes neither NUL nor lone surrogates."""
    value = _field(payload, path, str)
    if value is not None and not (0 < len(value) <= _LONGEST_TEXT and value.isprintable()):
        raise Refused(400, f"the field {path} is empty, too long or not printable")
    return value


def _branch(payload: Payload, path: str) -> str | None:
    """A branch may have any name; one that cannot be printed is not ours."""
    value = _field(payload, path, str)
    return value if value and len(value) <= _LONGEST_TEXT and value.isprintable() else None


def _number(payload: Payload, path: str) -> int:
    value = _needed(_field(payload, path, int), path)
    if not 0 < value < 10**12:
        raise Refused(400, f"the field {path} is not the number of an issue")
    return value


def _time(payload: Payload, path: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(_field(payload, path, str) or "")
    except ValueError:
        return None
    return at if at.tzinfo else None


def _milliseconds(payload: Payload, path: str) -> datetime | None:
    value = _field(payload, path, int)
    return datetime.fromtimestamp(value / 1000, UTC) if value and 0 < value <= _LAST_MILLISECOND else None


def _needed(value: _Kind | None, path: str) -> _Kind:
    if value is None:
        raise Refused(400, f"the field {path} is missing")
    return value


def _matched(value: str, form: re.Pattern[str], path: str) -> str:
    if not form.fullmatch(value):
        raise Refused(400, f"the field {path} is not of the form KEY-NUMBER")
    return value


_READERS: dict[Source, Callable[[Mapping[str, str], bytes, Payload, datetime], Delivery]] = {
    "github": _github,
    "linear": _linear,
    "jira": _jira,
}
