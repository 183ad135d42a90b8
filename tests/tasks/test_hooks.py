"""A repository's WORKFLOW.md at work: its hooks in the sandbox, around every run of tests, and its text in the brief."""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from infra.errors import AuthFailed, DiskFull, WorkFailed
from infra.git import Mirror
from infra.llm.scripted import Fault
from infra.sandbox import Bubblewrap, CommandResult, Limits
from infra.test_runners import detect_policy
from tasks import progress
from tasks.evidence import gather_evidence, run_baseline
from tasks.hooks import SHOWN_CHARS, prepared, run_hook
from tasks.models import Brief, Hooks, Policy, Repository, TestChange, Ticket
from tasks.policy import read_policy
from tests.flows.conftest import Factory, _prefect, factory  # noqa: F401  fixtures
from tests.flows.test_capable_model import CODER, PLAN
from tests.shop import FILES, RIGHT, git, make_repository, script, write_ticket

pytestmark = [
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
    # Prefect's event client leaves its sockets to the garbage collector
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"),
]

BOX = Bubblewrap(Limits(timeout_seconds=20))


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    path = tmp_path / "worktree"
    path.mkdir()
    return path


def policy(**hooks: str | float) -> Policy:
    return Policy(hooks=Hooks.model_validate(hooks))


class Witness:
    """The real sandbox, with what was run in it and which files it found, in order."""

    name = "bubblewrap"

    def __init__(self, full_at: str = "") -> None:
        self.runs: list[tuple[str, list[str]]] = []
        self.full_at = full_at

    async def run(self, command: Any, *, worktree: Path, **options: Any) -> CommandResult:
        self.runs.append((str(command), sorted(p.name for p in worktree.iterdir() if p.name != ".git")))
        if command == self.full_at:
            raise DiskFull("no space left")
        return await BOX.run(command, worktree=worktree, **options)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Mirror:
    folder = tmp_path_factory.mktemp("shop")
    return Mirror.open(folder / "mirrors", "shop", str(make_repository(folder / "shop", {"a.txt": "a\n"})))


