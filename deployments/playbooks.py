"""`darkfactory playbook`: what people see and say of playbooks, and runs of them in this process."""

from __future__ import annotations

import asyncio
import getpass
import json
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deployments.engine import Engine, choose_engine
from deployments.here import bring_up, only_repository, run_flow
from deployments.tables import table_of
from infra.errors import ConfigError
from infra.llm import Frozen
from infra.playbooks import PlaybookRun
from infra.settings import Settings

if TYPE_CHECKING:
    from tasks.models import Repository
    from tasks.operations import Noted
    from tasks.playbooks import Ran, Shelf


class Listed(Frozen):
    """A playbook in `list`. `state` is `active`, or why it does not run."""

    name: str
    state: str
    destructive: bool = False
    trigger: str = ""
    problem: str = ""
    url: str = ""


class Overview(Frozen):
    """What `darkfactory playbook list` shows; the newest runs first."""

    repository: str
    playbooks: tuple[Listed, ...]
    runs: tuple[PlaybookRun, ...]


class Shown(Frozen):
    """One playbook with its file."""

    name: str
    path: str
    digest: str
    state: str
    problem: str = ""
    reason: str = ""
    content: str
    runs: tuple[PlaybookRun, ...]


def overview(settings: Settings, repository: str | None) -> Overview:
    """The playbooks on the base branch, those that are proposed, and the newest runs."""
    pinned = _pinned(settings, repository)
    from tasks import services
    from tasks.playbooks import shelf_of

    shelf = shelf_of(pinned)
    listed = [_listed(each) for each in shelf]
    names = {each.name for each in shelf}
    for name, decision in services.playbooks().decisions(pinned.name).items():
        if name not in names:
            listed.append(Listed(name=name, state=f"{decision.state}, not on {pinned.base_branch}", url=decision.url))
    return Overview(
        repository=pinned.name, playbooks=tuple(listed), runs=tuple(services.playbooks().recent(pinned.name))
    )


def _listed(each: Shelf) -> Listed:
    if each.playbook is None:
        return Listed(name=each.name, state=each.state, problem=each.problem)
    return Listed(
        name=each.name, state=each.state, destructive=each.playbook.destructive, trigger=each.playbook.trigger.pattern
    )


def show(settings: Settings, name: str, repository: str | None) -> Shown:
    """One playbook with its file, a broken one too. Raises ConfigError when there is none."""
    pinned = _pinned(settings, repository)
    from tasks import services
    from tasks.playbooks import find_playbook, shelf_of

    found = next((each for each in shelf_of(pinned) if each.name == name), None) or find_playbook(pinned, name)
    runs = tuple(services.playbooks().recent(pinned.name, name))
    reason = found.decision.reason if found.decision else ""
    return Shown(name=found.name, path=found.path, digest=found.digest, state=found.state, problem=found.problem,
                 reason=reason, content=found.content, runs=runs)  # fmt: skip


