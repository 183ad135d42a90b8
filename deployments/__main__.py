"""The command `darkfactory`. Exit codes: 0 accepted, 1 rejected or out of rounds, 2 bad usage or configuration,
3 infrastructure (nothing burnt, run again), 130 interrupted. With `--json` one JSON object is all of stdout.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer
from pydantic import BaseModel
from typer._click.exceptions import ClickException

from infra.errors import ConfigError, FactoryError, InfraError
from infra.settings import Settings, load_settings

if TYPE_CHECKING:
    from tasks.models import Outcome

INTERRUPTED = 130
HELP = """An autonomous software factory: tickets in, reviewed and tested pull requests out.

Exit codes: 0 accepted, 1 rejected or out of rounds, 2 bad usage or configuration, 3 infrastructure (nothing burnt)."""
app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=HELP
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also print progress lines and Prefect's own log.")]
Board = Annotated[str, typer.Option(help="The board's name in factory.yaml.")]
AnyBoard = Annotated[str | None, typer.Option(help="The board's name in factory.yaml; default: the one with this key.")]
Node = Annotated[str, typer.Argument(help="The node's name.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the model's samples; another seed gives other answers.")]


@app.command()
def demo(
    fresh: Annotated[bool, typer.Option(help="Start over with a new copy of ticket and repository.")] = False,
    seed: Seed = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Solve one real ticket in a real repository with the configured model. Nothing is scripted: this is `run`."""
    from deployments.demonstration import prepare_demo

    settings = _settings(seed=seed)
    prepared = prepare_demo(settings.root, fresh)
    settings = _settings(board=prepared.board)
    _say(f"demo: ticket {prepared.board / prepared.ticket}.md in repository {prepared.repository}")
    return _run(settings, prepared.ticket, str(prepared.repository), as_json, verbose, show_change=True)


