"""What tools find in files: ruff, bandit, a secret scan, and a look for code that asks whether it is being tested.

The tools run in the sandbox and ignore the repository's own configuration and its `noqa` and `nosec` marks, which the
scanned change could have written.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from infra.llm import Frozen
from infra.sandbox import WORKSPACE, CommandResult, Sandbox
from infra.test_runners import is_test_path

TIMEOUT_SECONDS = 120.0
BATCH = 200
"""Files in one run of a tool: bounds the length of its command line."""
LONG_OUTPUT = 100_000
"""Characters; what is longer may have been cut by the sandbox, and fewer files at once then say less."""
MAX_FILE_BYTES = 1 << 20
"""Larger files are data; they are not read for secrets."""

_RUFF = (
    "python", "-I", "-m", "ruff", "check", "--isolated", "--no-cache", "--ignore-noqa", "--quiet",
    "--target-version", "py314", "--select", "F,E9,B", "--output-format", "json-lines",
)  # fmt: skip
_BANDIT = ("python", "-I", "-m", "bandit", "--quiet", "--ignore-nosec", "--format", "json")
_RUFF_SEVERE = {"invalid-syntax": "high", "F821": "medium", "F822": "medium", "F823": "medium"}


class ScanFinding(Frozen):
    """What one tool says about one line. `fingerprint` stands for the text of the line: never a secret itself."""

    tool: str
    rule: str
    path: str
    line: int = 0
    severity: Literal["high", "medium", "low"]
    message: str
    fingerprint: str = ""


async def scan(sandbox: Sandbox, worktree: Path, paths: Sequence[str]) -> list[ScanFinding]:
    """Everything the tools find in the named files of a checkout; names that are no regular files are skipped.

    A tool that fails gives a finding `scan-failed` of high severity: not scanned is not clean.
    """
    texts = {path: text for path in paths if (text := _text(worktree, path)) is not None}
    python = [path for path in texts if path.endswith((".py", ".pyi"))]
    found = [
        finding for path, text in texts.items() for finding in (*find_secrets(path, text), *find_cheats(path, text))
    ]
    for start in range(0, len(python), BATCH):
        found += await _run_tools(sandbox, worktree, python[start : start + BATCH])
    return [_with_fingerprint(finding, texts.get(finding.path, "")) for finding in found]


def new_findings(before: Sequence[ScanFinding], after: Sequence[ScanFinding]) -> list[ScanFinding]:
    """Those of `after` that `before` does not have. Moving a line is nothing new; saying it a second time is."""
    known = Counter(map(_identity, before))
    fresh = []
    for finding in after:
        if known[_identity(finding)] > 0:
            known[_identity(finding)] -= 1
        else:
            fresh.append(finding)
    return fresh


def _identity(finding: ScanFinding) -> tuple[str, ...]:
    message = re.sub(r"\d+", "0", finding.message)
    return finding.tool, finding.rule, finding.path, message, finding.fingerprint


def _with_fingerprint(finding: ScanFinding, text: str) -> ScanFinding:
    lines = text.splitlines()
    line = lines[finding.line - 1].strip() if 0 < finding.line <= len(lines) else ""
    return finding.model_copy(update={"fingerprint": hashlib.sha256(line.encode(errors="replace")).hexdigest()[:16]})


def _text(worktree: Path, path: str) -> str | None:
    file = worktree.resolve() / path
    if file.resolve() != file or not file.is_file() or file.stat().st_size > MAX_FILE_BYTES:
        return None
    return file.read_bytes().decode(errors="replace")


# ---- ruff and bandit --------------------------------------------------------------------------------------------


async def _run_tools(sandbox: Sandbox, worktree: Path, paths: Sequence[str]) -> list[ScanFinding]:
    names = [f"./{path}" for path in paths]
    bounds: dict[str, Any] = {"worktree": worktree, "timeout_seconds": TIMEOUT_SECONDS}
    ruff = await sandbox.run([*_RUFF, *names], **bounds)
    bandit = await sandbox.run([*_BANDIT, *names], **bounds)
    found = [*_read_ruff(ruff, worktree), *_read_bandit(bandit, worktree)]
    if len(paths) > 1 and max(len(ruff.output), len(bandit.output)) > LONG_OUTPUT and any(map(_is_unread, found)):
        half = len(paths) // 2  # the sandbox cut the middle out of what the tool wrote
        halves = [await _run_tools(sandbox, worktree, part) for part in (paths[:half], paths[half:])]
        return [finding for part in halves for finding in part]
    return found


def _is_unread(finding: ScanFinding) -> bool:
    return finding.rule == "scan-failed" and not finding.path


def _failed(tool: str, done: CommandResult) -> list[ScanFinding]:
    said = done.output.strip().splitlines()[-1:] or [""]
    message = f"{tool} could not scan the files (exit code {done.exit_code}): {said[0][:200]}"
    return [ScanFinding(tool=tool, rule="scan-failed", path="", severity="high", message=message)]


def _read_ruff(done: CommandResult, worktree: Path) -> list[ScanFinding]:
    if done.exit_code not in (0, 1) or done.timed_out:
        return _failed("ruff", done)
    try:
        return [_ruff_finding(json.loads(line), worktree) for line in done.output.splitlines() if line.startswith("{")]
    except (ValueError, KeyError, TypeError):
        return _failed("ruff", done)


def _ruff_finding(record: dict[str, Any], worktree: Path) -> ScanFinding:
    rule = record["code"] or "invalid-syntax"
    severity = "high" if rule.startswith("E9") else _RUFF_SEVERE.get(rule, "low")
    return ScanFinding.model_validate({
        "tool": "ruff", "rule": rule, "path": _relative(record["filename"], worktree),
        "line": record["location"]["row"], "severity": severity, "message": record["message"],
    })  # fmt: skip


def _read_bandit(done: CommandResult, worktree: Path) -> list[ScanFinding]:
    """Bandit's own severities; a file it cannot read is a finding, because that is how a file would hide from it."""
    try:
        report, _ = json.JSONDecoder().raw_decode(done.output, done.output.index("{"))
        found = [_bandit_finding(record, worktree) for record in report["results"]]
        unread = [(_relative(error["filename"], worktree), error["reason"]) for error in report["errors"]]
    except (ValueError, KeyError, TypeError):
        return _failed("bandit", done)
    return found + [_unread(path, reason) for path, reason in unread]


