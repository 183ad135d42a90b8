"""The factory repairs itself, on a scratch copy: one repair that helps, one that makes things worse, one that is refused.

    python -m benchmarks.repair [--model scripted|embedded]

A small program stands for the factory: its command is really run, and what it raises goes into a real ledger. `repair_here`
finds what recurs, agents work on the ticket, and the gates, checks, merge, release and watch are the real ones; after each
step the same command is run from whatever release is current. With `scripted` the agents' answers are written down; the
bad changes of the second and third story are written down in both modes.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from infra.llm import Frozen, Usage
from infra.llm.scripted import Rule, ScriptedModel
from infra.settings import load_settings

if TYPE_CHECKING:
    from infra.repairs import JournalLine, Repair

ROOT = Path(__file__).resolve().parents[1]
GOOD_RUNS, BAD_RUNS, WATCH_RUNS = 6, 3, 20
FILES = {
    "works/__init__.py": "",
    "works/shares.py": '''"""How an order is shared out."""


def share(part, whole):
    """The part of the whole in percent."""
    return 100 * part / whole
''',
    "works/labels.py": '''"""What stands on a parcel."""


def label(order):
    """Name and unit, for example `tea (kg)`."""
    return f"{order['name']} ({order['unit']})"
''',
    "works/auth.py": '''"""Who may order."""


def allowed(user):
    """Whether the user may order."""
    return user["role"].lower() != "guest"
''',
    "works/desk.py": '''"""The desk: one order in, one line out."""

from works.auth import allowed
from works.labels import label
from works.shares import share


def work_off(order):
    """The line of an order."""
    if not allowed(order["user"]):
        return "not for guests"
    return f"{label(order)}: {share(order['part'], order['whole']):.0f} %"
''',
    "tests/test_desk.py": """from works.desk import work_off

ORDER = {"user": {"role": "clerk"}, "name": "tea", "unit": "kg", "part": 1, "whole": 4}


def test_an_order_becomes_a_line():
    assert work_off(ORDER) == "tea (kg): 25 %"


def test_guests_order_nothing():
    assert work_off({**ORDER, "user": {"role": "guest"}}) == "not for guests"
""",
}
ORDER = {"user": {"role": "clerk"}, "name": "tea", "unit": "kg", "part": 1, "whole": 4}

_RUNNER = f"""
import json, sys
sys.path[:0] = [sys.argv[1], {str(ROOT)!r}]
from pathlib import Path
from tasks.bugs import bug_of
from works.desk import work_off
for line in sys.stdin:
    try:
        print(json.dumps({{"line": work_off(json.loads(line))}}), flush=True)
    except Exception as error:
        bug = bug_of(error, Path(sys.argv[1]), ("works",))
        print(json.dumps({{"bug": bug.model_dump(mode="json")}}), flush=True)
