"""`darkfactory build` in this process: reads the specification, runs the flow, and hands out a clone of what it built."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.text import Text

from deployments.engine import choose_engine
from deployments.here import bring_up, run_flow
from infra.errors import ConfigError
from infra.git import clone_branch, refuse_other_folder
from infra.llm import Frozen
from infra.settings import Settings
from tasks.models import Greenfield

if TYPE_CHECKING:
    from tasks.building import Built, Specification


class Order(Frozen):
    """What the command line asks for."""

    path: Path
    repository: str | None = None
    name: str | None = None
    into: Path | None = None
    stack: Literal["python", "node"] | None = None
    board: str = "folder"
    limits: Greenfield = Greenfield()


def work(settings: Settings, order: Order, verbose: bool) -> Built:
    """Run `build` to its end, and clone what was accepted into `order.into`. Raises FactoryError; what is wrong with the
    order, the specification or the models shows before anything starts.
    """
    engine = choose_engine(settings, verbose)
    from tasks.building import read_specification, require_capable_models

    if order.repository is not None and (order.into is not None or order.stack is not None):
        raise ConfigError("--into and --stack are for a new repository; leave them out, or leave --repo out")
    specification = read_specification(order.path.expanduser(), order.name, order.stack, order.limits)
    require_capable_models()
    into = order.into.expanduser().absolute() if order.into else None
    if into is not None:
        refuse_other_folder(into, settings.root / "forge" / specification.name / "repo.git")
    bring_up(engine)
    built = run_flow(_build(specification, order, verbose))
    if into is not None and built.branch is not None:
        clone_branch(Path(built.repository), built.branch, into)
    return built


async def _build(specification: Specification, order: Order, verbose: bool) -> Built:
    from deployments.screen import shown_progress
    from flows.build import build

    with shown_progress(f"build {specification.name}", verbose):
        return await build(specification, order.repository, order.board)


def show_built(console: Console, built: Built, into: Path | None) -> None:
    """The final report, and where everything is."""
    from deployments.screen import note, report_lines

    lines = [*report_lines(built.outcome), ("repository", built.repository)]
    lines += [("archive", f"objects/{built.archive} in the home folder")] if built.archive else []
    lines += [("clone", str(into))] if into and built.branch else []
    for name, value in lines:
        console.print(Text.assemble((f"{name:<13} ", "dim"), value), soft_wrap=True)
    if built.branch and not into:
        note(console, f"  git clone --branch {quote(built.branch)} {quote(built.repository)} {quote(built.name)}")
