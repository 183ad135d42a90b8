"""What the finders see in a real repository, with the real tools in the sandbox."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.boards import Ticket
from infra.git import Mirror
from infra.housekeeping import Draft
from infra.pull_requests import PullRequest
from infra.sandbox import CommandResult
from infra.test_runners import detect_policy
from tasks import services
from tasks.advisories import advisories, pinned, read_npm_audit, read_pip_audit
from tasks.finders import (
    Found,
    Look,
    dead_code,
    failing_tests,
    lint_bugs,
    old_notes,
    security,
    skipped_tests,
    tangled,
    untested,
    unwritten,
)
from tasks.models import Repository
from tasks.policy import read_policy
from tests.shop import FILES, make_repository

RANDOM = "q7Zr" + "T2mK9wXv4LpB8nJc"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path / "home"))
    services.close()
    yield
    services.close()


def look_at(tmp_path: Path, files: dict[str, str], commits: tuple[dict[str, str], ...] = ()) -> Look:
    place = make_repository(tmp_path / "shop", files)
    for more in commits:  # now, while the first commit is of the past
        for path, text in more.items():
            (place / path).write_text(text)
        commit_now(place)
    mirror = Mirror.open(tmp_path / "home" / "repos", "shop", str(place))
    branch, sha = mirror.base(None)
    pinned_at = Repository(name="shop", mirror=str(mirror.path), remote="", base_branch=branch, base_sha=sha)
    return Look(pinned_at, mirror, read_policy(mirror, sha, detect_policy), "look")


def commit_now(place: Path, days_ago: int = 0) -> None:
    at = (datetime.now(UTC) - timedelta(days=days_ago)).isoformat()
    who = {f"GIT_{r}_{w}": "o@shop.invalid" for r in ("AUTHOR", "COMMITTER") for w in ("NAME", "EMAIL")}
    who |= {
        "GIT_AUTHOR_DATE": at,
        "GIT_COMMITTER_DATE": at,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "PATH": os.environ["PATH"],
    }
    for command in (("add", "--all"), ("commit", "--quiet", "-m", "more")):
        subprocess.run(["git", *command], cwd=place, env=who, check=True)


def subjects(found: list[Found]) -> set[tuple[str, str, str]]:
    return {(f.kind, f.path, f.subject) for f in found}


async def test_failing_flaky_and_skipped_tests_are_told_apart(tmp_path: Path) -> None:
    """W1: the tests of the base branch run twice, each in a checkout of its own."""
    counter = tmp_path / "runs"
    counter.mkdir()
    flaky = "import uuid\n\ndef test_coin():\n    assert uuid.uuid4().int % 2\n"
    files = {
        "tests/test_a.py": "import pytest\n\ndef test_wrong():\n    assert 1 == 2\n\n@pytest.mark.skip\ndef test_later():\n    pass\n",
        "tests/test_b.py": flaky,
    }
    look = look_at(tmp_path, {**FILES, **files})
    seen: set[tuple[str, str, str]] = set()
    for _ in range(12):  # a coin falls alike in all of them once in four thousand times
        look._suites.clear()
        seen |= subjects(await failing_tests(look))
        if any(kind == "flaky-test" for kind, _, _ in seen):
            break
    assert ("failing-test", "tests/test_a.py", "tests/test_a.py::test_wrong") in seen
    assert ("flaky-test", "tests/test_b.py", "tests/test_b.py::test_coin") in seen
    assert subjects(await skipped_tests(look)) == {("skipped-test", "tests/test_a.py", "tests/test_a.py::test_later")}


async def test_tests_that_say_nothing_are_noted_and_make_no_finding(tmp_path: Path) -> None:
    look = look_at(tmp_path, {"a.py": "x = 1\n"})
    assert await failing_tests(look) == []
    assert look.notes


async def test_lint_rules_that_mean_bugs_are_found_and_style_is_not(tmp_path: Path) -> None:
    text = "import os\n\n\ndef add(item, to=[]):\n    to.append(item)\n    return undefined\n"
    found = await lint_bugs(look_at(tmp_path, {"shop/a.py": text}))
    assert {f.kind for f in found} == {"ruff-B006", "ruff-F821"}
    assert all(f.subject == "add" and "add(item" in f.evidence for f in found)


async def test_dangerous_calls_and_secrets_are_found_and_a_secret_is_never_shown(tmp_path: Path) -> None:
    files = {
        "shop/run.py": "import subprocess\n\n\ndef run(x):\n    subprocess.call('ls ' + x, shell=True)\n",
        "shop/config.yaml": f'password: "{RANDOM}"\n',
        "tests/test_run.py": "import subprocess\n\n\ndef test_it():\n    subprocess.call('ls', shell=True)\n",
    }
    look = look_at(tmp_path, files)
    found = await security(look)
    assert {(f.path, f.kind) for f in found} == {
        ("shop/run.py", "bandit-B602"),
        ("shop/config.yaml", "secrets-assigned-secret"),
    }
    assert all(RANDOM not in f.model_dump_json() for f in found)


async def test_a_note_counts_when_it_is_old_by_the_history_of_its_line(tmp_path: Path) -> None:
    old = "def f():\n    # TODO: handle an empty basket\n    return 1\n"
    new = old + "\n\n# FIXME: this one is of today\n"
    look = look_at(tmp_path, {"shop/a.py": old, "notes.md": "# TODO: no code, no finding\n"}, ({"shop/a.py": new},))
    (found,) = await old_notes(look)
    assert (found.subject, found.line, found.name) == ("todo handle an empty basket", 2, "f")
    assert "days" in found.what


async def test_a_finding_is_the_same_after_its_line_moved(tmp_path: Path) -> None:
    """W1: a fingerprint does not depend on line numbers."""
    text = "def f(x):\n    # TODO: handle an empty basket\n    return eval(x)\n"
    before = look_at(tmp_path / "one", {"a.py": text})
    after = look_at(tmp_path / "two", {"a.py": "import os\n\nprint(os)\n\n\n" + text})
    for finder in (old_notes, security):
        assert subjects(await finder(before)) == subjects(await finder(after)) != set()


async def test_dead_code_is_private_and_mentioned_nowhere(tmp_path: Path) -> None:
    files = {
        "shop/a.py": "def _gone():\n    return 1\n\n\ndef _used():\n    return 2\n\n\ndef public():\n    return _used()\n\n\n@register\ndef _handler():\n    return 3\n\n\ndef _by_name():\n    return 4\n",
        "setup.cfg": "[x]\nhook = shop.a:_by_name\n",
        "web/app.js": "function hidden() { return 1; }\nexport function open() { return 2; }\n",
    }
    assert {(p, s) for _, p, s in subjects(await dead_code(look_at(tmp_path, files)))} == {
        ("shop/a.py", "_gone"),
        ("web/app.js", "hidden"),
    }


async def test_functions_that_no_test_mentions_and_tangled_ones(tmp_path: Path) -> None:
    many = "".join(f"    if x == {n}:\n        x += 1\n" for n in range(15))
    files = {
        **FILES,
        "shop/more.py": f"def tangled(x):\n{many}    return x\n\n\ndef short():\n    return 1\n\n\ndef _private(x):\n{many}    return x\n",
    }
    look = look_at(tmp_path, files)
    assert {s for _, _, s in subjects(await untested(look))} == {"tangled"}
    found = await tangled(look)
    assert {f.subject for f in found} == {"tangled", "_private"}
    assert "16 ways through it" in found[0].what


async def test_without_test_files_no_gap_is_claimed(tmp_path: Path) -> None:
    look = look_at(tmp_path, {"a.py": "def f(x):\n" + "    x += 1\n" * 9 + "    return x\n"})
    assert await untested(look) == []
    assert look.notes == ["the repository has no test files"]


async def test_merged_changes_that_the_changelog_does_not_mention_are_one_finding_until_they_are_written(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W2"""
    monkeypatch.setenv("DARKFACTORY_DATABASE_URL", database_url)
    services.close()
    ledger = services.ledger()
    for key, title in (("T-1", "Take the discount off"), ("T-2", "Round prices"), ("T-12", "Sort the basket")):
        ledger.record_ticket(Ticket(key=key, title=title, body="b", state="done"), "shop")
        state = "open" if key == "T-12" else "merged"
        pull = PullRequest(branch=f"agent/{key}", title=title, body="b", base="main", head_sha="a" * 40, url="https://x/1", state=state)  # fmt: skip
        ledger.record_pull_request(key, pull)
    look = look_at(tmp_path / "a", {"CHANGELOG.md": "# Changes\n- take the\n  discount off\n- T-12, T-21\n"})
    (found,) = await unwritten(look)
    assert found.subject == "T-2"
    assert "T-2: Round prices" in found.evidence
    assert "T-1:" not in found.evidence
    assert await unwritten(look_at(tmp_path / "b", {"CHANGELOG.md": "take the discount off; T-2\n"})) == []
    bare = look_at(tmp_path / "c", {"a.py": "x = 1\n"})
    assert await unwritten(bare) == []
    assert "no changelog" in bare.notes[0]