async def test_a_hook_runs_in_the_checkout_without_network_and_secrets(
    worktree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WS4, WS7."""
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_abcdefghijklmnopqrstuvwxyz0123")
    command = (
        'test -z "$GITHUB_TOKEN" && test "$(ls /sys/class/net 2>/dev/null | grep -v lo | wc -l)" = 0 && pwd > where'
    )
    assert await run_hook("before_run", policy(before_run=command), worktree, BOX) is None
    assert (worktree / "where").read_text() == "/workspace\n"


async def test_a_hook_that_is_not_set_runs_nothing(worktree: Path) -> None:
    assert await run_hook("after_run", policy(before_run="touch ran"), worktree, BOX) is None
    assert list(worktree.iterdir()) == []


async def test_a_checkout_that_cannot_be_prepared_fails_the_run(worktree: Path) -> None:
    """WS4."""
    with pytest.raises(WorkFailed, match=r"'after_create' ended with exit code 3: 'no tools'; correct `hooks`"):
        await run_hook("after_create", policy(after_create="echo no tools; exit 3"), worktree, BOX)


@pytest.mark.parametrize("name", ["before_run", "after_run", "before_remove"])
async def test_later_failures_are_logged_and_ignored(
    worktree: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """WS4."""
    problem = await run_hook(name, policy(**{name: "echo bad luck >&2; false"}), worktree, BOX)  # type: ignore[arg-type]
    assert problem == f"the hook {name!r} ended with exit code 1: 'bad luck'"
    assert problem in caplog.text


async def test_a_hook_that_hangs_is_ended_in_time(worktree: Path) -> None:
    """WS4."""
    began = time.monotonic()
    problem = await run_hook("after_run", policy(after_run="sleep 60", timeout_seconds=0.5), worktree, BOX)
    assert problem is not None
    assert "did not end within 0.5 s" in problem
    assert time.monotonic() - began < 10


def test_a_hook_has_60_seconds() -> None:
    """WS4."""
    assert Policy().hooks.timeout_seconds == 60


async def test_output_is_cut_and_on_one_line_in_logs(worktree: Path, caplog: pytest.LogCaptureFixture) -> None:
    """WS4."""
    caplog.set_level(logging.INFO)
    await run_hook("after_run", policy(after_run="seq 100000; echo the end; exit 1"), worktree, BOX)
    (record,) = caplog.records
    assert "the end" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert len(record.getMessage()) < 2 * SHOWN_CHARS


# Around a checkout


def each_hook(**other: str) -> Policy:
    commands = {name: f"touch {name}" for name in ("after_create", "before_run", "after_run", "before_remove")}
    return policy(**{**commands, **other})


async def test_hooks_run_in_order_around_the_work(shop: Mirror, tmp_path: Path) -> None:
    """WS4: `after_create` finds the commit as it is, `before_run` what was written over it, `after_run` the work."""
    box = Witness()
    checkout = shop.worktree(tmp_path, "T-1", "c", shop.base(None)[1])
    async with prepared(checkout, each_hook(), box, {"b.txt": "b\n", "a.txt": None}) as worktree:
        worktree.write("work.txt", "done\n")
    assert box.runs == [
        ("touch after_create", ["a.txt"]),
        ("touch before_run", ["after_create", "b.txt"]),
        ("touch after_run", ["after_create", "b.txt", "before_run", "work.txt"]),
        ("touch before_remove", ["after_create", "after_run", "b.txt", "before_run", "work.txt"]),
    ]
    assert list(tmp_path.rglob("*")) == []


async def test_unfinished_work_is_neither_made_nor_laid_nor_removed_again(shop: Mirror, tmp_path: Path) -> None:
    """WS3, WS4: what a session left stands as it is, and hooks hear of making and removing what is really made and removed."""
    box, sha = Witness(), shop.base(None)[1]
    with suppress(KeyboardInterrupt):
        async with prepared(
            shop.worktree(tmp_path, "T-1", "c", sha, "s1"), each_hook(), box, {"b.txt": "b\n"}
        ) as worktree:
            worktree.begin(sha)
            worktree.write("b.txt", "half\n")
            raise KeyboardInterrupt
    async with prepared(shop.worktree(tmp_path, "T-1", "c", sha, "s1"), each_hook(), box, {"b.txt": "b\n"}) as worktree:
        assert worktree.read("b.txt") == "half\n"
    names = [command.removeprefix("touch ") for command, _ in box.runs]
    assert names == ["after_create", "before_run", "after_run", "before_run", "after_run", "before_remove"]
    assert list(tmp_path.rglob("*")) == []


async def test_without_hooks_nothing_is_run(shop: Mirror, tmp_path: Path) -> None:
    box = Witness()
    async with prepared(shop.worktree(tmp_path, "T-1", "c", shop.base(None)[1]), Policy(), box, {"b": "b"}) as worktree:
        assert worktree.read("b") == "b"
    assert box.runs == []


async def test_a_checkout_that_cannot_be_made_is_removed_and_not_worked_in(shop: Mirror, tmp_path: Path) -> None:
    """WS4."""
    box, entered = Witness(), False
    with pytest.raises(WorkFailed, match="no compiler"):
        async with prepared(
            shop.worktree(tmp_path, "T-1", "c", shop.base(None)[1]),
            each_hook(after_create="echo no compiler >&2; exit 1"),
            box,
        ):
            entered = True
    assert not entered
    assert [command for command, _ in box.runs][1:] == ["touch before_remove"]
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("name", ["before_run", "after_run", "before_remove"])
async def test_no_later_hook_hides_how_the_work_ended(
    shop: Mirror, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """WS4: neither when it fails nor when it cannot be run at all."""
    for box, hooks in (
        (Witness(), each_hook(**{name: "echo bad luck; exit 1"})),
        (Witness(full_at=f"touch {name}"), each_hook()),
    ):
        with pytest.raises(ZeroDivisionError):
            async with prepared(shop.worktree(tmp_path, "T-1", "c", shop.base(None)[1]), hooks, box):
                raise ZeroDivisionError
        assert len(box.runs) == 4
    assert "bad luck" in caplog.text
    assert "no space left" in caplog.text
    assert list(tmp_path.rglob("*")) == []


# In a repository

TABLE = "import json, pathlib\nRATES = json.loads(pathlib.Path('rates.json').read_text())\n"
WORKFLOW = """---
hooks:
  after_create: |
    echo '{"full": 100}' > rates.json
  before_run: test -f shop/prices.py && echo ran > ready
---
Prices are integers of cents.
"""
GENERATING = {
    **FILES,
    "WORKFLOW.md": WORKFLOW,
    "shop/rates.py": TABLE,
    "tests/test_rates.py": "import pathlib\nfrom shop.rates import RATES\n\n\ndef test_rates():\n"
    "    assert RATES['full'] == 100 and pathlib.Path('ready').exists()\n",
}
"""A shop whose tests need two files that only its hooks make."""


async def test_tests_find_what_a_hook_made_in_every_run_that_is_evidence(tmp_path: Path) -> None:
    """WS4: on the base commit, with new tests, and on the change; nothing of it is in the change."""
    source = make_repository(tmp_path / "shop", GENERATING)
    base = git(source, "rev-parse", "HEAD").strip()
    (source / "shop/prices.py").write_text(FILES["shop/prices.py"].replace("sum(prices)", "sum(prices) * (1 - discount / 100)"))  # fmt: skip
    git(source, "commit", "--quiet", "--all", "--message", "Take the discount off")
    head = git(source, "rev-parse", "HEAD").strip()
    mirror = Mirror.open(tmp_path / "mirrors", "shop", str(source))
    rules = read_policy(mirror, base, detect_policy)
    baseline = await run_baseline(mirror, BOX, tmp_path / "trees", "T-1", rules, base)
    assert baseline.ids("passed") >= {"tests/test_rates.py::test_rates"}
    brief = Brief(
        ticket=Ticket(key="T-1", title="", body="", state=""), policy=rules, baseline=baseline,
        repository=Repository(name="shop", mirror=str(mirror.path), remote="", base_branch="main", base_sha=base),
    )  # fmt: skip
    new = {
        "tests/test_new.py": "from shop.prices import total\nfrom shop.rates import RATES\n\n\ndef test_off():\n"
        "    assert total([200], RATES['full']) == 0\n"
    }
    evidence = await gather_evidence(
        mirror, BOX, tmp_path / "trees", brief, head, [TestChange(tester=1, files=new)], max_files=10, max_lines=200
    )
    assert evidence.failures == ()
    assert evidence.fixed == ("tests/test_new.py::test_off",)
    assert evidence.files == ("shop/prices.py",)


async def test_a_failing_after_create_fails_the_baseline_with_its_last_words(shop: Mirror, tmp_path: Path) -> None:
    """WS4."""
    broken = policy(after_create="echo first; echo make: no rule >&2; exit 2")
    with pytest.raises(WorkFailed, match=r"'after_create' ended with exit code 2: .*make: no rule"):
        await run_baseline(shop, BOX, tmp_path, "T-1", broken, shop.base(None)[1])
    assert list(tmp_path.rglob("*")) == []


# In a whole run


@pytest.mark.integration
@pytest.mark.parametrize("tier", ["small", "capable"])
async def test_a_whole_run_hands_out_the_change_and_nothing_that_hooks_made(
    factory: Factory,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tier: str,
) -> None:
    """WS4: the hooks' files are there for samples, trials, tools and evidence, and are in no commit."""
    commit(factory, GENERATING)
    monkeypatch.setenv("DARKFACTORY_MODEL_TIER", tier)
    factory.forget()
    factory.model.rules = script(coder=RIGHT) if tier == "small" else script(architect=PLAN, coder=CODER)
    write_ticket(factory.board, "shop-1")
    outcome = await factory.run("shop-1")
    assert outcome.decision == "ACCEPT", outcome.reasons
    changed = git(factory.remote(), "show", "--format=", "--name-only", "agent/shop-1").split()
    assert changed == ["shop/prices.py", "tests/test_shop_1_1.py"]
    assert not factory.leftovers()


@pytest.mark.integration
async def test_an_unknown_template_variable_fails_that_attempt_only(
    factory: Factory,  # noqa: F811
) -> None:
    """CF3: the message names it, the attempt is burnt, and the next one goes on with the mended file."""
    commit(factory, {"WORKFLOW.md": "Mind {{ issue.titel }}.\n"})
    write_ticket(factory.board, "shop-1")
    with pytest.raises(WorkFailed, match=r"'issue\.titel'.*issue\.title"):
        await factory.run("shop-1")
    assert factory.calls() == []
    commit(factory, {"WORKFLOW.md": "Mind {{ issue.title }}{% if attempt %}, again ({{ attempt }}){% endif %}.\n"})
    outcome = await factory.run("shop-1")
    assert outcome.decision == "ACCEPT", outcome.reasons
    assert [a.outcome for a in factory.history("shop-1").attempts] == ["work_failed", "accepted"]
    assert all("Mind total ignores the discount, again (1)." in r.prompt for r in factory.model.requests)


@pytest.mark.integration
async def test_what_a_workflow_file_sets_in_vain_is_said(
    factory: Factory,  # noqa: F811
) -> None:
    """On the brief's sheet and to whoever watches; a stranger's control characters reach neither."""
    commit(factory, {"WORKFLOW.md": '---\ntracker: {kind: linear}\n"bell\\e[31m": 1\n---\nBe kind.\n'})
    factory.model.rules = script(architect=Fault(kind="status", status=401))  # no more than the brief is wanted here
    write_ticket(factory.board, "shop-1")
    said: list[str] = []
    stop = progress.subscribe(lambda event: said.append(event.message))
    with pytest.raises(AuthFailed):
        await factory.run("shop-1")
    stop()
    sheet = (factory.home / "objects/shop-1/attempt-1/brief.md").read_text()
    for text in (sheet, "\n".join(said)):
        assert "tracker (boards stand in factory.yaml under `boards`)" in text
        assert "bell" in text
        assert "\x1b" not in text


def commit(factory: Factory, files: dict[str, str]) -> None:  # noqa: F811
    for path, text in files.items():
        (factory.repository / path).write_text(text)
    git(factory.repository, "add", "--all")
    git(factory.repository, "commit", "--quiet", "--message", "Say more")
