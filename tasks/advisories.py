"""Published advisories for a repository's pinned dependencies, asked of pip-audit and npm.

Both work in a folder of our own that holds the pins or the lock file and nothing else: no code of the repository runs with a
network.
What could not be asked is a note, never a clean answer.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from infra.sandbox import CommandResult
from infra.test_runners import shorten
from tasks import services
from tasks.finders import Found, Look

TIMEOUT_SECONDS = 180.0
MAX_PINS = 2_000
PIP_AUDIT: tuple[str, ...] = (
    "python", "-I", "-m", "pip_audit", "--requirement", "pins.txt", "--no-deps", "--disable-pip", "--format", "json",
    "--progress-spinner", "off",
)  # fmt: skip
NPM_AUDIT: tuple[str, ...] = ("npm", "audit", "--json", "--package-lock-only", "--ignore-scripts")
_REQUIREMENTS = re.compile(r"(^|/)(requirements[\w.-]*\.(txt|lock)|[\w.-]*requirements\.txt)$")
_PIN = re.compile(
    r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*===?\s*([A-Za-z0-9][A-Za-z0-9.+!_-]*)\s*(?:[;\\#].*)?$"
)
_CLEAN = re.compile(r"[@A-Za-z0-9][@A-Za-z0-9._/+!-]{0,200}")


async def advisories(look: Look) -> list[Found]:
    """Dependencies with advisories, one finding for each version of a package."""
    return [*await _python(look), *await _node(look)]


# ---- Python -----------------------------------------------------------------------------------------------------


async def _python(look: Look) -> list[Found]:
    pins = pinned(look.texts)
    if not pins:
        if any(map(_REQUIREMENTS.search, look.texts)) or "pyproject.toml" in look.texts:
            look.notes.append(
                "Python: nothing is pinned (`name==version` in a requirements file), so nothing was audited"
            )
        return []
    lines = "".join(f"{name}=={version}\n" for name, version in sorted(pins))
    return read_pip_audit(look, await _ask(PIP_AUDIT, {"pins.txt": lines}), pins)


def pinned(texts: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """(name, version) -> file, of everything pinned in requirements files."""
    found: dict[tuple[str, str], str] = {}
    for path in sorted(filter(_REQUIREMENTS.search, texts)):
        for line in texts[path].splitlines():
            if pin := _PIN.match(line.strip()):
                found.setdefault((re.sub(r"[-_.]+", "-", pin[1]).lower(), pin[2]), path)
    return dict(list(found.items())[:MAX_PINS])


def read_pip_audit(look: Look, done: CommandResult, pins: Mapping[tuple[str, str], str]) -> list[Found]:
    """The findings; what pip-audit left out or could not do is noted."""
    report = _object(done.output, "dependencies")
    if report is None:
        missing = "No module named" in done.output
        why = "pip-audit is not installed beside the factory; `pip install pip-audit`" if missing else _last_line(done)
        look.notes.append(f"Python: {len(pins)} pinned packages not audited: {why}")
        return []
    packages = [p for p in report["dependencies"] if isinstance(p, dict)]
    skipped = [str(p.get("skip_reason")) for p in packages if p.get("skip_reason")]
    unheard = len(pins) - len(packages) + len(skipped)
    if unheard > 0:
        why = shorten(skipped[0], 160) if skipped else "pip-audit did not answer for them"
        look.notes.append(f"Python: {unheard} of {len(pins)} pinned packages not audited: {why}")
    return [
        _vulnerable(look, str(p["name"]), str(p.get("version")), p["vulns"], pins.get((str(p["name"]).lower(), str(p.get("version"))), ""))
        for p in packages
        if p.get("vulns")
    ]  # fmt: skip


def _vulnerable(look: Look, name: str, version: str, advisories: list[dict[str, Any]], path: str) -> Found:
    said = [
        f"{each.get('id')} fixed in {', '.join(map(str, each.get('fix_versions') or [])) or 'no release yet'}: "
        f"{shorten(' '.join(str(each.get('description', '')).split()), 300)}"
        for each in advisories[:10]
    ]
    return _finding(name, version, path, said, len(advisories))


# ---- Node -------------------------------------------------------------------------------------------------------


async def _node(look: Look) -> list[Found]:
    found: list[Found] = []
    for path in sorted(p for p in look.texts if PurePosixPath(p).name == "package-lock.json")[:10]:
        manifest = look.texts.get(str(PurePosixPath(path).with_name("package.json")))
        if manifest is not None:
            files = {"package-lock.json": look.texts[path], "package.json": manifest}
            found += read_npm_audit(look, await _ask(NPM_AUDIT, files), path)
    return found


def read_npm_audit(look: Look, done: CommandResult, path: str) -> list[Found]:
    """The findings, one for each package; the versions are those of the lock file."""
    report = _object(done.output, "vulnerabilities")
    if report is None:
        error = _object(done.output, "error") or {}
        why = error.get("error", {}).get("summary") or error.get("message") or _last_line(done)
        look.notes.append(f"npm: {path} not audited: {shorten(str(why), 160)}")
        return []
    return [_npm(look, path, name, each) for name, each in report["vulnerabilities"].items() if isinstance(each, dict)]


def _npm(look: Look, path: str, name: str, each: dict[str, Any]) -> Found:
    via = [v for v in each.get("via", []) if isinstance(v, dict)]
    said = [f"{v.get('url')} ({v.get('severity')}): {v.get('title')}" for v in via[:10]]
    said += [f"by way of {v}" for v in each.get("via", []) if isinstance(v, str)][:5]
    return _finding(name, str(each.get("range", "")), path, said, len(said))


# ---- both -------------------------------------------------------------------------------------------------------


def _finding(name: str, version: str, path: str, said: list[str], count: int) -> Found:
    plain = name if _CLEAN.fullmatch(name) else "(a package with an unusual name)"
    return Found(
        kind="advisory", subject=f"{plain} {version}", path=path, name=plain,
        title=f"{plain} {version} has {count} published advisor{'y' if count == 1 else 'ies'}",
        what=f"The dependency `{plain}` at {version} has published advisories.", evidence="\n".join(said),
        acceptance=f"`{plain}` is at a version without these advisories, or gone, and all tests pass.", weight=70 + count,
    )  # fmt: skip


async def _ask(command: tuple[str, ...], files: Mapping[str, str]) -> CommandResult:
    with tempfile.TemporaryDirectory(prefix="darkfactory-audit-") as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        return await services.sandbox().run(
            command, worktree=Path(folder).resolve(), timeout_seconds=TIMEOUT_SECONDS, network=True
        )


def _object(output: str, name: str) -> dict[str, Any] | None:
    """The JSON object in a tool's output that has this name in it."""
    decoder = json.JSONDecoder()
    for start in [m.start() for m in re.finditer(r"^\s*\{", output, re.MULTILINE)][:20]:
        try:
            value, _ = decoder.raw_decode(output[start:].lstrip())
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get(name), dict | list):
            return value
    return None


def _last_line(done: CommandResult) -> str:
    if done.timed_out:
        return f"no answer within {TIMEOUT_SECONDS:.0f} s"
    said = [line.strip() for line in done.output.splitlines() if line.strip()]
    return shorten(said[-1], 160) if said else f"exit code {done.exit_code}"
