"""`darkfactory init`: asks the few things that matter and writes a commented factory.yaml that can be edited from there.

Never asks for a secret: the file names environment variables, and `variables_to_set` says which of them are missing.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_settings import BaseSettings

from infra.errors import ConfigError
from infra.files import write_atomically
from infra.remotes import github_project, origin_of
from infra.sections import (
    AnyBoard,
    DispatchSection,
    FolderBoardSection,
    GitHubBoardSection,
    JiraBoardSection,
    LinearBoardSection,
    WebhooksSection,
)
from infra.settings import Settings

MOST_TRIES = 5
NONE = "none"
_TOKENS = {"github": "GITHUB_TOKEN", "linear": "LINEAR_API_KEY", "jira": "JIRA_API_TOKEN"}


@dataclass(frozen=True)
class Question:
    """One thing to ask. An empty answer takes `default`; `problem` says why the last answer could not be used.

    `name` is also the command line's flag (`--board-kind`). `check` turns the answer into what is used or raises
    ValueError.
    """

    name: str
    text: str
    default: str | None
    check: Callable[[str], str]
    problem: str | None = None


Answers = Callable[[Question], str]


def init(settings_path: Path, answers: Answers | None, *, force: bool = False, flags: Mapping[str, str] = {}) -> Path:
    """Write `settings_path` from the answers; None takes every default. Returns its path.

    An existing file is kept as `factory.yaml.bak` (`.bak2` …) with `force`, else it is a ConfigError, as is an
    answer that cannot be used after MOST_TRIES tries, and one of `flags` that answers none of the questions. Until
    then nothing is written.
    """
    path = settings_path.expanduser().absolute()
    if path.exists() and not force:
        raise ConfigError(f"{str(path)!r} exists; edit it, or use --force to write a new one (the old one is kept)")
    asked: set[str] = set()

    def noted(question: Question) -> str:
        asked.add(question.name)
        return (answers or given_answers(flags))(question)

    text = _interview(path.parent, noted)
    if idle := [_flag(name) for name, said in flags.items() if name not in asked and said != NONE]:
        raise ConfigError(
            f"{', '.join(idle)}: nothing is asked that this would answer; leave it out, or correct the others"
        )
    if path.exists():
        write_atomically(_free_backup(path), path.read_bytes(), 0o600)
    write_atomically(path, text.encode(), 0o600)
    return path


def given_answers(flags: Mapping[str, str]) -> Answers:
    """Answers from flags by the question's name, else the defaults; asks nobody. An unusable one is a ConfigError."""

    def answer(question: Question) -> str:
        flag = _flag(question.name)
        if question.problem is not None:
            raise ConfigError(f"{flag}: {question.problem}")
        if question.name not in flags and question.default is None:
            raise ConfigError(f"{flag} is needed: {question.text}")
        return flags.get(question.name, "")

    return answer


def terminal_answers(flags: Mapping[str, str]) -> Answers:
    """Asks on the terminal whatever no flag answers. Raises ConfigError when the input ends."""

    def answer(question: Question) -> str:
        if question.problem is None and question.name in flags:
            return flags[question.name]
        if question.problem is not None:
            print(f"  {question.problem}", file=sys.stderr)
        shown = f" [{question.default}]" if question.default is not None else ""
        print(f"{question.text}{shown}: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise ConfigError(
                "the input ended before all questions were answered; nothing was written. `--defaults` asks nothing"
            )
        return line.strip()

    return answer


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def variables_to_set(path: Path) -> tuple[str, ...]:
    """The environment variables that the file names as `$NAME` and that are not set or empty."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    named = dict.fromkeys(re.findall(r": \$([A-Za-z_]\w*)", "\n".join(lines)))
    return tuple(name for name in named if not os.environ.get(name, "").strip())


def _free_backup(path: Path) -> Path:
    """Not the name of an earlier copy: the first one kept is the one a person wrote."""
    number = 1
    while (backup := path.with_name(f"{path.name}.bak{number if number > 1 else ''}")).exists():
        number += 1
    return backup


def _ask(answers: Answers, question: Question) -> str:
    for _ in range(MOST_TRIES):
        said = answers(question).strip() or question.default
        try:
            if said is None:
                raise ValueError("an answer is needed")
            return question.check(said)
        except ValueError as error:
            question = replace(question, problem=str(error))
    raise ConfigError(f"{question.name} could not be understood {MOST_TRIES} times: {question.problem}")


def _interview(home: Path, answers: Answers) -> str:
    """All questions, and the file they make."""

    def ask(name: str, text: str, default: str | None, check: Callable[[str], str]) -> str:
        return _ask(answers, Question(name, text, default, check))

    repository = _ask_repository(ask)
    board = _ask_board(ask, home, repository)
    model = ask("model", "Model: embedded, openai/NAME (any OpenAI-compatible endpoint) or anthropic/NAME", "embedded",
                _model)  # fmt: skip
    url = ask("model_url", "Address of the endpoint (none: the vendor's own)", NONE, _url) if "/" in model else NONE
    slots = ask("slots", "Model calls at the same time on this machine", "2", _accepted(Settings, "model_slots"))
    notify = ask("notify", "Where to report trouble: none, slack, or the address of a webhook", NONE, _notify)
    return _written(board, repository, {"model": model, "model_url": url, "model_slots": slots}, notify)


Ask = Callable[[str, str, str | None, Callable[[str], str]], str]


def _ask_repository(ask: Ask) -> dict[str, Any]:
    """The `repositories` section: name -> values."""
    path = ask("repository", "Path of a repository to work on (none: later)", _proposed(Path.cwd()), _checkout)
    if path == NONE:
        return {}
    values: dict[str, Any] = {"path": path}
    origin = origin_of(Path(path))
    project = ask("github", "GitHub project for its pull requests, owner/name (none: they are files)",
                  (github_project(origin) if origin else None) or NONE, _or_none(_accepted(GitHubBoardSection, "project")))  # fmt: skip
    if project != NONE:
        origin = f"https://github.com/{project}.git"
        values["github"] = {"project": project, "token": f"${_TOKENS['github']}"}
    remote = ask("remote", "Remote that branches are pushed to (none: one is made in home)",
                 origin if project != NONE else NONE, str)  # fmt: skip
    if remote != NONE:
        values["remote"] = remote
    return {_name(Path(path).name): values}


def _proposed(here: Path) -> str:
    """The repository of the current folder. Not the factory's own: whoever sets it up stands in it, with other work in mind."""
    found = next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), None)
    own = Path(__file__).parents[1]
    return NONE if found is None or found.resolve() == own.resolve() else str(found)


