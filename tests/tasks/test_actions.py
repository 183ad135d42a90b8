"""Units coded on runners: a GitHub that checks its contract, real git, PostgreSQL and sandbox, processes that are killed."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.actions import JOB_MINUTES
from infra.git import Mirror
from infra.runner_jobs import RunnerJob, Used
from tasks import actions, services
from tasks.actions import UNIT_REQUESTS, RunnerReport, code_on_runner, end_lost_units, fits, pause_scope
from tasks.asking import Asker, asker_for
from tasks.models import Brief, Change, CodeExcerpt, Job, Policy, Repository, TestReport, Ticket, WorkUnit
from tests.fakes.actions import FakeActions, FakeRun, archived, zipped
from tests.shop import FILES, git, make_repository

ROOT = Path(__file__).parents[2]
SECRET = "s3cret-value-of-the-host"
UNITS = 24
SOURCE = {f"part{n}.py": f"x = {n}\n" for n in range(UNITS)}


def patch_of(path: str, old: str, new: str) -> str:
    return f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-{old}\n+{new}\n"


def own_part(run: FakeRun) -> bytes:
    """What a runner makes of the unit `un`: another line in `partn.py`."""
    number = run.unit["message"].rpartition(" u")[2]
    return archived(patch_of(f"part{number}.py", f"x = {number}", f"x = {number} + 1"))


class Shop:
    """A repository on the fake GitHub, a ticket of it that is being worked on, and its runners."""

    def __init__(self, folder: Path, fake: FakeActions, configure: Callable[..., None]) -> None:
        self.fake, self._configure = fake, configure
        self.origin = make_repository(folder / "origin", FILES | SOURCE)
        self.configure()
        mirror = Mirror.open(folder / "home" / "repos", "shop", str(self.origin))
        base = mirror.base(None)[1]
        ticket = Ticket(board="folder", key="T-1", title="total ignores the discount", body="Please.", state="todo")
        services.ledger().record_ticket(ticket, "shop")
        attempt = services.ledger().start_attempt("T-1", base, ticket.revision).id
        claim = services.claims().seize(ticket, holder="h", machine="m", node="n", repository="shop", lease_seconds=3600, flow_run="r")  # fmt: skip
        repository = Repository(name="shop", mirror=str(mirror.path), remote="", base_branch="main", base_sha=base)
        self.job = Job(
            ticket=ticket, repository=repository, attempt_id=attempt, attempt=1, model="m", tier="small", seed=0,
            context_tokens=8000, max_rounds=1, max_samples=1, claim=claim,
        )  # fmt: skip
        self.brief = Brief(
            ticket=ticket, repository=repository, policy=Policy(test="pytest"), nonce="n0nce", memories=("A lesson.",),
            baseline=TestReport(command="pytest", exit_code=0), prefix="PREFIX",
            excerpts=(CodeExcerpt(path="part0.py", start_line=1, end_line=1, text="x = 0"),),
        )  # fmt: skip

    def configure(self, *, project: str | None = None, public: bool = False, **section: Any) -> None:
        """`section` are settings of `actions`; `project` is the repository's own one."""
        given = {"project": self.fake.project, "token": self.fake.token, "url": self.fake.url}
        repository = {
            "path": str(self.origin), "public": public, "github": {**given, "project": project or self.fake.project},
            "actions": {**given, "requests_per_day": 10_000, **section},
        }  # fmt: skip
        self._configure(repository)

    def asker(self) -> Asker:
        return asker_for(self.job, "coder", "coder-1")

    async def code(self, number: int = 0, laid: Mapping[str, str | None] = {}) -> Change | None:
        unit, key = WorkUnit(id=f"u{number}", title="t"), f"key {number}"
        return await code_on_runner(self.job, self.brief, unit, self.asker(), instruction="Do it.", laid=laid, key=key)

    async def code_together(self, units: int, *, running: int) -> list[Change | None]:
        """Units at the same time; none of their runs is over before `running` of them were started."""
        self.fake.looks = 1_000_000
        coding = asyncio.gather(*(self.code(number) for number in range(units)))
        deadline = time.monotonic() + 60
        while len(self.fake.workflow_runs) < running and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for run in self.fake.workflow_runs.values():
            run.looks = 0
        return await coding

    def only_job(self) -> RunnerJob:
        (run,) = self.fake.workflow_runs.values()
        found = services.runner_jobs().find(run.inputs["unit"])
        assert found is not None
        return found

    def used(self) -> Used:
        return services.runner_jobs().used(self.fake.project)

    def paused(self) -> str | None:
        section = actions.section_of("shop")
        assert section is not None
        pause = services.pauses().active().get(pause_scope(section))
        return pause.reason if pause else None


