"""Settings that are edited while the factory works. Real files; each call stands for the next process."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra import reloading
from infra.errors import ConfigError
from infra.reloading import Edits, current_settings, is_news, settings_at_hand, was_told
from infra.settings import load_settings

SECRET = "ghp_abcdefghijklmnopqrstuvwxyz0123"


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DARKFACTORY_CONFIG", raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home" / "factory.yaml"


def copy_of(config: Path) -> Path:
    return config.parent / "run" / "factory.good.yaml"


def test_an_edit_is_there_at_the_next_call(config: Path) -> None:
    """CF1."""
    for seed in (1, 2):
        config.write_text(f"seed: {seed}\n")
        loaded = current_settings()
        assert (loaded.settings.seed, loaded.problem, loaded.warnings) == (seed, None, ())
    assert copy_of(config).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ("seed: 1\ndispatch:\n  max_runing: 2\n", "line 3: dispatch.max_runing"),
        ("seed: 1\nseed: 2\n", "line 2: `seed` stands there twice"),
        ("seed: [\n", "not valid YAML in line 2"),
        ("boards: {main: {kind: github, project: a/b, token: $NOT_SET_ANYWHERE}}\n", "NOT_SET_ANYWHERE is not set"),
        (None, "is gone"),
    ],
)
def test_a_bad_edit_keeps_the_last_good_settings_and_says_so(config: Path, edit: str | None, said: str) -> None:
    """CF1, CF4: each call is what the next process sees, and the second bad one sees the same."""
    config.write_text("seed: 5\n")
    current_settings()
    config.unlink() if edit is None else config.write_text(edit)
    for _ in range(2):
        loaded = current_settings()
        assert loaded.settings.seed == 5
        assert loaded.problem is not None
        assert said in loaded.problem
        assert "stay in force" in loaded.problem
    config.write_text("seed: 6\n")
    assert current_settings()[:2] == (current_settings().settings, None)
    assert current_settings().settings.seed == 6


def test_invalid_at_the_first_start_is_refused(config: Path) -> None:
    """CF2."""
    config.write_text("sed: 5\n")
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        current_settings()
    assert not copy_of(config).exists()


def test_a_good_copy_that_cannot_be_used_any_more_hides_nothing(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOARD_TOKEN", SECRET)
    config.write_text("boards: {main: {kind: github, project: a/b, token: $BOARD_TOKEN}}\n")
    current_settings()
    assert SECRET not in copy_of(config).read_text()
    monkeypatch.delenv("BOARD_TOKEN")
    with pytest.raises(ConfigError, match="BOARD_TOKEN is not set"):
        current_settings()


def test_without_any_file_the_defaults_hold(config: Path) -> None:
    loaded = current_settings()
    assert (loaded.settings.seed, loaded.problem) == (0, None)


def test_the_environment_wins_over_the_good_copy_too(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("seed: 5\nmax_rounds: 3\n")
    current_settings()
    config.write_text("seed: x\n")
    monkeypatch.setenv("DARKFACTORY_SEED", "9")
    config.write_text("seed: 5\nmax_rounds: x\n")
    settings = current_settings().settings
    assert (settings.seed, settings.max_rounds) == (9, 3)


def test_a_home_that_the_file_names_holds_the_copy(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DARKFACTORY_HOME")
    monkeypatch.setenv("DARKFACTORY_CONFIG", str(config))
    elsewhere = tmp_path / "else where"
    config.write_text(f"home: '{elsewhere}'  # mine\nseed: 5\n")
    current_settings()
    assert (elsewhere / "run" / "factory.good.yaml").is_file()
    config.write_text(f"home: '{elsewhere}'\nseed: [\n")
    assert current_settings().settings.seed == 5


def test_the_copy_of_another_file_is_not_used(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("seed: 5\n")
    current_settings()
    other = tmp_path / "other.yaml"
    other.write_text("sed: 5\n")
    monkeypatch.setenv("DARKFACTORY_CONFIG", str(other))
    with pytest.raises(ConfigError, match="sed"):
        current_settings()


def test_a_secret_in_the_file_works_but_is_warned_about_without_being_quoted(config: Path) -> None:
    config.write_text(
        f"boards:\n  main:\n    kind: github\n    project: a/b\n    token: {SECRET}\n"
        f"database_url: postgresql://me:{SECRET}@localhost/x\n"
    )
    loaded = current_settings()
    assert loaded.problem is None
    assert [warning.partition(" holds")[0] for warning in loaded.warnings] == [
        "line 5: `boards.main.token`", "line 6: `database_url`",
    ]  # fmt: skip
    assert SECRET not in str(loaded.warnings)
    assert copy_of(config).stat().st_mode & 0o777 == 0o600


def test_a_copy_that_cannot_be_written_is_a_warning(config: Path) -> None:
    (config.parent / "run").write_text("in the way")
    config.write_text("seed: 5\n")
    loaded = current_settings()
    assert loaded.settings.seed == 5
    assert "no copy of the settings can be kept" in loaded.warnings[0]


@pytest.mark.parametrize("written", [f"[$HOOK_A, {SECRET}]", SECRET])
def test_a_secret_in_the_file_is_found_alone_and_in_a_list(
    config: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    """CF4."""
    monkeypatch.setenv("HOOK_A", "one")
    config.write_text(f"webhooks:\n  github_secret: {written}\n  linear_secret: $HOOK_A\n")
    [warning] = current_settings().warnings
    assert warning.startswith("line 2: `webhooks.github_secret")
    assert SECRET not in warning


def test_a_command_that_uses_no_secret_needs_none_and_works_beside_a_bad_edit(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CF1, CF4: `status`, `pause` and `down` in another terminal, which has no token, and while the file is wrong."""
    monkeypatch.setenv("BOARD_TOKEN", SECRET)
    good = "seed: 5\nboards: {main: {kind: github, project: a/b, token: $BOARD_TOKEN}}\n"
    config.write_text(good)
    current_settings()
    monkeypatch.delenv("BOARD_TOKEN")
    assert (settings_at_hand().settings.seed, settings_at_hand().problem) == (5, None)
    config.write_text(good + "sed: 6\n")
    loaded = settings_at_hand()
    assert loaded.settings.seed == 5
    assert "line 3: sed: no such name (did you mean 'seed'?)" in (loaded.problem or "")
    with pytest.raises(ConfigError, match="BOARD_TOKEN"):  # whoever works has to have it
        load_settings()


