"""The one place that turns a board's section of factory.yaml into its adapter. A new board is a new file and a line here."""

from __future__ import annotations

from pathlib import Path

from infra.boards import Board
from infra.boards.folder import FolderBoard
from infra.errors import ConfigError
from infra.sections import BoardSection, FolderBoardSection, GitHubBoardSection, JiraBoardSection, LinearBoardSection
from infra.settings import Settings


def open_board(settings: Settings, name: str) -> Board:
    """The configured board `name`. Makes no request. Raises ConfigError with the known names."""
    boards = settings.all_boards
    if name not in boards:
        raise ConfigError(f"no board is named {name!r}; factory.yaml has {', '.join(sorted(boards))}")
    return open_section(name, boards[name], settings.answers)


def open_section(name: str, section: BoardSection, answers: Path | None = None) -> Board:
    """The adapter of one section, which may keep what it read in the folder `answers`. Imports only what that board needs."""
    match section:
        case FolderBoardSection():
            return FolderBoard(section.path.expanduser().absolute(), section, name)
        case GitHubBoardSection():
            from infra.boards.github import GitHubBoard

            return GitHubBoard(name, section, answers)
        case LinearBoardSection():
            from infra.boards.linear import LinearBoard

            return LinearBoard(name, section)
        case JiraBoardSection():
            from infra.boards.jira import JiraBoard

            return JiraBoard(name, section)
