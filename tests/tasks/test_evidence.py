"""Evidence about real commits of small repositories, tested in the real sandbox. Most of them try to look green."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from infra.git import Mirror
from infra.sandbox import Bubblewrap, Limits
from infra.test_runners import TestResult
from tasks.evidence import gather_evidence, is_red, red_tests, run_baseline, run_tests
from tasks.models import Brief, Evidence, Exemption, Policy, Repository, TestChange, Ticket

SANDBOX = Bubblewrap(Limits(timeout_seconds=60, output_bytes=100_000))
PYTEST = Policy(test="python -m pytest -q", test_runner="pytest", timeout_seconds=40)

CALC = "def double(n):\n    return n * 3\n\n\ndef half(n):\n    return n / 2\n"
FIXED = CALC.replace("n * 3", "n * 2")
TESTS = "from calc import double, half\n\n\ndef test_double():\n    assert double(2) == 4\n\n\ndef test_half():\n    assert half(4) == 2\n"
BASE = {"src/calc.py": CALC, "tests/test_calc.py": TESTS}
NEW_TEST = {"tests/test_new.py": "from calc import double\n\n\ndef test_zero():\n    assert double(1) == 2\n"}


class Bench:
    """A repository with a base commit and any number of changes on top of it."""

    def __init__(self, root: Path, base: Mapping[str, str], policy: Policy = PYTEST) -> None:
        self.source, self.root, self.policy = root / "source", root / "worktrees", policy
        self.mirrors = root / "mirrors"
        self.known: Brief | None = None
        root.mkdir(exist_ok=True)
        self.git("init", "--quiet", "--initial-branch=main", str(self.source), cwd=root)
        self.base = self.commit(base)

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        names = {f"GIT_{who}_{what}": "t@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **names}
        return subprocess.run(
            ["git", *arguments], cwd=cwd or self.source, env=environment, check=True, capture_output=True, text=True
        ).stdout

    def commit(self, files: Mapping[str, str | None]) -> str:
        if hasattr(self, "base"):
            self.git("reset", "--quiet", "--hard", self.base)
        for path, text in files.items():
            if text is None:
                (self.source / path).unlink()
            else:
                (self.source / path).parent.mkdir(parents=True, exist_ok=True)
                (self.source / path).write_text(text)
        self.git("add", "-A")
        self.git("commit", "--quiet", "--allow-empty", "-m", "change")
        return self.git("rev-parse", "HEAD").strip()

    def mirror(self) -> Mirror:
        return Mirror.open(self.mirrors, "repo", str(self.source))

    async def brief(self) -> Brief:
        if self.known is None:
            mirror = self.mirror()
            baseline = await run_baseline(mirror, SANDBOX, self.root, "T-1", self.policy, self.base)
            repository = Repository(
                name="repo", mirror=str(mirror.path), remote="", base_branch="main", base_sha=self.base
            )
            ticket = Ticket(key="T-1", title="", body="", state="")
            self.known = Brief(ticket=ticket, repository=repository, policy=self.policy, baseline=baseline)
        return self.known

    async def evidence(
        self,
        files: Mapping[str, str | None],
        *tests: Mapping[str, str],
        allowed: tuple[str, ...] = (),
        asked: Exemption | None = None,
    ) -> Evidence:
        head = self.commit(files)
        changes = [TestChange(tester=i, files=dict(t)) for i, t in enumerate(tests)]
        evidence = await gather_evidence(
            self.mirror(), SANDBOX, self.root, await self.brief(), head, changes, max_files=10, max_lines=200, allowed_paths=allowed, asked=asked
        )  # fmt: skip
        assert not [path for path in self.root.rglob("*") if path.is_file()], "a worktree was left behind"
        return evidence


@pytest.fixture(scope="module")
def calc(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The repository most tests change, with one baseline run for all of them."""
    return Bench(tmp_path_factory.mktemp("calc"), BASE)


async def test_an_honest_fix_has_no_failures(calc: Bench) -> None:
    """T3: a new test counts because it fails on the base commit and passes on the change."""
    evidence = await calc.evidence({"src/calc.py": FIXED}, NEW_TEST)
    assert evidence.fixed == ("tests/test_calc.py::test_double", "tests/test_new.py::test_zero")
    assert (evidence.broken, evidence.still_red, evidence.findings, evidence.violations) == ((), (), (), ())
    assert (evidence.files, evidence.lines_added, evidence.lines_removed) == (("src/calc.py",), 1, 1)
    assert "+    return n * 2" in evidence.diff
    assert evidence.before.ids("failed") == {"tests/test_calc.py::test_double"}
    assert evidence.failures == ()


