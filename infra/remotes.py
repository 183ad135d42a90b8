"""Questions about a git repository that need no mirror: where it is, whether it answers, where a checkout came from."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr

from infra.errors import Unreachable
from infra.git import Remote, _ask, _Failed, _git
from infra.sections import GitHubForgeSection, RepositorySection


def remote_of(repository: RepositorySection) -> str | None:
    """Where its branches are pushed: `remote`, else its project on GitHub, else None (a bare repository in home)."""
    if repository.remote is None and repository.github is not None:
        return _address_of(repository.github)
    return repository.remote


def token_of(repository: RepositorySection | None) -> SecretStr | None:
    """What an http(s) remote of the repository is reached with."""
    return repository.github.token if repository and repository.github else None


def _address_of(forge: GitHubForgeSection) -> str:
    """The project's https address. GitHub's API is at `api.` before the host of its repositories; an own server's is
    a path of that host.
    """
    parts = urlsplit(forge.url)
    return urlunsplit((parts.scheme, parts.netloc.removeprefix("api."), f"/{forge.project}.git", "", ""))


def count_branches(source: str, timeout_seconds: float, token: SecretStr | None = None) -> int:
    """Ask a repository (path or address) for its branches, as a run would. Fetches nothing.

    Raises ConfigError (no such repository), AuthFailed, or Unreachable, also when it does not answer in time.
    """
    remote = Remote.checked(source, token)
    asked = ("ls-remote", "--heads", *remote.server, remote.address)
    return len(_ask(remote, *asked, cwd=Path("/"), timeout_seconds=timeout_seconds).splitlines())


def origin_of(checkout: Path) -> str | None:
    """The address of the checkout's remote `origin`, without user and password, or None. Reads only its config file."""
    config = checkout / ".git" / "config"
    with suppress(_Failed, Unreachable):
        if config.is_file():
            asked = ("config", "--file", str(config), "--get", "remote.origin.url")
            address = _git(*asked, cwd=Path("/"), timeout_seconds=10).decode(errors="replace").strip()
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
