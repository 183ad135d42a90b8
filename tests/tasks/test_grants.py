"""What a grant lets a role do, and that nothing widens it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from infra.claims import Claim
from infra.sections import AgentSection
from infra.test_runners import is_test_path
from tasks import services
from tasks.grants import ASK, EDITING, READING, Grant, Role, grant_for
from tasks.models import Job, Policy, Repository, Ticket, WorkUnit

POLICY = Policy(protected_paths=(".github/**", "migrations/**"))
UNIT = WorkUnit(id="u1", title="t")
ROLES: tuple[Role, ...] = get_args(Role)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    services.close()


def job() -> Job:
    now = datetime.now(UTC)
    ticket = Ticket(key="T-1", title="t", body="b", state="todo")
    repository = Repository(name="r", mirror="m", remote="r", base_branch="main", base_sha="0" * 40)
    return Job.model_construct(ticket=ticket, repository=repository, attempt_id=1, attempt=1, claim=Claim.model_construct(node="n", lease_until=now))  # fmt: skip


def grant(role: Role, agent: AgentSection | None = None) -> Grant:
    return grant_for(job(), role, POLICY, UNIT, agent)


@pytest.mark.parametrize("role", [role for role in ROLES if role not in ("coder", "tester")])
def test_everybody_but_coder_and_tester_only_reads(role: Role) -> None:
    """A4."""
    given = grant(role)
    assert given.read_only
    assert given.tools <= READING
    assert not given.may_write("src/a.py")
    assert (given.network, given.network_hosts, given.may_ask_human, given.external_agent) == ("none", (), False, False)


def test_a_coder_writes_everything_but_what_the_repository_protects_and_alone_asks_people() -> None:
    given = grant("coder")
    assert given.tools == EDITING
    assert given.may_write("src/a.py")
    assert not any(given.may_write(path) for path in (".github/workflows/x.yml", "MIGRATIONS/1.sql"))
    assert [role for role in ROLES if grant(role).may_ask_human] == ["coder"]


def test_nobody_asks_on_a_ticket_that_asked_often_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """SM8, I12: then it decides with what there is."""
    monkeypatch.setenv("DARKFACTORY_DISPATCH", '{"max_continuations": 0}')
    assert grant("coder").tools == EDITING - {ASK}


@pytest.mark.parametrize(
    "path",
    ["tests/test_a.py", "src/test/java/A.java", "pkg/a_test.go", "web/a.test.js", "a.spec.ts", "conftest.py",
     "x/conftest.py", "src/__tests__/a.js", "test_a.py", "src/a.py", "README.md", "src/latest.py", "contest.py", "setup.py"],
)  # fmt: skip
def test_a_tester_writes_tests_and_nothing_else(path: str) -> None:
    assert grant("tester").may_write(path) is is_test_path(path)
    assert ASK not in grant("tester").tools


def test_only_a_whole_agent_that_codes_gets_a_network_and_only_to_its_hosts() -> None:
    agent = AgentSection(kind="claude-code", url="https://gate.example/v1", hosts=("more.example:8443",))
    assert (grant("coder").network, grant("coder").network_hosts) == ("none", ())
    assert grant("coder", agent).network == "model"
    assert grant("coder", agent).network_hosts == ("gate.example:443", "more.example:8443")
    assert grant("reviewer", agent).network_hosts == ()


def test_the_same_permissions_have_the_same_id_and_others_another() -> None:
    assert grant("coder").id == grant("coder").id
    others = {grant("tester").id, grant_for(job(), "coder", Policy(), UNIT).id, grant_for(job(), "coder", POLICY).id}
    assert len(others | {grant("coder").id}) == 4


def test_a_grant_that_contradicts_itself_cannot_be_made() -> None:
    with pytest.raises(ValidationError, match="reads the whole checkout"):
        Grant(role="tester", tools=frozenset({"run"}), readable=("tests/*",))
    with pytest.raises(ValidationError, match="no network"):
        Grant(role="coder", tools=frozenset(), network_hosts=("a:1",))
    with pytest.raises(ValidationError, match="frozen"):
        grant("coder").writable = ("*",)  # type: ignore[misc]  # the point