async def test_a_change_that_breaks_and_fixes_nothing_says_so(calc: Bench) -> None:
    evidence = await calc.evidence({"src/calc.py": CALC.replace("n / 2", "n / 3")}, NEW_TEST)
    assert evidence.broken == ("tests/test_calc.py::test_half",)
    assert evidence.fixed == ()
    assert evidence.still_red == ("tests/test_new.py::test_zero",)


async def test_a_syntax_error_in_the_change_is_a_new_finding_and_breaks_the_tests(calc: Bench) -> None:
    evidence = await calc.evidence({"src/calc.py": "def double(:\n"})
    assert evidence.broken == ("tests/test_calc.py::test_half",)
    assert {(f.source, f.severity) for f in evidence.findings} >= {("ruff", "high")}


CHEATS: dict[str, dict[str, str | None]] = {
    "deletes the test file": {"tests/test_calc.py": None},
    "skips the red test": {
        "tests/test_calc.py": "import pytest\n" + TESTS.replace("def test_double", "@pytest.mark.skip\ndef test_double")
    },
    "ends the run in a conftest": {"conftest.py": "import os\nprint('2 passed')\nos._exit(0)\n"},
    "ends the process from the code": {"src/calc.py": "import os\nos._exit(0)\n"},
    "ends pytest from the code": {"src/calc.py": "import pytest\npytest.exit('done', returncode=0)\n"},
    "changes the answer under test": {
        "src/calc.py": "import os\n\n\n"
        + CALC.replace("n * 3", "n * (2 if 'PYTEST_CURRENT_TEST' in os.environ else 3)")
    },
}


@pytest.mark.parametrize("files", CHEATS.values(), ids=CHEATS.keys())
async def test_a_change_that_only_looks_green_is_not_accepted(calc: Bench, files: dict[str, str | None]) -> None:
    """T7: what the judge's hard rule reads holds a reason against every cheap way to look green."""
    assert (await calc.evidence(files)).failures


async def test_each_change_to_tests_or_how_they_run_is_a_violation(calc: Bench) -> None:
    files = {
        "tests/test_calc.py": TESTS.replace("double(2) == 4", "double(2)"),
        "tests/conftest.py": "import pytest\n\n\n@pytest.hookimpl(wrapper=True)\ndef pytest_runtest_makereport():\n    report = yield\n    report.outcome = 'passed'\n    return report\n",
        "pytest.ini": "[pytest]\naddopts = --deselect tests/test_calc.py::test_double\n",
        "pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-k half'\n",
        "src/calc.pyc": "x",
    }
    evidence = await calc.evidence(files)
    assert {path for path in files if any(repr(path) in violation for violation in evidence.violations)} == set(files)
    assert len(evidence.violations) == len(files)


async def test_results_of_a_test_that_the_change_edited_are_never_fixed(calc: Bench) -> None:
    weak = {"tests/test_calc.py": TESTS.replace("double(2) == 4", "double(2)")}
    evidence = await calc.evidence(weak, allowed=("tests/test_calc.py",))
    assert evidence.violations == ()
    assert evidence.fixed == ()


async def test_a_protected_path_and_a_large_diff_are_violations(calc: Bench) -> None:
    files = {"src/calc.py": FIXED, ".github/workflows/ci.yml": "x\n" * 300}
    assert len((await calc.evidence(files)).violations) == 2


async def test_code_that_tampers_with_the_worktree_does_not_reach_the_next_run(calc: Bench) -> None:
    """The suite's run plants a conftest that would make the new test pass."""
    plant = "import pathlib\npathlib.Path('tests/conftest.py').write_text('import calc\\ncalc.double = lambda n: n * 2\\n')\n"
    evidence = await calc.evidence({"src/calc.py": plant + CALC}, NEW_TEST)
    assert evidence.still_red == ("tests/test_new.py::test_zero",)


async def test_a_suite_that_hangs_on_the_change_is_no_evidence(tmp_path: Path) -> None:
    quick = PYTEST.model_copy(update={"timeout_seconds": 4})
    evidence = await Bench(tmp_path, BASE, quick).evidence({"src/calc.py": "import time\ntime.sleep(60)\n" + FIXED})
    assert "did not finish" in (evidence.after.error or "")
    assert evidence.fixed == ()
    assert evidence.failures


