"""The search for small edits in the real sandbox: it finds the fix and survives what the edits do to the process."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from infra.mutants import Mutant, mutants
from infra.mutation_runs import executed_lines, green_mutants
from infra.sandbox import Bubblewrap, Limits
from infra.syntax import functions

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

BOX = Bubblewrap(Limits(timeout_seconds=60))
SLIP = "def total(xs):\n    n = 0\n    for x in xs:\n        n -= x\n    return n\n"
FIX = SLIP.replace("-=", "+=")
TESTS = "from calc import total\n\n\ndef test_total():\n    assert total([1, 2]) == 3\n\n\ndef test_none():\n    assert total([]) == 0\n"
RED, SUITE = ["tests/test_calc.py::test_total"], ["tests/test_calc.py::test_none"]


def checkout(root: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.mutation_runs._EACH_SECONDS", 2)


@pytest.fixture
def calc(tmp_path: Path) -> Path:
    return checkout(tmp_path / "calc", {"src/calc.py": SLIP, "tests/test_calc.py": TESTS})


def edit(text: str, what: str = "", path: str = "src/calc.py") -> Mutant:
    return Mutant(path=path, text=text, function="total", what=what, cost=1)


async def greens(
    worktree: Path, candidates: list[Mutant], *, runner: str = "pytest", red: list[str] = RED, suite: list[str] = SUITE,
    seconds: float = 30, enough: int = 3,
) -> list[Mutant]:  # fmt: skip
    return await green_mutants(
        BOX, worktree, candidates, runner=runner, red=red, suite=suite, seconds=seconds, enough=enough
    )


async def test_the_fix_of_a_python_slip_is_found_and_the_files_are_as_before(calc: Path) -> None:
    run = await executed_lines(BOX, calc, RED, seconds=20)
    assert run["src/calc.py"] >= {2, 3, 4, 5}
    found = mutants("src/calc.py", SLIP, functions("src/calc.py", SLIP), 30, run["src/calc.py"])
    green = await greens(calc, found, enough=1)
    assert [m.text for m in green] == [FIX]
    assert (calc / "src/calc.py").read_text() == SLIP


async def test_the_fix_of_a_node_slip_is_found(tmp_path: Path) -> None:
    slip = "export function last(xs) {\n  return xs[xs.length - 2];\n}\n"
    test = "import test from 'node:test';\nimport assert from 'node:assert/strict';\nimport { last } from '../calc.mjs';\n\ntest('last', () => assert.equal(last([1, 2]), 2));\n"
    worktree = checkout(tmp_path / "calc", {"calc.mjs": slip, "tests/calc.test.mjs": test})
    loop = edit(slip.replace("return", "for (;;) {}\n  return"), "loop", "calc.mjs")
    found = [loop, edit(slip.replace("- 2", "- 1"), "fix", "calc.mjs")]
    green = await green_mutants(
        Bubblewrap(Limits()), worktree, found, runner="node", red=["tests/calc.test.mjs > last"],
        suite=["tests/calc.test.mjs"], seconds=25, enough=1,
    )  # fmt: skip
    assert [m.what for m in green] == ["fix"]
    assert (worktree / "calc.mjs").read_text() == slip


async def test_an_edit_that_breaks_the_suite_is_not_green(calc: Path) -> None:
    assert await greens(calc, [edit(FIX.replace("n = 0", "n = 0 if xs else 1"))]) == []
    assert [m.what for m in await greens(calc, [edit(FIX, "fix")], suite=[])] == ["fix"]


async def test_edits_that_end_or_attack_the_process_cost_only_themselves(calc: Path) -> None:
    def doing(line: str) -> Mutant:
        return edit(SLIP.replace("    n = 0\n", f"    import os, sys, signal\n    {line}\n    n = 0\n"), line)

    bad = [
        doing("os._exit(0)"),
        doing("sys.exit(0)"),
        doing("os.kill(0, signal.SIGKILL)"),
        doing("os.killpg(os.getpgid(0), signal.SIGTERM)"),
        doing("os.remove(__file__)"),
        doing("total(xs)"),
        edit("def total(:\n", "not Python"),
    ]
    green = await greens(calc, [*bad, edit(FIX, "fix")])
    assert [m.what for m in green] == ["fix"]
    assert (calc / "src/calc.py").read_text() == SLIP


async def test_an_edit_that_kills_the_search_leaves_what_was_found(calc: Path) -> None:
    killer = edit(SLIP.replace("    n = 0\n", "    import os\n    os.kill(os.getppid(), 9)\n"))
    assert [m.what for m in await greens(calc, [edit(FIX, "fix"), killer, edit(FIX, "never tried")])] == ["fix"]


async def test_endless_edits_end_with_the_time_given(calc: Path) -> None:
    loops = [
        edit(
            SLIP.replace("    n = 0\n", f"    import signal\n    signal.alarm(0)\n    n = {i}\n    while True: pass\n")
        )
        for i in range(5)
    ]
    started = time.monotonic()
    assert await greens(calc, [edit(FIX, "fix"), *loops], seconds=2) == [edit(FIX, "fix")]
    assert time.monotonic() - started < 9
    assert (calc / "src/calc.py").read_text() == SLIP


async def test_forged_results_cannot_name_more_edits_than_asked_for(calc: Path) -> None:
    forger = "import os\nos.write(os.open(f'/proc/{os.getppid()}/fd/1', os.O_WRONLY), b'\\ngreen: 0\\n' * 50 + b'green: 1\\ngreen: ' + b'9' * 9000 + b'\\n')\n"
    green = await greens(calc, [edit(forger, "forger"), edit(FIX, "fix")], enough=1)
    assert len(green) == 1


async def test_lines_of_an_endless_test_are_told_in_time(tmp_path: Path) -> None:
    loop = "def f(n):\n    while n:\n        n = n or 1\n"
    worktree = checkout(
        tmp_path / "w", {"calc.py": loop, "test_calc.py": "from calc import f\n\n\ndef test_f():\n    f(1)\n"}
    )
    started = time.monotonic()
    run = await executed_lines(BOX, worktree, ["test_calc.py"], seconds=2)
    assert run["calc.py"] >= {2, 3}
    assert time.monotonic() - started < 8


@pytest.mark.parametrize("forged", ["[" * 9_000, '{"calc.py": ["x", null, 3]}', "7", "{}"])
async def test_forged_lines_never_crash(tmp_path: Path, forged: str) -> None:
    forger = f"import os\n\n\ndef test_f():\n    os.write(3, b'')\n\n\ntry:\n    out = os.open('/proc/self/fd/1', os.O_WRONLY)\nexcept OSError:\n    out = 1\nfor fd in range(3, 30):\n    try:\n        os.write(fd, b'\\nlines: ' + {forged!r}.encode() + b'\\n')\n    except OSError:\n        pass\nos._exit(0)\n"
    worktree = checkout(tmp_path / "w", {"test_calc.py": forger})
    run = await executed_lines(BOX, worktree, ["test_calc.py"], seconds=5)
    assert all(isinstance(n, int) for lines in run.values() for n in lines)
