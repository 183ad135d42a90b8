"""Deliveries of the three services: signatures over raw bytes, one normalised event, and hostile bodies refused by name."""

from __future__ import annotations

import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.webhooks import Delivery, Refused, Source, check

CONTRACTS = Path(__file__).parents[2] / ".." / "shared" / "contracts"
SECRET = "shared with the service"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SENT = int(NOW.timestamp() * 1000)

needs_contracts = pytest.mark.skipif(not CONTRACTS.is_dir(), reason="the folder `shared` beside the checkout is absent")

HEADERS: dict[Source, tuple[str, str]] = {
    "github": ("X-Hub-Signature-256", "sha256="),
    "linear": ("Linear-Signature", ""),
    "jira": ("X-Hub-Signature", "sha256="),
}


def signed(source: Source, body: bytes, **more: str) -> dict[str, str]:
    name, prefix = HEADERS[source]
    github = {"X-GitHub-Delivery": "d-1", "X-GitHub-Event": "issues"} if source == "github" else {}
    return github | {name: prefix + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()} | more


def deliver(source: Source, payload: object, **more: str) -> Delivery:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return check(source, signed(source, body, **more), body, (SECRET,), NOW)


def refusal(source: Source, payload: object, **more: str) -> Refused:
    with pytest.raises(Refused) as caught:
        deliver(source, payload, **more)
    assert "\n" not in str(caught.value)
    return caught.value


def outcome(source: Source, payload: object, **more: str) -> Delivery | Refused:
    try:
        return deliver(source, payload, **more)
    except Refused as error:
        return error


def recorded(folder: str) -> list[Path]:
    return sorted((CONTRACTS / folder).rglob("*.json"))


def issue(number: int = 7, **more: object) -> dict[str, Any]:
    return {"action": "labeled", "issue": {"number": number, **more}, "repository": {"full_name": "acme/shop"}}


def linear(**more: object) -> dict[str, Any]:
    return {"action": "update", "type": "Issue", "webhookTimestamp": SENT, "data": {"identifier": "ENG-1"}, **more}


@needs_contracts
def test_every_example_delivery_of_github_is_accepted_and_says_what_it_is_about() -> None:
    paths = recorded("github/webhooks/examples")
    assert len(paths) > 100
    for path in paths:
        body, event = path.read_bytes(), path.parent.name
        payload = json.loads(body)
        found = deliver("github", body, **{"X-GitHub-Event": event})
        action = payload.get("action")
        assert found.kind == (f"{event}.{action}" if action else event)
        assert found.project == (payload.get("repository") or {}).get("full_name")
        assert (found.source, found.id) == ("github", "d-1")
        if event in ("issues", "issue_comment"):
            assert found.number_or_key == payload["issue"]["number"]
            assert found.about == ("pull-request" if "pull_request" in payload["issue"] else "ticket")
            assert found.at == datetime.fromisoformat(payload["issue"]["updated_at"])
        elif "pull_request" in payload:
            assert (found.about, found.number_or_key) == ("pull-request", payload["pull_request"]["number"])
            assert found.branch == payload["pull_request"]["head"]["ref"]
        else:
            assert found.number_or_key is None


@needs_contracts
def test_every_linear_capture_is_accepted_and_names_its_issue() -> None:
    found = {}
    for path in recorded("linear/webhooks"):
        payload = {"webhookTimestamp": SENT} | json.loads(path.read_bytes())
        delivery = deliver("linear", payload, **{"Linear-Delivery": "d-2"})
        found[path.stem] = (delivery.kind, delivery.project, delivery.number_or_key)
        assert (delivery.id, delivery.at) == ("d-2", NOW)
    assert found == {
        "2021-createComment": ("Comment.create", "KOR", "KOR-12"),
        "2021-createIssue": ("Issue.create", "KOR", "KOR-11"),
        "2021-createIssueLabel": ("IssueLabel.create", None, None),
        "2021-updateIssueDueDate": ("Issue.update", "KOR", "KOR-11"),
        "2021-updateIssueForLabel": ("Issue.update", "KOR", "KOR-11"),
        "sdk-test-comment-create": ("Comment.create", "LIN", "LIN-1778"),
    }