async def test_a_flaky_test_is_not_fixed(calc: Bench) -> None:
    """It failed in the baseline's run and passes when it is run on base again: the change did not mend it."""
    brief = await calc.brief()
    tests = {**brief.baseline.tests, "tests/test_calc.py::test_half": "failed"}
    unlucky = brief.model_copy(update={"baseline": brief.baseline.model_copy(update={"tests": tests})})
    head = calc.commit({"src/calc.py": FIXED})
    evidence = await gather_evidence(calc.mirror(), SANDBOX, calc.root, unlucky, head, [], max_files=10, max_lines=200)
    assert evidence.fixed == ("tests/test_calc.py::test_double",)


async def test_a_missing_name_makes_honest_tests_red_and_empty_ones_green(calc: Bench) -> None:
    """A ticket that asks for a new function: its tests cannot even be imported on base."""
    files = {
        "tests/test_new.py": "from calc import triple\n\n\ndef test_triple():\n    assert triple(1) == 3\n\n\ndef test_nothing():\n    assert True\n"
    }
    evidence = await calc.evidence({"src/calc.py": FIXED + "\n\ndef triple(n):\n    return n * 3\n"}, files)
    assert evidence.new_tests_before is not None
    assert evidence.new_tests_before.tests == {
        "tests/test_new.py::test_triple": "failed",
        "tests/test_new.py::test_nothing": "passed",
    }
    assert evidence.fixed == ("tests/test_calc.py::test_double", "tests/test_new.py::test_triple")


async def test_an_existing_test_file_that_could_not_be_loaded_is_fixed_as_a_whole(tmp_path: Path) -> None:
    base = {"calc.py": "", "tests/test_calc.py": "from calc import one\n\n\ndef test_one():\n    assert one() == 1\n"}
    evidence = await Bench(tmp_path, base).evidence({"calc.py": "def one():\n    return 1\n"})
    assert evidence.fixed == ("tests/test_calc.py",)
    assert evidence.failures == ()


JUDGED = [
    ("from calc import double\ndef test_a(): assert double(1) == 2\n", True),
    ("from calc import double\ndef test_a(): assert double(1, strict=True) == 2\n", True),
    ("import calc\ndef test_a(): assert calc.triple(1) == 3\n", True),
    ("from calc import half\ndef test_a(): half(None)\n", True),
    ("import pytest\nfrom calc import half\ndef test_a():\n    with pytest.raises(ValueError): half(1)\n", True),
    (
        "import pytest\nfrom calc import half\n@pytest.fixture\ndef value(): return half('x')\ndef test_a(value): ...\n",
        True,
    ),
    ("def test_a(: ...\n", False),
    ("def test_a(): assert duoble(1) == 2\n", False),
    ("def test_a(no_such_fixture): ...\n", False),
    ("def test_a():\n    import no_such_module\n", False),
    ("import pytest\n@pytest.fixture\ndef value(): raise OSError\ndef test_a(value): ...\n", False),
    ("raise RuntimeError('at import')\n", False),
    ("from calc import half\ndef test_a(): assert half(4) == 2\n", False),
]


async def test_only_a_contradicted_test_is_red(calc: Bench) -> None:
    """T3: a mistake of the test itself is no evidence."""
    files = {f"tests/test_new_{number}.py": text for number, (text, _) in enumerate(JUDGED)}
    report = await red_tests(calc.mirror(), SANDBOX, calc.root, await calc.brief(), files)
    assert report.error is None
    assert report.ids("failed") == {
        f"tests/test_new_{number}.py::test_a" for number, (_, red) in enumerate(JUDGED) if red
    }
    assert report.ids("passed") == {f"tests/test_new_{len(JUDGED) - 1}.py::test_a"}
    assert "proves nothing: tests/test_new_7.py::test_a: NameError" in report.output


@pytest.mark.parametrize(
    "path",
    [
        "tests/test_calc.py",
        "src/calc.py",
        "src/new.py",
        "tests/conftest.py",
        "../tests/test_a.py",
        "/tests/test_a.py",
        ".git/tests/test_a.py",
    ],
)
async def test_a_tester_may_only_add_test_files(calc: Bench, path: str) -> None:
    report = await red_tests(
        calc.mirror(), SANDBOX, calc.root, await calc.brief(), {path: "def test_a(): assert False\n"}
    )
    assert report.error
    assert report.tests == {}


async def test_a_refused_test_file_is_a_violation_and_is_not_run(calc: Bench) -> None:
    evidence = await calc.evidence({"src/calc.py": FIXED}, {"tests/conftest.py": "raise SystemExit\n"})
    assert len(evidence.violations) == 1
    assert evidence.new_tests_after is None


