"""What a repository says about itself: policy from WORKFLOW.md's front matter, rules from the files agents expect."""

from __future__ import annotations

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
    runner = declared.test_runner or ("exit-code" if declared.test else runner)
    return Policy.model_validate({**declared.model_dump(), "test": declared.test or command, "test_runner": runner})


def read_rules(mirror: Mirror, sha: str) -> str:
    """The repository's rules for agents: WORKFLOW.md's text and the rule files, at most 8,000 characters."""
    _, workflow = front_matter(_text(mirror, sha, "WORKFLOW.md"))
    texts = [workflow, *(_text(mirror, sha, name) for name in RULE_FILES)]
    return "\n\n".join(text.strip() for text in texts if text.strip())[:RULES_CHARS]


def front_matter(text: str) -> tuple[dict[str, object], str]:
    """YAML between the first two `---` lines and the text after it. Raises ConfigError when it is not a mapping."""
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return {}, text
    head, _, body = text[4:].partition("\n---")
    try:
        values = yaml.safe_load(head) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"the front matter is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError("the front matter has to be `key: value` lines")
    return values, body.partition("\n")[2]


def _text(mirror: Mirror, sha: str, path: str) -> str:
    return (mirror.read(sha, path) or b"").decode(errors="replace")