@needs_contracts
def test_every_jira_delivery_is_accepted_and_names_its_issue() -> None:
    paths = recorded("jira/webhooks")
    assert len(paths) > 20
    for path in paths:
        body = path.read_bytes()
        payload = json.loads(body)
        found = deliver("jira", body, **{"X-Atlassian-Webhook-Identifier": "d-3"})
        key = payload.get("issue", {}).get("key")
        assert (found.id, found.kind, found.number_or_key) == ("d-3", payload["webhookEvent"], key)
        assert found.about == ("ticket" if key else "other")
        assert found.project == (payload["issue"]["fields"]["project"]["key"] if key else None)
        assert found.at is not None
        assert found.at.year in (2019, *range(2019, 2021))


@needs_contracts
def test_the_published_signature_of_github_fits() -> None:
    """The body of the vector is no JSON, so what is refused is the body (400) and no longer the signature (401)."""
    vector = json.loads((CONTRACTS / "signatures" / "vectors.json").read_bytes())["github"]
    with pytest.raises(Refused, match="the body is not JSON") as caught:
        check("github", {vector["header"]: vector["value"]}, vector["body"].encode(), (vector["secret"],), NOW)
    assert caught.value.status == 400


@pytest.mark.parametrize("source", ["github", "linear", "jira"])
def test_a_body_with_one_changed_byte_is_refused_whichever_it_is(source: Source) -> None:
    body = json.dumps({"github": issue(), "linear": linear(), "jira": {"webhookEvent": "x"}}[source]).encode()
    headers = signed(source, body)
    check(source, headers, body, (SECRET,), NOW)
    for place in range(len(body)):
        changed = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
        with pytest.raises(Refused) as caught:
            check(source, headers, changed, (SECRET,), NOW)
        assert caught.value.status == 401
        assert HEADERS[source][0] in str(caught.value)


@pytest.mark.parametrize("source", ["github", "linear", "jira"])
@pytest.mark.parametrize("value", [None, "", "sha256=", "sha1=" + "0" * 40, "é" * 64, "\udcff", "0" * 100_000])
def test_a_missing_or_senseless_signature_is_refused_and_named(source: Source, value: str | None) -> None:
    name = HEADERS[source][0]
    with pytest.raises(Refused, match=rf"the header {name}.*webhooks\.{source}_secret") as caught:
        check(source, {} if value is None else {name: value}, b"{}", (SECRET,), NOW)
    assert caught.value.status == 401
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("source", ["github", "linear", "jira"])
def test_any_of_several_secrets_fits_and_none_or_an_empty_one_never_does(source: Source) -> None:
    """Linear gives each webhook a secret of its own, and a new secret is in use before the old one is gone."""
    body = json.dumps({"github": issue(), "linear": linear(), "jira": {"webhookEvent": "x"}}[source]).encode()
    check(source, signed(source, body), body, ("old", SECRET, "new"), NOW)
    name, prefix = HEADERS[source]
    of_nobody = signed(source, body) | {name: prefix + hmac.new(b"", body, hashlib.sha256).hexdigest()}
    for secrets, headers in (((), of_nobody), (("",), of_nobody), (("old", "new"), signed(source, body))):
        with pytest.raises(Refused, match=name) as caught:
            check(source, headers, body, secrets, NOW)
        assert caught.value.status == 401


def test_the_signature_is_checked_before_the_body_is_read() -> None:
    with pytest.raises(Refused) as caught:
        check("github", signed("github", b"other"), b"[" * 100_000, (SECRET,), NOW)
    assert caught.value.status == 401


def test_headers_are_found_in_any_case() -> None:
    body = json.dumps(issue()).encode()
    headers = {name.upper(): value for name, value in signed("github", body).items()}
    assert check("github", headers, body, (SECRET,), NOW).number_or_key == 7


@pytest.mark.parametrize("seconds", [-61, 61, 10**9])
def test_a_linear_delivery_of_another_time_is_refused(seconds: int) -> None:
    body = json.dumps(linear()).encode()
    with pytest.raises(Refused, match="webhookTimestamp") as caught:
        check("linear", signed("linear", body), body, (SECRET,), NOW + timedelta(seconds=seconds))
    assert caught.value.status == 409