def _unread(path: str, reason: str) -> ScanFinding:
    severity = "medium" if "syntax error" in reason else "high"  # ruff knows syntax that is newer than this Python
    return ScanFinding.model_validate({
        "tool": "bandit", "rule": "scan-failed", "path": path, "severity": severity,
        "message": f"bandit cannot read the file: {reason}",
    })  # fmt: skip


def _bandit_finding(record: dict[str, Any], worktree: Path) -> ScanFinding:
    path = _relative(record["filename"], worktree)
    expected = is_test_path(path) and record["test_id"] in ("B101", "B105", "B106", "B107")
    return ScanFinding.model_validate({
        "tool": "bandit", "rule": record["test_id"], "path": path, "line": record["line_number"],
        "severity": "low" if expected else record["issue_severity"].lower(), "message": record["issue_text"],
    })  # fmt: skip


def _relative(name: str, worktree: Path) -> str:
    for root in (WORKSPACE, str(worktree), str(worktree.resolve())):
        name = name.removeprefix(f"{root}/")
    return str(PurePosixPath(name))


# ---- secrets ----------------------------------------------------------------------------------------------------

_TOKENS = {
    "aws-access-key": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "github-token": re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})"),
    "slack-token": re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    "stripe-key": re.compile(r"\b[rs]k_live_[A-Za-z0-9]{20,}"),
    "google-key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}"),
    "model-provider-key": re.compile(r"\bsk-(ant-|proj-|svcacct-)?[A-Za-z0-9_-]{32,}"),
    "package-token": re.compile(r"\b(npm_[A-Za-z0-9]{36}|pypi-AgEI[A-Za-z0-9_-]{30,})"),
    "json-web-token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    "private-key": re.compile(r"-----BEGIN ([A-Z]+ )*PRIVATE KEY-----"),
}
_ASSIGNED = re.compile(
    r"""(?i)\b[\w.-]*(secret|token|passw(or)?d|passphrase|api_?key|private_?key|credential)[\w-]*["']?\]?\s*[:=]{1,2}>?\s*"""
    r"""["']([^"'\s]{12,200})["']"""
)
_PLACEHOLDER = re.compile(
    r"(?i)x{4,}|change.?me|example|placeholder|dummy|fake|sample|your[-_]|insert|redacted|todo|[<>{}$%]|://|\*{3}|0{6,}|12345|abcde"
    r"|not.?a.?|test"
)
_ENTROPY_BITS = 3.5
"""Per character. Words stay below, random base64 of 20 characters is at about 4.1."""


