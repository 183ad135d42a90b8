"""`darkfactory repair` and what a node does about releases: it looks which one is wanted, switches, and says what it runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from deployments.engine import choose_engine
from deployments.here import bring_up, run_flow
from deployments.tables import table_of
from infra.database import Database, open_database
from infra.errors import ConfigError, FactoryError
from infra.llm import Frozen
from infra.releases import Releases
from infra.repairs import JournalLine, NodeRelease, ReleaseState, Repair, Repairs
from infra.settings import Settings

if TYPE_CHECKING:
    from tasks.repair import Repaired

LOOK_SECONDS = 10.0
_log = logging.getLogger(__name__)


class RepairStatus(Frozen):
    """What `darkfactory repair status --json` prints. `current` is this machine's own release, `journal` of the newest repair."""

    enabled: bool
    current: str
    releases: ReleaseState
    nodes: tuple[NodeRelease, ...] = ()
    repairs: tuple[Repair, ...] = ()
    journal: tuple[JournalLine, ...] = ()


# ---- a node -----------------------------------------------------------------------------------------------------


@contextmanager
def following(settings: Settings, database: Database, node: str) -> Iterator[None]:
    """Keep this machine on the release that is wanted while inside, in a thread, for fetching and proving one takes a while.

    Nothing where `repair.enabled` is off.
    """
    if not settings.repair.enabled:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(
        target=_follow, args=(settings, Repairs(database), node, over), name=f"release of {node}", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=LOOK_SECONDS)


def _follow(settings: Settings, repairs: Repairs, node: str, over: threading.Event) -> None:
    told = None
    while not over.is_set():
        try:
            now = follow_once(settings, repairs, node, told)
            if now != told:
                _log.info("node=%s release=%s problem=%r", node, *now)
            told = now
        except (FactoryError, OSError) as error:  # the database may come back, or a person mend the folder's rights
            _log.warning("node=%s outcome=release-not-looked-up reason=%r", node, str(error))
        over.wait(LOOK_SECONDS)


def follow_once(settings: Settings, repairs: Repairs, node: str, told: tuple[str, str] | None) -> tuple[str, str]:
    """Look which release is wanted, switch, and say so when it differs from what was told. Returns release and problem."""
    from tasks.releasing import follow

    problem = follow(settings, repairs.state())
    now = Releases(settings.root).current(), problem
    if now != told:
        repairs.runs(node, *now)
    return now


# ---- the command line -------------------------------------------------------------------------------------------


def take_status(settings: Settings) -> RepairStatus:
    """What is repaired, and which release runs where."""
    with open_database(settings) as database:
        repairs = Repairs(database)
        found = repairs.newest()
        return RepairStatus(
            enabled=settings.repair.enabled,
            current=Releases(settings.root).current(),
            releases=repairs.state(),
            nodes=tuple(repairs.nodes()),
            repairs=tuple(found),
            journal=tuple(repairs.journal(found[0].id)) if found else (),
        )


def status_view(status: RepairStatus) -> RenderableType:
    """What runs where, whether the loop stands, and one row per repair, newest first."""
    nodes = ", ".join(f"{n.node}: {n.release[:12]}{' ' + n.problem if n.problem else ''}" for n in status.nodes)
    lines = [
        f"Repairs are {'on' if status.enabled else 'off'}{'; ' + status.releases.halted if status.releases.halted else ''}.",
        f"Wanted release: {status.releases.wanted[:12]}; here: {status.current[:12]}{'; ' + nodes if nodes else ''}.",
    ]
    table = table_of("repair", "stage", "outcome", "ticket", "release", "failure", "reason")
    for each in status.repairs:
        cells = (str(each.id), each.stage, each.outcome or "", each.ticket or "", (each.new_sha or "")[:12])
        table.add_row(*map(Text, (*cells, each.signature, each.reason)))
    return Group(*map(Text, lines), table)


def approve(settings: Settings, number: int, by: str) -> Repair:
    """Let a repair of high effort go on. Raises ConfigError when it does not wait for that."""
    with open_database(settings) as database:
        return Repairs(database).approve(number, by)


def resume(settings: Settings) -> bool:
    """End a halt; False when there was none."""
    with open_database(settings) as database:
        return Repairs(database).resume()


def roll_back(settings: Settings) -> tuple[str, str, str | None]:
    """Go back to the release before: on this machine at once and without a database, on all others when they hear of it.

    Returns the release that was left, the one that runs now, and why the others could not be told, if so.
    """
    left, now = Releases(settings.root).roll_back()
    try:
        with open_database(settings) as database:
            repairs = Repairs(database)
            if repairs.state().wanted == left:
                repairs.want(now, previous=now)
    except FactoryError as error:
        return left, now, str(error)
    return left, now, None


def repair_now(settings: Settings, verbose: bool) -> Repaired:
    """Look once, and work here what is due. Raises FactoryError, ConfigError while repairs are off."""
    if not settings.repair.enabled:
        raise ConfigError("repairs are off; set `repair.enabled: true` in factory.yaml")
    bring_up(choose_engine(settings, verbose))
    from flows.repair import repair_here

    return run_flow(repair_here())
