"""Test runs of small repositories in the real sandbox, honest ones and ones that try to look green."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.errors import ConfigError
from infra.sandbox import Bubblewrap, Limits
from infra.test_runners import TestRun, detect_policy, run_tests, settings_of_tests, trim_failure

SANDBOX = Bubblewrap(Limits(timeout_seconds=60, output_bytes=100_000))


def write(root: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


async def pytest_run(root: Path, files: dict[str, str], **options: object) -> TestRun:
    return await run_tests(SANDBOX, write(root, files), runner="pytest", **options)  # type: ignore[arg-type]


def outcomes(run: TestRun) -> dict[str, str]:
    return {name: result.outcome for name, result in run.results.items()}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.py": ""}, ("python -m pytest -q", "pytest")),
        ({"a.py": "", "package.json": "{}"}, ("python -m pytest -q", "pytest")),
        ({"package.json": '{"scripts": {"test": "node --test tests/"}}', "a.js": ""}, ("node --test tests/", "node")),
        ({"package.json": '{"scripts": {"test": "jest"}}', "a.js": ""}, ("npm test", "exit-code")),
        ({"package.json": "{}", "a.js": ""}, ("node --test", "node")),
        ({"package.json": "not json", "a.js": ""}, ("node --test", "node")),
        (
            {"package.json": '{"scripts": {"test": "echo \\"Error: no test specified\\" && exit 1"}}'},
            ("node --test", "node"),
        ),
        ({"a.test.js": ""}, ("node --test", "node")),
        ({"Makefile": "all:\n\ntest: all\n\ttrue\n"}, ("make test", "exit-code")),
        ({"Makefile": "all:\n"}, (None, "exit-code")),
        ({"README.md": ""}, (None, "exit-code")),
    ],
)
def test_a_repository_says_how_it_is_tested(files: dict[str, str], expected: tuple[str | None, str]) -> None:
    assert detect_policy(files, files.get) == expected


async def test_each_pytest_test_has_its_outcome(tmp_path: Path) -> None:
    text = """
import pytest, unittest
from pkg.calc import double
class TestDouble:
    @pytest.mark.parametrize("n", [1, 2])
    def test_it(self, n): assert double(n) == 2
@pytest.mark.skip
def test_later(): ...
@pytest.mark.xfail
def test_known(): assert False
def test_broken_fixture(nope): ...
@pytest.fixture
def untidy():
    yield
    raise OSError("cannot tidy up")
def test_untidy(untidy): ...
class Old(unittest.TestCase):
    def test_old(self): self.assertEqual(double(0), 0)