@pytest.fixture
def fake() -> Iterator[FakeActions]:
    with FakeActions(own_part) as started:
        yield started


@pytest.fixture
def shop(tmp_path: Path, fake: FakeActions, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    def configure(repository: dict[str, Any]) -> None:
        monkeypatch.setenv("DARKFACTORY_REPOSITORIES", json.dumps({"shop": repository}))
        services.close()
        services.runner_jobs(), services.pauses()  # opened once, and not by many threads at the same time

    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DARKFACTORY_DATABASE_URL", database_url)
    monkeypatch.setenv("A_HOST_TOKEN", SECRET)
    monkeypatch.setattr(actions, "FIRST_POLL_SECONDS", 0.02)
    logging.disable(logging.CRITICAL)
    yield Shop(tmp_path, fake, configure)
    logging.disable(logging.NOTSET)
    services.close()


async def test_eight_units_are_coded_at_once_and_their_minutes_and_requests_counted(shop: Shop) -> None:
    """A7."""
    changes = await shop.code_together(8, running=8)
    assert shop.fake.most_runs == 8
    for number, change in enumerate(changes):
        assert change is not None
        assert (change.unit, change.ending, change.passed) == (f"u{number}", "done", True)
        assert change.files == {f"part{number}.py": f"x = {number} + 1\n"}
        assert (change.usage.calls, change.usage.cost_usd, change.explanation) == (3, 0.0, "It was wrong.")
    assert shop.used() == Used(open=0, minutes=8 * 2, requests=8 * 3), "61 seconds are two minutes"
    usage = services.ledger().history("T-1").usage_by_role["coder"]
    assert (usage.calls, usage.prompt_tokens) == (24, 7200)
    assert shop.paused() is None


async def test_no_more_than_twenty_units_run_at_once_and_the_rest_is_coded_here(shop: Shop) -> None:
    shop.configure(parallel=20)
    shop.fake.works = lambda run: archived("")
    changes = await shop.code_together(UNITS, running=20)
    done = [change for change in changes if change is not None]
    assert (len(done), shop.fake.most_runs) == (20, 20)
    assert {change.ending for change in done} == {"unchanged"}, "a patch without a line is no work"


async def test_what_a_runner_is_told_is_the_unit_without_secrets_or_memories(shop: Shop) -> None:
    await shop.code(laid={"tests/test_new.py": "assert True\n"})
    (run,) = shop.fake.workflow_runs.values()
    told = run.unit
    assert run.inputs["repository"] == shop.fake.project
    assert run.inputs["base"] == told["base_sha"] == shop.job.repository.base_sha
    assert told["laid"] == {"tests/test_new.py": "assert True\n"}
    assert told["prompt"].endswith("\n\n---\nDo it.")
    assert "total ignores the discount" in told["prompt"]
    assert "File `part0.py`" in told["prompt"]
    assert "ask_human" not in told["grant"]["tools"]
    text = json.dumps([run.inputs, told])
    assert [
        word for word in ("A lesson.", "PREFIX", SECRET, shop.fake.token, "darkfactory-tests-") if word in text
    ] == []


@pytest.mark.parametrize("text", [f"password {SECRET}", "token ghp_0123456789abcdefghijkl"])
async def test_what_looks_like_a_secret_is_not_sent_anywhere(shop: Shop, text: str) -> None:
    assert await shop.code(laid={"conftest.py": text}) is None
    assert shop.fake.log == []


async def test_a_prompt_that_is_too_long_for_the_model_there_is_not_sent(shop: Shop) -> None:
    shop.brief = shop.brief.model_copy(update={"rules": "word " * 300, "baseline": TestReport(command="t", exit_code=1, tests={"a": "failed"}, output="x " * 20_000)})  # fmt: skip
    assert await shop.code() is None
    assert shop.fake.log == []


async def test_code_of_another_project_is_only_sent_when_it_is_public(shop: Shop) -> None:
    shop.configure(project="acme/private")
    assert fits(shop.job) == "the repository has no runners"
    assert await shop.code() is None
    assert shop.fake.log == []
    shop.configure(project="acme/open", public=True)
    assert await shop.code() is not None
    (run,) = shop.fake.workflow_runs.values()
    assert run.inputs["repository"] == "acme/open"


async def test_a_base_commit_that_was_not_pushed_costs_no_run(shop: Shop) -> None:
    shop.fake.commits = set()
    assert await shop.code() is None
    assert shop.fake.workflow_runs == {}
    assert (shop.used(), shop.paused()) == (Used(open=0, minutes=0, requests=0), None)


async def test_a_finished_unit_is_fetched_once(shop: Shop) -> None:
    first = await shop.code()
    asked = len(shop.fake.log)
    services.close()  # as another process
    assert await shop.code() == first
    later = {asked.path.rpartition("/")[2] for asked in shop.fake.log[asked:]}
    assert later <= {"jobs"}
    assert [run.downloads for run in shop.fake.workflow_runs.values()] == [1]
    assert shop.used().requests == 3


KILLED = """
import asyncio, sys
from tasks import actions
from tasks.asking import Asker
from tasks.models import Brief, Job, WorkUnit
job, brief, asker = (kind.model_validate_json(text) for kind, text in zip((Job, Brief, Asker), sys.argv[1:4]))
actions.FIRST_POLL_SECONDS = 0.02
unit = WorkUnit(id="u0", title="t")
asyncio.run(actions.code_on_runner(job, brief, unit, asker, instruction="Do it.", laid={}, key="key 0"))
"""


@pytest.mark.parametrize("moment", ["dispatch", "watch"])
async def test_a_killed_process_leaves_a_run_that_the_next_one_goes_on_with(shop: Shop, moment: str) -> None:
    """Also when it dies before it hears that the run was started."""
    words = [each.model_dump_json() for each in (shop.job, shop.brief, shop.asker())]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *words], cwd=ROOT, start_new_session=True)

    def work_and_kill(run: FakeRun) -> bytes:
        if moment == "dispatch":
            process.kill()
        return own_part(run)

    shop.fake.works, shop.fake.looks = work_and_kill, 10_000
    deadline = time.monotonic() + 60
    while not shop.fake.asked(r"GET /actions/runs/\d+$") and process.poll() is None and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    process.kill()
    assert process.wait(timeout=10) == -signal.SIGKILL
    while not shop.fake.workflow_runs and time.monotonic() < deadline:  # GitHub writes it down after our process died
        await asyncio.sleep(0.02)
    assert (shop.only_job().state, shop.only_job().run is None) == ("open", moment == "dispatch")

    for run in shop.fake.workflow_runs.values():
        run.looks = 1
    change = await shop.code()
    assert change is not None
    assert change.files == {"part0.py": "x = 0 + 1\n"}
    assert len(shop.fake.asked("dispatches")) == 1
    assert (shop.only_job().state, shop.used().open) == ("done", 0)


