"""What a repository says about itself: policy from WORKFLOW.md's front matter, rules from the files agents expect."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import yaml
from pydantic import ValidationError

from infra.errors import ConfigError
from infra.git import Mirror
from tasks.models import Policy

RULE_FILES = ("AGENTS.md", "CLAUDE.md", "CONTRIBUTING.md")
RULES_CHARS = 8_000

Detect = Callable[[Iterable[str], Callable[[str], str | None]], tuple[str | None, str | None]]


def read_policy(mirror: Mirror, sha: str, detect: Detect) -> Policy:
    """WORKFLOW.md's front matter where it has keys of `Policy` (others are its owner's), else what is detected.

    Read from the base commit, so a change cannot loosen the policy it is judged by. Raises ConfigError for bad values.
    """
    front, _ = front_matter(_text(mirror, sha, "WORKFLOW.md"))
    known = {k: v for k, v in front.items() if k in Policy.model_fields}
    try:
        declared = Policy.model_validate(known)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"WORKFLOW.md's front matter is not valid: {wrong}; correct it and commit") from None
    if declared.test and declared.test_runner:
        return declared
    command, runner = detect(mirror.paths(sha), lambda path: _text(mirror, sha, path) or None)
    runner = declared.test_runner or (_runner_of(declared.test) if declared.test else runner)
    return Policy.model_validate({**declared.model_dump(), "test": declared.test or command, "test_runner": runner})


def _runner_of(command: str) -> str:
    """How to read a declared command's results when the policy does not say it."""
    if re.match(r"(python3? -m )?pytest\b", command):
        return "pytest"
    return "node" if re.match(r"node\b.*--test\b", command) else "exit-code"


def read_rules(mirror: Mirror, sha: str) -> str:
    """The repository's rules for agents: WORKFLOW.md's text and the rule files, at most 8,000 characters."""
    _, workflow = front_matter(_text(mirror, sha, "WORKFLOW.md"))
    texts = [workflow, *(_text(mirror, sha, name) for name in RULE_FILES)]
    return "\n\n".join(text.strip() for text in texts if text.strip())[:RULES_CHARS]


def front_matter(text: str) -> tuple[dict[str, object], str]:
    """YAML between the first two `---` lines and the text after it. Raises ConfigError when it is not a mapping."""
    found = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$\n?", text, flags=re.DOTALL | re.MULTILINE)
    if found is None:
        return {}, text
    try:
        values = yaml.safe_load(found[1]) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date like 2024-13-45
        raise ConfigError(f"the front matter is not valid YAML: {error}; correct it and commit") from None
    if not isinstance(values, dict):
        raise ConfigError("the front matter has to be `key: value` lines; correct it and commit")
    return values, text[found.end() :]


def _text(mirror: Mirror, sha: str, path: str) -> str:
    return (mirror.read(sha, path) or b"").decode(errors="replace")
