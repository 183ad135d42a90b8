"""GitHub Actions on a port of this machine, for tests: dispatches, runs, jobs and artifacts of one workflow.

The rest of GitHub, and the checks against its OpenAPI document, are those of `tests.fakes.github`.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from infra.sections import ActionsSection
from tests.fakes.github import _REST, Answer, Asked, FakeGitHub, _Refusal

WORKFLOW_FILE = "darkfactory-unit.yml"


@dataclass
class FakeRun:
    """`looks` are still to be answered with `in_progress`; then `conclusion` counts, and `archive` can be fetched."""

    id: int
    inputs: dict[str, str]
    created: datetime
    looks: int
    archive: bytes | None
    conclusion: str = "success"
    seconds: float = 61
    over: bool = False
    cancelled: bool = False
    downloads: int = 0
    expired: bool = False
    digest: str | None = None
    hidden: int = 0
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> dict[str, Any]:
        """What the runner is told."""
        told: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(self.inputs["payload"])))
        return told


def archived(patch: str | bytes, **report: Any) -> bytes:
    """The archive of a unit that ended well."""
    data = patch.encode() if isinstance(patch, str) else patch
    said = {"ending": "done", "explanation": "It was wrong.", "steps": 3, "spent": {"calls": 3, "prompt_tokens": 900}}
    return zipped({"patch.diff": data, "report.json": json.dumps(said | report).encode()})


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


class FakeActions(FakeGitHub):
    """A repository with the shipped workflow. `works` makes the archive of a dispatched run; None: it leaves nothing."""

    contract: Path = _REST / "api.github.com.openapi.json.gz"

    def __init__(self, works: Callable[[FakeRun], bytes | None] = lambda run: None) -> None:
        super().__init__()
        self.works = works
        self.installed = True
        self.enabled = True
        self.may_dispatch = True
        self.says_run = True
        """False: as GitHub answered until it knew `return_run_details`, 204 without a number."""
        self.looks = 1
        """How often a new run is found in progress before it is over."""
        self.hidden = 0
        """How many listings miss a new run."""
        self.commits: set[str] | None = None
        """None: it has every commit."""
        self.workflow_runs: dict[int, FakeRun] = {}
        self.most_runs = 0
        """The most runs that were going on at the same time."""

    def actions_section(self, **changes: Any) -> ActionsSection:
        settings = {"project": self.project, "url": self.url, "token": self.token}
        return ActionsSection.model_validate(settings | changes)

    def answer(
        self, method: str, target: str, headers: Mapping[str, str], data: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        if not target.startswith("/blob/"):
            return super().answer(method, target, headers, data)
        with self._lock:  # the store of artifacts is another service: it takes no token
            self.log.append(Asked(method, urlsplit(target).path, {}, None))
            injected = self._next_injected(self.log[-1])
            if injected:
                return injected.status, injected.body, injected.headers
            if "Authorization" in headers or not target.endswith("?sig=secret"):
                self.violations.append(f"the store of artifacts was asked with {sorted(headers)} for {target}")
            run = self.workflow_runs[int(target.removeprefix("/blob/").partition("?")[0])]
            run.downloads += 1
            return 200, run.archive or b"", {"Content-Type": "application/zip"}

    def _own(self, asked: Asked, headers: Mapping[str, str]) -> Answer:
        found = re.fullmatch(
            r"(GET|POST) (/actions/.*|/git/commits/.*|/repos/.*/git/commits/.*)", f"{asked.method} {asked.path}"
        )
        if found is None or headers.get("Authorization") != f"token {self.token}":
            return super()._own(asked, headers)
        try:
            for pattern, handler in _ROUTES:
                if matched := re.fullmatch(pattern, f"{asked.method} {asked.path}"):
                    return handler(self, asked, *map(unquote, matched.groups()))
        except _Refusal as refusal:
            return Answer(refusal.status, refusal.body)
        return Answer(404, _Refusal(404, "Not Found").body)

    def _dispatch(self, asked: Asked, workflow: str) -> Answer:
        if not self.may_dispatch:
            raise _Refusal(403, "Resource not accessible by personal access token")
        self._check_workflow(workflow)
        if not self.enabled:
            raise _Refusal(422, "Cannot trigger a 'workflow_dispatch' on a disabled workflow")
        if asked.body["ref"] != "main":
            raise _Refusal(422, f"No ref found for: {asked.body['ref']}")
        if len(json.dumps(asked.body["inputs"])) > 65_535:
            raise _Refusal(422, "inputs are too large.")
        number = self._next()
        run = FakeRun(number, asked.body["inputs"], datetime.now(UTC), self.looks, None, hidden=self.hidden)
        run.archive = self.works(run)
        self.workflow_runs[number] = run
        going_on = [each for each in self.workflow_runs.values() if not each.over]
        self.most_runs = max(self.most_runs, len(going_on))
        if not (self.says_run and asked.body.get("return_run_details")):
            return Answer(204)
        place = f"{self.url}{self.root}/actions/runs/{number}"
        return Answer(200, {"workflow_run_id": number, "run_url": place, "html_url": self._page(run)})

    def _check_workflow(self, workflow: str) -> None:
        if not self.installed or workflow != WORKFLOW_FILE:
            raise _Refusal(404, "Not Found")

    def _list_workflow_runs(self, asked: Asked, workflow: str) -> Answer:
        self._check_workflow(workflow)
        shown = [run for run in self.workflow_runs.values() if not self._is_hidden(run)]
        page = self._paged(asked, sorted(shown, key=lambda run: -run.id), self.run_record)
        return Answer(200, {"total_count": len(shown), "workflow_runs": page.body}, page.headers)

    def _is_hidden(self, run: FakeRun) -> bool:
        run.hidden -= 1
        return run.hidden >= 0

    def _get_run(self, asked: Asked, number: str) -> Answer:
        run = self._run_of(number)
        run.looks -= 1
        run.over = run.over or run.looks < 0
        return Answer(200, self.run_record(run))

    def _cancel_run(self, asked: Asked, number: str) -> Answer:
        run = self._run_of(number)
        if run.over:
            raise _Refusal(409, "Cannot cancel a workflow run that is completed.")
        run.over = run.cancelled = True
        run.conclusion = "cancelled"
        return Answer(202, {})

    def _run_of(self, number: str) -> FakeRun:
        if int(number) not in self.workflow_runs:
            raise _Refusal(404, "Not Found")
        return self.workflow_runs[int(number)]

    def _list_jobs(self, asked: Asked, number: str) -> Answer:
        run = self._run_of(number)
        began = run.created + timedelta(seconds=5)
        place = f"{self.url}{self.root}/actions/jobs/{run.id}"
        job = {
            "id": run.id, "node_id": "J", "run_id": run.id, "run_url": self._page(run), "head_sha": "0" * 40,
            "workflow_name": "darkfactory unit", "head_branch": "main", "name": "unit", "url": place, "html_url": place,
            "status": "completed" if run.over else "in_progress", "conclusion": run.conclusion if run.over else None,
            "created_at": _time(run.created), "started_at": _time(began),
            "completed_at": _time(began + timedelta(seconds=run.seconds)) if run.over else None,
            "check_run_url": place, "labels": ["ubuntu-24.04"], "runner_id": 1, "runner_name": "r",
            "runner_group_id": 1, "runner_group_name": "g",
        }  # fmt: skip
        return Answer(200, {"total_count": 1, "jobs": [job]})

    def _list_artifacts(self, asked: Asked, number: str) -> Answer:
        run = self._run_of(number)
        if run.archive is None or not run.over:
            return Answer(200, {"total_count": 0, "artifacts": []})
        place = f"{self.url}{self.root}/actions/artifacts/{run.id}"
        digest = run.digest or f"sha256:{hashlib.sha256(run.archive).hexdigest()}"
        artifact = {
            "id": run.id, "node_id": "A", "name": f"unit-{run.inputs['unit']}", "size_in_bytes": len(run.archive),
            "url": place, "archive_download_url": f"{place}/zip", "expired": run.expired, "digest": digest,
            **dict.fromkeys(("created_at", "expires_at", "updated_at"), _time(run.created)),
        }  # fmt: skip
        shown = [artifact] if asked.query.get("name", artifact["name"]) == artifact["name"] else []
        return Answer(200, {"total_count": len(shown), "artifacts": shown})

    def _download(self, asked: Asked, number: str) -> Answer:
        return Answer(302, None, {"Location": f"{self.url}/blob/{self._run_of(number).id}?sig=secret"})

    def _get_commit(self, asked: Asked, sha: str) -> Answer:
        if self.commits is not None and sha not in self.commits:
            raise _Refusal(404, "Not Found")
        who = {"name": "ada", "email": "ada@shop.invalid", "date": "2026-01-05T09:00:00Z"}
        place = f"{self.url}{self.root}/git/commits/{sha}"
        nothing = {"verified": False, "reason": "unsigned", "signature": None, "payload": None, "verified_at": None}
        return Answer(200, {
            "sha": sha, "node_id": "C", "url": place, "html_url": place, "author": who, "committer": who, "message": "m",
            "tree": {"sha": "1" * 40, "url": place}, "parents": [], "verification": nothing,
        })  # fmt: skip

    def _page(self, run: FakeRun) -> str:
        return f"https://github.com/{self.project}/actions/runs/{run.id}"

    def run_record(self, run: FakeRun) -> dict[str, Any]:
        """A run as GitHub shows it."""
        place = f"{self.url}{self.root}/actions/runs/{run.id}"
        repository = self.repository_record(self.project)
        commit = {"id": "0" * 40, "tree_id": "1" * 40, "message": "m", "timestamp": _time(run.created)}
        links = ("jobs", "logs", "check_suite", "cancel", "rerun", "artifacts", "workflow")
        return {
            "id": run.id, "node_id": "W", "head_branch": "main", "run_number": run.id, "event": "workflow_dispatch",
            "display_title": f"darkfactory unit {run.inputs['unit']}", "status": "completed" if run.over else "in_progress",
            "conclusion": run.conclusion if run.over else None, "head_sha": "0" * 40, "workflow_id": 7,
            "path": f".github/workflows/{WORKFLOW_FILE}@main", "url": place, "html_url": self._page(run),
            "created_at": _time(run.created), "updated_at": _time(run.created), "pull_requests": [],
            "head_commit": commit | {"author": None, "committer": None}, "repository": repository,
            "head_repository": repository, **{f"{link}_url": place for link in links},
        } | run.raw  # fmt: skip


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


_ROUTES: list[tuple[str, Callable[..., Answer]]] = [
    (r"POST /actions/workflows/([^/]+)/dispatches", FakeActions._dispatch),
    (r"GET /actions/workflows/([^/]+)/runs", FakeActions._list_workflow_runs),
    (r"GET /actions/runs/(\d+)", FakeActions._get_run),
    (r"POST /actions/runs/(\d+)/cancel", FakeActions._cancel_run),
    (r"GET /actions/runs/(\d+)/jobs", FakeActions._list_jobs),
    (r"GET /actions/runs/(\d+)/artifacts", FakeActions._list_artifacts),
    (r"GET /actions/artifacts/(\d+)/zip", FakeActions._download),
    (r"GET (?:/repos/[^/]+/[^/]+)?/git/commits/([0-9a-f]+)", FakeActions._get_commit),
]
