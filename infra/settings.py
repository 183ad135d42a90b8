"""Everything a user can set: `factory.yaml`, then environment variables `DARKFACTORY_*`, which win.

Only the `open_*` factories of `infra` read this. Secrets come from the environment and are never written anywhere.
"""

from __future__ import annotations

import os
import platform
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from infra.errors import ConfigError
from infra.llm import Tier
from infra.sections import (
    BoardSection,
    DispatchSection,
    FolderBoardSection,
    NotifySection,
    RepositorySection,
    StrongModelSection,
    WebhooksSection,
)


class Settings(BaseSettings):
    """One machine's settings. Times in seconds, sizes in bytes, money in USD."""

    model_config = SettingsConfigDict(env_prefix="DARKFACTORY_", extra="forbid", frozen=True)

    home: Path = Path("~/.darkfactory")
    model: str = "embedded"
    """`embedded`, `openai/MODEL` (any OpenAI-compatible endpoint) or `anthropic/MODEL`."""
    model_url: str | None = None
    """Base URL of an `openai/...` endpoint (with `/v1`) or of the Anthropic API; None: the vendor's own."""
    model_key: SecretStr | None = None
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
    sandbox: Literal["bubblewrap", "none"] = "bubblewrap"
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
    strong: StrongModelSection | None = None
    """Takes over at attempt 3 (I9); None: every attempt uses `model`."""
    node: str | None = None
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
        path = config_path()
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        return (*sources, YamlConfigSettingsSource(settings_cls, yaml_file=path)) if path else sources

    @cached_property
    def root(self) -> Path:
        """The home folder, absolute."""
        return self.home.expanduser().absolute()

    @cached_property
    def all_boards(self) -> dict[str, BoardSection]:
        """`boards`, with the folder board `folder` when it is named by `board` or is the only one."""
        if self.boards and (self.board is None or "folder" in self.boards):
            return self.boards
        return {"folder": FolderBoardSection(path=self.board or self.root / "board"), **self.boards}

    @cached_property
    def node_name(self) -> str:
        return self.node or platform.node() or "node"

    @property
    def tier(self) -> Tier:
        return self.model_tier or ("small" if self.model == "embedded" else "capable")


def config_path() -> Path | None:
    """DARKFACTORY_CONFIG, else <home>/factory.yaml; None when there is none.

    Never the current folder's: that may be a repository, and its file could turn the sandbox off.
    """
    named = os.environ.get("DARKFACTORY_CONFIG")
    if named:
        if not Path(named).is_file():
            raise ConfigError(
                f"DARKFACTORY_CONFIG names {named!r}, which is not a file; create it or unset the variable"
            )
        return Path(named)
    home = Path(os.environ.get("DARKFACTORY_HOME", "~/.darkfactory")).expanduser()
    return home / "factory.yaml" if (home / "factory.yaml").is_file() else None


def load_settings(**overrides: Any) -> Settings:
    """Read and check all settings. Raises ConfigError with one line per mistake."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e.get('input')!r:.80})" for e in error.errors()]
        raise ConfigError(
            "settings are not valid; correct these in factory.yaml or the environment:\n  " + "\n  ".join(lines)
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{str(config_path())!r} is not valid YAML: {error}") from None
    except (SettingsError, ValueError, TypeError) as error:
        places = f"the environment (DARKFACTORY_*) and {str(config_path())!r}"
        raise ConfigError(
            f"a setting cannot be read: {error}; look in {places}; lists and mappings are JSON there"
        ) from None
