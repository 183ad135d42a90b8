"""What a repository says about itself: policy from WORKFLOW.md's front matter, rules from the files agents expect.

A WORKFLOW.md written for OpenAI's Symphony works too: what has a meaning here is used, the rest is named as unused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import yaml
from pydantic import ValidationError

from infra.errors import ConfigError, WorkFailed
from infra.git import Mirror, branch_name
from infra.mistakes import explain, safe_yaml
from tasks.models import Hooks, Policy, Ticket

RULE_FILES = ("AGENTS.md", "CLAUDE.md", "CONTRIBUTING.md")
RULES_CHARS = 8_000
MAX_NAMED = 20

Detect = Callable[[Iterable[str], Callable[[str], str | None]], tuple[str | None, str | None]]

_ELSEWHERE = {
    "tracker": "boards stand in factory.yaml under `boards`",
    "polling": "`dispatch.every_seconds` in factory.yaml says how often boards are read",
    "workspace": "checkouts are made below the factory's `home`",
    "worker": "machines join with `darkfactory up`",
    "server": "`darkfactory up` serves the pages",
    "observability": "`darkfactory up` serves the pages",
    "codex": "models are set in factory.yaml",
    "agent.max_concurrent_agents": "use `max_running` of the repository in factory.yaml",
    "agent.max_concurrent_agents_by_state": "use `dispatch.max_running_by_state` in factory.yaml",
    "agent.max_retry_backoff_ms": "retries wait at most 300 s",
    "agent.max_turns": "steps are bounded by the factory",
}
"""Names that Symphony knows (SPEC.md 5.3) and where the factory keeps what they set."""
_OWN_CHECKOUT = re.compile(r"\bgit\b[^\n;&|]*\b(clone|worktree\s+add)\b")
_CHECKOUT_REASON = "it makes a checkout, and the factory hands one out; put what installs things into `setup`"
_OPENING = re.compile(r"\{\{|\{%")
_RAW_END = re.compile(r"\{%-? {0,3}endraw {0,3}-?%\}")
_LONGEST_EXPRESSION = 300


def read_policy(mirror: Mirror, sha: str, detect: Detect) -> Policy:
    """WORKFLOW.md's front matter where it has keys of `Policy` (see `unused_keys` for others), else what is detected.

    Read from the base commit, so a change cannot loosen the policy it is judged by. Raises ConfigError for bad values.
    """
    front, _ = front_matter(_text(mirror, sha, "WORKFLOW.md"))
    known = {k: v for k, v in front.items() if k in Policy.model_fields and v is not None}
    if isinstance(hooks := known.get("hooks"), dict):
        known["hooks"] = _hooks(hooks)
    try:
        declared = Policy.model_validate(known)
    except ValidationError as error:
        wrong = "; ".join(explain(error, Policy))
        raise ConfigError(f"WORKFLOW.md's front matter is not valid: {wrong}; correct it and commit") from None
    if declared.test and declared.test_runner:
        return declared
    command, runner = detect(mirror.paths(sha), lambda path: _text(mirror, sha, path) or None)
    runner = declared.test_runner or (_runner_of(declared.test) if declared.test else runner)
    return Policy.model_validate({**declared.model_dump(), "test": declared.test or command, "test_runner": runner})


def unused_keys(mirror: Mirror, sha: str) -> tuple[str, ...]:
    """What WORKFLOW.md's front matter sets without any effect here, each with where it is set instead, where known.

    At most 20 and without control characters, for a warning: the file is a stranger's.
    """
    front, _ = front_matter(_text(mirror, sha, "WORKFLOW.md"))
    named = islice(_unused(front), MAX_NAMED)
    shown = ((repr(name[:60])[1:-1], reason) for name, reason in named)
    return tuple(f"{name} ({reason})" if reason else name for name, reason in shown)


def _unused(front: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in front.items():
        if name == "hooks" and isinstance(value, dict):
            used = {*Hooks.model_fields, "timeout_ms"}
            yield from ((f"hooks.{hook}", "") for hook in value if hook not in used)
            yield from ((f"hooks.{hook}", _CHECKOUT_REASON) for hook in value if _makes_checkout(hook, value[hook]))
        elif name == "agent" and isinstance(value, dict):
            yield from ((f"agent.{key}", _ELSEWHERE.get(f"agent.{key}", "")) for key in value)
        elif name not in Policy.model_fields:
            yield str(name), _ELSEWHERE.get(str(name), "")


def _hooks(given: Mapping[str, Any]) -> dict[str, Any]:
    """The hooks that have a meaning here. Symphony counts their time in milliseconds."""
    kept = {n: v for n, v in given.items() if n in Hooks.model_fields and v is not None and not _makes_checkout(n, v)}
    milliseconds = given.get("timeout_ms")
    if milliseconds is not None and "timeout_seconds" not in kept:
        kept["timeout_seconds"] = milliseconds / 1000 if isinstance(milliseconds, int) else milliseconds
    return kept


def _makes_checkout(name: str, command: object) -> bool:
    """Symphony's workspace is empty at first, and this hook fills it; in a checkout it would fail, and the run with it."""
    return name == "after_create" and isinstance(command, str) and bool(_OWN_CHECKOUT.search(command))