async def test_a_github_that_names_no_run_and_lists_it_late_is_waited_for(shop: Shop) -> None:
    shop.fake.says_run, shop.fake.hidden = False, 3
    assert await shop.code() is not None
    assert len(shop.fake.asked("dispatches")) == 1


async def test_limits_and_outages_while_watching_cost_nothing(shop: Shop) -> None:
    """RB8."""
    shop.fake.inject(r"GET /actions/runs/\d+$", 429, {"message": "slow down"}, {"Retry-After": "1"})
    shop.fake.inject(r"GET /actions/runs/\d+$", 502, b"<html>", times=2)
    shop.fake.inject(r"GET .*/artifacts$", 503, b"", times=1)
    shop.fake.inject("blob", 500, b"", times=1)
    began = time.monotonic()
    assert await shop.code() is not None
    assert time.monotonic() - began >= 0.9, "it waited as long as GitHub asked"
    assert len(shop.fake.asked("dispatches")) == 1
    assert shop.paused() is None


async def test_a_limit_on_starting_rests_the_runners_until_its_end(shop: Shop) -> None:
    """RB8: the unit is coded here, the next one does not even ask."""
    said = {"message": "You have exceeded a secondary rate limit. Please wait."}
    shop.fake.inject("dispatches", 403, said, {"Retry-After": "60"}, times=9)
    assert await shop.code(0) is None
    assert "limit" in (shop.paused() or "")
    asked = len(shop.fake.log)
    assert await shop.code(1) is None
    assert "paused" in (fits(shop.job) or "")
    assert len(shop.fake.log) == asked
    assert shop.used() == Used(open=0, minutes=0, requests=0)


