"""Flows for the tests of the worker; they leave notes in the folder they are told."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import time
from pathlib import Path

from prefect import flow

from infra.logs import about

DAEMON = "(env -i setsid sleep 300 > /dev/null 2>&1 & echo $!)"


@flow(name="greet", persist_result=False)
async def greet(folder: str) -> None:
    """Writes when its first line ran, and how its process stands in the world."""
    print("hello from the run")
    note = f"{time.time()} {os.getpid()} {os.getsid(0)} {os.environ['DARKFACTORY_RUN']} {Path.cwd()}"
    Path(folder, "greeted").write_text(note)


@flow(name="shout", persist_result=False)
async def shout(folder: str) -> None:
    """Writes 12 MB to its log."""
    for number in range(120):
        print(f"{number:9}", "x" * 100_000)


@flow(name="linger", persist_result=False)
async def linger(folder: str, name: str) -> None:
    """Starts a process in a session of its own and a daemon that shook off parent, session and environment, and stays."""
    with about(board="shop", ticket="SHOP-7"):
        logging.getLogger("tasks.sample").info("outcome=lingers reason=%s", "a\nb with sk-" + "a1B2c3" * 5)
    sleeper = subprocess.Popen(["sleep", "300"], start_new_session=True)
    daemon = subprocess.check_output(["sh", "-c", DAEMON], text=True)
    draft = Path(folder, f".{name}")
    draft.write_text(f"{os.getpid()} {sleeper.pid} {daemon}")
    draft.rename(Path(folder, name))
    await asyncio.sleep(300)
