"""factory.yaml as people write it: every mistake is one line that names the place, what is allowed and what was meant."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from infra.errors import ConfigError
from infra.settings import Settings, load_settings

SECRET = "ghp_abcdefghijklmnopqrstuvwxyz0123"
GITHUB = "{kind: github, project: acme/shop, token: $BOARD_TOKEN}"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    monkeypatch.delenv("DARKFACTORY_CONFIG", raising=False)
    monkeypatch.setenv("BOARD_TOKEN", SECRET)
    return tmp_path


def load(home: Path, text: str) -> Settings:
    (home / "factory.yaml").write_text(text)
    return load_settings()


def complaints(home: Path, text: str) -> list[str]:
    """The mistakes that are named, without the headline."""
    with pytest.raises(ConfigError) as caught:
        load(home, text)
    head, *lines = str(caught.value).split("\n  ")
    assert str(home / "factory.yaml") in head
    return lines or [head]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dispatch:\n  max_runing: 3\n", ["line 2: dispatch.max_runing: no such name", "'max_running'", "every_seconds"]),
        ("max_round: 3\n", ["line 1: max_round: no such name", "did you mean 'max_rounds'"]),
        ("dispatch:\n  max_running: many\n", ["line 2: dispatch.max_running: ", "integer", "(got 'many')"]),
        ("dispatch: {max_running: 0}\n", ["dispatch.max_running: ", "greater than or equal to 1", "(got 0)"]),
        ("dispatch: 3\n", ["line 1: dispatch: "]),
        ("sandbox: vm\n", ["sandbox: ", "'bubblewrap', 'docker', 'podman' or 'none'", "(got 'vm')"]),
        ("boards:\n  main:\n    kind: gitub\n", ["line 3: boards.main.kind: 'gitub'", "'github'", "folder, github, jira, linear"]),
        ("boards:\n  main: {project: a/b}\n", ["line 2: boards.main.kind: is missing", "folder, github, jira, linear"]),
        ("boards:\n  main: {kind: github, token: $BOARD_TOKEN}\n", ["line 2: boards.main.project: is missing"]),
        (f"boards:\n  main: {GITHUB[:-1]}, tokn: 1}}\n", ["boards.main.tokn: no such name", "'token'"]),
        ("repositories:\n  shop:\n    path: /x\n    github: {projekt: a/b}\n", ["repositories.shop.github.projekt", "'project'"]),
        ("model_usd_per_million_tokens: [1, x, 2]\n", ["model_usd_per_million_tokens.1: ", "(got 'x')"]),
        ("strong: {modl: x}\n", ["strong.modl: no such name (did you mean 'model'?)"]),
    ],
)  # fmt: skip
def test_a_mistake_names_its_place_what_is_allowed_and_what_was_meant(home: Path, text: str, words: list[str]) -> None:
    lines = complaints(home, text)
    assert any(all(word in line for word in words) for line in lines), lines


def test_every_mistake_is_one_line(home: Path) -> None:
    lines = complaints(home, "max_rounds: 99\nseed: x\ndispatch: {batch: 9, wat: 1}\n")
    names = ["dispatch.batch", "dispatch.wat", "max_rounds", "seed"]
    assert [line.split(": ")[1] for line in sorted(lines, key=lambda line: line.split(": ")[1])] == names


def test_a_name_that_stands_twice_is_refused(home: Path) -> None:
    (line,) = complaints(home, "seed: 1\ndispatch:\n  batch: 1\n  every_seconds: 60\n  batch: 2\n")
    assert "line 5: `dispatch.batch` stands there twice, first in line 3" in line


@pytest.mark.parametrize(
    "text", ["a: [", "- a\n- b", "just words", "when: 2024-13-45", "[" * 2_000, "a: !!python/x y", "\0"]
)
def test_what_is_no_yaml_mapping_is_a_config_error_of_one_line(home: Path, text: str) -> None:
    (line,) = complaints(home, text)
    assert "\n" not in line


def test_a_file_that_is_not_text_is_a_config_error(home: Path) -> None:
    (home / "factory.yaml").write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings()


@pytest.mark.parametrize(
    "text",
    [
        f"boards: {{main: {{kind: github, token: {SECRET}}}}}\n",
        f"boards: {{main: {{kind: github, project: wrong, token: {SECRET}}}}}\n",
        f"boards: {{main: {{kind: github, project: a/b, token: [{SECRET}]}}}}\n",
        f"webhooks: {{github_secret: {{x: {SECRET}}}}}\n",
        f"webhooks: {{github_secret: [[{SECRET}], 1{SECRET}]}}\n",
        f"seed: {SECRET}\n",
        f"model: [{SECRET}]\n",
    ],
)
def test_no_secret_is_quoted(home: Path, text: str) -> None:
    assert SECRET not in "\n".join(complaints(home, text))


def test_only_named_variables_are_read_and_an_empty_one_is_missing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CF4."""
    settings = load(home, f"model: $BOARD_TOKEN\nboards: {{main: {GITHUB}}}\n")
    board = settings.boards["main"]
    assert board.kind == "github"
    assert (board.token.get_secret_value(), settings.model) == (SECRET, "$BOARD_TOKEN")
    monkeypatch.setenv("BOARD_TOKEN", "  ")
    (line,) = complaints(home, f"boards:\n  main:\n    {GITHUB}\n")
    assert "line 3: boards.main.token: the environment variable BOARD_TOKEN is not set or empty" in line