"""
    run = await pytest_run(
        tmp_path,
        {
            "src/pkg/__init__.py": "",
            "src/pkg/calc.py": "def double(n):\n    return n * 2\n",
            "tests/test_calc.py": text,
        },
    )
    assert run.error is None
    assert run.exit_code == 1
    assert outcomes(run) == {
        "tests/test_calc.py::TestDouble::test_it[1]": "passed",
        "tests/test_calc.py::TestDouble::test_it[2]": "failed",
        "tests/test_calc.py::test_later": "skipped",
        "tests/test_calc.py::test_known": "skipped",
        "tests/test_calc.py::test_broken_fixture": "failed",
        "tests/test_calc.py::test_untidy": "failed",
        "tests/test_calc.py::Old::test_old": "passed",
    }
    wrong = run.results["tests/test_calc.py::TestDouble::test_it[2]"]
    assert (wrong.exception, wrong.phase, wrong.frames) == ("AssertionError", "call", ("tests/test_calc.py",))
    assert run.results["tests/test_calc.py::test_broken_fixture"].phase == "setup"
    assert "assert 4 == 2" in run.output
    assert not list(tmp_path.glob(".results-*"))


async def test_only_the_named_tests_run(tmp_path: Path) -> None:
    files = {"test_a.py": "def test_1(): ...\ndef test_2(): ...\n", "test_b.py": "def test_3(): ...\n"}
    assert set((await pytest_run(tmp_path, files, only=["test_a.py::test_2", "test_b.py"])).results) == {
        "test_a.py::test_2",
        "test_b.py::test_3",
    }


async def test_a_file_that_cannot_be_collected_fails_and_the_others_still_run(tmp_path: Path) -> None:
    run = await pytest_run(tmp_path, {"test_a.py": "def test_1(:\n", "test_b.py": "def test_2(): ...\n"})
    assert outcomes(run) == {"test_a.py": "failed", "test_b.py::test_2": "passed"}
    assert (run.results["test_a.py"].phase, run.results["test_a.py"].exception) == ("collect", "SyntaxError")
    assert run.error is None


async def test_an_empty_suite_is_no_error(tmp_path: Path) -> None:
    run = await pytest_run(tmp_path, {"calc.py": ""})
    assert (run.results, run.error, run.exit_code) == ({}, None, 5)


async def test_addopts_that_name_a_missing_plugin_are_left_out(tmp_path: Path) -> None:
    run = await pytest_run(
        tmp_path, {"pytest.ini": "[pytest]\naddopts = --no-such-plugin=x\n", "test_a.py": "def test_1(): ...\n"}
    )
    assert outcomes(run) == {"test_a.py::test_1": "passed"}


async def test_a_suite_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    run = await pytest_run(tmp_path, {"conftest.py": "import no_such_module\n", "test_a.py": "def test_1(): ...\n"})
    assert run.results == {}
    assert run.error == "pytest could not start."


@pytest.mark.parametrize(
    ("conftest", "code"),
    [
        ("import sys; sys.exit(0)", ""),
        ("import os; os._exit(0)", ""),
        ("", "import os; os._exit(0)"),
        ("import os; os.kill(os.getpid(), 9)", ""),
        ("import pytest; pytest.exit('all passed', returncode=0)", ""),
        # Prints what a green run prints, and writes a results file of its own.
        ("import json, os\nprint('1 passed in 0.01s')\nopen('.results-0', 'w').write(json.dumps({'results': {'test_a.py::test_1': {'outcome': 'passed'}}}))\nos._exit(0)", ""),
        # Finds out the name of the results file and writes it without knowing the key.
        ("import gc, os\n[open(o['results'], 'w').write('0' * 64 + chr(10) + '{\"results\": {\"test_a.py::test_1\": {\"outcome\": \"passed\"}}, \"ending\": 0, \"crash\": null}') for o in gc.get_objects() if isinstance(o, dict) and isinstance(o.get('results'), str)]\nos._exit(0)", ""),
    ],
)  # fmt: skip
async def test_leaving_early_is_never_a_pass(tmp_path: Path, conftest: str, code: str) -> None:
    files = {"conftest.py": conftest, "calc.py": code, "test_a.py": "import calc\ndef test_1(): assert False\n"}
    run = await pytest_run(tmp_path, files)
    assert "passed" not in outcomes(run).values()
    assert run.error or "failed" in outcomes(run).values()


async def test_a_handler_at_exit_cannot_rewrite_the_results(tmp_path: Path) -> None:
    code = "import atexit, pathlib\natexit.register(lambda: [p.write_text('') for p in pathlib.Path('.').glob('.results-*')])\n"
    run = await pytest_run(tmp_path, {"calc.py": code, "test_a.py": "import calc\ndef test_1(): assert False\n"})
    assert outcomes(run) == {"test_a.py::test_1": "failed"}


@pytest.mark.parametrize("name", ["pytest.py", "json.py", "sitecustomize.py", "_pytest/__init__.py", "hmac.py"])
async def test_a_module_of_the_repository_cannot_take_the_runners_place(tmp_path: Path, name: str) -> None:
    files = {name: "import os\nprint('1 passed')\nos._exit(0)\n", "test_a.py": "def test_1(): assert False\n"}
    assert outcomes(await pytest_run(tmp_path, files)) == {"test_a.py::test_1": "failed"}


async def test_code_that_alters_the_recorder_contradicts_pytests_own_count(tmp_path: Path) -> None:
    code = "import gc\nfor o in gc.get_objects():\n    if type(o).__name__ == 'Recorder':\n        type(o).keep = lambda s, n, *_: s.results.setdefault(n, {'outcome': 'passed'})\n"
    run = await pytest_run(tmp_path, {"calc.py": code, "test_a.py": "import calc\ndef test_1(): assert False\n"})
    assert "tampered" in (run.error or "")


async def test_orders_are_gone_before_code_of_the_repository_runs(tmp_path: Path) -> None:
    text = "import os, sys\ndef test_1():\n    try: os.lseek(0, 0, 0)\n    except OSError: pass\n    assert os.read(0, 10) == b''\n"
    assert outcomes(await pytest_run(tmp_path, {"test_a.py": text})) == {"test_a.py::test_1": "passed"}


async def test_a_link_in_place_of_the_results_is_not_followed(tmp_path: Path) -> None:
    text = "import os, threading, time, gc\ndef test_1():\n    name = [o['results'] for o in gc.get_objects() if isinstance(o, dict) and isinstance(o.get('results'), str)][0]\n    os.symlink('/etc/passwd', name)\n"
    run = await pytest_run(tmp_path, {"test_a.py": text})
    assert "passed" not in outcomes(run).values()
    assert "without results" in (run.error or "")
    assert not list(tmp_path.glob(".results-*"))


async def test_a_hang_is_an_error(tmp_path: Path) -> None:
    run = await pytest_run(tmp_path, {"test_a.py": "import time\ntime.sleep(60)\n"}, timeout_seconds=2)
    assert run.timed_out
    assert run.error == "The tests did not finish within 2 s."
    assert run.results == {}


async def test_a_test_that_loops_for_ever_fails_alone(tmp_path: Path) -> None:
    text = "import calc\ndef test_1():\n    calc.loop()\ndef test_2(): ...\n"
    files = {
        "calc.py": "def loop():\n    while True:\n        try: pass\n        except Exception: pass\n",
        "test_a.py": text,
    }
    run = await pytest_run(tmp_path, files, timeout_seconds=8)
    assert run.error is None
    assert outcomes(run) == {"test_a.py::test_1": "failed", "test_a.py::test_2": "passed"}
    assert "calc.py" in run.results["test_a.py::test_1"].frames


async def test_a_flood_is_an_error(tmp_path: Path) -> None:
    text = "import os\ndef test_1():\n    while True: os.write(2, b'x' * 65536)\n"
    run = await pytest_run(tmp_path, {"pytest.ini": "[pytest]\naddopts = -s\n", "test_a.py": text})
    assert "more output than is allowed" in (run.error or "")
    assert len(run.output) < 2000


async def test_too_much_memory_fails_the_test(tmp_path: Path) -> None:
    small = Bubblewrap(Limits(memory_bytes=300 << 20))
    write(tmp_path, {"test_a.py": "def test_1(): assert bytearray(1 << 30)\n"})
    assert outcomes(await run_tests(small, tmp_path, runner="pytest")) == {"test_a.py::test_1": "failed"}


async def test_a_stand_in_fails_a_test_that_uses_it_and_passes_one_that_does_not(tmp_path: Path) -> None:
    text = """
