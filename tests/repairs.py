"""What the tests of repairs share: a small factory's own repository with a bug, its home, and runs that fail and succeed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from infra.boards import Ticket
from infra.git import branch_name
from infra.ledger import Ledger
from infra.releases import INSTALLED, Releases
from infra.repairs import INTERNAL_ERROR, Repair
from tests.shop import git, make_repository

SIGNATURE = "ZeroDivisionError in works.scale.share: division by zero"
FILES = {
    "works/__init__.py": "",
    "works/scale.py": "def share(part, whole):\n    return part / whole\n",
    "works/auth.py": "def allowed(user):\n    return user == 'owner'\n",
    "tests/test_scale.py": "from works.scale import share\n\n\ndef test_share():\n    assert share(1, 2) == 0.5\n",
}
FIXED = "def share(part, whole):\n    return part / whole if whole else 0.0\n"


class Works:
    """A factory that repairs the repository `works`: bare remote, board, settings in the environment of this process."""

    def __init__(self, folder: Path, database_url: str, **repair: Any) -> None:
        self.folder, self.home = folder, folder / "home"
        self.board = folder / "board"
        self.board.mkdir(parents=True)
        self.checkout = make_repository(folder / "checkout", FILES)
        self.remote = folder / "works.git"
        subprocess.run(["git", "clone", "--quiet", "--bare", str(self.checkout), str(self.remote)], check=True)
        git(self.checkout, "remote", "add", "origin", str(self.remote))
        section = {"enabled": True, "smoke": "python -c 'import works.scale'", "watch_runs": 4, **repair}
        self.environment = {
            "DARKFACTORY_HOME": str(self.home),
            "DARKFACTORY_DATABASE_URL": database_url,
            "DARKFACTORY_BOARD": str(self.board),
            "DARKFACTORY_REPOSITORIES": json.dumps({"works": {"path": str(self.remote), "remote": str(self.remote)}}),
            "DARKFACTORY_REPAIR": json.dumps(section),
            "DARKFACTORY_MEMORY": '{"enabled": false}',
        }

    @property
    def releases(self) -> Releases:
        return Releases(self.home)

    def base(self) -> str:
        """The tip of the base branch on the remote."""
        return git(self.remote, "rev-parse", "main").strip()

    def text(self, path: str, ref: str = "main") -> str:
        return git(self.remote, "show", f"{ref}:{path}")

    def fail(self, times: int = 3, signature: str = SIGNATURE, release: str = INSTALLED) -> None:
        """Runs that end by an exception of our own code."""
        from tasks import services

        data = {
            "signature": signature,
            "frames": ["works/scale.py:2 in share: return part / whole"],
            "release": release,
        }
        for _ in range(times):
            services.ledger("factory").record_event(
                None, "run", INTERNAL_ERROR, "ZeroDivisionError: division by zero", data
            )

    def succeed(self, times: int = 1, outcome: Any = "accepted") -> None:
        """Runs that end as they should."""
        from tasks import services

        ledger: Ledger = services.ledger("factory")
        for _ in range(times):
            ticket = Ticket(board="factory", key="run", title="t", body="b", state="todo")
            ledger.record_ticket(ticket, "works")
            ledger.end_attempt(ledger.start_attempt("run", "0" * 40, ticket.revision).id, outcome)

    def propose(self, repair: Repair, files: dict[str, str], *, effort: int | None = 1) -> str:
        """What the agents leave: a branch with a pull request, and how hard the plan was. Returns the branch's tip."""
        from infra.llm import Usage
        from tasks import services

        assert repair.ticket is not None
        branch = branch_name(repair.ticket)
        git(self.checkout, "fetch", "--quiet", "origin", "main")
        git(self.checkout, "checkout", "--quiet", "-B", branch, "FETCH_HEAD")
        for path, text in files.items():
            (self.checkout / path).parent.mkdir(parents=True, exist_ok=True)
            (self.checkout / path).write_text(text)
        return self.push(repair, effort, Usage(calls=1), services)

    def push(self, repair: Repair, effort: int | None, usage: Any, services: Any) -> str:
        git(self.checkout, "add", "--all")
        git(self.checkout, "commit", "--quiet", "--allow-empty", "--message", "Repair")
        branch = branch_name(repair.ticket or "")
        git(self.checkout, "push", "--quiet", "--force", "origin", branch)
        head = git(self.checkout, "rev-parse", "HEAD").strip()
        services.forge("works").publish(branch=branch, base="main", head_sha=head, title="Repair", body="b")
        ticket = services.board(repair.board).tickets_by_keys([repair.ticket])[0]
        ledger = services.ledger(repair.board)
        ledger.record_ticket(ticket, "works")
        attempt = ledger.start_attempt(ticket.key, "0" * 40, ticket.revision)
        if effort is not None:
            key = f"{ticket.key} {effort}"
            ledger.record_session(attempt.id, key, "coder", usage, "scripted", effort=effort)
        return head