NODE = Policy(test="node --test", test_runner="node", timeout_seconds=40)
NODE_BASE = {
    "package.json": '{"type": "module"}',
    "calc.js": "export const double = (n) => n * 3;\n",
    "test/calc.test.js": "import { test } from 'node:test';\nimport assert from 'node:assert';\nimport { double } from '../calc.js';\ntest('zero', () => assert.equal(double(0), 0));\n",
}
NODE_TEST = {
    "test/new.test.mjs": NODE_BASE["test/calc.test.js"]
    .replace("'zero'", "'one'")
    .replace("double(0), 0", "double(1), 2")
}


async def test_a_node_repository_gives_the_same_evidence(tmp_path: Path) -> None:
    evidence = await Bench(tmp_path, NODE_BASE, NODE).evidence(
        {"calc.js": "export const double = (n) => n * 2;\n"}, NODE_TEST
    )
    assert evidence.fixed == ("test/new.test.mjs > one",)
    assert evidence.failures == ()


async def test_a_node_change_that_leaves_early_breaks_the_tests(tmp_path: Path) -> None:
    evidence = await Bench(tmp_path, NODE_BASE, NODE).evidence(
        {"calc.js": "process.exit(0);\nexport const double = (n) => n;\n"}, NODE_TEST
    )
    assert evidence.broken == ("test/calc.test.js > zero",)
    assert evidence.fixed == ()


async def test_a_new_test_script_in_package_json_is_a_violation(tmp_path: Path) -> None:
    evidence = await Bench(tmp_path, NODE_BASE, NODE).evidence(
        {"package.json": '{"type": "module", "scripts": {"test": "true"}}'}
    )
    assert len(evidence.violations) == 1


async def test_a_bare_exit_code_is_red_only_when_it_was_green_without_the_new_test(tmp_path: Path) -> None:
    policy = Policy(test="sh check.sh && for t in tests/*.sh; do sh $t || exit 1; done", test_runner="exit-code")
    green = Bench(tmp_path / "green", {"check.sh": "exit 0\n", "tests/a.sh": "exit 0\n"}, policy)
    red = Bench(tmp_path / "red", {"check.sh": "exit 1\n", "tests/a.sh": "exit 0\n"}, policy)
    new = {"tests/new.sh": "grep -q new check.sh\n"}
    for bench, expected in ((green, {"suite"}), (red, set())):
        report = await red_tests(bench.mirror(), SANDBOX, bench.root, await bench.brief(), new)
        assert report.ids("failed") == expected