from calc import old, new
from calc_two.parts import Other
import absent
def test_uses(): assert new(1) == 2
def test_uses_class(): assert Other.RED == 1
def test_uses_module(): assert absent.f() == 1
def test_uses_nothing(): assert True
def test_old(): assert old() == 1
"""
    files = {"calc.py": "def old():\n    return 1\n", "test_new.py": text}
    run = await pytest_run(tmp_path, files, stand_ins=True)
    assert outcomes(run) == {
        "test_new.py::test_uses": "failed", "test_new.py::test_uses_class": "failed", "test_new.py::test_uses_module": "failed",
        "test_new.py::test_uses_nothing": "passed", "test_new.py::test_old": "passed",
    }  # fmt: skip
    assert run.results["test_new.py::test_uses"].exception == "NotImplementedError"
    without = await pytest_run(tmp_path, files)
    assert outcomes(without) == {"test_new.py": "failed"}


@pytest.mark.parametrize("command", ["make test", "pytest | tee log", "FOO=1 pytest", "tox"])
async def test_a_command_that_hides_pytest_is_refused_with_advice(tmp_path: Path, command: str) -> None:
    with pytest.raises(ConfigError, match="exit-code"):
        await run_tests(SANDBOX, tmp_path, runner="pytest", command=command)


async def test_the_arguments_of_the_repositorys_command_are_kept(tmp_path: Path) -> None:
    files = {"a/test_a.py": "def test_1(): ...\n", "b/test_b.py": "def test_2(): ...\n"}
    run = await pytest_run(tmp_path, files, command="pytest -q a")
    assert list(run.results) == ["a/test_a.py::test_1"]
    assert run.command == "python -m pytest -q a"
    run = await pytest_run(tmp_path, files, command="pytest -q a", only=["b/test_b.py"])
    assert list(run.results) == ["b/test_b.py::test_2"]


NODE_TEST = """
import { test, describe, it } from 'node:test';
import assert from 'node:assert/strict';
test('top', () => {});
test('wrong', () => { assert.equal(1, 2); });
describe('suite', () => { it('in', () => {}); it.skip('later', () => {}); describe('deep', () => { it('throws', () => { null.x; }); }); });
test('parent', async (t) => { await t.test('child', () => {}); });
"""


async def test_each_node_test_has_its_outcome(tmp_path: Path) -> None:
    files = {
        "test/a.test.mjs": NODE_TEST,
        "test/b.test.cjs": "process.exit(0);\n",
        "test/c.test.mjs": "import { x } from '../no.mjs';\n",
        "test/d.test.mjs": "import 'node:fs';\n",
    }
    run = await run_tests(SANDBOX, write(tmp_path, files), runner="node")
    assert run.error is None
    assert outcomes(run) == {
        "test/a.test.mjs > top": "passed",
        "test/a.test.mjs > wrong": "failed",
        "test/a.test.mjs > suite > in": "passed",
        "test/a.test.mjs > suite > later": "skipped",
        "test/a.test.mjs > suite > deep > throws": "failed",
        "test/a.test.mjs > parent": "passed",
        "test/a.test.mjs > parent > child": "passed",
        "test/b.test.cjs": "failed",  # left in the middle
        "test/c.test.mjs": "failed",
        "test/d.test.mjs": "passed",
    }
    assert run.results["test/a.test.mjs > wrong"].exception == "ERR_ASSERTION"
    assert run.results["test/c.test.mjs"].phase == "collect"
    only = await run_tests(SANDBOX, tmp_path, runner="node", command="node --test test/", only=["test/d.test.mjs"])
    assert list(only.results) == ["test/d.test.mjs"]


async def test_printing_what_the_node_runner_prints_changes_nothing(tmp_path: Path) -> None:
    lie = "import { test } from 'node:test';\nconsole.log('ok 1 - wrong');\ntest('wrong', () => { throw new Error('no'); });\n"
    run = await run_tests(SANDBOX, write(tmp_path, {"a.test.mjs": lie}), runner="node")
    assert outcomes(run) == {"a.test.mjs > wrong": "failed"}


async def test_of_two_node_tests_with_one_name_the_failed_one_counts(tmp_path: Path) -> None:
    text = "import { test } from 'node:test';\ntest('a', () => { throw new Error(); });\ntest('a', () => {});\n"
    run = await run_tests(SANDBOX, write(tmp_path, {"a.test.mjs": text}), runner="node")
    assert outcomes(run) == {"a.test.mjs > a": "failed"}


async def test_a_message_that_is_no_unicode_is_kept_out(tmp_path: Path) -> None:
    run = await pytest_run(tmp_path, {"test_a.py": "def test_1(): raise ValueError('\\ud800')\n"})
    assert outcomes(run) == {"test_a.py::test_1": "failed"}


async def test_a_node_test_that_loops_for_ever_fails_with_its_file(tmp_path: Path) -> None:
    loop = "import { test } from 'node:test';\ntest('t', () => { while (true) {} });\n"
    quick = "import { test } from 'node:test';\ntest('t', () => {});\n"
    write(tmp_path, {"a.test.mjs": loop, "b.test.mjs": quick})
    run = await run_tests(SANDBOX, tmp_path, runner="node", timeout_seconds=6)
    assert run.error is None
    assert outcomes(run) == {"a.test.mjs": "failed", "b.test.mjs > t": "passed"}
    assert run.results["a.test.mjs"].exception == "Timeout"


@pytest.mark.parametrize("command", ["jest", "node run.js", "node --test; true", "FOO=1 node --test"])
async def test_a_command_that_hides_node_is_refused_with_advice(tmp_path: Path, command: str) -> None:
    with pytest.raises(ConfigError, match="exit-code"):
        await run_tests(SANDBOX, tmp_path, runner="node", command=command)


async def test_an_exit_code_is_one_test(tmp_path: Path) -> None:
    assert outcomes(await run_tests(SANDBOX, tmp_path, runner="exit-code", command="true")) == {"suite": "passed"}
    assert outcomes(await run_tests(SANDBOX, tmp_path, runner="exit-code", command="exit 3")) == {"suite": "failed"}


@pytest.mark.parametrize("command", [None, "no-such-command", "kill -9 $$"])
async def test_a_command_that_does_not_run_is_an_error(tmp_path: Path, command: str | None) -> None:
    run = await run_tests(SANDBOX, tmp_path, runner="exit-code", command=command)
    assert run.error
    assert run.results == {}


def test_settings_that_decide_about_tests_are_told_apart_from_the_rest() -> None:
    assert settings_of_tests("pyproject.toml", "[project]\nname = 'a'\n") is None
    one = settings_of_tests("pyproject.toml", "[tool.pytest.ini_options]\naddopts = '-q'\n")
    assert one == settings_of_tests(
        "pyproject.toml", "[project]\nname='b'\n[tool.pytest.ini_options]\naddopts = '-q' # same\n"
    )
    assert one != settings_of_tests("pyproject.toml", "[tool.pytest.ini_options]\naddopts = '--deselect test_a.py'\n")
    assert settings_of_tests("setup.cfg", "[metadata]\nname = a\n") is None
    assert settings_of_tests("setup.cfg", "[tool:pytest]\naddopts = -k x\n")
    assert settings_of_tests("package.json", json.dumps({"dependencies": {"a": "1"}})) is None
    assert settings_of_tests("package.json", json.dumps({"scripts": {"test": "true"}}))
    assert settings_of_tests("a/conftest.py", "x = 1") == "x = 1"
    assert settings_of_tests("pyproject.toml", "not toml [") == "not toml ["
    assert settings_of_tests("src/calc.py", "x = 1") is None


def test_a_trimmed_failure_keeps_the_assertion_and_the_frames_of_the_repository() -> None:
    output = """
