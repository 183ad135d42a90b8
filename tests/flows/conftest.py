"""A whole factory for one test: real git, PostgreSQL, Prefect and bubblewrap, and a model whose answers are written down."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.database import Database
from infra.ledger import Ledger, TicketHistory
from infra.llm.scripted import ScriptedModel
from infra.logs import PACKAGES, Lines
from infra.postgres import open_databases
from infra.settings import load_settings
from tests.shop import ROLES, left_behind, make_repository, script

if TYPE_CHECKING:
    from tasks.models import Outcome


class Factory:
    """One home with a board, a repository and a scripted model; `run` is what the command line does, in this process."""

    def __init__(self, folder: Path, model: ScriptedModel) -> None:
        self.home, self.board = folder / "home", folder / "home" / "board"
        self.repository = make_repository(folder / "shop")
        self.model = model

    async def run(self, key: str) -> Outcome:
        from flows.ticket import work_ticket

        return await work_ticket(key, str(self.repository))

    def forget(self) -> None:
        """What a process opens once is opened anew, as if the next run were in a process of its own."""
        from tasks import services

        services.close()
        services._opening = asyncio.Lock()

    def calls(self) -> list[str]:
        """The role of every request the model got, in order."""
        return [ROLES[r.rule] if r.rule is not None else "unknown" for r in self.model.requests]

    def pull_request(self, key: str) -> Path | None:
        return next(iter((self.home / "forge").glob(f"*/pulls/agent--{key}*.md")), None)

    def remote(self) -> Path:
        return next((self.home / "forge").glob("*/repo.git"))

    def leftovers(self) -> list[str]:
        """Checkouts, processes and held locks of this home that a run should have got rid of."""
        return left_behind(self.home)

    def history(self, key: str) -> TicketHistory:
        with Ledger(Database(open_databases(load_settings()).ledger)) as ledger:
            return ledger.history(key)


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """What our own packages log while inside, in the form of the run's log."""
    written, prefects = io.StringIO(), logging.getLogger("prefect")
    handler, level = logging.StreamHandler(written), prefects.level
    handler.setFormatter(Lines())
    loggers = [logging.getLogger(name) for name in PACKAGES]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.INFO)
    prefects.setLevel(logging.CRITICAL + 1)
    logging.disable(logging.NOTSET)
    try:
        yield written
    finally:
        logging.disable(logging.CRITICAL)
        prefects.setLevel(level)
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True
            logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def _prefect(prefect_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prefect of this process talks to the server of the session and keeps nothing in the user's home."""
    from prefect.events.worker import EventsWorker
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_HOME,
        PREFECT_LOGGING_TO_API_ENABLED,
        PREFECT_RESULTS_PERSIST_BY_DEFAULT,
        temporary_settings,
    )

    home = tmp_path_factory.mktemp("prefect-client")
    with temporary_settings(
        {
            PREFECT_API_URL: prefect_url,
            PREFECT_HOME: home,
            PREFECT_RESULTS_PERSIST_BY_DEFAULT: True,
            PREFECT_LOGGING_TO_API_ENABLED: False,
        }
    ):
        yield
        EventsWorker.drain_all()
        with warnings.catch_warnings():  # Prefect leaves a connection to its server open
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


@pytest.fixture
def factory(_prefect: None, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Factory]:
    """A factory whose model answers right at once; set `factory.model.rules` for another story."""
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    with ExitStack() as stack:
        model = stack.enter_context(ScriptedModel(script()))
        made = Factory(tmp_path, model)
        for name, value in {
            "HOME": str(made.home),
            "DATABASE_URL": database_url,
            "MODEL": "openai/scripted",
            "MODEL_URL": model.openai_url,
            "MODEL_TIER": "small",
            "MAX_SAMPLES": "2",
        }.items():
            monkeypatch.setenv(f"DARKFACTORY_{name}", value)
        monkeypatch.setattr("tasks.coding.EDIT_SEARCH_SECONDS", 3.0)  # a search that finds nothing takes all it may
        made.forget()
        stack.enter_context(temporary_settings({PREFECT_LOCAL_STORAGE_PATH: made.home / "results"}))
        logging.disable(logging.CRITICAL)  # Prefect's handler writes to the stderr of the test that came first
        stack.callback(logging.disable, logging.NOTSET)
        yield made
        made.forget()