def _runner_of(command: str) -> str:
    """How to read a declared command's results when the policy does not say it."""
    if re.match(r"(python3? -m )?pytest\b", command):
        return "pytest"
    return "node" if re.match(r"node\b.*--test\b", command) else "exit-code"


def read_rules(mirror: Mirror, sha: str, ticket: Ticket | None = None, attempt: int = 1) -> str:
    """The repository's rules for agents: WORKFLOW.md's text and the rule files, at most 8,000 characters.

    With a ticket WORKFLOW.md is a template (see `render_workflow`); the other files never are.
    """
    found = mirror.read_all(sha, ("WORKFLOW.md", *RULE_FILES))
    given, *texts = (found.get(name, b"").decode(errors="replace") for name in ("WORKFLOW.md", *RULE_FILES))
    _, workflow = front_matter(given)
    if ticket is not None:
        workflow = render_workflow(workflow, ticket, attempt)
    return "\n\n".join(text.strip() for text in (workflow, *texts) if text.strip())[:RULES_CHARS]


def render_workflow(text: str, ticket: Ticket, attempt: int) -> str:
    """Fill in `{{ issue.title }}` and the like, and choose the parts of `{% if issue.url %}…{% else %}…{% endif %}`.

    A small strict part of Liquid, as Symphony's templates use it: the filters `join` and `default`, and `raw` for text
    that is none. `attempt` counts from 1; the variable is empty then, and 1 for the first retry. Values are data and
    never rendered themselves. Raises WorkFailed for whatever is unknown: it fails this attempt only (CF3).
    """
    known = _variables(ticket, attempt)
    rendered: list[str] = []
    shown: list[bool] = []
    for kind, piece in _pieces(text):
        if kind == "tag":
            _enter(piece, known, shown)
        elif all(shown):
            rendered.append(_value(piece, known) if kind == "value" else piece)
        elif kind == "value":
            _value(piece, known)
    if shown:
        raise WorkFailed("WORKFLOW.md has an {% if … %} without its {% endif %}; correct it and commit")
    return "".join(rendered)