async def test_a_failed_set_up_is_an_error_and_a_good_one_is_seen_by_the_tests(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("import pathlib\ndef test_a(): assert pathlib.Path('made').exists()\n")
    bad = await run_tests(SANDBOX, tmp_path, PYTEST.model_copy(update={"setup": "echo no such package; exit 3"}))
    assert bad.error
    assert "no such package" in bad.output
    good = await run_tests(SANDBOX, tmp_path, PYTEST.model_copy(update={"setup": "touch made"}))
    assert good.ids("passed") == {"test_a.py::test_a"}


def test_an_exception_under_the_code_is_red_in_any_phase() -> None:
    assert is_red(
        TestResult(outcome="failed", phase="setup", exception="KeyError", frames=("tests/test_a.py", "src/a.py"))
    )
    assert is_red(TestResult(outcome="failed", phase="collect", exception="Timeout"))
    assert not is_red(TestResult(outcome="failed", phase="setup", exception="KeyError", frames=("tests/conftest.py",)))
    assert not is_red(TestResult(outcome="passed", frames=("src/a.py",)))


# ---- changes that no test can be red for ------------------------------------------------------------------------

NO_RED = "No test fails before the change and passes after it."
WORDS = {"README.md": "# Calc\n", "docs/half.txt": "Half of it.\n", "CHANGELOG.rst": "half\n"}
GAP = {
    "tests/test_gap.py": "import pytest\nfrom calc import half\n\n\ndef test_half_of_six():\n    assert half(6) == 3\n\n\n"
    "def test_no_number():\n    with pytest.raises(TypeError):\n        half(None)\n"
}


async def test_documents_need_no_red_test_when_the_ticket_asks_for_them(calc: Bench) -> None:
    evidence = await calc.evidence(WORDS, asked="docs")
    assert (evidence.failures, evidence.exemption) == ((), "docs")
    assert evidence.proof == "Only documents change, for which no test can be red"


@pytest.mark.parametrize("asked", [None, "tests"])
async def test_documents_that_nobody_asked_for_need_one(calc: Bench, asked: Exemption | None) -> None:
    evidence = await calc.evidence(WORDS, asked=asked)
    assert evidence.exemption is None
    assert [reason[: len(NO_RED)] for reason in evidence.failures] == [NO_RED]
    assert asked or evidence.failures == (NO_RED,)


@pytest.mark.parametrize(
    "path",
    ["src/calc.py", "AGENTS.md", "docs/CLAUDE.md", "CONTRIBUTING.md", "WORKFLOW.md", "LICENSE.txt", "requirements.txt",
     "docs/requirements-dev.txt", "CMakeLists.txt", "src/prompts/system.md", "src/words.txt", "words.txt", "tests/README.md",
     ".claude/skills/a.md", "docs/conf.py"],
)  # fmt: skip
async def test_a_ticket_for_documents_allows_nothing_else(calc: Bench, path: str) -> None:
    """The title is a stranger's: the diff decides."""
    text = CALC + "\n\ndef more():\n    return 1\n" if path.endswith(".py") else "words\n"
    evidence = await calc.evidence({**WORDS, path: text}, asked="docs")
    assert evidence.exemption is None
    assert [reason for reason in evidence.failures if reason.startswith(NO_RED) and repr(path) in reason]


async def test_a_document_with_a_secret_or_that_is_gone_or_run_as_a_test_is_refused(tmp_path: Path) -> None:
    doctests = PYTEST.model_copy(update={"test": "python -m pytest -q --doctest-glob=*.rst"})
    bench = Bench(tmp_path, {**BASE, "README.md": "# Calc\n", "docs/a.rst": ">>> 1 + 1\n2\n"}, doctests)
    for files in (
        {"docs/new.md": "AKIA" + "IOSFODNN7" + "QWERTYU\n"},
        {"README.md": None},
        {"docs/a.rst": ">>> 1 + 1\n2\n\nMore.\n"},
        {"docs/new.rst": ">>> 1 + 1\n2\n"},
    ):
        assert (await bench.evidence(files, asked="docs")).exemption is None, files
    assert (await bench.evidence({"README.md": "# Calc\n\nIt halves.\n"}, asked="docs")).failures == ()


async def test_new_tests_that_an_edit_of_the_code_turns_red_need_no_other_red_test(calc: Bench) -> None:
    evidence = await calc.evidence(GAP, asked="tests")
    assert (evidence.failures, evidence.exemption) == ((), "tests")
    assert evidence.able_to_fail == ("tests/test_gap.py::test_half_of_six",)
    assert "small edit of the code turns tests/test_gap.py::test_half_of_six red" in evidence.proof
    assert (await calc.evidence(GAP)).failures == (NO_RED,), "nobody asked for tests"


EMPTY_TESTS: dict[str, dict[str, str | None]] = {
    "asserts nothing": {"tests/test_gap.py": "from calc import half\n\n\ndef test_half():\n    half(4)\n"},
    "never uses the code": {"tests/test_gap.py": "def test_half():\n    assert 4 / 2 == 2\n"},
    "fails": {"tests/test_gap.py": "from calc import half\n\n\ndef test_half():\n    assert half(4) == 3\n"},
    "is skipped": {**GAP, "tests/test_more.py": "import pytest\n\n\n@pytest.mark.skip\ndef test_half():\n    assert False\n"},
    "has no test": {"tests/test_gap.py": "VALUE = 1\n"},
    "changes the code too": {**GAP, "src/calc.py": CALC + "\n\ndef more():\n    return 1\n"},
    "edits a test file": {**GAP, "tests/test_calc.py": TESTS.replace("half(4) == 2", "half(4)")},
    "alters the test run": {**GAP, "tests/conftest.py": "VALUE = 1\n"},
}  # fmt: skip


@pytest.mark.parametrize("files", EMPTY_TESTS.values(), ids=EMPTY_TESTS.keys())
async def test_tests_that_show_nothing_are_refused(calc: Bench, files: dict[str, str | None]) -> None:
    evidence = await calc.evidence(files, asked="tests")
    assert evidence.exemption is None
    assert any(reason.startswith(NO_RED) for reason in evidence.failures)


async def test_new_tests_in_node_are_tried_on_edits_of_what_they_name(tmp_path: Path) -> None:
    bench = Bench(tmp_path, NODE_BASE, NODE)
    found = await bench.evidence(
        {path: text.replace("(1), 2", "(1), 3") for path, text in NODE_TEST.items()}, asked="tests"
    )
    assert (found.failures, found.able_to_fail) == ((), ("test/new.test.mjs > one",))