@app.command()
def run(
    ticket: Annotated[str, typer.Argument(help="A key on the board, or the path of a .md file.")],
    repo: Annotated[str | None, typer.Option(help="A git repository, or a name in factory.yaml.")] = None,
    board: Board = "folder",
    seed: Seed = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Work on a ticket until there is a pull request or a reason why not. Run it again to resume a stopped run.

    The JSON object is tasks.models.Outcome, or {"error": {"class", "message", "exit_code"}}.
    """
    settings = _settings(seed=seed)
    if ticket.endswith(".md"):
        path = Path(ticket).expanduser().absolute()
        if not path.is_file():
            raise ConfigError(f"there is no ticket file {ticket!r}; correct the path or give a key of the board")
        settings, ticket = _settings(board=path.parent), path.stem
    return _run(settings, ticket, repo, as_json, verbose, board=board)


@app.command()
def build(
    specification: Annotated[Path, typer.Argument(metavar="SPEC.md", help="What is to be built, as Markdown.")],
    repo: Annotated[str | None, typer.Option(help="Build in this repository; default: a new one in home.")] = None,
    name: Annotated[
        str | None, typer.Option(help="The application's name; default: the specification's heading.")
    ] = None,
    into: Annotated[Path | None, typer.Option(help="A new folder that gets a clone of the new repository.")] = None,
    stack: Annotated[
        Literal["python", "node"] | None, typer.Option(help="Of a new repository; default: what the text speaks of.")
    ] = None,
    max_files: Annotated[int, typer.Option(min=1, max=300, help="Most files of the change.")] = 60,
    max_lines: Annotated[int, typer.Option(min=1, max=30_000, help="Most lines of the change.")] = 6_000,
    board: Board = "folder",
    seed: Seed = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Build a whole application from a specification. Run it again to resume. The JSON object is tasks.building.Built."""
    from deployments.building import Order, show_built, work
    from tasks.models import Greenfield

    limits = Greenfield(max_files=max_files, max_lines=max_lines)
    order = Order(path=specification, repository=repo, name=name, into=into, stack=stack, board=board, limits=limits)
    with _reserved_stdout() as out:
        built = work(_settings(seed=seed), order, verbose)
        if as_json:
            _print_json(out, built.model_dump(mode="json"))
        else:
            from deployments.screen import answer_console

            show_built(answer_console(out), built, into)
    return 0 if built.outcome.decision == "ACCEPT" else 1


@app.command()
def status(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Tickets to list.")] = 50, as_json: Json = False
) -> int:
    """What runs, waits, is parked and paused now, and the tickets that were worked on. The JSON object is
    deployments.snapshot.Snapshot."""
    from deployments.snapshot import take_snapshot

    with _reserved_stdout() as out:
        snapshot = take_snapshot(_at_hand(), limit)
        if as_json:
            return _print_json(out, snapshot.model_dump(mode="json"))
        from deployments.tables import status_view

        return _print(out, status_view(snapshot))


@app.command()
def show(
    ticket: Annotated[str, typer.Argument(help="The ticket's key.")], board: AnyBoard = None, as_json: Json = False
) -> int:
    """Everything that happened to one ticket. The JSON object is infra.ledger.TicketHistory."""
    from deployments.pausing import board_of
    from infra.database import open_database
    from infra.ledger import Ledger

    settings = _at_hand()
    with _reserved_stdout() as out, open_database(settings) as database:
        history = Ledger(database, board or board_of(database, settings, ticket)).history(ticket)
        if as_json:
            return _print_json(out, history.model_dump(mode="json"))
        from deployments.tables import history_view

        return _print(out, history_view(history))


@app.command()
def costs(
    by: Annotated[
        Literal["ticket", "role", "model", "node", "day"], typer.Option(help="What to add up by.")
    ] = "ticket",
    since: Annotated[str, typer.Option(help="A day (2026-11-01), a span before now (7d, 12h), or all.")] = "30d",
    as_json: Json = False,
) -> int:
    """What the model calls used and cost, and how much of each budget is left. The JSON object is deployments.costs.Costs."""
    from datetime import UTC, datetime

    from deployments.costs import costs_view, parse_since, take_costs

    with _reserved_stdout() as out:
        found = take_costs(_at_hand(), by, parse_since(since, datetime.now(UTC)))
        return _answer(out, as_json, found, costs_view)


@app.command()
def agents(as_json: Json = False) -> int:
    """Check the coding agents of factory.yaml: installed, of a known version, logged in. Spends nothing.

    The JSON object is {"agents": [deployments.agents.AgentState]}.
    """
    from deployments.agents import agents_table, check_agents

    with _reserved_stdout() as out:
        found = check_agents(_settings())
        if as_json:
            _print_json(out, {"agents": [each.model_dump(mode="json") for each in found]})
        else:
            _print(
                out, agents_table(found) if found else "factory.yaml has no section `agents`: the built-in one codes."
            )
    return max((each.exit_code for each in found), default=0)


@app.command()
def doctor(as_json: Json = False) -> int:
    """Check what the factory needs, and say how to mend what is missing. Changes nothing, downloads nothing.

    The JSON object is {"ok": bool, "checks": [{"name", "ok", "message"}], "exit_code": 0 | 2 | 3}.
    """
    from deployments.doctor import examine, exit_code

    with _reserved_stdout() as out:
        checks = examine(_settings())
        code = exit_code(checks)
        if as_json:
            listed = [{"name": c.name, "ok": c.ok, "message": c.message} for c in checks]
            _print_json(out, {"ok": code == 0, "checks": listed, "exit_code": code})
            return code
        from deployments.tables import doctor_table

        _print(out, doctor_table(checks))
        return code


@app.command()
def init(
    force: Annotated[bool, typer.Option(help="Replace a factory.yaml that is there; it is kept as .bak.")] = False,
    defaults: Annotated[bool, typer.Option(help="Ask nothing; what no option answers gets its default.")] = False,
    repository: Annotated[str | None, typer.Option(help="Path of a repository to work on, or none.")] = None,
    github: Annotated[
        str | None, typer.Option(help="GitHub project of its pull requests, owner/name, or none.")
    ] = None,
    remote: Annotated[str | None, typer.Option(help="Remote that branches are pushed to, or none.")] = None,
    board: Annotated[str | None, typer.Option(help="Where tickets come from: folder, github, linear, jira.")] = None,
    board_path: Annotated[str | None, typer.Option(help="Folder of Markdown tickets.")] = None,
    board_project: Annotated[str | None, typer.Option(help="GitHub project of the issues, or key in Jira.")] = None,
    board_team: Annotated[str | None, typer.Option(help="Key of the Linear team.")] = None,
    board_url: Annotated[str | None, typer.Option(help="Address of the Jira site.")] = None,
    board_email: Annotated[str | None, typer.Option(help="Account whose Jira token is used.")] = None,
    model: Annotated[str | None, typer.Option(help="embedded, openai/NAME or anthropic/NAME.")] = None,
    model_url: Annotated[str | None, typer.Option(help="Address of its endpoint, or none.")] = None,
    slots: Annotated[str | None, typer.Option(help="Model calls at the same time.")] = None,
    notify: Annotated[str | None, typer.Option(help="Where to report trouble: none, slack, an address.")] = None,
) -> int:
    """Ask the few questions that matter, as far as no option answers them, and write a commented factory.yaml."""
    from deployments import wizard
    from infra.settings import wanted_config_path

    given = {
        "repository": repository, "github": github, "remote": remote, "board": board, "board_path": board_path,
        "board_project": board_project, "board_team": board_team, "board_url": board_url, "board_email": board_email,
        "model": model, "model_url": model_url, "slots": slots, "notify": notify,
    }  # fmt: skip
    flags = {name: said for name, said in given.items() if said is not None}
    answers = wizard.given_answers(flags) if defaults else wizard.terminal_answers(flags)
    path = wizard.init(wanted_config_path(), answers, force=force, flags=flags)
    _say(f"written: {path}; check it with `darkfactory doctor`")
    for name in wizard.variables_to_set(path):
        _say(f"set the environment variable {name} before `darkfactory up`")
    return 0


@app.command()
def pause(
    scope: Annotated[
        str, typer.Argument(help="`dispatch`, `provider:NAME`, `node:NAME` or `board:NAME`.")
    ] = "dispatch",
    reason: Annotated[str, typer.Option(help="Shown wherever the pause is shown.")] = "paused by hand",
) -> int:
    """Launch nothing more there until `darkfactory resume`; what runs goes on."""
    from deployments import pausing

    pausing.pause(_at_hand(), scope, reason)
    _say(f"{scope} is paused; `darkfactory resume {scope}` ends it")
    return 0


@app.command()
def resume(scope: Annotated[str, typer.Argument(help="What is paused; see `darkfactory status`.")] = "dispatch") -> int:
    """End a pause."""
    from infra.database import open_database
    from infra.pauses import Pauses

    with open_database(_at_hand()) as database:
        pauses = Pauses(database)
        if not pauses.succeed(scope, by_hand=True):
            active = ", ".join(pauses.active()) or "nothing"
            raise ConfigError(f"{scope!r} is not paused (paused: {active})")
    _say(f"{scope} goes on")
    return 0


@app.command()
def retry(ticket: Annotated[str, typer.Argument(help="The ticket's key.")], board: AnyBoard = None) -> int:
    """Let a parked ticket, or one that waits for its time, go out again with the next tick; one whose pull request is
    parked gets one more round."""
    from deployments.pausing import board_of
    from infra.boards.opening import open_board
    from infra.claims import Claims
    from infra.database import open_database
    from infra.stewardships import Stewardships

    settings = _settings()
    with open_database(settings) as database:
        board = board or board_of(database, settings, ticket)
        if Stewardships(database).grant(board, ticket) is not None:
            _say(f"the pull request of {ticket} gets one more round")
            return 0
        claims = Claims(database)
        claim = claims.find(board, ticket)
        if claim is not None and claim.state == "parked":  # its state on the board is none of the queue's, too
            open_board(settings, board).move(ticket, settings.all_boards[board].states.queue[0])
        if claim is None or not claims.resume(claim, "retried by hand"):
            state = claim.state if claim else "never claimed"
            raise ConfigError(f"ticket {ticket!r} of board {board!r} does not wait ({state}); see `darkfactory status`")
    _say(f"{ticket} goes out with the next tick")
    return 0


@app.command()
def steward(
    ticket: Annotated[str | None, typer.Argument(help="Work only the rounds of this ticket's pull request.")] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Look at every open pull request once, and work here what is due. The JSON object is tasks.stewarding.Stewarded."""
    from deployments.tending import steward_now

    with _reserved_stdout() as out:
        found = steward_now(_settings(), ticket, verbose)
        if as_json:
            return _print_json(out, found.model_dump(mode="json"))
        lines = [f"{branch}: {step}" for branch, step in found.steps.items()]
        return _print(out, "\n".join(lines) or "No pull request is looked after.")


@app.command()
def refine(
    target: Annotated[str, typer.Argument(metavar="BRANCH|PR", help="A branch, or the number of a pull request.")],
    repo: Annotated[str | None, typer.Option(help="A name in factory.yaml; not needed when there is only one.")] = None,
    instructions: Annotated[str, typer.Option(help="What to look at, in your words.")] = "",
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Review a branch, model its threats, mend what is found, and say the verdict. The JSON object is tasks.refining.Ended."""
    from deployments.tending import refine_now

    with _reserved_stdout() as out:
        ended = refine_now(_settings(), target, repo, instructions, verbose)
        if as_json:
            _print_json(out, ended.model_dump(mode="json") if ended else {})
        elif ended is not None:
            _print(out, "\n".join([f"{ended.decision}: {ended.branch}", *ended.reasons]))
    return 0 if ended is not None and ended.decision == "ACCEPT" else 1


@app.command()
def calibrate(
    dry_run: Annotated[bool, typer.Option(help="Show what it would be now; keep nothing.")] = False,
    as_json: Json = False,
) -> int:
    """Compare what runs were like with how they ended, once a day. The JSON object is tasks.feedback.Calibration."""
    from deployments.feedback import calibrate_now, calibration_view

    with _reserved_stdout() as out:
        made = calibrate_now(_settings(), dry_run)
        return _answer(out, as_json, made, calibration_view)


corpus_app = typer.Typer(help="Training examples that accepted runs left; without a command: how many.")
app.add_typer(corpus_app, name="corpus")


@corpus_app.callback(invoke_without_command=True)
def corpus(context: typer.Context, as_json: Json = False) -> int:
    """Count the examples by kind and repository. The JSON object is {"corpus": [tasks.corpus.Holding]}."""
    from deployments.feedback import corpus_view, held

    if context.invoked_subcommand is not None:
        return 0
    with _reserved_stdout() as out:
        found = held(_settings())
        if as_json:
            return _print_json(out, {"corpus": [each.model_dump(mode="json") for each in found]})
        return _print(out, corpus_view(found))


@corpus_app.command("forget")
def corpus_forget(
    repo: Annotated[str, typer.Option(help="The repository's name, as `darkfactory corpus` prints it.")],
) -> int:
    """Delete all examples of a repository."""
    from deployments.feedback import forgotten

    _say(f"{forgotten(_settings(), repo)} examples of {repo} were deleted")
    return 0


memory_app = typer.Typer(no_args_is_help=True, help="What earlier work left behind.")
app.add_typer(memory_app, name="memory")


@memory_app.command("search")
def memory_search(
    text: Annotated[str, typer.Argument(help="What it should be about.")],
    repo: Annotated[str | None, typer.Option(help="As this repository sees it; default: everything.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=40, help="Points to list.")] = 8,
    as_json: Json = False,
) -> int:
    """Find knowledge points. The JSON object is infra.memory.Answer."""
    from deployments import memory

    with _reserved_stdout() as out:
        answer = memory.find(_settings(), text, repo, limit)
        return _answer(out, as_json, answer, memory.answer_table)


@memory_app.command("show")
def memory_show(
    point: Annotated[str, typer.Argument(help="The point's id, as `memory search` prints it.")], as_json: Json = False
) -> int:
    """Show one knowledge point with where it comes from. The JSON object is infra.memory.Point."""
    from deployments import memory

    with _reserved_stdout() as out:
        found = memory.point(_settings(), point)
        return _answer(out, as_json, found, memory.point_view)


@memory_app.command("rebuild")
def memory_rebuild(as_json: Json = False) -> int:
    """Make the index anew from the journal. The JSON object is {"points": number}."""
    from deployments import memory

    with _reserved_stdout() as out:
        points = memory.rebuild(_settings())
        if as_json:
            return _print_json(out, {"points": points})
        return _print(out, f"The index was made anew from the journal: {points} points.")


@memory_app.command("consolidate")
def memory_consolidate(
    dry_run: Annotated[bool, typer.Option(help="Show what it would do; change nothing, ask no model.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Bring together what belongs together. The JSON object is tasks.consolidation.Consolidated."""
    from deployments import memory

    with _reserved_stdout() as out:
        done = memory.consolidate(_settings(), dry_run, verbose)
        return _answer(out, as_json, done, memory.consolidated_view)


@memory_app.command("revert")
def memory_revert(
    consolidation: Annotated[str, typer.Argument(metavar="ID", help="As `memory consolidate` prints it.")],
    as_json: Json = False,
) -> int:
    """Undo a consolidation. The JSON object is infra.memory.upkeep.Plan."""
    from deployments import memory

    with _reserved_stdout() as out:
        plan = memory.revert(_settings(), consolidation)
        return _answer(out, as_json, plan, lambda plan: f"{plan.id} is undone: {len(plan.touched)} points are back.")


@memory_app.command("forget")
def memory_forget(
    point: Annotated[str, typer.Argument(help="The point's id, as `memory search` prints it.")], as_json: Json = False
) -> int:
    """Remove a point and the summaries that say it, for good. The JSON object is {"forgotten": [ids]}."""
    from deployments import memory

    with _reserved_stdout() as out:
        gone = memory.forget(_settings(), point)
        if as_json:
            return _print_json(out, {"forgotten": list(gone)})
        return _print(out, f"Gone from index and journal: {' '.join(gone)}.")


@app.command()
def mcp() -> int:
    """Memory for other agents of this machine: a server of the Model Context Protocol on stdin and stdout."""
    from deployments.mcp import serve

    with _reserved_stdout() as out:
        serve(_settings(), sys.stdin.buffer, out)
    return 0


repair_app = typer.Typer(no_args_is_help=True, help="Repairs of the factory's own code, and its releases.")
app.add_typer(repair_app, name="repair")


@repair_app.command("status")
def repair_status(as_json: Json = False) -> int:
    """Show repairs, releases and nodes. The JSON object is deployments.repair.RepairStatus."""
    from deployments import repair

    with _reserved_stdout() as out:
        status = repair.take_status(_settings())
        return _answer(out, as_json, status, repair.status_view)


@repair_app.command("approve")
def repair_approve(
    number: Annotated[int, typer.Argument(help="The repair, as `repair status` prints it.")], as_json: Json = False
) -> int:
    """Let a repair of high effort go on. The JSON object is infra.repairs.Repair."""
    import getpass

    from deployments import repair

    with _reserved_stdout() as out:
        approved = repair.approve(_settings(), number, getpass.getuser())
        if as_json:
            return _print_json(out, approved.model_dump(mode="json"))
        return _print(out, f"Repair {number} goes on with the next look.")


@repair_app.command("rollback")
def repair_rollback(as_json: Json = False) -> int:
    """Go back to the release before, here at once and without a database. The JSON object is {"left", "now", "problem"}."""
    from deployments import repair

    with _reserved_stdout() as out:
        left, now, problem = repair.roll_back(_settings())
        if as_json:
            return _print_json(out, {"left": left, "now": now, "problem": problem})
        told = f"the other nodes could not be told: {problem}" if problem else "the other nodes follow"
        return _print(out, f"New runs come from {now} again; {left} is not used here any more; {told}.")


@repair_app.command("resume")
def repair_resume(as_json: Json = False) -> int:
    """Repair again after too many rollbacks stopped it. The JSON object is {"resumed": boolean}."""
    from deployments import repair

    with _reserved_stdout() as out:
        resumed = repair.resume(_settings())
        if as_json:
            return _print_json(out, {"resumed": resumed})
        return _print(out, "Repairs go on." if resumed else "Nothing was stopped.")


@repair_app.command("now")
def repair_now(as_json: Json = False, verbose: Verbose = False) -> int:
    """Look once, and work here what is due. The JSON object is tasks.repair.Repaired."""
    from deployments import repair

    with _reserved_stdout() as out:
        done = repair.repair_now(_settings(), verbose)
        if as_json:
            return _print_json(out, done.model_dump(mode="json"))
        lines = [f"repair {number}: {stage}" for number, stage in done.stages.items()]
        return _print(
            out, "\n".join([*lines, *filter(None, [done.halted])]) or "Nothing of our own fails often enough."
        )


housekeeping_app = typer.Typer(no_args_is_help=True, help="Work the factory finds by itself.")
app.add_typer(housekeeping_app, name="housekeeping")


@housekeeping_app.command("list")
def housekeeping_list(as_json: Json = False) -> int:
    """Show chores, schedules and last runs. The JSON object is deployments.housekeeping.Overview."""
    from deployments import housekeeping

    with _reserved_stdout() as out:
        overview = housekeeping.take_overview(_settings())
        return _answer(out, as_json, overview, housekeeping.overview_table)


@housekeeping_app.command("run")
def housekeeping_run(
    chore: Annotated[str, typer.Argument(help="A name that `housekeeping list` shows.")],
    repo: Annotated[str | None, typer.Option(help="A name in factory.yaml; default: all repositories.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Show what it would do; write nothing.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Run one chore here and now. The JSON object is {"swept": [tasks.backlog.Swept]}."""
    from deployments import housekeeping

    with _reserved_stdout() as out:
        swept = housekeeping.run_now(_settings(), chore, repo, dry_run, verbose)
        if as_json:
            return _print_json(out, {"swept": [each.model_dump(mode="json") for each in swept]})
        return _print(out, housekeeping.swept_table(swept))


playbook_app = typer.Typer(no_args_is_help=True, help="Operations that run without a model.")
app.add_typer(playbook_app, name="playbook")
Repo = Annotated[str | None, typer.Option(help="A name in factory.yaml, or a path; not needed when there is only one.")]
PlaybookName = Annotated[str, typer.Argument(help="The playbook's name.")]
PlaybookRunId = Annotated[str, typer.Argument(metavar="RUN", help="The run, as `playbook list` prints it.")]


@playbook_app.command("list")
def playbook_list(repo: Repo = None, as_json: Json = False) -> int:
    """List a repository's playbooks and their newest runs. The JSON object is deployments.playbooks.Overview."""
    from deployments import playbooks

    with _reserved_stdout() as out:
        found = playbooks.overview(_settings(), repo)
        return _answer(out, as_json, found, playbooks.overview_view)


@playbook_app.command("show")
def playbook_show(name: PlaybookName, repo: Repo = None, as_json: Json = False) -> int:
    """Show a playbook's file, state and runs. The JSON object is deployments.playbooks.Shown."""
    from deployments import playbooks

    with _reserved_stdout() as out:
        return _answer(out, as_json, playbooks.show(_settings(), name, repo), playbooks.shown_view)


@playbook_app.command("observe")
def playbook_observe(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE.yaml", help="The operation that was carried out.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="In place of a file: what was asked for.")] = None,
    command: Annotated[list[str] | None, typer.Option(help="One step of it, as it was run; once for each.")] = None,
    repo: Repo = None,
    as_json: Json = False,
) -> int:
    """Keep an operation that somebody carried out; enough equal ones make a playbook. The JSON object is tasks.operations.Noted."""
    from deployments import playbooks

    with _reserved_stdout() as out:
        noted = playbooks.observe(_settings(), repo, file, title, command or [])
        return _answer(out, as_json, noted, playbooks.noted_view)


@playbook_app.command("approve")
def playbook_approve(
    what: Annotated[str, typer.Argument(metavar="NAME|RUN", help="A playbook, or a run that waits at a step.")],
    repo: Repo = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Approve the content of a playbook as it is now, or the step that a run waits for. The JSON object is deployments.playbooks.Shown, or tasks.playbooks.Ran of a run."""
    from deployments import playbooks

    with _reserved_stdout() as out:
        done = playbooks.approve(_settings(), what, repo, verbose)
        return _answer(out, as_json, done, playbooks.approved_view)


@playbook_app.command("reject")
def playbook_reject(run: PlaybookRunId, as_json: Json = False, verbose: Verbose = False) -> int:
    """Refuse the step that a run waits for; what it did is taken back. The JSON object is tasks.playbooks.Ran."""
    from deployments import playbooks

    with _reserved_stdout() as out:
        return _answer(out, as_json, playbooks.reject(_settings(), run, verbose), playbooks.approved_view)


@playbook_app.command("disable")
def playbook_disable(
    name: PlaybookName,
    reason: Annotated[str, typer.Option(help="Shown wherever it is shown.")] = "disabled by hand",
    repo: Repo = None,
    as_json: Json = False,
) -> int:
    """Let no run of a playbook begin until it is approved again. The JSON object is deployments.playbooks.Shown."""
    from deployments import playbooks

    with _reserved_stdout() as out:
        return _answer(out, as_json, playbooks.disable(_settings(), name, repo, reason), playbooks.shown_view)


@playbook_app.command("run")
def playbook_run(
    name: Annotated[str | None, typer.Argument(help="The playbook's name.")] = None,
    set: Annotated[list[str] | None, typer.Option(help="A parameter, as name=value; once for each.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the commands and run none.")] = False,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="In place of NAME: go on with a run.")] = None,
    repo: Repo = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Run a playbook here. Exit code 1 when it was rolled back or waits. The JSON object is tasks.playbooks.Ran, or {"commands": […]}."""
    from deployments import playbooks

    if (name is None) == (resume is None):
        raise ConfigError("give the NAME of a playbook, or --resume RUN")
    if resume is not None and (set or dry_run):
        raise ConfigError("--resume goes on with a run as it was begun; leave out --set and --dry-run")
    with _reserved_stdout() as out:
        if name is not None and dry_run:
            commands = playbooks.rehearse(_settings(), name, repo, set or [])
            return _print_json(out, {"commands": commands}) if as_json else _print(out, "\n".join(commands))
        ran = (
            playbooks.run(_settings(), name, repo, set or [], verbose)
            if name is not None
            else playbooks.resume(_settings(), resume or "", verbose)
        )
        _answer(out, as_json, ran, playbooks.approved_view)
    return 0 if ran.state == "succeeded" else 1


@playbook_app.command("settle")
def playbook_settle(
    run: PlaybookRunId,
    how: Annotated[
        Literal["done", "again", "undo", "clean"],
        typer.Argument(help="The step was done; do it again; take all back; it was all put right by hand."),
    ],
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Say what became of a step when only a person can know; the run goes on from there. The JSON object is tasks.playbooks.Ran."""
    from deployments import playbooks

    with _reserved_stdout() as out:
        return _answer(out, as_json, playbooks.settle(_settings(), run, how, verbose), playbooks.approved_view)


lessons_app = typer.Typer(no_args_is_help=True, help="Corrections that came from failures seen three times.")
app.add_typer(lessons_app, name="lessons")


@lessons_app.command("list")
def lessons_list(
    repo: Annotated[str | None, typer.Option(help="Of this repository; default: of all.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Evicted and retired ones, too.")] = False,
    as_json: Json = False,
) -> int:
    """List corrections with their counts. The JSON object is {"corrections": [infra.lessons.Correction]}."""
    from deployments import lessons

    with _reserved_stdout() as out:
        found = lessons.listed(_settings(), repo, everything)
        if as_json:
            return _print_json(out, {"corrections": [each.model_dump(mode="json") for each in found]})
        return _print(out, lessons.corrections_table(found))


@lessons_app.command("show")
def lessons_show(
    correction: Annotated[int, typer.Argument(help="Its id, as `lessons list` prints it.")], as_json: Json = False
) -> int:
    """Show one correction in full. The JSON object is infra.lessons.Correction."""
    from deployments import lessons

    with _reserved_stdout() as out:
        found = lessons.one(_settings(), correction)
        return _answer(out, as_json, found, lessons.correction_view)


@lessons_app.command("retire")
def lessons_retire(
    correction: Annotated[int, typer.Argument(help="Its id, as `lessons list` prints it.")], as_json: Json = False
) -> int:
    """Tell no run this correction any more. The JSON object is infra.lessons.Correction."""
    from deployments import lessons

    with _reserved_stdout() as out:
        found = lessons.retire(_settings(), correction)
        if as_json:
            return _print_json(out, found.model_dump(mode="json"))
        return _print(out, f"Correction {found.id} is retired; no run is told it any more.")


node_app = typer.Typer(no_args_is_help=True, help="Machines that work on tickets.")
app.add_typer(node_app, name="node")


@node_app.command("join")
def node_join(
    name: Annotated[str | None, typer.Option(help="This machine's name; default: its host name.")] = None,
    slots: Annotated[int, typer.Option(min=1, max=1000, help="Tickets at the same time.")] = 1,
    labels: Annotated[str, typer.Option(help="What it offers, for example macos,xcode.")] = "",
    api: Annotated[str | None, typer.Option(help="Prefect's API of `darkfactory up`, http://…/api.")] = None,
) -> int:
    """Make this machine a node, in the foreground. It needs the factory's database_url and only connects outwards."""
    from deployments import nodes

    settings = _settings()
    url = api or os.environ.get("PREFECT_API_URL")
    if not url:
        raise ConfigError("no Prefect server is named; pass --api URL, as `darkfactory up` prints it, with /api")
    nodes.join(settings, name or settings.node_name, slots, [w for w in labels.split(",") if w.strip()], url, _say)
    return 0


@node_app.command("list")
def node_list(as_json: Json = False) -> int:
    """List the nodes. The JSON object is {"nodes": [infra.fleet.Node and "tickets"]}."""
    from deployments import nodes

    with _reserved_stdout() as out:
        found = nodes.listed(_at_hand())
        if as_json:
            rows = [{**node.model_dump(mode="json"), "tickets": held} for node, held in found]
            return _print_json(out, {"nodes": rows})
        from deployments.tables import nodes_table

        return _print(
            out, nodes_table(found) if found else "No node has joined yet; see `darkfactory node join --help`."
        )


@node_app.command("drain")
def node_drain(name: Node) -> int:
    """Give the node no more work; it ends when its last ticket does."""
    from deployments import nodes

    state = nodes.drain(_at_hand(), name)
    _say(f"node {name!r} drains" if state == "draining" else f"node {name!r} has left before")
    return 0


@node_app.command("leave")
def node_leave(name: Node) -> int:
    """Drain the node, wait for its tickets, and end it. What does not end in ten minutes goes to other nodes."""
    from deployments import nodes

    nodes.leave(_at_hand(), name, _say)
    _say(f"node {name!r} left")
    return 0


@app.command()
def actions(
    install: Annotated[Path | None, typer.Option(help="A checkout that gets the workflow file.")] = None,
    package: Annotated[
        str | None, typer.Option(help="With --install: what pip installs on the runner, git+https://…@COMMIT.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Show how much of GitHub Actions is used, or write the workflow file. The JSON object is {"runners": [deployments.actions.Runners]}."""
    from deployments import actions as runners

    if (install is None) != (package is None):
        raise ConfigError("--install CHECKOUT and --package WHAT go together; give both or none")
    if install is not None and package is not None:
        _say(f"written: {runners.install(install, package)}; commit and push it")
        return 0
    with _reserved_stdout() as out:
        found = runners.take_overview(_settings())
        if as_json:
            return _print_json(out, {"runners": [each.model_dump(mode="json") for each in found]})
        return _print(
            out, runners.overview_table(found) if found else "No repository has a section `actions` in factory.yaml."
        )


@app.command("run-unit")
def run_unit(
    input: Annotated[Path, typer.Option(help="The unit, as JSON.")],
    output: Annotated[Path, typer.Option(help="Folder for patch.diff and report.json.")],
    repository: Annotated[Path, typer.Option(help="A checkout of the unit's commit.")] = Path(),
) -> int:
    """What the workflow of `darkfactory actions` calls on a runner: code one unit."""
    from deployments.runner import run_unit as work_on

    return work_on(input, repository.absolute(), output, _say)


@app.command()
def up(port: Annotated[int, typer.Option(min=1, max=65_535, help="Port of Prefect's pages.")] = 4200) -> int:
    """Run Prefect's server with its pages, this node's worker and the deployments, until Ctrl-C."""
    from deployments import nodes

    nodes.up(_settings(), port, _say)
    return 0


@app.command()
def down() -> int:
    """End what `darkfactory up` started, also when `up` itself was killed."""
    from deployments import nodes

    if not nodes.down(_at_hand(), _say):
        _say("nothing was up")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. The one place where errors become exit codes."""
    given = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = int(app(given, standalone_mode=False, prog_name="darkfactory") or 0)
        if code == INTERRUPTED:  # typer turns the interruption into this number
            raise KeyboardInterrupt
        return code
    except FactoryError as error:
        return _fail(given, type(error).__name__, str(error), error.exit_code)
    except ClickException as error:
        if "--json" not in given:
            error.show()
            return error.exit_code
        return _fail(given, "UsageError", error.format_message(), error.exit_code)
    except KeyboardInterrupt:
        return _fail(given, "Interrupted", "interrupted; run the same command again to go on", INTERRUPTED)
    except Exception as error:  # noqa: BLE001  the last place: a bug must not look like a rejected ticket
        traceback.print_exc()
        return _fail(given, type(error).__name__, f"this is a bug of the factory: {error!r}", InfraError.exit_code)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _fail(given: list[str], kind: str, message: str, code: int) -> int:
    if "--json" in given:
        _print_json(sys.stdout, {"error": {"class": kind, "message": message, "exit_code": code}})
    else:
        _say(f"error: {message}")
    return code


def _settings(*, board: Path | None = None, seed: int | None = None) -> Settings:
    """The settings with what the command line says, which every process we start sees, too."""
    if board is not None:
        os.environ["DARKFACTORY_BOARD"] = str(board)
    if seed is not None:
        os.environ["DARKFACTORY_SEED"] = str(seed)
    return load_settings()


def _at_hand() -> Settings:
    """The settings of a command that uses no secret. A mistake in factory.yaml is shown and stops none of these (CF1)."""
    from infra.reloading import settings_at_hand

    loaded = settings_at_hand()
    if loaded.problem:
        _say(f"warning: {loaded.problem}")
    return loaded.settings


def _run(
    settings: Settings,
    ticket: str,
    repository: str | None,
    as_json: bool,
    verbose: bool,
    show_change: bool = False,
    board: str = "folder",
) -> int:
    from deployments.running import work

    with _reserved_stdout() as out:
        outcome = work(settings, ticket, repository, verbose, board)
        if as_json:
            _print_json(out, outcome.model_dump(mode="json"))
        else:
            _report(out, outcome, repository or ".", show_change)
    return 0 if outcome.decision == "ACCEPT" else 1


def _report(out: TextIO, outcome: Outcome, repository: str, show_change: bool) -> None:
    from deployments.screen import answer_console, show_diff, show_outcome

    console = answer_console(out)
    if show_change and outcome.evidence:
        show_diff(console, outcome.evidence.diff)
    show_outcome(console, outcome, repository)


@contextmanager
def _reserved_stdout() -> Iterator[TextIO]:
    """Stdout for the answer alone: whatever else writes to it meanwhile, child processes too, goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(kept, "w", encoding="utf-8", closefd=False) as answer:
            yield answer
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _print_json(out: TextIO, value: dict[str, Any]) -> int:
    out.write(json.dumps(value) + "\n")
    out.flush()
    return 0


def _answer(out: TextIO, as_json: bool, found: BaseModel, view: Callable[[Any], Any]) -> int:
    """One model as JSON, or as `view` shows it to people."""
    return _print_json(out, found.model_dump(mode="json")) if as_json else _print(out, view(found))


def _print(out: TextIO, content: Any) -> int:
    from deployments.screen import answer_console

    answer_console(out).print(content)
    return 0


def _say(text: str) -> None:
    with suppress(OSError):  # a full disk or a closed terminal must end neither `up` nor a node (OB4)
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