def test_a_command_without_secrets_does_not_take_a_lost_file_for_the_defaults(config: Path) -> None:
    """CF1: `pause dispatch` would be written into another database, and stop nothing."""
    config.write_text("seed: 5\n")
    current_settings()
    config.unlink()
    loaded = settings_at_hand()
    assert loaded.settings.seed == 5
    assert "is gone; put it back" in (loaded.problem or "")


def test_one_problem_is_news_once_for_all_processes_and_again_after_it_was_mended(config: Path) -> None:
    """CF1: every tick is a process of its own."""
    settings = current_settings().settings
    assert is_news(settings, "line 1")
    assert is_news(settings, "line 1")  # nobody was told yet
    was_told(settings, "line 1")
    assert not is_news(settings, "line 1")
    assert is_news(settings, "line 2")
    assert not is_news(settings, None)
    assert is_news(settings, "line 1")


def test_a_process_that_stays_hears_of_each_edit_once(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CF1"""
    monkeypatch.setattr(reloading, "LOOK_SECONDS", 0.0)
    config.write_text("seed: 1\n")
    edits = Edits(load_settings())
    assert edits.look() is None
    heard = []
    for text in ("seed: 2\n", "seed: 2\nsed: 3\n", "seed: 2\n"):
        config.write_text(text)
        found = edits.look()
        assert found is not None
        heard.append((found.settings.seed, "sed" in (found.problem or "")))
        assert edits.look() is None
    assert heard == [(2, False), (2, True), (2, False)]