async def test_an_unanswered_dispatch_is_not_repeated(shop: Shop) -> None:
    shop.fake.inject("dispatches", 502, b"<html>")
    assert await shop.code() is None
    assert len(shop.fake.asked("dispatches")) == 1
    assert shop.used() == Used(open=0, minutes=0, requests=0)


@pytest.mark.parametrize(
    ("broken", "words"),
    [({"installed": False}, "darkfactory actions --install"), ({"may_dispatch": False}, "permission")],
)
async def test_what_only_a_person_can_mend_rests_the_runners_until_they_do(
    shop: Shop, broken: dict[str, bool], words: str
) -> None:
    for name, value in broken.items():
        setattr(shop.fake, name, value)
    assert await shop.code() is None
    assert words in (shop.paused() or "")
    section = actions.section_of("shop")
    assert section is not None
    assert services.pauses().active()[pause_scope(section)].until is None


async def test_a_run_that_failed_counts_its_minutes_and_is_not_started_again(shop: Shop) -> None:
    shop.fake.works = lambda run: None
    assert await shop.code() is None
    assert shop.only_job().state == "failed"
    assert (shop.used().open, shop.used().minutes) == (0, 2)
    assert "left no artifact" in (shop.paused() or "")
    services.pauses().succeed("provider:actions@acme/shop")
    assert await shop.code() is None
    assert len(shop.fake.workflow_runs) == 1


async def test_a_run_that_somebody_deleted_is_given_up(shop: Shop) -> None:
    shop.fake.looks = 10_000
    waiting = asyncio.create_task(shop.code())
    while not shop.fake.asked(r"GET /actions/runs/\d+$"):
        await asyncio.sleep(0.02)
    (unit,) = [run.inputs["unit"] for run in shop.fake.workflow_runs.values()]
    shop.fake.workflow_runs.clear()
    assert await waiting is None
    found = services.runner_jobs().find(unit)
    assert found is not None
    assert (found.state, found.minutes) == ("failed", JOB_MINUTES), "GitHub cannot say how much it used"


