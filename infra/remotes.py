"""Questions about a git repository that need no mirror: whether it answers, and where a checkout came from."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from infra.errors import Unreachable
from infra.git import _ENVIRONMENT, _checked_source, _Failed, _naming_remote_errors, _options, _server


def count_branches(source: str, timeout_seconds: float) -> int:
    """Ask a repository (path or address) for its branches, as a run would. Fetches nothing.

    Raises ConfigError (no such repository), AuthFailed, or Unreachable, also when it does not answer in time.
    """
    checked = _checked_source(source)
    with _naming_remote_errors():
        listing = _run(
            "ls-remote", "--heads", *_server("upload-pack", checked), checked, timeout_seconds=timeout_seconds
        )
    return len(listing.splitlines())


def origin_of(checkout: Path) -> str | None:
    """The address of the checkout's remote `origin`, without user and password, or None. Reads only its config file."""
    config = checkout / ".git" / "config"
    with suppress(_Failed, Unreachable):
        if config.is_file():
            address = _run("config", "--file", str(config), "--get", "remote.origin.url", timeout_seconds=10).strip()
            return _without_credentials(address) or None
    return None


def github_project(address: str) -> str | None:
    """`owner/name` when the address is one of github.com, else None."""
    found = re.fullmatch(r"(?:https?://|ssh://git@|git@)github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?", address)
    return found[1] if found else None


def _without_credentials(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https"):
        return address
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _run(*arguments: str, timeout_seconds: float) -> str:
    """The output of git, which ends with all its children when the time is over."""
    process = subprocess.Popen(
        ["git", *_options(), *arguments],
        cwd="/", env={"PATH": os.environ.get("PATH", os.defpath), **_ENVIRONMENT}, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        try:
            stdout, stderr = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            raise Unreachable(f"git got no answer within {timeout_seconds:.0f} s") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise _Failed(arguments, stderr.decode(errors="replace"))
    return stdout.decode(errors="replace")
