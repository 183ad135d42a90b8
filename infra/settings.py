"""Everything a user can set: `factory.yaml`, then environment variables `DARKFACTORY_*`, which win.

Only the `open_*` factories of `infra` read this. Secrets come from the environment and are never written anywhere.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from infra.chores import CHORES
from infra.errors import ConfigError
from infra.llm import Tier
from infra.mistakes import Conflicts, Document, Place, explain, nearest, read_document
from infra.sections import (
    AgentSection,
    BoardSection,
    BudgetsSection,
    DispatchSection,
    FolderBoardSection,
    HousekeepingSection,
    LearningSection,
    Level,
    MemorySection,
    ModelSection,
    NotifySection,
    PlaybooksSection,
    RepairSection,
    RepositorySection,
    RoleSection,
    Secret,
    StrongModelSection,
    WebhooksSection,
)

_document: ContextVar[Document | None] = ContextVar("document", default=None)
"""The file's content while `parse_settings` reads it; None: the file of `config_path` is read."""
NODE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"


class Settings(BaseSettings):
    """One machine's settings. Times in seconds, sizes in bytes, money in USD."""

    model_config = SettingsConfigDict(env_prefix="DARKFACTORY_", extra="forbid", frozen=True)

    home: Path = Path("~/.darkfactory")
    model: str = "embedded"
    """`embedded`, `openai/MODEL` (any OpenAI-compatible endpoint) or `anthropic/MODEL`."""
    model_url: str | None = None
    """Base URL of an `openai/...` endpoint (with `/v1`) or of the Anthropic API; None: the vendor's own."""
    model_key: Secret | None = None
    """API key; None: OPENAI_API_KEY or ANTHROPIC_API_KEY of the environment."""
    model_tier: Tier | None = None
    """None: `small` for `embedded`, `capable` for the rest."""
    model_context_tokens: int | None = Field(default=None, gt=0)
    model_timeout_seconds: float = Field(default=300, gt=0)
    """Longest silence of the endpoint."""
    model_slots: int = Field(default=2, ge=1)
    """Calls to the model that run at the same time on this node."""
    model_usd_per_million_tokens: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Price of prompt, cached prompt and completion tokens."""
    weights_path: Path | None = None
    """Use these weights for `embedded` (the digest is still checked); None: downloaded into home."""

    database_url: str | None = None
    """PostgreSQL for ledger and Prefect, `postgresql://…`; None: the embedded server."""
    sandbox: Literal["bubblewrap", "docker", "podman", "none"] = "bubblewrap"
    sandbox_image: str | None = None
    """Image of the container backends; it needs a shell, git and the repository's toolchain."""
    command_timeout_seconds: float = Field(default=600, gt=0)
    command_output_bytes: int = Field(default=1_000_000, gt=0)
    command_memory_bytes: int = Field(default=4 << 30, gt=0)

    board: Path | None = None
    """Folder of Markdown tickets, the board named `folder`; None: `<home>/board`."""
    boards: dict[str, BoardSection] = {}
    """Boards by name; empty: only the folder of `board`."""
    repositories: dict[str, RepositorySection] = {}
    dispatch: DispatchSection = DispatchSection()
    notify: NotifySection = NotifySection()
    webhooks: WebhooksSection = WebhooksSection()
    models: dict[str, ModelSection] = {}
    """Models by name, in order of preference; empty: only `model`, and `strong`."""
    roles: dict[str, RoleSection] = {}
    """Role -> level or agent; a role that is not named uses the usual level."""
    agents: dict[str, AgentSection] = {}
    budgets: BudgetsSection = BudgetsSection()
    memory: MemorySection = MemorySection()
    learning: LearningSection = LearningSection()
    playbooks: PlaybooksSection = PlaybooksSection()
    repair: RepairSection = RepairSection()
    housekeeping: HousekeepingSection = HousekeepingSection()
    strong: StrongModelSection | None = None
    """Takes over at attempt 3 (I9); None: every attempt uses `model`."""
    node: str | None = Field(default=None, pattern=NODE_NAME)
    """This machine's name among the nodes; None: its host name."""
    max_rounds: int = Field(default=2, ge=1, le=10)
    max_samples: int = Field(default=5, ge=1, le=20)
    max_diff_lines: int = Field(default=500, ge=1)
    max_diff_files: int = Field(default=10, ge=1)
    seed: int = 0

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        document = _document.get() or read_settings_file(config_path())
        return (init_settings, env_settings, InitSettingsSource(settings_cls, _given(document.values)))

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if found := [
            *_shared_tickets(self),
            *_unknown_repositories(self),
            *_unknown_agents(self),
            *_mixed_models(self),
            *_missing_strong(self),
            *_wrong_housekeeping(self),
            *_wrong_repair(self),
        ]:
            raise Conflicts(found)
        return self

    @cached_property
    def root(self) -> Path:
        """The home folder, absolute."""
        return self.home.expanduser().absolute()

    @cached_property
    def answers(self) -> Path:
        """Where adapters keep what a service answered, to have it confirmed instead of reading it again."""
        return self.root / "run" / "answers"

    @cached_property
    def all_boards(self) -> dict[str, BoardSection]:
        """`boards`, with the folder board `folder` when it is named by `board` or is the only one."""
        if self.boards and (self.board is None or "folder" in self.boards):
            return self.boards
        return {"folder": FolderBoardSection(path=self.board or self.root / "board"), **self.boards}

    @cached_property
    def node_name(self) -> str:
        return self.node or platform.node() or "node"

    def of_level(self, level: Level) -> dict[str, ModelSection]:
        """The models of a level by name, in order of preference; without `models` those of `model` and `strong`."""
        models = self.models or self._plain_models()
        return {name: section for name, section in models.items() if section.level == level}

    def _plain_models(self) -> dict[str, ModelSection]:
        usual = ModelSection(
            model=self.model,
            url=self.model_url,
            key=self.model_key,
            tier=self.model_tier,
            context_tokens=self.model_context_tokens,
        )
        if "model_usd_per_million_tokens" in self.model_fields_set:  # else the price list's
            usual = usual.model_copy(update={"usd_per_million_tokens": self.model_usd_per_million_tokens})
        if self.strong is None:
            return {"model": usual}
        return {"model": usual, "strong": ModelSection(level="strong", **self.strong.model_dump(exclude_unset=True))}

    def providers_of(self, level: Level) -> str:
        """Who answers the calls of a level, as nodes and jobs carry it: names like `provider`, see `split_providers`."""
        names = (provider_of(each.model, each.url, self.node_name) for each in self.of_level(level).values())
        return PROVIDERS_BETWEEN.join(dict.fromkeys(names))

    @property
    def provider(self) -> str:
        """Who answers the model's calls, as pauses name it: `embedded@NODE`, `openai`, `anthropic`, or with its host."""
        return provider_of(self.model, self.model_url, self.node_name)

    @cached_property
    def machine(self) -> str:
        """This home on this machine: where the kernel locks of its runs live."""
        return f"{platform.node()}:{self.root}"

    @property
    def tier(self) -> Tier:
        return self.model_tier or ("small" if self.model == "embedded" else "capable")


