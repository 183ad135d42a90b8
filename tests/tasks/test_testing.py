"""Tests made of tickets and of models' answers. What is made is really run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.models import Brief, Policy, Repository, TestChange, TestReport, Ticket
from tasks.testing import (
    module_name,
    new_test_path,
    public_names,
    python_imports,
    ticket_examples,
    tidy_node_test,
    tidy_python_test,
    without_tests,
)  # fmt: skip
from tasks.testing import (
    test_folder as folder_of_tests,
)

CALC = "def double(n):\n    return n * 3\n\n\ndef half(n):\n    return n / 2\n\n\nclass Box:\n    def size(self):\n        return 1\n"
NAMES = public_names({"src/calc.py": CALC})


def run(tmp_path: Path, test: str) -> dict[str, str]:
    """Test name -> outcome of a test file beside the buggy calc.py."""
    (tmp_path / "calc.py").write_text(CALC)
    (tmp_path / "test_it.py").write_text(test)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "--tb=line", "-p", "no:cacheprovider", "test_it.py"], cwd=tmp_path,
        capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    lines = (line.split() for line in done.stdout.splitlines() if line.startswith(("PASSED ", "FAILED ", "ERROR ")))
    return {fields[1].rpartition("::")[2]: fields[0] for fields in lines}


def test_examples_of_a_ticket_become_tests_word_for_word(tmp_path: Path) -> None:
    body = "It is wrong:\n\n```python\n>>> x = 2\n>>> double(x)\n4\n>>> half(x)\n1.0\n```\nPlease fix."
    test = ticket_examples(body, NAMES)
    assert test is not None
    assert "from calc import double, half" in test
    assert run(tmp_path, test) == {"test_ticket_example_1": "FAILED", "test_ticket_example_2": "PASSED"}


def test_examples_of_several_lines_and_of_exceptions_are_understood(tmp_path: Path) -> None:
    body = "```\n>>> def twice(n):\n...     return double(n)\n...\n>>> twice(2)\n4\n>>> half('x')\nTraceback (most recent call last):\nTypeError: unsupported operand type(s) for /: 'str' and 'int'\n```\n```\n>>> [double(1),\n...  double(0)]\n[2, 0]\n```"
    test = ticket_examples(body, NAMES)
    assert test is not None
    assert run(tmp_path, test) == {
        "test_ticket_example_1": "FAILED", "test_ticket_example_2": "PASSED", "test_ticket_example_3": "FAILED",
    }  # fmt: skip


def test_an_example_of_a_setup_that_imports_by_itself_is_used(tmp_path: Path) -> None:
    test = ticket_examples(">>> import calc\n>>> calc.double(2)\n4\n", {})
    assert test is not None
    assert run(tmp_path, test) == {"test_ticket_example_1": "FAILED"}


def test_output_shown_as_todays_is_a_test_that_is_green_today_and_so_no_evidence(tmp_path: Path) -> None:
    test = ticket_examples("Today:\n>>> double(2)\n6\n", NAMES)
    assert test is not None
    assert run(tmp_path, test) == {"test_ticket_example_1": "PASSED"}


@pytest.mark.parametrize(
    "body",
    ["", "no examples", ">>> unknown(2)\n4", ">>> double(2)\n", ">>>double(2)\n4", ">>> double(2)\n...bad\n"],
)
def test_a_ticket_without_usable_examples_gives_no_test(body: str) -> None:
    assert ticket_examples(body, NAMES) is None


def test_a_syntax_error_in_one_example_fails_that_test_alone(tmp_path: Path) -> None:
    test = ticket_examples(">>> half(2)\n1.0\n\n>>> double((\n4\n", NAMES)
    assert test is not None
    assert run(tmp_path, test) == {"test_ticket_example_1": "PASSED", "test_ticket_example_2": "FAILED"}


def test_hostile_examples_stay_text(tmp_path: Path) -> None:
    body = '>>> double("""\'\'\'\\\\N{x}")  # """ \'\'\'\n\'"""\'\n'
    test = ticket_examples(body, NAMES)
    assert test is not None
    compile(test, "test_it.py", "exec")
    assert set(run(tmp_path, test)) == {"test_ticket_example_1"}


def test_a_test_of_a_model_imports_what_it_uses_and_repeats_no_code(tmp_path: Path) -> None:
    answer = "Here:\n```python\nfrom solution import double\nimport math\n\ndef double(n):\n    return n * 2\n\ndef test_double():\n    assert double(2) == 4 and math.pi\n\nif __name__ == '__main__':\n    test_double()\n```\n"
    test = tidy_python_test(answer, NAMES)
    assert test is not None
    assert "solution" not in test
    assert "def double" not in test
    assert run(tmp_path, test) == {"test_double": "FAILED"}


