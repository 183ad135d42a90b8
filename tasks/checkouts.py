"""What of a ticket's checkouts outlives the run that made them, on this machine: an agent's unfinished work, while the ticket
may come back to it (WS3, RC3)."""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from infra import folders
from infra.claims import Claim
from infra.errors import FactoryError
from infra.git import SESSION, Mirror, directory_name
from tasks import services
from tasks.models import Ticket

KEPT = timedelta(days=7)
"""How long unfinished work waits for its ticket."""
FREE_BYTES_NEEDED = 200 << 20
"""With less, no ticket is started, and unfinished work makes room."""
CALLED_OFF = "cancelled: "
CLOSED, GONE, MOVED = "the ticket is closed", "the ticket is gone", "the ticket was moved to"
"""How the reasons of runs that were stopped for their ticket begin, and why."""

_log = logging.getLogger(__name__)


def take_away(folder: Path, claims: Iterable[Claim]) -> bool:
    """Move a ticket's folder away, so that nobody finds it half removed. False when it is kept: one of the claims may go on
    with what is in it, or a process is at work there."""
    if is_unfinished(folder) and any(directory_name(c.ticket) == folder.name and _may_go_on(c) for c in claims):
        if free_bytes() >= FREE_BYTES_NEEDED:
            return False
        _log.warning("folder=%s outcome=unfinished-work-dropped reason='the disk is full'", folder.name)
    lost = _lost()
    lost.mkdir(parents=True, exist_ok=True)
    return folders.take_away(folder, lost / f"{folder.name}.{secrets.token_hex(4)}")


def _may_go_on(claim: Claim) -> bool:
    """A ticket that is done, closed or gone does not come back (RC3); one that was only moved away may."""
    moved_away = claim.reason.startswith((CALLED_OFF, MOVED)) and not claim.reason.endswith((CLOSED, GONE))
    return claim.state != "released" or moved_away


def is_unfinished(folder: Path) -> bool:
    """Whether a session was cut off in one of its checkouts, not too long ago."""
    oldest = time.time() - KEPT.total_seconds()
    with suppress(FileNotFoundError):  # its run is just ending
        return any(mark.stat().st_mtime > oldest for mark in folder.glob(f".private/*/{SESSION}"))
    return False


def free_bytes() -> int:
    """Room on the disk of the home folder, which is made."""
    home = services.settings().root
    home.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(home).free


def remove_lost() -> None:
    """Remove what was moved away, also by a process that was killed over it."""
    for mirror in sorted((services.settings().root / "repos").glob("*.git")):
        Mirror(mirror).sweep(_lost(), set())


def _lost() -> Path:
    return services.settings().root / "run" / "lost-worktrees"


def tidy(ticket: Ticket) -> None:
    """At the end of a run, while its lock is held: remove what is left of a ticket that does not come back (A3)."""
    folder = services.worktrees() / directory_name(ticket.key)
    if not folder.exists():
        return
    try:
        claim = services.claims().find(ticket.board, ticket.key) if is_unfinished(folder) else None
        if take_away(folder, [claim] if claim else []):
            remove_lost()
    except (FactoryError, OSError) as error:  # the janitor looks again
        _log.warning("ticket=%s outcome=not-tidied reason=%r", ticket.key, str(error))
