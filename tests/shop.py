"""What the tests of whole runs share: a small repository with a bug, tickets about it, and a model's written answers."""

from __future__ import annotations

import hashlib
import os
import subprocess
from contextlib import suppress
from pathlib import Path

from infra.llm.scripted import Answer, Fault, Rule

Reply = str | Answer | Fault

FILES = {
    "shop/__init__.py": "",
    "shop/prices.py": '''"""Prices of a basket."""


def total(prices, discount=0):
    """What a basket costs after a discount in percent."""
    return sum(prices)


def cheapest(prices):
    """The lowest price, or None for an empty basket."""
    return min(prices, default=None)
''',
    "tests/test_prices.py": """from shop.prices import cheapest, total


def test_total_adds_up():
    assert total([1, 2]) == 3


def test_cheapest():
    assert cheapest([3, 1, 2]) == 1
""",
    "README.md": "# Shop\n",
}
BODY = "`total` ignores its discount: a basket of 200 with a discount of 10 should cost 180, and it costs 200."

ARCHITECT = '{"summary": "total() never uses its discount.", "effort": 1, "edge_cases": [], "acceptance": ["10 % off"]}'
RIGHT = """ `total`: the discount is never taken off.
```python
def total(prices, discount=0):
    \"\"\"What a basket costs after a discount in percent.\"\"\"
    return sum(prices) * (100 - discount) / 100
```"""
WRONG = """ `total`: it should subtract the discount.
```python
def total(prices, discount=0):
    \"\"\"What a basket costs after a discount in percent.\"\"\"
    return sum(prices) - discount
```"""
TESTS = """```python
from shop.prices import total

def test_a_discount_is_taken_off():
    assert total([200], 10) == 180
```"""
AUDITOR = '{"threats": []}'
REVIEWER = '{"summary": "Takes the discount off the sum."}'
SCRIBE = (
    '{"title": "Take the discount off", "summary": "total() left its discount out.", "changelog": "Discounts count."}'
)
ACCEPT = '{"decision": "ACCEPT", "reasons": ["It does what the ticket asks."], "must_fix": []}'

ROLES = ("judge", "reviewer", "auditor", "architect", "tester", "scribe", "coder")
"""In the order of the script's rules: `Received.rule` is the place here."""
_WORDS = {
    "judge": "You are the judge",
    "reviewer": "You are the reviewer",
    "auditor": "security auditor",
    "architect": "Plan the fix|You are the architect",
    "tester": "Write [a-z ]*test",
    "scribe": "You are the scribe",
    "coder": "",
}


def script(
    *,
    architect: Reply | tuple[Reply, ...] = ARCHITECT,
    coder: Reply | tuple[Reply, ...] = RIGHT,
    tester: Reply | tuple[Reply, ...] = TESTS,
    auditor: Reply | tuple[Reply, ...] = AUDITOR,
    reviewer: Reply | tuple[Reply, ...] = REVIEWER,
    judge: Reply | tuple[Reply, ...] = ACCEPT,
    scribe: Reply | tuple[Reply, ...] = SCRIBE,
) -> list[Rule]:
    """One rule per role, found by the instruction that ends a prompt, so that no ticket can speak for a role."""
    given = {"judge": judge, "reviewer": reviewer, "auditor": auditor, "architect": architect, "tester": tester,
             "scribe": scribe, "coder": coder}  # fmt: skip
    return [_rule(_WORDS[role], given[role]) for role in ROLES]


def _rule(words: str, answers: Reply | tuple[Reply, ...]) -> Rule:
    last_part = r"\n---\n(?!.*\n---\n).*"
    listed = answers if isinstance(answers, tuple) else (answers,)
    return Rule(match=f"{last_part}(?:{words})", answers=listed, regex=True)


def make_repository(place: Path, files: dict[str, str] | None = None) -> Path:
    """A git repository with one commit on `main` that holds `files` (default: the shop)."""
    for path, text in (FILES if files is None else files).items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)
    git(place, "init", "--quiet", "--template=", "--initial-branch=main")
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--allow-empty", "--message", "Open the shop")
    return place


def git(folder: Path, *arguments: str) -> str:
    """Git with nobody's configuration and a fixed time, so that equal content is an equal commit. Returns its output."""
    who = {f"GIT_{role}_{what}": "owner@shop.invalid" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    who |= {f"GIT_{role}_DATE": "2026-01-05T09:00:00+00:00" for role in ("AUTHOR", "COMMITTER")}
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, **who}
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return done.stdout


def write_ticket(board: Path, key: str, body: str = BODY, *, title: str = "total ignores the discount") -> Path:
    """A ticket in state `ready`."""
    board.mkdir(parents=True, exist_ok=True)
    path = board / f"{key}.md"
    path.write_text(f"---\ntitle: {title}\nstate: ready\n---\n{body}\n")
    return path


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file and link below a folder with a hash of its content and mode."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = f"{path.lstat().st_mode:o} {hashlib.sha256(content).hexdigest()}"
    return found


def left_behind(home: Path) -> list[str]:
    """What a run should have got rid of: checkouts, other processes that name or work in this home, and held locks."""
    places = [*home.glob("worktrees/*/*"), *home.glob("worktrees/*/.private/*"), *home.glob("repos/*/worktrees/*")]
    checkouts = [str(p) for p in places if p.name != ".private"]
    return [*checkouts, *_processes(home), *_held_locks(home)]


def _processes(home: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            inside = str((entry / "cwd").readlink()).startswith(str(home))
            if int(entry.name) != os.getpid() and (str(home) in line or inside):
                found.append(line)
    return found


def _held_locks(home: Path) -> list[str]:
    inodes = {line.split()[-3].rpartition(":")[2] for line in Path("/proc/locks").read_text().splitlines()}
    return [str(p) for p in home.rglob("*") if p.is_file() and str(p.stat().st_ino) in inodes]