def observe(
    settings: Settings, repository: str | None, file: Path | None, title: str | None, commands: Sequence[str]
) -> Noted:
    """Keep an operation that somebody carried out, from a YAML file or from the command line."""
    if (file is None) == (not commands) or (file is None and not title):
        raise ConfigError("give FILE.yaml, or --title and one --command for each step")
    pinned = _pinned(settings, repository)
    from tasks.operations import observe as keep
    from tasks.operations import parse_operation

    if file is not None:
        if not file.is_file():
            raise ConfigError(f"there is no file {str(file)!r}; correct the path")
        try:
            operation = parse_operation(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{str(file)!r} cannot be read as UTF-8 text ({error}); correct it") from None
    else:
        said = {"title": title, "steps": [{"run": command} for command in commands]}
        operation = parse_operation(json.dumps(said), "--title and --command")
    source = operation.source or f"{person()} {secrets.token_hex(4)}"
    return asyncio.run(keep(pinned, operation.model_copy(update={"source": source})))


def approve(settings: Settings, target: str, repository: str | None, verbose: bool) -> Shown | Ran:
    """Approve a playbook's exact content, or the step that a run waits for; the run then goes on, here or in Prefect."""
    engine = choose_engine(settings, verbose)
    if run := _find_run(target):
        return _decide(engine, run, True)
    pinned = _pinned(settings, repository)
    from tasks import services
    from tasks.playbooks import find_playbook

    found = find_playbook(pinned, target)
    services.playbooks().decide(pinned.name, target, "approved", digest=found.digest, by=person(), reason="")
    return show(settings, target, pinned.name)


def reject(settings: Settings, run: str, verbose: bool) -> Ran:
    """Refuse the step that a run waits for: what was done is taken back."""
    engine = choose_engine(settings, verbose)
    found = _find_run(run)
    if found is None:
        raise ConfigError(f"there is no playbook run {run!r}; `darkfactory playbook list` shows them")
    return _decide(engine, found, False)


def _decide(engine: Engine, run: PlaybookRun, approved: bool) -> Ran:
    from tasks.approvals import decide, resume_suspended
    from tasks.playbooks import ran

    decide(run.id, approved, person())
    bring_up(engine)
    return ran(run.id) if run_flow(resume_suspended(run, approved, person())) else run_flow(_go_on(run.id))


def disable(settings: Settings, name: str, repository: str | None, reason: str) -> Shown:
    """Let no run of a playbook begin until somebody approves it again."""
    pinned = _pinned(settings, repository)
    from tasks import services
    from tasks.playbooks import find_playbook

    digest = find_playbook(pinned, name).digest
    services.playbooks().decide(pinned.name, name, "disabled", digest=digest, by=person(), reason=reason)
    return show(settings, name, pinned.name)


def rehearse(settings: Settings, name: str, repository: str | None, given: Sequence[str]) -> list[str]:
    """The commands that a run would make, whether it is approved or not."""
    pinned = _pinned(settings, repository)
    from tasks.playbooks import dry_run, find_playbook

    found = find_playbook(pinned, name)
    assert found.playbook is not None  # noqa: S101  a broken one was raised
    return dry_run(found.playbook, parameters(given))


def run(settings: Settings, name: str, repository: str | None, given: Sequence[str], verbose: bool) -> Ran:
    """A new run, in this process, until it ends or waits for approval."""
    engine = choose_engine(settings, verbose)
    from tasks.playbooks import begin, find_playbook  # before `_pinned`, which else would choose another server

    pinned = _pinned(settings, repository)
    begun = begin(pinned, find_playbook(pinned, name), parameters(given))
    bring_up(engine)
    return run_flow(_go_on(begun.id))


def resume(settings: Settings, run_id: str, verbose: bool) -> Ran:
    """Go on with a run whose process died or that was approved. A finished step is not done again."""
    engine = choose_engine(settings, verbose)
    from tasks import services

    services.playbooks().run(run_id)
    bring_up(engine)
    return run_flow(_go_on(run_id))


def settle(settings: Settings, run_id: str, how: str, verbose: bool) -> Ran:
    """Say what became of a step that nobody knows about, and go on, or take everything back."""
    engine = choose_engine(settings, verbose)
    from tasks.playbooks import settle as say

    say(run_id, how)
    bring_up(engine)
    return run_flow(_go_on(run_id))


async def _go_on(run_id: str) -> Ran:
    from flows.playbooks import run_playbook

    return await run_playbook(run_id, suspend=False)


def _find_run(target: str) -> PlaybookRun | None:
    from tasks import services

    return services.playbooks().find(target)


def _pinned(settings: Settings, repository: str | None) -> Repository:
    """The repository as its base branch is now. Whoever starts flows has chosen the engine before; others need no server."""
    if "tasks" not in sys.modules:
        choose_engine(settings)
    from tasks.intake import named_repository, pin

    return pin(*named_repository(repository or only_repository(settings)))


def person() -> str:
    """Who says it, for the ledger."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an account without a name
        return "somebody"


def parameters(given: Sequence[str]) -> dict[str, str]:
    """`name=value` of each. Raises ConfigError."""
    wrong = [each for each in given if "=" not in each]
    if wrong:
        raise ConfigError(f"--set takes name=value, not {wrong[0]!r}")
    return {name: value for name, _, value in (each.partition("=") for each in given)}


def overview_view(found: Overview) -> RenderableType:
    if not found.playbooks and not found.runs:
        return Text(f"{found.repository} has no playbook yet; `darkfactory playbook observe` keeps what people do.")
    parts: list[RenderableType] = []
    table = table_of("playbook", "state", "destructive", "tickets like")
    for each in found.playbooks:
        table.add_row(
            *map(
                Text,
                (each.name, each.state, "yes" if each.destructive else "", each.trigger or each.problem or each.url),
            )
        )
    parts.append(table)
    if found.runs:
        parts += [Text(), runs_table(found.runs)]
    return Group(*parts)


def runs_table(runs: Sequence[PlaybookRun]) -> Table:
    table = table_of("run", "playbook", "state", "ticket", "parameters", "")
    for each in runs:
        given = ", ".join(f"{name}={value}" for name, value in each.parameters.items())
        waits = f"waits at step {each.step}" if each.state == "waiting" else each.reason
        table.add_row(*map(Text, (each.id, each.name, each.state, each.ticket or "", given, waits)))
    return table


def shown_view(found: Shown) -> RenderableType:
    head = Text(f"{found.path} · {found.state}{f' · {found.reason}' if found.reason else ''}", style="bold")
    problem = [Text(found.problem, style="red")] if found.problem else []
    return Group(head, *problem, Text(found.content), *([runs_table(found.runs)] if found.runs else []))


def noted_view(noted: Noted) -> RenderableType:
    if noted.operation is None:
        return Text("This source told this operation before; nothing was kept.")
    if noted.playbook is None:
        return Text(f"Operation {noted.operation} is kept: {noted.sightings} like it of {noted.wanted}.")
    return Group(
        Text(f"Operation {noted.operation} makes the playbook {noted.playbook}, proposed at {noted.url}"),
        Text(f"Merge it, then `darkfactory playbook approve {noted.playbook}`.\n"),
        Text(noted.content),
    )


def approved_view(done: Shown | Ran) -> RenderableType:
    """A playbook after a decision, or a run as it stands."""
    if isinstance(done, Shown):
        return shown_view(done)
    return Text(done.sentence())