def find_secrets(path: str, text: str) -> Iterator[ScanFinding]:
    """Well-known token shapes anywhere; high-entropy values given to a name like `password` outside of tests."""
    for number, line in enumerate(text.splitlines(), 1):
        for rule, shape in _TOKENS.items():
            match = shape.search(line)
            if match and not _PLACEHOLDER.search(match[0].removeprefix("-----BEGIN ")):
                yield _secret(rule, path, number, "high", f"This line seems to hold a real secret ({rule}).")
        assigned = _ASSIGNED.search(line[:2000])
        if assigned and not is_test_path(path) and _looks_random(assigned[3]):
            yield _secret(
                "assigned-secret",
                path,
                number,
                "medium",
                f"A random-looking value is assigned to a {assigned[1].lower()}.",
            )


def _secret(rule: str, path: str, line: int, severity: Literal["high", "medium"], message: str) -> ScanFinding:
    return ScanFinding(tool="secrets", rule=rule, path=path, line=line, severity=severity, message=message)


def _looks_random(value: str) -> bool:
    mixed = re.search(r"\d", value) is not None and re.search(r"[A-Za-z]", value) is not None
    return mixed and _PLACEHOLDER.search(value) is None and _entropy(value) >= _ENTROPY_BITS


def _entropy(value: str) -> float:
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


# ---- cheats -----------------------------------------------------------------------------------------------------

_CODE = (".py", ".js", ".mjs", ".cjs", ".ts", ".mts", ".jsx", ".tsx")
_CHEATS: dict[str, tuple[re.Pattern[str], Literal["high", "medium"], str]] = {
    "asks-for-the-test-runner": (
        re.compile(
            r"PYTEST_(CURRENT_TEST|VERSION|XDIST)|\b_pytest\b|NODE_TEST_CONTEXT|JEST_WORKER_ID|\bVITEST\b"
            r"""|["'](pytest|unittest)["']\s+(not\s+)?in\s+sys\s*\.\s*modules|sys\s*\.\s*modules\s*(\.\s*get\s*\(|\[)\s*["'](pytest|unittest)"""
        ),
        "high",
        "The code asks whether it is being tested.",
    ),
    "alters-the-test-runner": (
        re.compile(
            r"\bpytest_(plugins|runtest_|collection|pyfunc_call|make|report_|sessionfinish|configure|ignore_collect)\w*"
            r"""|\bimport\s+__main__|modules\s*(\.\s*get\s*\(|\[)\s*["']__main__"""
        ),
        "high",
        "The code hooks into the test runner.",
    ),
    "leaves-the-process": (
        re.compile(r"\bos\s*\.\s*_exit\s*\(|\bprocess\s*\.\s*(exit\s*\(\s*0?\s*\)|reallyExit)"),
        "medium",
        "The code ends the whole process with success.",
    ),
}


def find_cheats(path: str, text: str) -> Iterator[ScanFinding]:
    """Code that would behave differently under test. Cheap to find; a determined author can hide it better."""
    if not path.endswith(_CODE):
        return
    for number, line in enumerate(text.splitlines(), 1):
        for rule, (pattern, severity, message) in _CHEATS.items():
            if pattern.search(line):
                yield ScanFinding(tool="honesty", rule=rule, path=path, line=number, severity=severity, message=message)