def _variables(ticket: Ticket, attempt: int) -> dict[str, str | tuple[str, ...]]:
    """What a template may name: Symphony's fields of an issue (SPEC.md 4.1.1) as far as a board knows them."""
    values: dict[str, object] = {
        "id": ticket.key, "identifier": ticket.key, "title": ticket.title, "description": ticket.body,
        "state": ticket.state, "url": ticket.url, "priority": ticket.priority, "branch_name": branch_name(ticket.key),
        "created_at": ticket.created_at and ticket.created_at.isoformat(),
        "updated_at": ticket.updated_at and ticket.updated_at.isoformat(),
    }  # fmt: skip
    return {
        **{f"issue.{name}": "" if value is None else str(value) for name, value in values.items()},
        "issue.labels": ticket.labels,
        "issue.blocked_by": ticket.blocked_by,
        "attempt": str(attempt - 1) if attempt > 1 else "",
    }


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """The template in order: ("text", …), ("tag", what stands in `{% %}`) and ("value", what stands in `{{ }}`)."""
    end = 0
    while found := _OPENING.search(text, end):
        kind, closing = ("value", "}}") if found[0] == "{{" else ("tag", "%}")
        stop = text.find(closing, found.end())
        if stop < 0:
            break
        yield "text", text[end : found.start()]
        inner, end = text[found.end() : stop].strip("- \t\r\n"), stop + 2
        if (kind, inner) == ("tag", "raw"):
            raw = _RAW_END.search(text, end)
            yield "text", text[end : raw.start() if raw else None]
            end = raw.end() if raw else len(text)
        elif len(inner) > _LONGEST_EXPRESSION:
            raise WorkFailed(
                f"WORKFLOW.md has a template expression of {len(inner)} characters: {inner!r:.80}; shorten it"
            )
        else:
            yield kind, inner
    yield "text", text[end:]


def _enter(tag: str, known: Mapping[str, str | tuple[str, ...]], shown: list[bool]) -> None:
    """Open, turn or close a condition; `shown` says of each open one whether its text is kept."""
    word, _, rest = tag.partition(" ")
    if word == "if" and rest.strip():
        shown.append(bool(_looked_up(rest.strip(), known)))
    elif tag == "else" and shown:
        shown[-1] = not shown[-1]
    elif tag == "endif" and shown:
        shown.pop()
    else:
        raise WorkFailed(
            f"WORKFLOW.md has {{% {tag} %}}, which is not understood there; use {{% if NAME %}}, {{% else %}} and "
            "{% endif %}, or put text that is no template between {% raw %} and {% endraw %}"
        )


def _value(expression: str, known: Mapping[str, str | tuple[str, ...]]) -> str:
    name, *filters = re.split(r"\s*\|\s*(?=(?:[^\"']*[\"'][^\"']*[\"'])*[^\"']*$)", expression)
    value = _looked_up(name, known)
    for each in filters:
        found = re.fullmatch(r"(join|default):\s*([\"'])(.*)\2", each, re.DOTALL)
        if found is None:
            raise WorkFailed(
                f'WORKFLOW.md uses the filter {each!r}; there are `join: "…"` and `default: "…"`; correct it and commit'
            )
        if found[1] == "join" and isinstance(value, tuple):
            value = found[3].join(value)
        elif found[1] == "default":
            value = value or found[3]
    return ", ".join(value) if isinstance(value, tuple) else value


def _looked_up(name: str, known: Mapping[str, str | tuple[str, ...]]) -> str | tuple[str, ...]:
    if name not in known:
        raise WorkFailed(
            f"WORKFLOW.md names {name!r}, which no template knows; there are {', '.join(sorted(known))}; correct it and "
            "commit, or put text that is no template between {% raw %} and {% endraw %}"
        )
    return known[name]


def front_matter(text: str) -> tuple[dict[str, object], str]:
    """YAML between the first two `---` lines and the text after it. Raises ConfigError when it is not a mapping."""
    found = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$\n?", text, flags=re.DOTALL | re.MULTILINE)
    if found is None:
        return {}, text
    try:
        values = safe_yaml(found[1]) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date like 2024-13-45
        raise ConfigError(f"the front matter is not valid YAML: {error}; correct it and commit") from None
    if not isinstance(values, dict):
        raise ConfigError("the front matter has to be `key: value` lines; correct it and commit")
    return values, text[found.end() :]


def _text(mirror: Mirror, sha: str, path: str) -> str:
    return (mirror.read(sha, path) or b"").decode(errors="replace")
