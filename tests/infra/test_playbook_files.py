"""The file of a playbook: what is refused, with its line, and that no text from outside becomes a command."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from infra.errors import ConfigError
from infra.playbook_conditions import Unclear, parse_condition
from infra.playbook_files import (
    Parameter,
    Playbook,
    condition_holds,
    is_destructive,
    parse_playbook,
    render_playbook,
    shown,
)

GOOD = """\
name: clear-cache
version: 2
description: Clear one service's cache.
trigger: {pattern: "Clear the cache of {service}"}
parameters:
  service: {pattern: "[a-z-]+", description: the service}
steps:
- id: check
  run: test -e "$STATE/$service"
  accept: [0, 1]
- id: clear
  run: rm -f "$STATE/$service/cache"
  when: steps.check.exit == 0
  undo: touch "$STATE/$service/cache"
verify: echo "$service"
provenance: [1, 2, 3]
"""
HOSTILE = (
    "x; touch pwned", "$(touch pwned)", "`touch pwned`", "x && touch pwned", "x | touch pwned", "x\ntouch pwned", "x > pwned",
    '"; touch pwned; "', "'; touch pwned; '", "-rf", "--help", "../../etc", "a/../b", "${IFS}touch", "x\0y", "*", "~", "!!", "x#",
    "x\\", "{a,b}", "x&", "", " ", "ｘ", "x" * 201, "a\u202eb", "$HOME", "%0a\n", "a'b", 'a"b',
)  # fmt: skip


def parsed(text: str) -> Playbook:
    return parse_playbook(text.encode(), ".darkfactory/playbooks/clear-cache.yaml")


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    return str(caught.value)


def test_a_good_file_is_read_and_written_as_it_was() -> None:
    found = parsed(GOOD)
    assert found.steps[1].gated
    assert not found.steps[0].gated
    assert [step.id for step in found.all_steps] == ["check", "clear", "verify"]
    assert parsed(render_playbook(found)) == found.model_copy(
        update={"steps": (found.steps[0], found.steps[1].model_copy(update={"approval": True}))}
    )


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("version: 2", "versoin: 2", 2, "did you mean 'version'"),
        ("  undo: touch", "  undoo: touch", 14, "did you mean 'undo'"),
        ('pattern: "[a-z-]+"', 'patern: "[a-z-]+"', 6, "patern"),
        ("  accept: [0, 1]", "  approval: no\n  timeout: -1", 11, "timeout"),
        ("  when: steps.check.exit == 0", "  approval: false", 13, "remove this line"),
        ("steps.check.exit == 0", "__import__('os').system('x')", 13, "cannot be understood"),
        ("steps.check.exit == 0", "steps.clear.exit == 0", 13, "no earlier step"),
        ("steps.check.exit == 0", "other == 'x'", 13, "'other' is no parameter"),
        ('rm -f "$STATE/$service/cache"', "rm -f $STATE/$service/cache", 12, "in double quotes"),
        ('rm -f "$STATE/$service/cache"', "rm -f '$service'", 12, "in double quotes"),
        ('rm -f "$STATE/$service/cache"', "rm -f \"$(cat $service)\"", 12, "command substitution"),
        ('rm -f "$STATE/$service/cache"', "rm -f \"`cat $service`\"", 12, "command substitution"),
        ('rm -f "$STATE/$service/cache"', 'eval "$service"', 12, "takes text as code"),
        ('rm -f "$STATE/$service/cache"', 'sh -c "rm $service"', 12, "takes text as code"),
        ('rm -f "$STATE/$service/cache"', 'python3 -I -c "$service"', 12, "takes text as code"),
        ('rm -f "$STATE/$service/cache"', 'bash -ec "$service"', 12, "takes text as code"),
        ('rm -f "$STATE/$service/cache"', '"ls \\e[8m; id"', 12, "run"),
        ('rm -f "$STATE/$service/cache"', '"ls \\u202e; id"', 12, "run"),
        ('rm -f "$STATE/$service/cache"', 'sh -o errexit -c "$service"', 12, "takes text as code"),
        ('rm -f "$STATE/$service/cache"', 'python3 -X dev -c "$service"', 12, "takes text as code"),
        ('rm -f "$STATE/$service/cache"', 'node --eval "$service"', 12, "takes text as code"),
        ('rm -f "$STATE/$service/cache"', 'echo "$service" | /bin/sh', 12, "takes text as code"),
        ('rm -f "$STATE/$service/cache"', 'trap "$service" EXIT', 12, "takes text as code"),
        ('rm -f "$STATE/$service/cache"', '\\eval "$service"', 12, "takes text as code"),
        ('rm -f "$STATE/$service/cache"', 'cd tools && "$service" now', 12, "name of a command"),
        ('rm -f "$STATE/$service/cache"', 'A=1 "${service}" now', 12, "name of a command"),
        ('rm -f "$STATE/$service/cache"', 'if true; then timeout 5 "$service"; fi', 12, "name of a command"),
        ('rm -f "$STATE/$service/cache"', "rm \"${service:-/}\"", 12, "only `$name`"),
        ('rm -f "$STATE/$service/cache"', "rm \"${!service}\"", 12, "only `$name`"),
        ('rm -f "$STATE/$service/cache"', 'cat ../../etc/passwd', 12, "leads out of the checkout"),
        ("id: clear", "id: check", 11, "is taken"),
        ("{service}\"", "{other}\"", 4, "of one of the parameters"),
        ("Clear the cache of {service}", "{service}", 4, "every title"),
        ('"[a-z-]+"', '"(a+)+"', 6, "repeated group"),
        ('"[a-z-]+"', '"a*a*a*a*b"', 6, "more than three times"),
        ('"[a-z-]+"', '"[a-z"', 6, "no regular expression"),
        ("  service: {", "  http_proxy: {", 6, "another meaning"),
        ("  service: {", "  PATH: {", 6, "PATH"),
        ('verify: echo "$service"', "verify: rm x", 15, "a step of its own"),
        ("steps:", "steps: [", 8, "not valid YAML"),
        ("name: clear-cache", "name: clear-cache\nname: clear-cache", 2, "twice"),
        ("name: clear-cache", "name: other", 1, "not that of the file"),
        ("name: clear-cache", "name: ../../x", 1, "name"),
        ("description: Clear", "description: &a Clear", 0, ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_file_and_line(old: str, new: str, line: int, said: str) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new)
    if not line:
        parsed(text)
        return
    message = refused(text)
    assert ".darkfactory/playbooks/clear-cache.yaml" in message
    assert said in message
    assert f"line {line}" in message


@pytest.mark.parametrize(
    "command",
    ['sh ./tools/clear.sh "$service"', 'python tools/clear.py "$service"', './tools/admin -c "$service"', 'cp a "$service" && ls',
     'time ./tools/clear "$service"', 'A="$service" ./tools/clear', 'test ! "$service" = x',
     'ls && [[ x == a || "$service" == b ]] && ls', 'bash deploy.sh -e "$service"', 'ls | awk 1 | grep "$service"', 'test -e "$STATE/$service" || echo "$service"'],
)  # fmt: skip
def test_a_parameter_may_be_an_argument(command: str) -> None:
    parsed(GOOD.replace('rm -f "$STATE/$service/cache"', command))


def test_aliases_that_would_grow_are_refused_before_they_do() -> None:
    grown = "a: &a [x, x]\n" + "".join(
        f"{c}: &{c} [*{p}, *{p}]\n"
        for p, c in zip("abcdefghijklmnopqrstuvwxy", "bcdefghijklmnopqrstuvwxyz", strict=True)
    )
    started = time.monotonic()
    assert "alias" in refused(grown)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"", b"[1, 2]", b"just text", b"x" * 40_000, b"name: 2024-13-45", b"? [a]\n: b"]
)
def test_what_is_no_playbook_at_all_is_a_clear_error(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"clear-cache\.yaml"):
        parse_playbook(data, "clear-cache.yaml")


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("pattern", [r"[a-z-]+", r".*", r"[^x]*|x.*"])
def test_hostile_values_are_refused_whatever_the_pattern_allows(value: str, pattern: str) -> None:
    assert Parameter(pattern=pattern).problem(value) is not None


@pytest.mark.parametrize("value", ["a b", "a/b", "x@y", "50%", "k=v", "a,b", "1:2"])
def test_what_is_allowed_reaches_a_command_as_one_word_even_where_it_is_evaluated(value: str, tmp_path: Path) -> None:
    assert Parameter(pattern=".*").problem(value) is None
    for command in ('printf "%s|" "$service"', "eval \"printf '%s|' $service\""):
        done = subprocess.run(["/bin/sh", "-c", command], env={"service": value, "PATH": "/usr/bin:/bin"}, cwd=tmp_path,
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert done.stdout.replace("|", " ").strip() == value
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "title",
    ["Clear the cache of $(touch pwned)", "Clear the cache of shop; rm -rf /", "Clear the cache of `id`", "Clear the cache of -rf",
     "Clear the cache of shop\nverify: x", "clear the cache", "Clear the cache of a b", "Clear the cache of SHOP", "", "x" * 100_000],
)  # fmt: skip
def test_a_title_of_another_kind_or_with_a_hostile_value_starts_nothing(title: str) -> None:
    assert parsed(GOOD).taken_from(title) is None


@pytest.mark.parametrize(
    "title", ["Clear the cache of shop", "clear  THE cache of shop.", "[ops] Clear the cache of shop!"]
)
def test_a_fitting_title_gives_the_parameters(title: str) -> None:
    assert parsed(GOOD).taken_from(title) == {"service": "shop"}


def test_unknown_missing_and_wrong_parameters_are_named() -> None:
    with pytest.raises(ConfigError, match=r"no parameter 'x'.*'service' is missing.*its parameters: service"):
        parsed(GOOD).values({"x": "y"})
    with pytest.raises(ConfigError, match=r"'service' is refused: .*does not match"):
        parsed(GOOD).values({"service": "UPPER"})


def test_a_dry_run_shows_what_a_person_could_type() -> None:
    said = shown('printf %s "$service"', {"service": "a b"})
    assert subprocess.run(["/bin/sh", "-c", said], capture_output=True, text=True, check=True).stdout == "a b"
    assert shown('rm "$STATE/$service"', {"service": "a b", "other": "x"}) == "service='a b'; rm \"$STATE/$service\""


@pytest.mark.parametrize(
    "command", ["rm x", "kubectl delete pod x", "DROP TABLE x", "curl -X DELETE http://x", "app scale --to 0", "rotate-key x", "/bin/rm x"]
)  # fmt: skip
def test_destructive_words_are_found(command: str) -> None:
    assert is_destructive(command)


@pytest.mark.parametrize("command", ["echo form", "alarm on", "grep droplet", "./tools/restart"])
def test_words_that_only_look_like_them_are_not(command: str) -> None:
    assert not is_destructive(command)


@pytest.mark.parametrize(
    ("text", "holds"),
    [("a == 'x'", True), ("a != 'x'", False), ("not a == 'y'", True), ("a == 'y' or a == 'x' and b == 'z'", True),
     ("(a == 'y' or a == 'x') and b == 'q'", False), ("steps.s.exit == 0", True), ("steps.s.outcome == \"finished\"", True),
     ("steps.t.exit == 0", False), ("steps.t.exit != 0", True), ("a == 0", False)],
)  # fmt: skip
def test_conditions(text: str, holds: bool) -> None:
    facts = {"a": "x", "b": "z", "steps.s.exit": 0, "steps.s.outcome": "finished"}
    assert parse_condition(text).holds(facts) is holds


@pytest.mark.parametrize(
    "text", ["", "a", "a ==", "a == b", "== 'x'", "a = 'x'", "a == 'x' b", "(a == 'x'", "a.__class__ == 'x'x", "steps.s.output == 'x'",
             "not " * 100 + "a == 'x'", "(" * 300 + "a == 'x'", "a == 'x\\'", "f() == 'x'", "a == 1.5"],
)  # fmt: skip
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(Unclear):
        parse_condition(text)


def test_a_step_without_a_condition_always_runs() -> None:
    assert condition_holds(parsed(GOOD).steps[0], {}, {})
    assert re.match("steps", parsed(GOOD).steps[1].when or "")