PROVIDERS_BETWEEN = ", "


def split_providers(providers: str) -> tuple[str, ...]:
    """The names in `Settings.providers_of`. Any of them can answer, so work waits only when all of them are paused."""
    return tuple(providers.split(PROVIDERS_BETWEEN))


def provider_of(model: str, url: str | None, node: str) -> str:
    """`model` and `url` as in the settings."""
    if model == "embedded":
        return f"embedded@{node}"
    return f"{model.partition('/')[0]}@{urlsplit(url).netloc}" if url else model.partition("/")[0]


def config_path() -> Path | None:
    """DARKFACTORY_CONFIG, else <home>/factory.yaml; None when there is none.

    Never the current folder's: that may be a repository, and its file could turn the sandbox off.
    """
    path = wanted_config_path()
    if path.is_file():
        return path
    if os.environ.get("DARKFACTORY_CONFIG"):
        raise ConfigError(
            f"DARKFACTORY_CONFIG names {str(path)!r}, which is not a file; create it or unset the variable"
        )
    if os.path.lexists(path):
        raise ConfigError(f"{str(path)!r} is not a file; move it away, or put a file there")
    return None


def wanted_config_path() -> Path:
    """Where factory.yaml is looked for, whether it is there or not."""
    home = Path(os.environ.get("DARKFACTORY_HOME", "~/.darkfactory")).expanduser()
    return Path(os.environ.get("DARKFACTORY_CONFIG") or home / "factory.yaml")


def read_settings_file(path: Path | None) -> Document:
    """What the file says; nothing for None. Raises ConfigError."""
    return Document({}, {}) if path is None else read_document(settings_text(path), str(path))