def test_a_linear_timestamp_in_a_header_does_not_refresh_a_delivery() -> None:
    """The header is not signed: whoever replays a body could renew it."""
    old = linear(webhookTimestamp=SENT - 3_600_000)
    assert refusal("linear", old, **{"Linear-Timestamp": str(SENT)}).status == 409


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"Hello",
        b"[]",
        b"null",
        b'"x"',
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"action":"opened","action":"closed"}',
        b'{"issue":{"number":1,"number":2}}',
        b'{"issue":{"number":NaN}}',
        b'{"issue":{"number":-Infinity}}',
        b'{"issue":{"number":1e999}}',
        b'{"issue":{"number":' + b"9" * 5000 + b"}}",
        b'{"action":"\xff"}',
        b"\xef\xbb\xbf{}",
        b'{"issue":' + b" " * 10,
    ],
)
@pytest.mark.parametrize("source", ["github", "linear", "jira"])
def test_a_signed_body_that_is_not_one_plain_json_object_is_refused(source: Source, body: bytes) -> None:
    error = refusal(source, body)
    assert error.status == 400
    assert str(error).startswith(("the body ", "the field "))


HOSTILE: list[Any] = [True, False, 0, -1, 1.5, 10**30, "", "x" * 300, "a\0b", "a\nb", "\ud800", "../..", [], {}, [[]]]


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
@pytest.mark.parametrize(
    ("source", "event", "path"),
    [
        ("github", "issues", "issue.number"),
        ("github", "issues", "issue"),
        ("github", "issues", "issue.pull_request"),
        ("github", "issues", "issue.updated_at"),
        ("github", "issues", "repository.full_name"),
        ("github", "issues", "action"),
        ("github", "pull_request", "pull_request.head.ref"),
        ("github", "pull_request", "pull_request.head"),
        ("github", "status", "branches"),
        ("github", "check_run", "check_run"),
        ("linear", "", "data.identifier"),
        ("linear", "", "data"),
        ("linear", "", "type"),
        ("linear", "", "webhookTimestamp"),
        ("linear", "", "url"),
        ("jira", "", "issue.key"),
        ("jira", "", "issue"),
        ("jira", "", "webhookEvent"),
        ("jira", "", "timestamp"),
    ],
)
def test_a_field_of_a_wrong_kind_is_refused_by_name_or_ignored(
    source: Source, event: str, path: str, value: Any
) -> None:
    payload: dict[str, Any] = {
        "github": issue() | {"pull_request": {"number": 3, "head": {"ref": "b", "repo": {"full_name": "acme/shop"}}}},
        "linear": linear(),
        "jira": {"webhookEvent": "jira:issue_updated", "issue": {"key": "TES-1"}},
    }[source]
    place = payload
    for name in path.split(".")[:-1]:
        place = place.setdefault(name, {})
    place[path.split(".")[-1]] = value
    said = outcome(source, payload, **({"X-GitHub-Event": event} if event else {}))
    if isinstance(said, Refused):
        assert said.status in (400, 409)
        assert path.split(".")[0] in str(said)
    else:
        words = [said.kind, said.project or "", str(said.number_or_key or ""), said.branch or ""]
        assert all(word == "" or (word.isprintable() and len(word) <= 520) for word in words)


@pytest.mark.parametrize("path", ["type", "action", "data", "webhookTimestamp"])
def test_a_missing_field_is_named(path: str) -> None:
    payload = {name: value for name, value in linear().items() if name != path}
    assert f"the field {path}" in str(refusal("linear", payload))


@pytest.mark.parametrize("name", ["X-GitHub-Event", "X-GitHub-Delivery"])
@pytest.mark.parametrize("value", ["", "two words", "x" * 300, "\x00", "é"])
def test_a_github_header_that_is_missing_or_garbage_is_named(name: str, value: str) -> None:
    error = refusal("github", issue(), **{name: value})
    assert error.status == 400
    assert name in str(error)


def test_a_form_is_refused_with_what_to_choose_instead() -> None:
    error = refusal("github", b"payload=%7B%7D", **{"Content-Type": "application/x-www-form-urlencoded"})
    assert (error.status, "application/json" in str(error)) == (400, True)