@pytest.mark.parametrize(
    "code",
    [
        "def test_x():\n    print(double(2))",
        "def check_x():\n    assert double(2) == 4",
        "def test_x(:\n    assert 1",
        "assert double(2) == 4",
        "x = 1",
    ],
)
def test_an_answer_without_a_test_that_asserts_is_refused(code: str) -> None:
    assert tidy_python_test(f"```python\n{code}\n```", NAMES) is None
    assert tidy_python_test(code, NAMES) is None, "no block at all"


@pytest.mark.parametrize(
    "code",
    [
        "import pytest\n\ndef test_x():\n    with pytest.raises(ValueError):\n        double(None)",
        "class TestX:\n    def test_x(self):\n        assert double(2) == 4",
    ],
)
def test_raises_and_classes_count_as_tests(code: str) -> None:
    assert tidy_python_test(f"```python\n{code}\n```", NAMES) is not None


def test_the_last_block_with_a_test_counts() -> None:
    answer = "```python\ndef test_a():\n    assert half(2) == 3\n```\n```python\ndef test_b():\n    assert half(2) == 1\n```\n```\nDone.\n```"
    assert "def test_b" in (tidy_python_test(answer, NAMES) or "")


def test_a_node_test_needs_a_test_an_assertion_and_to_parse() -> None:
    good = "import test from 'node:test';\ntest('a', () => assert.equal(1, 1));"
    assert tidy_node_test(f"```javascript\n{good}\n```") == good + "\n"
    for bad in ("test('a', () => {});", "assert.equal(1, 1);", "test('a', () => assert.equal(1, 1);"):
        assert tidy_node_test(f"```javascript\n{bad}\n```") is None


@pytest.mark.parametrize(
    ("path", "name"),
    [("src/pkg/mod.py", "pkg.mod"), ("pkg/__init__.py", "pkg"), ("mod.py", "mod"), ("src/pkg/__init__.py", "pkg"), ("src.py", "src"), ("lib/a/b.py", "a.b")],
)  # fmt: skip
def test_module_names_are_what_python_imports(path: str, name: str) -> None:
    assert module_name(path) == name


def test_imports_name_each_module_once_and_only_python() -> None:
    names = {"b": "src/m.py", "a": "src/m.py", "c": "n.py", "d": "x.mjs"}
    assert python_imports(["a", "b", "c", "d", "e", "a"], names) == ["from m import a, b", "from n import c"]


def test_methods_are_reached_by_their_class_and_the_first_file_wins() -> None:
    assert NAMES == {"double": "src/calc.py", "half": "src/calc.py", "Box": "src/calc.py"}
    assert public_names({"a.py": "def f(): pass\n", "b.py": "def f(): pass\n"}) == {"f": "a.py"}


def test_new_tests_go_where_the_repository_keeps_its_own() -> None:
    assert folder_of_tests(["a.py"]) == "tests/"
    assert (
        folder_of_tests(["t/x_test.go", "tests/unit/test_a.py", "tests/unit/test_b.py", "tests/conftest.py"])
        == "tests/unit/"
    )
    assert folder_of_tests(["test_a.py"]) == ""


@pytest.mark.parametrize(("key", "runner", "path"), [
    ("T-1", "pytest", "tests/test_t_1_examples.py"), ("../../etc/x", "pytest", "tests/test_etc_x_examples.py"),
    ("Ä#7 x", "node", "tests/ä_7_x_examples.test.mjs"),
])  # fmt: skip
def test_a_new_test_file_has_a_safe_name(key: str, runner: str, path: str) -> None:
    assert new_test_path(brief(key, runner), 0, []) == path


def test_a_new_test_file_never_takes_a_name_in_use() -> None:
    assert new_test_path(brief("T-1", "pytest"), 1, ["tests/test_t_1_1.py"]) != "tests/test_t_1_1.py"


def brief(key: str, runner: str) -> Brief:
    return Brief(
        ticket=Ticket(key=key, title="", body="", state=""), policy=Policy.model_validate({"test_runner": runner}),
        repository=Repository(name="r", mirror="", remote="", base_branch="main", base_sha="a"),
        baseline=TestReport(command="", exit_code=0),
    )  # fmt: skip


def test_wrong_tests_are_taken_out_and_the_others_stay() -> None:
    text = "def test_a():\n    assert 1\n\n\ndef test_b():\n    assert 2\n"
    change = TestChange(tester=1, files={"t.py": text}, red=("t.py::test_a", "t.py::test_b[x-1]"))
    left = without_tests(change, {"t.py::test_b[x-1]"})
    assert left.red == ("t.py::test_a",)
    assert "test_b" not in left.files["t.py"]
    assert "test_a" in left.files["t.py"]
