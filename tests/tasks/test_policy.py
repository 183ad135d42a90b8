"""Policy and rules as repositories write them. Real git mirrors."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import ValidationError

from infra.errors import ConfigError, WorkFailed
from infra.git import Mirror
from infra.mistakes import safe_yaml
from infra.test_runners import detect_policy
from tasks.models import Hooks, Policy, Ticket
from tasks.policy import RULES_CHARS, front_matter, read_policy, read_rules, render_workflow, unused_keys


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
    "yaml",
    [
        "- a\n- b", "a: [", "when: 2024-13-45", "a: !!python/object:os.system x", "[" * 1_000, "a: &a [*a]",
        "a0: &a0 {k: v}\n" + "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12)),
    ],
)  # fmt: skip
def test_front_matter_nobody_can_use_is_a_config_error(yaml: str) -> None:
    with pytest.raises(ConfigError, match="front matter"):
        front_matter(f"---\n{yaml}\n---\n")


SYMPHONY = """---
tracker:
  kind: linear
  project_slug: "shop-0123456789ab"
  active_states: [Todo, In Progress]
polling:
  interval_ms: 5000
workspace:
  root: ~/code/workspaces
hooks:
  timeout_ms: 90000
  after_create: |
    git clone --depth 1 https://git.example/shop .
    make tools
  before_run: make ready
  before_remove: make clean
agent:
  max_concurrent_agents: 10
  max_turns: 20
codex:
  command: codex app-server
---

You are working on a Linear ticket `{{ issue.identifier }}`

{% if attempt %}
This is retry attempt #{{ attempt }}.
{% endif %}
Title: {{ issue.title }}
Labels: {{ issue.labels }} / {{ issue.labels | join: " + " }}

{% if issue.description %}
{{ issue.description }}
{% else %}
No description provided.
{% endif %}
"""
TICKET = Ticket(
    key="ENG-7", title="Prices {{ issue.url }}", body="Wrong {% if x %}", state="Todo", labels=("bug", "shop"),
    url="https://linear.example/ENG-7",
)  # fmt: skip


def test_a_workflow_written_for_symphony_works_and_what_it_cannot_set_is_named(tmp_path: Path) -> None:
    mirror, sha = mirror_of(tmp_path, {"WORKFLOW.md": SYMPHONY, "a.py": "x = 1\n"})
    policy = read_policy(mirror, sha, detect_policy)
    assert policy.hooks == Hooks(before_run="make ready", before_remove="make clean", timeout_seconds=90)
    assert [key.partition(" (")[0] for key in unused_keys(mirror, sha)] == [
        "tracker", "polling", "workspace", "hooks.after_create", "agent.max_concurrent_agents", "agent.max_turns", "codex",
    ]  # fmt: skip
    assert all("(" in key for key in unused_keys(mirror, sha))


def test_nothing_is_unused_in_a_policy_of_our_own(tmp_path: Path) -> None:
    front = "---\ntest: make check\nhooks: {after_create: make tools, timeout_seconds: 5}\n---\n"
    mirror, sha = mirror_of(tmp_path, {"WORKFLOW.md": front})
    assert unused_keys(mirror, sha) == ()
    assert read_policy(mirror, sha, detect_policy).hooks == Hooks(after_create="make tools", timeout_seconds=5)


@pytest.mark.parametrize("hooks", ["3", "{timeout_ms: soon}", "{timeout_ms: -1}", "{before_run: [a]}"])
def test_hooks_of_the_wrong_kind_are_a_config_error(tmp_path: Path, hooks: str) -> None:
    mirror, sha = mirror_of(tmp_path, {"WORKFLOW.md": f"---\nhooks: {hooks}\n---\n"})
    with pytest.raises(ConfigError, match="hooks"):
        read_policy(mirror, sha, detect_policy)


def test_a_workflow_is_rendered_for_its_ticket_and_values_are_never_rendered_themselves(tmp_path: Path) -> None:
    """CF3."""
    mirror, sha = mirror_of(tmp_path, {"WORKFLOW.md": SYMPHONY, "AGENTS.md": "Write {{ braces }} so.\n"})
    first, second = read_rules(mirror, sha, TICKET), read_rules(mirror, sha, TICKET, 2)
    assert first.startswith("You are working on a Linear ticket `ENG-7`")
    assert "Title: Prices {{ issue.url }}\nLabels: bug, shop / bug + shop\n" in first
    assert "Wrong {% if x %}" in first
    assert "Write {{ braces }} so." in first
    assert "No description" not in first
    assert ("retry" in first, "This is retry attempt #1." in second) == (False, True)
    assert "{{ issue.identifier }}" in read_rules(mirror, sha)


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("{{issue.state}}, {{- issue.url -}}", "Todo, https://linear.example/ENG-7"),
        ("{% if issue.priority %}{{ issue.priority }}{% else %}none{% endif %}", "none"),
        ("{% if issue.url %}a{% if attempt %}b{% else %}c{% endif %}{% else %}d{% endif %}e", "ace"),
        ('{{ issue.priority | default: "low | none" }}', "low | none"),
        ("{% raw %}${{ secrets.X }} {% for %}{% endraw %} {{ issue.state }}", "${{ secrets.X }} {% for %} Todo"),
        ("{ not } { % a } one", "{ not } { % a } one"),
        ("", ""),
    ],
)
def test_templates(text: str, rendered: str) -> None:
    assert render_workflow(text, TICKET, 1) == rendered


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ issue.titel }}", "'issue.titel'.*attempt, issue.blocked_by.*issue.title"),
        ("{% if secrets %}x{% endif %}", "'secrets'"),
        ("{% if attempt %}{{ nothing }}{% endif %}", "'nothing'"),
        ("{{ issue.title | upcase }}", "filter 'upcase'"),
        ("{{ issue.__class__ }}", "__class__"),
        ("{{ }}", "''"),
        ("{% for x in issue.labels %}{% endfor %}", "for x in issue.labels"),
        ("{% if attempt %}", "without its"),
        ("{% endif %}", "endif"),
    ],
)
def test_a_template_nobody_can_fill_in_fails_the_attempt(text: str, words: str) -> None:
    """CF3."""
    with pytest.raises(WorkFailed, match=f"(?s)WORKFLOW.md.*{words}"):
        render_workflow(text, TICKET, 1)


def test_rendering_is_quick_for_hostile_text() -> None:
    began = time.monotonic()
    for text in ("{{" * 20_000, "{%" * 20_000, "{{ a | " * 5_000 + "}}", "{% raw %}" * 5_000, "{{ a" + " " * 20_000):
        with suppress(WorkFailed):
            render_workflow(text, TICKET, 1)
    assert time.monotonic() - began < 5


def test_no_repository_can_loosen_the_sandbox_the_budgets_or_the_limits(tmp_path: Path) -> None:
    """I15: such keys are named to people and change nothing; a limit cannot be made endless."""
    front = "test: pytest\ntest_runner: pytest\nsandbox: none\nbudgets: {ticket_usd: 999}\nmax_rounds: 99\nmodel: openai/x\n"
    mirror, sha = mirror_of(tmp_path, {"WORKFLOW.md": f"---\n{front}---\n"})
    assert read_policy(mirror, sha, lambda _paths, _read: (None, None)) == Policy(test="pytest", test_runner="pytest")
    assert unused_keys(mirror, sha) == ("sandbox", "budgets", "max_rounds", "model")
    for endless in (".inf", ".nan", "1e12", "-1"):
        with pytest.raises(ValidationError):
            Policy.model_validate(safe_yaml(f"timeout_seconds: {endless}"))