def test_the_environment_wins_and_its_mistakes_are_not_blamed_on_the_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKFACTORY_SEED", "7")
    assert load(home, "seed: 1\n").seed == 7
    monkeypatch.setenv("DARKFACTORY_SEED", "x")
    (line,) = complaints(home, "seed: 1\n")
    assert line.startswith("seed: ")


def test_a_section_without_lines_is_an_absent_one(home: Path) -> None:
    settings = load(home, "dispatch:\n  #batch: 2\nboards:\nrepositories:\nmodel:\n")
    assert (settings.dispatch.batch, settings.boards, settings.model) == (1, {}, "embedded")


@pytest.mark.parametrize(
    ("one", "two", "shared"),
    [
        (GITHUB, GITHUB, "the project 'acme/shop'"),
        (GITHUB, "{kind: github, project: other/SHOP, token: $BOARD_TOKEN}", "the key prefix 'SHOP'"),
        (GITHUB, "{kind: linear, team: SHOP, token: $BOARD_TOKEN}", "the key prefix 'SHOP'"),
        ("{kind: linear, team: ENG, token: $BOARD_TOKEN}",
         "{kind: jira, project: ENG, email: a@b.example, token: $BOARD_TOKEN, url: 'https://x.example'}", "the key prefix 'ENG'"),
        ("{kind: folder, path: /b}", "{kind: folder, path: /b/}", "the folder '/b'"),
    ],
)  # fmt: skip
def test_two_boards_cannot_hold_or_name_the_same_tickets(home: Path, one: str, two: str, shared: str) -> None:
    lines = complaints(home, f"boards:\n  one: {one}\n  two: {two}\n")
    assert any(f"line 3: boards.two: {shared} is also that of the board 'one'" in line for line in lines), lines


def test_boards_that_share_nothing_are_fine(home: Path) -> None:
    other = "{kind: github, project: acme/shop2, token: $BOARD_TOKEN}"
    assert len(load(home, f"boards: {{one: {GITHUB}, two: {other}, three: {{kind: folder, path: b}}}}\n").boards) == 3


def test_a_board_cannot_name_a_repository_that_is_not_configured(home: Path) -> None:
    text = "repositories: {shop: {path: /x}}\nboards:\n  main: {kind: folder, path: /b, repository: shpo}\n"
    (line,) = complaints(home, text)
    assert (
        "line 3: boards.main.repository: 'shpo' is not in `repositories` (did you mean 'shop'?); configured: shop"
        in line
    )


def doubled(lines: int, merged: bool) -> str:
    """Each line holds the one before nine times over."""
    names = [f"a{number}" for number in range(lines)]
    inner = "<<: [{}]" if merged else "x: [{}]"
    body = [f"{n}: &{n} {{{inner.format(', '.join([f'*{before}'] * 9))}}}" for before, n in pairwise(names)]
    return "\n".join(["a0: &a0 {k: v}", *body, ""])


@pytest.mark.parametrize("text", [doubled(12, merged=False), doubled(12, merged=True), "boards: &b {main: *b}\n"])
def test_aliases_that_stand_for_a_billion_values_or_for_themselves_are_refused_at_once(home: Path, text: str) -> None:
    """CF1: read at every tick, such a file would hold up every process."""
    began = time.monotonic()
    (line,) = complaints(home, text)
    assert time.monotonic() - began < 2
    assert "not valid YAML" in line


def test_aliases_are_fine_otherwise(home: Path) -> None:
    settings = load(home, "repositories:\n  shop: &it {path: /x, max_running: 2}\n  till: {<<: *it, max_running: 3}\n")
    assert [known.max_running for known in settings.repositories.values()] == [2, 3]


@pytest.mark.parametrize(
    ("key", "shown"), [("1", "`1`"), ("~", "`~`"), ("on", "`on`"), ("? [a]\n", "a list or mapping")]
)
def test_a_name_that_is_none_in_yaml_is_named(home: Path, key: str, shown: str) -> None:
    (line,) = complaints(home, f"seed: 1\n{key}: 2\n")
    assert f"line 2: {shown} is no name in YAML; write it in quotes" in line


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("''", "an empty secret is a missing one"),
        ("'  '", "an empty secret is a missing one"),
        ("${BOARD_TOKEN}", "write `$` and the variable's name, without braces"),
        ("$BOARD-TOKEN", "write `$` and the variable's name, without braces"),
    ],
)
def test_a_secret_that_is_empty_or_half_a_variable_is_refused_and_not_quoted(home: Path, token: str, said: str) -> None:
    """CF4"""
    (line,) = complaints(home, f'boards:\n  main: {{kind: github, project: a/b, token: "{token.strip(chr(39))}"}}\n')
    assert "line 2: boards.main.token: " in line
    assert said in line
    assert "BOARD" not in line


@pytest.mark.parametrize("name", ["my node", "-x", "a/b", "é", "x" * 64, ""])
def test_a_name_that_no_node_can_have_is_refused(home: Path, name: str) -> None:
    """It becomes the name of a folder, of a work pool and of a pause."""
    assert any("node" in line for line in complaints(home, f"node: '{name}'\n"))


def test_a_wrong_shape_is_said_in_words_of_the_file(home: Path) -> None:
    lines = complaints(home, "dispatch: 5\nboards: {m: {kind: folder, path: /x, states: {queue: todo}}}\n")
    assert "line 1: dispatch: has to be `name: value` lines (got 5)" in lines[0] + lines[1]
    assert "line 2: boards.m.states.queue: has to be a list, as in [a, b] (got 'todo')" in lines[0] + lines[1]


def test_a_folder_in_the_place_of_the_file_is_a_mistake(home: Path) -> None:
    (home / "factory.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"factory\.yaml' is not a file"):
        load_settings()
