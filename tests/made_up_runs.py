"""Made-up runs in a real ledger: attempts with their traits that ended when a test says, for the feedback loop."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session

from infra.database import Database
from infra.feedback import Feedback, RunTable
from infra.ledger import AttemptTable, TicketTable
from infra.sections import Level

NOW = datetime(2026, 11, 21, 3, 45, tzinfo=UTC)


class MadeUpRuns:
    """A ledger whose clock a test moves: `at` is now."""

    def __init__(self, database: Database) -> None:
        self.database, self.at = database, NOW
        self.feedback = Feedback(database, lambda: self.at)
        self._numbers = itertools.count(1)

    def add(
        self,
        runs: int,
        accepted: int = 0,
        *,
        days_ago: float = 1,
        outcome: str = "rejected",
        failure_class: str | None = None,
        intent: str = "bug",
        effort: int = 3,
        level: Level = "usual",
        model: str | None = None,
        node: str = "one",
        repository: str = "shop",
        confidence: float = 0.8,
        lifted_by: str | None = None,
    ) -> None:
        """`runs` runs of one kind, a minute apart; the first `accepted` of them were, the others ended with `outcome`."""
        with self.database.transaction() as session:
            for n in range(runs):
                ended = self.at - timedelta(days=days_ago) + timedelta(minutes=n)
                good = n < accepted
                attempt = self._attempt(
                    session, ended, "accepted" if good else outcome, None if good else failure_class, repository
                )
                session.add(
                    RunTable(
                        attempt=attempt,
                        intent=intent,
                        effort=effort,
                        level=level,
                        model=model or level,
                        node=node,
                        repository=repository,
                        confidence=confidence,
                        lifted_by=lifted_by,
                        why="",
                        at=ended,
                    )
                )

    def new_attempt(self) -> int:
        """An attempt that goes on."""
        with self.database.transaction() as session:
            return self._attempt(session, None, None, None, "shop")

    def _attempt(
        self, session: Session, ended: datetime | None, outcome: str | None, failure: str | None, repository: str
    ) -> int:
        key = f"T-{next(self._numbers)}"
        session.add(TicketTable(board="folder", key=key, repository=repository, title="t", state="s", revision="r"))
        session.flush()
        row = AttemptTable(
            board="folder", ticket=key, number=1, revision="r", base_sha="0" * 40, ended_at=ended, outcome=outcome,
            failure_class=failure, started_at=(ended or self.at) - timedelta(minutes=30),
        )  # fmt: skip
        session.add(row)
        session.flush()
        return row.id
