"""Policy and rules as repositories write them. Real git mirrors."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from infra.errors import ConfigError
from infra.git import Mirror
from infra.test_runners import detect_policy
from tasks.policy import RULES_CHARS, front_matter, read_policy, read_rules


def mirror_of(root: Path, files: dict[str, str]) -> tuple[Mirror, str]:
    source = root / "source"
    for path, text in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(text.encode())
    who = {f"GIT_{a}_{b}": "t@localhost" for a in ("AUTHOR", "COMMITTER") for b in ("NAME", "EMAIL")}
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "base"]):
        subprocess.run(
            ["git", *command], cwd=source, check=True, env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **who}
        )
    mirror = Mirror.open(root / "mirrors", "repo", str(source))
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=source, check=True, capture_output=True, text=True).stdout
    return mirror, head.strip()


def test_declared_values_win_and_foreign_keys_stay_their_owners(tmp_path: Path) -> None:
    front = "---\r\ntest: make check\r\nagents: {max: 3}\r\nprotected_paths: ['secret/**']\r\n---\r\nBe kind.\r\n"
    mirror, sha = mirror_of(tmp_path, {"WORKFLOW.md": front, "AGENTS.md": "No mocks.\n", "a.py": "x = 1\n"})
    policy = read_policy(mirror, sha, detect_policy)
    assert (policy.test, policy.test_runner, policy.protected_paths) == ("make check", "exit-code", ("secret/**",))
    assert read_rules(mirror, sha) == "Be kind.\n\nNo mocks."


def test_what_is_not_declared_is_detected(tmp_path: Path) -> None:
    mirror, sha = mirror_of(
        tmp_path, {"WORKFLOW.md": "---\nsetup: make\n---\n", "tests/test_a.py": "def test(): pass\n"}
    )
    policy = read_policy(mirror, sha, detect_policy)
    assert (policy.setup, policy.test_runner) == ("make", "pytest")
    assert "pytest" in (policy.test or "")


def test_a_value_of_the_wrong_kind_is_named(tmp_path: Path) -> None:
    mirror, sha = mirror_of(tmp_path, {"WORKFLOW.md": "---\ntest_runner: jest\ntimeout_seconds: -1\n---\n"})
    with pytest.raises(ConfigError, match=r"test_runner.*timeout_seconds"):
        read_policy(mirror, sha, detect_policy)


def test_rules_are_bounded(tmp_path: Path) -> None:
    mirror, sha = mirror_of(tmp_path, {"AGENTS.md": "rule " * 10_000})
    assert len(read_rules(mirror, sha)) == RULES_CHARS


@pytest.mark.parametrize(
    ("text", "values", "body"),
    [
        ("---\na: 1\n---\nbody\n", {"a": 1}, "body\n"),
        ("\ufeff---\na: 1\n---\nbody\n", {"a": 1}, "body\n"),
        ("---\n---\nbody\n", {}, "body\n"),
        ("---\na: 1\n---", {"a": 1}, ""),
        ("--- \na: |\n  x\n  --- y\n---\nbody", {"a": "x\n--- y\n"}, "body"),
        ("---\nan open rule\n", {}, "---\nan open rule\n"),
        ("no front matter\n---\na: 1\n---\n", {}, "no front matter\n---\na: 1\n---\n"),
        ("", {}, ""),
    ],
)
def test_front_matter_ends_at_a_line_of_its_own(text: str, values: dict[str, object], body: str) -> None:
    assert front_matter(text) == (values, body)


@pytest.mark.parametrize(
    "yaml", ["- a\n- b", "a: [", "when: 2024-13-45", "a: !!python/object:os.system x", "[" * 1_000]
)
def test_front_matter_nobody_can_use_is_a_config_error(yaml: str) -> None:
    with pytest.raises(ConfigError, match="front matter"):
        front_matter(f"---\n{yaml}\n---\n")