@pytest.mark.parametrize(("source", "payload"), [("jira", {"webhookEvent": "x"}), ("linear", linear())])
def test_without_an_id_the_same_body_is_the_same_delivery(source: Source, payload: dict[str, Any]) -> None:
    first, again, other = (deliver(source, p).id for p in (payload, payload, payload | {"url": "https://x"}))
    assert first == again != other


def test_a_pull_request_of_a_fork_gives_no_branch() -> None:
    """Its branch may have the name of one of ours."""
    head = {"ref": "agent/shop-7", "repo": {"full_name": "stranger/shop"}}
    payload = issue() | {"pull_request": {"number": 3, "head": head}}
    found = deliver("github", payload, **{"X-GitHub-Event": "pull_request_review"})
    assert (found.about, found.number_or_key, found.branch) == ("pull-request", 3, None)
    run = {"head_branch": "agent/shop-7", "head_repository": {"full_name": "stranger/shop"}}
    assert deliver("github", issue() | {"workflow_run": run}, **{"X-GitHub-Event": "workflow_run"}).branch is None


def test_a_comment_on_a_pull_request_is_not_about_a_ticket() -> None:
    found = deliver("github", issue(pull_request={"url": "https://x"}), **{"X-GitHub-Event": "issue_comment"})
    assert (found.about, found.number_or_key) == ("pull-request", 7)


@pytest.mark.parametrize(("names", "branch"), [(["agent/shop-7"], "agent/shop-7"), (["a", "b"], None), ([], None)])
def test_a_commit_status_gives_the_branch_when_there_is_one(names: list[str], branch: str | None) -> None:
    payload = {"state": "failure", "branches": [{"name": n} for n in names], "repository": {"full_name": "acme/shop"}}
    found = deliver("github", payload, **{"X-GitHub-Event": "status"})
    assert (found.kind, found.about, found.branch) == ("status", "pull-request", branch)


@pytest.mark.parametrize(
    ("of", "data", "url", "key"),
    [
        ("Issue", {"identifier": "ENG-9", "number": 1, "team": {"key": "OLD"}}, "", "ENG-9"),
        ("Issue", {"number": 9, "team": {"key": "ENG"}}, "", "ENG-9"),
        ("Comment", {"issue": {"identifier": "ENG-9"}}, "", "ENG-9"),
        ("Comment", {"issue": {"number": 9, "team": {"key": "ENG"}}}, "", "ENG-9"),
        ("Comment", {"issueId": "u"}, "https://linear.app/acme/issue/ENG-9/a-title#comment-1", "ENG-9"),
        ("Comment", {"issueId": "u"}, "https://linear.app/acme/issue/ENG-9", "ENG-9"),
        ("Comment", {"projectUpdateId": "u"}, "https://linear.app/acme/project/ENG-9", None),
    ],
)
def test_a_linear_identifier_is_found_wherever_it_stands(of: str, data: Any, url: str, key: str | None) -> None:
    found = deliver("linear", linear(type=of, data=data, url=url))
    assert (found.number_or_key, found.project) == (key, key and "ENG")


def refinement(**wish: object) -> dict[str, object]:
    return {"action": "dark-factory-refine", "client_payload": wish, "repository": {"full_name": "acme/shop"}}


@pytest.mark.parametrize(
    ("wish", "found"),
    [
        ({"branch": "feature/x"}, (None, "feature/x", "")),
        ({"pr": 7, "instructions": "Mind the cents.\0"}, (7, None, "Mind the cents. ")),
        ({"pr": "#7"}, (7, None, "")),
        ({"pr": {"a": 1}, "branch": "b\n"}, (None, None, "")),
        ({"branch": "b", "instructions": "x" * 9_000}, (None, "b", "x" * 4_000)),
    ],
)
def test_a_wish_for_a_refinement_carries_a_branch_or_a_number_and_words(
    wish: dict[str, object], found: tuple[object, ...]
) -> None:
    delivery = deliver("github", refinement(**wish), **{"X-GitHub-Event": "repository_dispatch"})
    assert delivery.about == "refinement"
    assert (delivery.number_or_key, delivery.branch, delivery.instructions) == found


def test_other_dispatches_of_a_repository_are_not_ours() -> None:
    payload = refinement(branch="b") | {"action": "deploy"}
    assert deliver("github", payload, **{"X-GitHub-Event": "repository_dispatch"}).about == "other"
