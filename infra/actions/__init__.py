"""Runs of the shipped workflow on GitHub Actions: start one, find it again, watch, cancel, and fetch what it made.

Nothing is retried, waited for or believed here; `tasks.actions` does that.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from infra.actions.archive import check_digest, fetch
from infra.boards.payloads import dig, moment, one_line
from infra.errors import ConfigError, LimitReached, ProviderFault, UnexpectedStatus
from infra.github import GitHub, Missing, Payload, Refused, _Forbidden, is_number
from infra.llm import Frozen
from infra.sections import ActionsSection

WORKFLOW = Path(__file__).with_name("darkfactory-unit.yml")
MAX_INPUT_CHARS = 60_000
"""GitHub takes 65 535 characters for all inputs of a dispatch together."""
JOB_MINUTES = 30
"""`timeout-minutes` of the shipped workflow: the most one unit can use up."""


class ActionsRun(Frozen):
    """A run of the workflow. `conclusion` is None until it is over."""

    id: int
    url: str = ""
    conclusion: str | None = None


class Actions:
    """The workflow of one section. All methods block; several threads may call them.

    Raises ConfigError (no workflow, no permission), AuthFailed, RateLimited, Unreachable, ProviderFault.
    """

    def __init__(self, section: ActionsSection) -> None:
        self.section = section
        self._site = GitHub(section.project, section.url, section.token.get_secret_value())
        self._actions = f"{self._site.root}/actions"
        self._workflow = f"{self._actions}/workflows/{section.workflow}"

    def dispatch(self, unit: str, repository: str, base: str, payload: str) -> int | None:
        """Start a run for the unit. Its id, or None when GitHub does not say it: then `find` knows it a little later."""
        inputs = {"unit": unit, "repository": repository, "base": base, "payload": payload}
        asked = {"ref": self.section.ref, "inputs": inputs, "return_run_details": True}
        with self._said_plainly():
            number = dig(self._site.ask("POST", f"{self._workflow}/dispatches", asked), "workflow_run_id")
        return number if is_number(number) else None

    def find(self, unit: str, since: datetime) -> ActionsRun | None:
        """The newest run of the unit that was started after `since`, by its title. GitHub lists the newest first."""
        with self._said_plainly():
            for record in self._site.pages(f"{self._workflow}/runs", "workflow_runs", event="workflow_dispatch"):
                if (moment(dig(record, "created_at")) or since) < since:
                    break
                if one_line(dig(record, "display_title")) == run_title(unit):
                    return _run(record)
        return None

    def run(self, number: int) -> ActionsRun:
        """How the run stands. Raises Missing when somebody deleted it."""
        return _run(self._site.record("GET", f"{self._actions}/runs/{number}"))

    def cancel(self, number: int) -> None:
        """End a run. One that is over, or gone, needs nothing."""
        try:
            self._site.ask("POST", f"{self._actions}/runs/{number}/cancel")
        except Missing:
            return
        except UnexpectedStatus as error:
            if " with 409: " not in str(error):  # it is over already
                raise

    def minutes(self, number: int) -> int:
        """Minutes that GitHub bills for the run: each job's time, rounded up. A job that never started costs nothing."""
        return sum(_minutes(job) for job in self._site.pages(f"{self._actions}/runs/{number}/jobs", "jobs"))

    def has_commit(self, repository: str, sha: str) -> bool:
        """Whether the runner will find the commit in the repository (`owner/name`)."""
        try:
            self._site.ask("GET", f"/repos/{repository}/git/commits/{sha}")
        except (Missing, Refused):
            return False
        return True

    def artifact(self, number: int, unit: str) -> bytes:
        """The archive that the run left, of the digest that GitHub noted. Raises ProviderFault when there is none."""
        listed = self._site.pages(f"{self._actions}/runs/{number}/artifacts", "artifacts")
        found = next((each for each in listed if dig(each, "name") == artifact_name(unit)), None)
        if found is None or dig(found, "expired") is not False or not is_number(found.get("id")):
            raise ProviderFault(f"run {number} left no artifact {artifact_name(unit)!r}; see its log on GitHub")
        archive = fetch(self._site.redirect(f"{self._actions}/artifacts/{found['id']}/zip"))
        check_digest(archive, one_line(found.get("digest")))
        return archive

    @contextmanager
    def _said_plainly(self) -> Iterator[None]:
        """What a person has to change, in place of GitHub's words for it."""
        name, project = self.section.workflow, self.section.project
        try:
            yield
        except Missing as error:
            raise ConfigError(
                f"{project!r} has no workflow {name!r} on {self.section.ref!r}; write it with `darkfactory actions --install "
                "CHECKOUT --package WHAT`, commit and push it (to the default branch, too)"
            ) from error
        except Refused as error:
            raise ConfigError(
                f"GitHub does not start {name!r} of {project!r}: {error.words}; enable the workflow, and install it anew"
            ) from error
        except _Forbidden as error:
            raise ConfigError(
                f"{error}; the token of `actions` needs the permission Actions: read and write"
            ) from error


def run_title(unit: str) -> str:
    """`run-name` of the shipped workflow."""
    return f"darkfactory unit {unit}"


def artifact_name(unit: str) -> str:
    """The artifact that the shipped workflow uploads."""
    return f"unit-{unit}"


def pack(text: str) -> str:
    """A text as an input of the workflow takes it: gzip and base64. Raises LimitReached when it is too long."""
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    if len(packed) > MAX_INPUT_CHARS:
        raise LimitReached(f"a unit of {len(packed)} packed characters is too large for a dispatch ({MAX_INPUT_CHARS})")
    return packed


def workflow_text(package: str) -> str:
    """The workflow, with what the runner installs: a requirement of pip. Raises ConfigError for an impossible one."""
    if not re.fullmatch(r"[A-Za-z0-9][!-~ ]{0,500}", package) or "${{" in package:
        raise ConfigError(f"{package!r} cannot be installed by pip; give a requirement, as git+https://HOST/OWNER/darkfactory@COMMIT")  # fmt: skip
    return WORKFLOW.read_text(encoding="utf-8").replace('"@PACKAGE@"', json.dumps(package))


def _run(record: Payload) -> ActionsRun:
    number = dig(record, "id")
    if not is_number(number):
        raise ProviderFault("GitHub shows a workflow run without a usable id; look at the repository's Actions")
    over = dig(record, "status") == "completed"
    conclusion = (one_line(dig(record, "conclusion")) or "unknown") if over else None
    return ActionsRun(id=number, url=one_line(dig(record, "html_url")) or "", conclusion=conclusion)


def _minutes(job: object) -> int:
    began, ended = moment(dig(job, "started_at")), moment(dig(job, "completed_at"))
    if began is None or ended is None or ended <= began:
        return 0
    return math.ceil((ended - began).total_seconds() / 60)