def _ask_board(ask: Ask, home: Path, repositories: Mapping[str, Any]) -> dict[str, Any]:
    """The one board, as its section's values; `kind` is also its name."""
    name = next(iter(repositories), "")
    repository: dict[str, Any] = repositories.get(name, {})
    project = repository.get("github", {}).get("project")
    usual = "github" if project else "folder"
    kind = ask("board", "Where tickets come from: folder, github, linear or jira", usual, _board)
    letters = re.sub(r"[^A-Z0-9]", "", name.upper()).lstrip("0123456789") or None
    values: dict[str, Any] = {"kind": kind}
    if kind == "folder":
        values["path"] = ask("board_path", "Folder of Markdown tickets", str(home / "board"), _folder)
    elif kind == "github":
        values["project"] = ask("board_project", "GitHub project of the issues, owner/name", project,
                                _accepted(GitHubBoardSection, "project"))  # fmt: skip
    elif kind == "linear":
        values["team"] = ask("board_team", "Key of the Linear team, as in ENG-12", letters,
                             _accepted(LinearBoardSection, "team"))  # fmt: skip
    else:
        values["project"] = ask("board_project", "Key of the Jira project, as in ENG-12", letters,
                                _accepted(JiraBoardSection, "project"))  # fmt: skip
        values["url"] = ask("board_url", "Address of the site, https://SITE.atlassian.net", None, _site)
        values["email"] = ask("board_email", "E-mail of the account whose API token is used", None, _email)
    if kind in _TOKENS:
        values["token"] = f"${_TOKENS[kind]}"
    return {**values, "repository": name} if name else values


def _board(said: str) -> str:
    kinds = ("folder", "github", "linear", "jira")
    if said.lower() not in kinds:
        raise ValueError(f"{said!r} is no kind of board; choose {', '.join(kinds)}")
    return said.lower()


def _checkout(said: str) -> str:
    if said == NONE:
        return said
    path = Path(said).expanduser().absolute()
    if not ((path / ".git").exists() or (path / "HEAD").is_file()):
        raise ValueError(f"{str(path)!r} is not a git repository; name its top folder")
    return str(path)


def _folder(said: str) -> str:
    path = Path(said).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise ValueError(f"{str(path)!r} is a file; name a folder")
    return str(path)


def _model(said: str) -> str:
    if said != "embedded" and not re.fullmatch(r"(openai|anthropic)/\S+", said):
        raise ValueError(f"{said!r} is no model; use embedded, openai/NAME or anthropic/NAME")
    return said


def _url(said: str) -> str:
    if said != NONE and not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", said):
        raise ValueError(f"{said!r} is no address; write http://HOST:PORT/v1 or https://HOST/v1, without a password")
    return said


def _site(said: str) -> str:
    if said == NONE:
        raise ValueError("an address is needed, such as https://SITE.atlassian.net")
    return _url(said).rstrip("/")