async def test_writing_the_changelog_is_no_change_to_be_written_down(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each such ticket would lead to the next one, and one change that users need not know of would hide all later ones."""
    monkeypatch.setenv("DARKFACTORY_DATABASE_URL", database_url)
    services.close()
    merge("T-1", "Rename a variable")
    look = look_at(tmp_path / "a", {"CHANGELOG.md": "# Changes\n"})
    (found,) = await unwritten(look)
    store, board = services.housekeeping(), services.housekeeping_board()
    draft = Draft(title=found.title, body="b")
    store.sort("docs", "shop", board, [("f" * 16, found.kind, draft)], per_chore=5, overall=5)
    assert await unwritten(look) == [found]
    store.confirm("f" * 16, "T-2")
    merge("T-2", found.title)
    assert await unwritten(look) == []
    merge("T-3", "Round prices")
    (later,) = await unwritten(look)
    assert (later.subject, "T-1" in later.evidence) == ("T-3", False)


def merge(key: str, title: str) -> None:
    ledger = services.ledger(services.housekeeping_board())
    ledger.record_ticket(Ticket(key=key, title=title, body="b", state="done"), "shop")
    pull = PullRequest(branch=f"agent/{key}", title=title, body="b", base="main", head_sha="a" * 40, url="https://x/1", state="merged")  # fmt: skip
    ledger.record_pull_request(key, pull)


# ---- advisories ---------------------------------------------------------------------------------------------------


def done(output: str, exit_code: int = 1) -> CommandResult:
    return CommandResult(exit_code=exit_code, output=output, seconds=1)


def test_only_exact_pins_of_requirements_files_are_asked_about() -> None:
    texts = {
        "requirements.txt": "Requests[socks]==2.19.0 ; python_version > '3'\nflask>=2\n-r other.txt\n--index-url http://x\n"
        "evil==1.0; rm -rf / \\\nurllib3==1.24 \\\n    --hash=sha256:aa\n",
        "notes.txt": "a==1\n",
    }
    assert pinned(texts) == {
        ("requests", "2.19.0"): "requirements.txt",
        ("evil", "1.0"): "requirements.txt",
        ("urllib3", "1.24"): "requirements.txt",
    }


def test_what_pip_audit_says_becomes_findings_and_what_it_skips_a_note(tmp_path: Path) -> None:
    """W1: the answers of pip-audit 2.10.1; a package it could not ask about is never called clean."""
    look = look_at(tmp_path, {"a.py": ""})
    answer = (
        "WARNING: something\nFound 1 known vulnerability in 1 package\n"
        '{"dependencies": [{"name": "requests", "version": "2.19.0", "vulns": [{"id": "PYSEC-2018-28", "fix_versions": '
        '["2.20.0"], "aliases": [], "description": "Sends a\\nheader."}]}, {"name": "private", "skip_reason": '
        '"Dependency not found and could not be audited"}], "fixes": []}'
    )
    pins = {("requests", "2.19.0"): "requirements.txt", ("private", "1"): "requirements.txt"}
    (found,) = read_pip_audit(look, done(answer), pins)
    assert (found.subject, found.path) == ("requests 2.19.0", "requirements.txt")
    assert "PYSEC-2018-28 fixed in 2.20.0: Sends a header." in found.evidence
    assert look.notes == ["Python: 1 of 2 pinned packages not audited: Dependency not found and could not be audited"]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("/usr/bin/python: No module named pip_audit\n", "pip-audit is not installed"),
        ("ERROR:pip_audit: could not connect\n", "could not connect"),
        ("", "exit code 1"),
        ('{"dependencies": "x"}', "not audited"),
    ],
)
def test_an_audit_that_did_not_happen_is_one_clear_line_and_no_result(tmp_path: Path, output: str, words: str) -> None:
    look = look_at(tmp_path, {"a.py": ""})
    assert read_pip_audit(look, done(output), {("a", "1"): "requirements.txt"}) == []
    assert len(look.notes) == 1
    assert words in look.notes[0]
    assert "1 pinned packages not audited" in look.notes[0]


def test_what_npm_says_becomes_findings_and_an_error_a_note(tmp_path: Path) -> None:
    look = look_at(tmp_path, {"a.py": ""})
    answer = (
        '{"auditReportVersion": 2, "vulnerabilities": {"minimist": {"name": "minimist", "severity": "critical", "via": '
        '[{"title": "Prototype Pollution", "url": "https://x/GHSA-1", "severity": "critical", "range": "<1.2.6"}], '
        '"range": "<1.2.6"}}, "metadata": {}}'
    )
    (found,) = read_npm_audit(look, done(answer), "package-lock.json")
    assert (found.subject, found.path) == ("minimist <1.2.6", "package-lock.json")
    assert "Prototype Pollution" in found.evidence
    assert read_npm_audit(look, done('{"error": {"code": "ENOAUDIT", "summary": "no audit there"}}'), "l.json") == []
    assert look.notes == ["npm: l.json not audited: no audit there"]


async def test_the_real_tools_are_asked_and_never_pretend(tmp_path: Path) -> None:
    """Whatever is installed and can be reached here: findings or notes, and not a word of 'clean' without an answer."""
    lock = '{"name": "a", "version": "1.0.0", "lockfileVersion": 3, "packages": {"": {"name": "a", "version": "1.0.0", "dependencies": {"minimist": "1.2.0"}}, "node_modules/minimist": {"version": "1.2.0"}}}'
    files = {
        "requirements.txt": "requests==2.19.0\n",
        "package.json": '{"name": "a", "version": "1.0.0", "dependencies": {"minimist": "1.2.0"}}',
        "package-lock.json": lock,
    }
    look = look_at(tmp_path, files)
    found = await advisories(look)
    print(found, look.notes)
    assert {f.path for f in found} | {note.split(":")[0] for note in look.notes} & {"Python", "npm"}
    assert (
        len([f for f in found if f.path == "requirements.txt"]) + sum(n.startswith("Python") for n in look.notes) >= 1
    )
    assert len([f for f in found if f.path == "package-lock.json"]) + sum(n.startswith("npm") for n in look.notes) >= 1