def settings_text(path: Path) -> str:
    """The file's text. Raises ConfigError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error}; correct it") from None


def load_settings(**overrides: Any) -> Settings:
    """Read and check all settings. Raises ConfigError with one line per mistake."""
    path = config_path()
    return _built(read_settings_file(path), str(path) if path else None, overrides)


def parse_settings(text: str, name: str) -> Settings:
    """As `load_settings`, with `text` as the content of the file `name` (environment variables still win)."""
    return _built(read_document(text, name), name, {})


def _built(document: Document, name: str | None, overrides: dict[str, Any]) -> Settings:
    token = _document.set(document)
    try:
        return Settings(**overrides)
    except ValidationError as error:
        places = f"{name!r} or the environment" if name else "the environment"
        lines = _without_overridden(document.lines)
        raise ConfigError(
            f"settings are not valid; correct these in {places}:\n  " + "\n  ".join(explain(error, Settings, lines))
        ) from None
    except (SettingsError, ValueError, TypeError) as error:
        raise ConfigError(
            f"a setting cannot be read: {error}; look in the environment (DARKFACTORY_*); lists and mappings are JSON there"
        ) from None
    finally:
        _document.reset(token)


def _without_overridden(lines: Mapping[Place, int]) -> dict[Place, int]:
    """The lines of the file that the environment does not override: a mistake may stand there instead."""
    named = {name.lower() for name in os.environ}
    return {place: line for place, line in lines.items() if f"darkfactory_{place[0]}".lower() not in named}


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """A section of which every line is commented out is an absent one."""
    return {name: value for name, value in values.items() if value is not None}


def _shared_tickets(settings: Settings) -> Iterator[tuple[Place, str]]:
    """Two boards must neither hold the same tickets nor give the same keys: a key names one ticket of the factory."""
    owners: dict[str, str] = {}
    for name, board in settings.all_boards.items():
        for mark, words in _marks(board):
            first = owners.setdefault(mark, name)
            if first != name:
                yield ("boards", name), f"{words} is also that of the board {first!r}; {_REMEDY[board.kind]}"


_REMEDY = {
    "folder": "give one of them another `path`",
    "github": "give one of them another `project`, or another `key_prefix`",
    "linear": "remove one of them, or change the other's `key_prefix` or `team`",
    "jira": "remove one of them, or change the other's `key_prefix` or `project`",
}


def _marks(board: BoardSection) -> list[tuple[str, str]]:
    """What no two boards may share, and the words for it: the source of the tickets and what their keys begin with."""
    match board.kind:
        case "folder":
            path = str(board.path.expanduser().absolute())
            return [(path, f"the folder {path!r}")]
        case "github":
            prefix = board.key_prefix or board.project.partition("/")[2]
            return [(f"github {board.url} {board.project}".lower(), f"the project {board.project!r}"), _key(prefix)]
        case "linear":
            return [_key(board.team)]
        case "jira":
            return [_key(board.project)]


def _key(prefix: str) -> tuple[str, str]:
    return f"key {prefix.lower()}", f"the key prefix {prefix!r}"


def _mixed_models(settings: Settings) -> Iterator[tuple[Place, str]]:
    """`models` replaces the plain settings, and the models of a level have to be able to stand in for one another."""
    for name in sorted({"model", "strong"} & settings.model_fields_set if settings.models else ()):
        if getattr(settings, name) is not None:
            yield (name,), "`models` takes its place; move it there, or remove one of the two"
    if not settings.of_level("usual"):
        yield ("models",), "none of them has `level: usual`, which every role uses at first; add one"
    for level in get_args(Level):
        models = settings.of_level(level)
        for name, section in models.items():
            first = next(iter(models))
            if section.actual_tier != models[first].actual_tier:
                yield (
                    ("models", name),
                    f"this model is {section.actual_tier} and {first!r} of the same level is {models[first].actual_tier}; "
                    "one cannot stand in for the other: correct a `tier`, or give one of them the other `level`",
                )


def _missing_strong(settings: Settings) -> Iterator[tuple[Place, str]]:
    for name, role in settings.roles.items():
        if (role.level == "strong" or role.strong_from_effort) and not settings.of_level("strong"):
            yield (
                ("roles", name),
                "it asks for a strong model and there is none; add `strong`, or a model of that level",
            )


def _unknown_agents(settings: Settings) -> Iterator[tuple[Place, str]]:
    for role, section in settings.roles.items():
        yield from _not_among(settings.agents, "agents", ("roles", role, "agent"), section.agent)


def _wrong_housekeeping(settings: Settings) -> Iterator[tuple[Place, str]]:
    """Chores that are not shipped, and a board that is not there or has to be named."""
    section = settings.housekeeping
    for name in section.chores:
        if name not in CHORES:
            known = ", ".join(CHORES)
            yield ("housekeeping", "chores", name), f"no such chore{nearest(name, sorted(CHORES))}; known here: {known}"
    yield from _wrong_board(settings, "housekeeping", section)


def _wrong_repair(settings: Settings) -> Iterator[tuple[Place, str]]:
    section = settings.repair
    yield from _wrong_board(settings, "repair", section)
    yield from _not_among(settings.repositories, "repositories", ("repair", "repository"), section.repository)


def _wrong_board(
    settings: Settings, name: str, section: HousekeepingSection | RepairSection
) -> Iterator[tuple[Place, str]]:
    if section.enabled and section.board is None and len(settings.all_boards) > 1:
        boards = ", ".join(sorted(settings.all_boards))
        yield (name,), f"there are several boards ({boards}); name the one for new tickets with `board`"
    yield from _not_among(settings.all_boards, "boards", (name, "board"), section.board)


def _unknown_repositories(settings: Settings) -> Iterator[tuple[Place, str]]:
    for name, board in settings.boards.items():
        yield from _not_among(settings.repositories, "repositories", ("boards", name, "repository"), board.repository)


def _not_among(sections: Mapping[str, object], of: str, place: Place, named: str | None) -> Iterator[tuple[Place, str]]:
    """The mistake of a name that stands for none of the sections `of`."""
    known = sorted(sections)
    if named is not None and named not in known:
        configured = ", ".join(known) or "none"
        yield place, f"{named!r} is not in `{of}`{nearest(named, known)}; configured: {configured}"