def _email(said: str) -> str:
    if not re.fullmatch(r"[^\s@]+@[^\s@]+", said):
        raise ValueError(f"{said!r} is no e-mail address")
    return said


def _notify(said: str) -> str:
    return said if said in (NONE, "slack") else _url(said)


def _accepted(section: type[BaseModel] | type[BaseSettings], field: str) -> Callable[[str], str]:
    """Accepts what the section's own field accepts, so that there is one rule."""
    info = section.model_fields[field]
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[info.annotation, info])  # type: ignore[arg-type]  # mypy wants it spelled out

    def check(said: str) -> str:
        try:
            return str(adapter.validate_python(said))
        except ValidationError as error:
            raise ValueError(f"{said!r} cannot be used: {error.errors()[0]['msg']}") from None

    return check


def _or_none(check: Callable[[str], str]) -> Callable[[str], str]:
    return lambda said: said if said == NONE else check(said)


def _name(folder: str) -> str:
    return re.sub(r"[^\w.-]+", "-", folder.removesuffix(".git")).strip("-") or "repository"


_HEAD = """\
# Settings of the factory. Lines that begin with `#name:` show defaults; remove the `#` to change one.
# Secrets stay out of this file: `$NAME` is read from the environment variable NAME.
# Edits apply from the next tick on; a mistake keeps the last good settings. Check with `darkfactory doctor`.
"""
_ELSEWHERE = ("home", "model", "model_url", "model_slots", "model_key", "boards", "repositories", "dispatch", "notify",
              "webhooks", "strong")  # fmt: skip
"""Top-level settings that have a part of the file of their own; the others are listed with their defaults."""


def _written(board: dict[str, Any], repositories: dict[str, Any], model: dict[str, str], notify: str) -> str:
    kind = board["kind"]
    parts = [_HEAD, "# Where tickets come from.\nboards:", _lines({kind: board}, 2), _defaults(_BOARDS[kind], 4, board),
             "\n# What may be worked on.\nrepositories:", _lines(repositories, 2),
             "" if repositories else "  #NAME: {path: /path/to/a/checkout}",
             "\n# Who thinks. The key of a vendor is read from OPENAI_API_KEY or ANTHROPIC_API_KEY.",
             _lines({name: yaml.safe_load(value) for name, value in model.items() if value != NONE}, 0),
             "#model_url: null" if model["model_url"] == NONE else "",
             "# Takes over for the last attempt.\n#strong: {model: anthropic/NAME, key: $STRONG_MODEL_KEY}",
             "\n# How work is handed out. Times in seconds.\ndispatch:", _defaults(DispatchSection, 2),
             "\n# Whom to tell about pauses, questions and faults.\nnotify:", _notify_lines(notify),
             "\n# Receivers of webhooks; a service without a secret is refused.\nwebhooks:", _webhook_lines(),
             "\n# Everything else; the meaning of each line is in docs/configuration.md.",
             _defaults(Settings, 0, dict.fromkeys(_ELSEWHERE))]  # fmt: skip
    return "\n".join(part for part in parts if part) + "\n"


_BOARDS: dict[str, type[AnyBoard]] = {
    "folder": FolderBoardSection, "github": GitHubBoardSection, "linear": LinearBoardSection, "jira": JiraBoardSection,
}  # fmt: skip


def _notify_lines(notify: str) -> str:
    slack = f"  {'' if notify == 'slack' else '#'}slack_webhook: $SLACK_WEBHOOK_URL"
    address = _lines({"webhook": notify}, 2) if notify not in (NONE, "slack") else "  #webhook: null"
    return f"{slack}\n{address}"


def _webhook_lines() -> str:
    secrets = [name for name in WebhooksSection.model_fields if name.endswith("_secret")]
    named = [f"  #{name}: ${name.removesuffix('_secret').upper()}_WEBHOOK_SECRET" for name in secrets]
    return "\n".join([_defaults(WebhooksSection, 2, dict.fromkeys(secrets)), *named])


def _lines(values: Mapping[str, Any], indent: int) -> str:
    """Block YAML, indented."""
    if not values:
        return ""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=10_000)
    return "\n".join(" " * indent + line for line in text.splitlines())


def _defaults(section: type[BaseModel] | type[BaseSettings], indent: int, shown: Mapping[str, Any] = {}) -> str:
    """`#name: default`, one line for each field that has a default and is not shown already."""
    lines = [f"{' ' * indent}#{name}: {_inline(field.get_default(call_default_factory=True))}"
             for name, field in section.model_fields.items() if name not in shown and not field.is_required()]  # fmt: skip
    return "\n".join(lines)


def _inline(value: Any) -> str:
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    plain = str(plain) if isinstance(plain, Path) else list(plain) if isinstance(plain, tuple) else plain
    text = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()