"""


class Story(NamedTuple):
    """A failure, the order that makes it, how its repair has to end, and the change that is written down, if it is."""

    name: str
    order: dict[str, object]
    outcome: str
    change: dict[str, str] | None = None


STORIES = (
    Story("fixed, deployed, verified", {**ORDER, "whole": 0}, "kept"),
    Story(
        "makes things worse, rolled back",
        {name: value for name, value in ORDER.items() if name != "unit"},
        "rolled-back",
        {
            "works/labels.py": FILES["works/labels.py"].replace(
                "return f\"{order['name']} ({order['unit']})\"",
                "return f\"{order['name']} ({order.get('unit').strip()})\"",
            ),
        },
    ),
    Story(
        "touches a blocked path, refused",
        {**ORDER, "user": {"role": None}},
        "refused",
        {"works/auth.py": FILES["works/auth.py"].replace('user["role"].lower() != "guest"', "True")},
    ),
)

_SHARE = """ `share`: an order of nothing is divided by zero.
```python
def share(part, whole):
    \"\"\"The part of the whole in percent.\"\"\"
    return 100 * part / whole if whole else 0
```"""
_TESTS = """```python
from works.shares import share

def test_a_share_of_nothing_is_none():
    assert share(1, 0) == 0
```"""
_ANSWERS = (
    ("You are the judge", '{"decision": "ACCEPT", "reasons": ["It mends the cause."], "must_fix": []}'),
    ("You are the reviewer", '{"summary": "A share of nothing is none."}'),
    ("security auditor", '{"threats": []}'),
    ("Plan the fix|You are the architect", '{"summary": "share() divides by zero.", "effort": 1}'),
    ("Write [a-z ]*test", _TESTS),
    ("You are the scribe", '{"title": "Share nothing", "summary": "No division by zero.", "changelog": "Shares of none."}'),
    ("", _SHARE),
)  # fmt: skip


class Told(Frozen):
    """How a story went."""

    name: str
    expected: str
    signature: str = ""
    outcome: str = "nothing began"
    reason: str = ""
    steps: tuple[tuple[str, str, str, str], ...] = ()
    """Stage, release before, release that it brings, note."""

    @property
    def as_expected(self) -> bool:
        return self.outcome == self.expected


class Scratch:
    """The scratch factory in a folder: its remote, its home, and its command."""

    def __init__(self, folder: Path) -> None:
        self.home, self.checkout, self.remote = folder / "home", folder / "checkout", folder / "works.git"
        for path, text in FILES.items():
            (self.checkout / path).parent.mkdir(parents=True, exist_ok=True)
            (self.checkout / path).write_text(text)
        (folder / "board").mkdir()
        self.git("init", "--quiet", "--initial-branch=main")
        self.commit("Open the works")
        self.git("clone", "--quiet", "--bare", ".", str(self.remote))
        self.git("remote", "add", "origin", str(self.remote))
        self.installed = folder / "installed"
        self.git("clone", "--quiet", str(self.remote), str(self.installed))
        self.settings = {
            "HOME": str(self.home),
            "BOARD": str(folder / "board"),
            "REPOSITORIES": json.dumps({"works": {"path": str(self.remote), "remote": str(self.remote)}}),
            "REPAIR": json.dumps({"enabled": True, "smoke": "python -c 'import works.desk'", "watch_runs": WATCH_RUNS}),
            "MEMORY": '{"enabled": false}',
        }

    def git(self, *arguments: str) -> str:
        who = {f"GIT_{r}_{w}": "desk@works.invalid" for r in ("AUTHOR", "COMMITTER") for w in ("NAME", "EMAIL")}
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
            **who,
        }
        done = subprocess.run(
            ["git", *arguments], cwd=self.checkout, env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def run(self, orders: Sequence[dict[str, object]]) -> int:
        """Work the orders off with the code that is current, and tell the ledger. Returns how many raised something."""
        from infra.releases import Releases

        releases = Releases(self.home)
        code = releases.path(releases.current()) or self.installed
        done = subprocess.run(
            [sys.executable, "-P", "-c", _RUNNER, str(code)], input="\n".join(map(json.dumps, orders)),
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        for answer in answers:
            _record(answer, releases.current())
        return sum("bug" in answer for answer in answers)

    def propose(self, repair: Repair, change: dict[str, str]) -> None:
        """What agents would leave: the branch, its pull request, and how hard the plan was."""
        from tasks import services

        branch, key = repair.branch or "", repair.ticket or ""
        self.git("fetch", "--quiet", "origin", "main")
        self.git("checkout", "--quiet", "-B", branch, "FETCH_HEAD")
        for path, text in change.items():
            (self.checkout / path).write_text(text)
        self.commit("A change that is written down")
        self.git("push", "--quiet", "origin", branch)
        head = self.git("rev-parse", "HEAD")
        services.forge("works").publish(branch=branch, base="main", head_sha=head, title="Repair", body="Seeded.")
        board, ledger = services.board(repair.board), services.ledger(repair.board)
        ticket = board.tickets_by_keys([key])[0]
        ledger.record_ticket(ticket, "works")
        attempt = ledger.start_attempt(key, head, ticket.revision)
        ledger.record_session(attempt.id, key, "architect", Usage(calls=1), "seeded", effort=1)
        ledger.end_attempt(attempt.id, "accepted")
        board.move(key, "in review")


def _record(answer: dict[str, object], release: str) -> None:
    from infra.boards import Ticket
    from tasks import services
    from tasks.bugs import FACTORY, Bug, tell

    if "bug" in answer:
        tell(FACTORY, "order", Bug.model_validate(answer["bug"]), release=release, node="scratch")
        return
    ledger = services.ledger(FACTORY)
    ticket = Ticket(board=FACTORY, key="order", title="An order", body="b", state="todo")
    ledger.record_ticket(ticket, "works")
    ledger.end_attempt(ledger.start_attempt("order", "0" * 40, ticket.revision).id, "accepted")


async def tell_story(scratch: Scratch, story: Story) -> Told:
    """Runs that fail, the repair, runs on its release, and how that ended."""
    from flows.repair import repair_factory, repair_here
    from tasks import services

    orders = [*[ORDER] * GOOD_RUNS, *[story.order] * BAD_RUNS]
    scratch.run(orders)
    if story.change is None:
        await repair_here()
    else:
        await repair_factory()
    repairs = services.repairs()
    repair = repairs.newest(1)[0]
    if repair.stage == "work" and story.change is not None:
        scratch.propose(repair, story.change)
        await repair_factory()
    if repairs.find(repair.id).stage == "approval":
        repairs.approve(repair.id, "the person who runs this demo")
        await repair_factory()
    if repairs.find(repair.id).stage == "watch":
        scratch.run((orders * WATCH_RUNS)[:WATCH_RUNS])
        await repair_factory()
    ended = repairs.find(repair.id)
    outcome = ended.outcome or f"waits at {ended.stage}"
    return Told(
        name=story.name, expected=story.outcome, signature=ended.signature, outcome=outcome, reason=ended.reason,
        steps=tuple(map(_step, (line for line in repairs.journal(ended.id) if line.phase == "after"))),
    )  # fmt: skip


def _step(line: JournalLine) -> tuple[str, str, str, str]:
    return line.stage, (line.old_sha or "")[:12], (line.new_sha or "")[:12], line.note


def table(told: Told) -> str:
    """The stages of a story as they were journaled."""
    note = " ".join(told.reason.split())
    return "\n".join([
        f"## {told.name}", "", f"`{told.signature}`", "",
        "| stage | old release | new release | what it found |", "|---|---|---|---|",
        *(f"| {stage} | {old} | {new} | {' '.join(said.split())[:160]} |" for stage, old, new, said in told.steps),
        "", f"{told.outcome}: {note[:300]}{'' if told.as_expected else f' (expected: {told.expected})'}", "",
    ])  # fmt: skip


def rules() -> list[Rule]:
    """The scripted agents' answers for the first story, found by the instruction that ends a prompt."""
    return [
        Rule(match=rf"\n---\n(?!.*\n---\n).*(?:{words})", answers=(answer,), regex=True) for words, answer in _ANSWERS
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("scripted", "embedded"), default="scripted")
    chosen = parser.parse_args().model
    with ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="darkfactory-repair-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        Path(folder).chmod(0o755)
        scratch = Scratch(Path(folder))
        given = {**scratch.settings, "MODEL": "embedded"}
        if chosen == "scripted":
            model = stack.enter_context(ScriptedModel(rules()))
            given |= {"MODEL": "openai/scripted", "MODEL_URL": model.openai_url, "MODEL_TIER": "small"}
        os.environ.update({f"DARKFACTORY_{name}": value for name, value in given.items()})
        told = _tell_all(scratch)
    coded = (
        "coded by the embedded model" if chosen == "embedded" else "coded by a scripted model (answers written down)"
    )
    print(f"Story 1 is {coded}; the changes of stories 2 and 3 are written down.\n")
    print("\n".join(map(table, told)))
    return 0 if all(each.as_expected for each in told) else 1


def _tell_all(scratch: Scratch) -> list[Told]:
    from deployments.engine import choose_engine
    from infra.postgres import stop_postgres

    settings = load_settings()
    engine = choose_engine(settings)
    for ending in (lambda: stop_postgres(settings.root), engine.stop):  # the last comes first, and after Prefect's own
        atexit.register(ending)
    engine.start()
    engine.wait()
    return asyncio.run(_all(scratch))


async def _all(scratch: Scratch) -> list[Told]:
    from tasks import services

    try:
        return [await tell_story(scratch, story) for story in STORIES]
    finally:
        services.close()


if __name__ == "__main__":
    sys.exit(main())
