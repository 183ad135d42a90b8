"""What `pause`, `retry` and `show` mean by the names they are given: a scope that exists, and the board that has a ticket."""

from __future__ import annotations

import re
from collections.abc import Sequence

from infra.claims import Claims
from infra.database import Database, open_database
from infra.errors import ConfigError
from infra.fleet import Fleet
from infra.ledger import Ledger
from infra.mistakes import nearest
from infra.pauses import Pauses
from infra.settings import Settings


def board_of(database: Database, settings: Settings, ticket: str) -> str:
    """The board that the ticket was taken from; keys are unique in a factory. `folder` for one that nobody worked on."""
    for board in settings.all_boards:
        known = Ledger(database, board).recorded_state(ticket) is not None
        if known or Claims(database).find(board, ticket) is not None:
            return board
    return "folder"


def pause(settings: Settings, scope: str, reason: str) -> None:
    """Until somebody resumes it. Raises ConfigError for what is not there: a typo would look like a pause, and be none."""
    found = re.fullmatch(r"dispatch|(provider|node|board):(\S+)", scope)
    if found is None:
        raise ConfigError(f"{scope!r} cannot be paused; use dispatch, provider:NAME, node:NAME or board:NAME")
    kind, name = found.groups()
    if kind == "board":
        _check(kind, name, sorted(settings.all_boards))
    with open_database(settings) as database:
        if kind == "node":
            _check(kind, name, [node.name for node in Fleet(database).nodes()])
        Pauses(database).pause(scope, reason, None, by_hand=True)


def _check(kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ConfigError(f"there is no {kind} {name!r}{nearest(name, known)}; there are: {', '.join(known) or 'none'}")
