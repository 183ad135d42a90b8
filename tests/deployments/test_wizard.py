"""The first factory.yaml: it loads as written, and with any of its commented lines uncommented."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.wizard import MOST_TRIES, Question, given_answers, init, variables_to_set
from infra.errors import ConfigError
from infra.settings import Settings, parse_settings
from tests.shop import git, make_repository

JIRA = {"board_project": "SHOP", "board_url": "https://shop.atlassian.net/", "board_email": "me@shop.example"}
KINDS = {"folder": {}, "github": {"board_project": "acme/shop"}, "linear": {"board_team": "ENG"}, "jira": JIRA}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the file goes; the current folder is no repository and no variable is set."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("GITHUB_TOKEN", "LINEAR_API_KEY", "JIRA_API_TOKEN", "SLACK_WEBHOOK_URL", "DARKFACTORY_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home" / "factory.yaml"


def set_all(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in re.findall(r"\$([A-Z_]+)", text):
        monkeypatch.setenv(name, "https://hooks.example/x")


def uncommented(text: str) -> list[str]:
    """The file once for each commented default, with only that line uncommented, and once with all of them."""
    lines = text.splitlines()
    places = [n for n, line in enumerate(lines) if re.match(r" *#\w+: ", line)]
    assert len(places) > 20
    single = [
        [re.sub("#", "", line, count=1) if n == place else line for n, line in enumerate(lines)] for place in places
    ]
    every = [re.sub("#", "", line, count=1) if n in places else line for n, line in enumerate(lines)]
    return ["\n".join(each) for each in [*single, every]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_loads_and_so_does_it_with_any_commented_line_in_force(
    path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = make_repository(path.parent.parent / "shop")
    git(repository, "remote", "add", "origin", "git@github.com:acme/shop.git")
    flags = {"board": kind, "repository": str(repository), "notify": "slack", "slots": "3", **KINDS[kind]}
    text = init(path, given_answers(flags)).read_text()
    set_all(text, monkeypatch)
    settings = parse_settings(text, "factory.yaml")
    (board,) = settings.boards.values()
    assert (board.kind, board.repository, settings.model_slots) == (kind, "shop", 3)
    shop = settings.repositories["shop"]
    assert shop.github is not None
    assert (shop.path, shop.remote) == (repository, "https://github.com/acme/shop.git")
    for each in uncommented(text):
        parse_settings(each, "factory.yaml")


def test_every_setting_and_every_section_is_in_the_file(path: Path) -> None:
    text = init(path, None).read_text()
    named = set(re.findall(r"^#?(\w+):", text, re.MULTILINE))
    assert Settings.model_fields.keys() - named == {"home", "model_key"}
    for section in ("dispatch", "notify", "webhooks"):
        body = re.search(rf"^{section}:\n((?: .*\n)+)", text, re.MULTILINE)
        assert body is not None
        annotation = Settings.model_fields[section].annotation
        assert set(re.findall(r"^ +#?(\w+):", body[1], re.MULTILINE)) == annotation.model_fields.keys()  # type: ignore[union-attr]


def test_commented_values_are_the_defaults(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = uncommented(init(path, None).read_text())[-1]
    set_all(text, monkeypatch)
    written = {"boards", "repositories", "notify", "webhooks", "strong"}
    plain, every = parse_settings("", "none"), parse_settings(text, "all")
    assert every.model_dump(exclude=written) == plain.model_dump(exclude=written)
    assert (every.webhooks.port, every.notify.webhook) == (plain.webhooks.port, None)


def test_without_a_terminal_the_defaults_are_taken_and_nothing_is_asked(path: Path) -> None:
    settings = parse_settings(init(path, None).read_text(), str(path))
    assert (settings.model, settings.repositories, settings.boards["folder"].kind) == ("embedded", {}, "folder")
    assert variables_to_set(path) == ()


def test_an_answer_that_cannot_be_used_is_asked_again_with_the_reason(path: Path, tmp_path: Path) -> None:
    replies = {
        "repository": [str(tmp_path), ""], "board": ["trello", "GitHub"], "board_project": ["", "shop", "acme/shop"],
        "model": ["gpt", "openai/x"], "model_url": ["gpu-box:8000", "http://gpu-box:8000/v1"], "slots": ["0", "many", "4"],
        "notify": ["mail", "https://hooks.example/x"],
    }  # fmt: skip
    problems: list[str] = []

    def answer(question: Question) -> str:
        problems.extend([question.problem] if question.problem else [])
        return replies[question.name].pop(0)

    text = init(path, answer).read_text()
    assert not any(replies.values())
    for words in ("not a git repository", "'trello'", "an answer is needed", "'shop'", "'gpt'", "'gpu-box:8000'", "'0'", "'many'",
                  "'mail'"):  # fmt: skip
        assert any(words in problem for problem in problems), (words, problems)
    assert "model_url: http://gpu-box:8000/v1" in text
    assert "webhook: https://hooks.example/x" in text
    assert variables_to_set(path) == ("GITHUB_TOKEN",)


def test_asking_ends(path: Path) -> None:
    asked: list[Question] = []

    def answer(question: Question) -> str:
        asked.append(question)
        return "/nowhere/at/all"

    with pytest.raises(ConfigError, match="repository could not be understood"):
        init(path, answer)
    assert len(asked) == MOST_TRIES
    assert not path.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"board": "trello"}, "--board: 'trello'"),
        ({"board": "jira"}, "--board-project is needed"),
        ({"slots": "x"}, "--slots"),
        ({"board_project": "acme/shop"}, "--board-project: nothing is asked"),
        (
            {"github": "none", "remote": "none", "board_team": "ENG", "model_url": "http://x/v1"},
            "--board-team, --model-url: ",
        ),
    ],
)
def test_an_unusable_or_missing_flag_is_named(path: Path, flags: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        init(path, given_answers(flags), flags=flags)
    assert not path.exists()


def test_an_existing_file_is_never_lost(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("seed: 5\n")
    with pytest.raises(ConfigError, match="--force"):
        init(path, None)
    assert path.read_text() == "seed: 5\n"
    init(path, None, force=True)
    init(path, None, force=True)
    assert path.with_name("factory.yaml.bak").read_text() == "seed: 5\n"
    assert path.with_name("factory.yaml.bak2").read_text() == path.read_text()


def test_no_secret_of_the_remote_reaches_the_file(path: Path, tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "shop")
    git(repository, "remote", "add", "origin", "https://me:hunter2hunter2@git.example/acme/shop.git")
    asked: dict[str, str | None] = {}

    def answer(question: Question) -> str:
        asked[question.name] = question.default
        return {"repository": str(repository), "remote": "https://git.example/acme/shop.git"}.get(question.name, "")

    assert "hunter2" not in init(path, answer).read_text() + str(asked)
    assert asked["github"] == "none"


def test_on_a_terminal_without_input_nothing_hangs_and_nothing_is_written(path: Path) -> None:
    code = "import sys; from pathlib import Path; from deployments.wizard import *; init(Path(sys.argv[1]), terminal_answers({}))"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], input="\n\n", capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(root), "HOME": str(path.parent)},
    )  # fmt: skip
    assert "the input ended" in done.stderr
    assert "[folder]" in done.stderr
    assert (done.stdout, path.exists()) == ("", False)


def test_the_factorys_own_checkout_is_not_proposed_and_issues_are_where_the_code_is(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O7: whoever follows the README stands in the factory's checkout, and presses Enter."""
    asked: dict[str, str | None] = {}

    def answer(question: Question) -> str:
        asked[question.name] = question.default
        return ""

    monkeypatch.chdir(Path(__file__).parents[2])
    init(path, answer)
    assert (asked["repository"], asked["board"]) == ("none", "folder")
    repository = make_repository(tmp_path / "shop")
    git(repository, "remote", "add", "origin", "git@github.com:acme/shop.git")
    monkeypatch.chdir(repository)
    init(path, answer, force=True)
    assert (asked["repository"], asked["board"], asked["board_project"]) == (str(repository), "github", "acme/shop")