async def test_a_run_that_does_not_end_in_time_is_cancelled(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.fake.looks = 10_000
    monkeypatch.setattr(actions, "QUEUE_MINUTES", 0.01 - JOB_MINUTES)
    assert await shop.code() is None
    assert [run.cancelled for run in shop.fake.workflow_runs.values()] == [True]
    assert shop.used() == Used(open=0, minutes=JOB_MINUTES, requests=UNIT_REQUESTS), "nobody knows how much it used"


async def test_the_models_daily_limit_on_the_runner_rests_the_runners_until_it_opens(shop: Shop) -> None:
    reset = datetime.now(UTC) + timedelta(hours=5)
    report = RunnerReport(error="150 per 86400s", category="rate-limited", reset_at=reset).model_dump(mode="json")
    shop.fake.works = lambda run: zipped({"patch.diff": b"", "report.json": json.dumps(report).encode()})
    assert await shop.code() is None
    section = actions.section_of("shop")
    assert section is not None
    assert services.pauses().active()[pause_scope(section)].until == reset
    assert shop.only_job().state == "failed"
    assert shop.used().minutes == 2


async def test_an_allowance_that_is_used_up_is_a_reason_and_no_error(shop: Shop) -> None:
    shop.configure(minutes_per_month=JOB_MINUTES)
    assert fits(shop.job) is None
    assert await shop.code(0) is not None
    assert fits(shop.job) == "2 of 30 minutes of this month are used, a unit may take 30"
    assert await shop.code(1) is None
    assert (len(shop.fake.workflow_runs), shop.paused()) == (1, None)


async def test_a_run_is_cancelled_when_its_ticket_is_stopped(shop: Shop) -> None:
    shop.fake.looks = 10_000
    working = asyncio.create_task(shop.code())
    while not shop.fake.asked(r"GET /actions/runs/\d+$"):
        await asyncio.sleep(0.02)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert [run.cancelled for run in shop.fake.workflow_runs.values()] == [True]
    assert (shop.only_job().state, shop.only_job().reason) == ("failed", "the run was stopped")


async def test_the_janitor_ends_runs_that_nobody_waits_for(shop: Shop) -> None:
    section = actions.section_of("shop")
    assert section is not None
    there, jobs = actions.site(section), services.runner_jobs()
    for unit, noted in (("a" * 24, True), ("b" * 24, False)):
        jobs.reserve(unit, section, board="folder", ticket="T-1", minutes=30, requests=18)
        number = there.dispatch(unit, "acme/shop", shop.job.repository.base_sha, _payload(shop))
        if noted and number:
            jobs.started(unit, number)
    assert await end_lost_units.fn() == 0, "its ticket is being worked on"
    services.claims().release(shop.job.claim, "over", moved=True)
    assert await end_lost_units.fn() == 2
    assert [run.cancelled for run in shop.fake.workflow_runs.values()] == [True, True]
    assert shop.used().open == 0
    assert await end_lost_units.fn() == 0


async def test_the_janitor_forgets_runs_of_runners_that_cannot_be_asked_any_more(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = actions.section_of("shop")
    assert section is not None
    services.runner_jobs().reserve("a" * 24, section, board="folder", ticket="T-1", minutes=30, requests=18)
    services.claims().release(shop.job.claim, "over", moved=True)
    shop.fake.inject("GET ", 401, {"message": "Bad credentials"}, times=2)
    assert await end_lost_units.fn() == 0, "the token may be mended"
    late = datetime.now(UTC) + timedelta(hours=2)
    monkeypatch.setattr(services, "clock", lambda: late)
    services.close()
    assert await end_lost_units.fn() == 1, "by now no run of that time can be going on"
    assert shop.used().open == 0


def _payload(shop: Shop) -> str:
    from infra.actions import pack

    return pack(json.dumps({"message": "T-1 u0"}))


LINK = "diff --git a/link b/link\nnew file mode 120000\n--- /dev/null\n+++ b/link\n@@ -0,0 +1 @@\n+/etc\n\\ No newline at end of file\n"
INTO_LINK = "diff --git a/link/passwd b/link/passwd\nnew file mode 100644\n--- /dev/null\n+++ b/link/passwd\n@@ -0,0 +1 @@\n+x\n"


@pytest.mark.parametrize(
    "patch",
    [
        patch_of("../../outside.py", "x = 0", "x = 1"),
        patch_of(".git/config", "x = 0", "x = 1"),
        patch_of("/etc/passwd", "x = 0", "x = 1"),
        patch_of("part0.py", "x = 99", "x = 1"),
        LINK + INTO_LINK,
        "not a patch",
    ],
)
async def test_a_patch_that_does_not_fit_or_leads_out_changes_nothing(shop: Shop, tmp_path: Path, patch: str) -> None:
    shop.fake.works = lambda run: archived(patch)
    before = git(shop.origin, "rev-parse", "HEAD")
    assert await shop.code() is None
    assert not list(tmp_path.rglob("outside.py"))
    assert git(shop.origin, "rev-parse", "HEAD") == before
    assert not list((tmp_path / "home" / "worktrees").rglob("*.py")), "the checkout is gone"


async def test_a_change_is_read_like_a_coders_own(shop: Shop) -> None:
    """Tests it was given are not its work, renames and deletions are whole, and links become what they hold."""
    rename = "diff --git a/part1.py b/moved.py\nsimilarity index 100%\nrename from part1.py\nrename to moved.py\n"
    deleted = "diff --git a/part2.py b/part2.py\ndeleted file mode 100644\n--- a/part2.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-x = 2\n"
    test = "diff --git a/tests/test_new.py b/tests/test_new.py\nnew file mode 100644\n--- /dev/null\n+++ b/tests/test_new.py\n@@ -0,0 +1 @@\n+assert False\n"
    shop.fake.works = lambda run: archived(rename + deleted + test + LINK)
    change = await shop.code(laid={"tests/test_new.py": "assert True\n"})
    assert change is not None
    assert change.files == {"moved.py": "x = 1\n", "part1.py": None, "part2.py": None, "link": "/etc"}


@pytest.mark.parametrize(
    "report",
    [
        {"spent": {"calls": -5}}, {"spent": {"cost_usd": 10}}, {"ending": "accepted"}, {"explanation": "x" * 401},
        {"steps": 10**9}, {"files": {"a": "b"}}, {"spent": {"seconds": float("inf")}},
    ],
)  # fmt: skip
async def test_a_report_that_says_impossible_things_is_not_believed(shop: Shop, report: dict[str, Any]) -> None:
    shop.fake.works = lambda run: archived("", **report)
    assert await shop.code() is None
    assert services.ledger().history("T-1").usage_by_role == {}