============================= test session starts ==============================
platform linux -- Python 3.11
tests/test_a.py .F..                                                     [100%]
tests/test_a.py:4: in test_it
    assert double(Thing()) == 2
           ^^^^^^^^^^^^^^^
src/calc.py:2: in double
    return json.loads(n)
/usr/lib/python3.11/json/__init__.py:346: in loads
    return _default_decoder.decode(s)
E   TypeError: not <calc.Thing object at 0x7f81c03e2d10>
\x1b[31mFAILED\x1b[0m tests/test_a.py::test_it
"""
    trimmed = trim_failure(output)
    assert "tests/test_a.py:4: in test_it" in trimmed
    assert "src/calc.py:2: in double" in trimmed
    assert "E   TypeError: not <calc.Thing object>" in trimmed
    assert "FAILED tests/test_a.py::test_it" in trimmed
    assert "json/__init__" not in trimmed
    assert "_default_decoder" not in trimmed
    assert "^^^" not in trimmed
    assert "test session" not in trimmed


def test_a_trimmed_failure_is_short() -> None:
    trimmed = trim_failure("\n".join(f"E   line {n}" for n in range(5000)), limit=1400)
    assert len(trimmed) < 1500
    assert trimmed.startswith("E   line 0")
    assert trimmed.endswith("E   line 4999")
