"""Releases on a real disk: complete or not there, switched by one rename, and a way back that needs nothing else."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.errors import ConfigError, WorkFailed
from infra.releases import INSTALLED, Releases

OLD, NEW, BAD = "1" * 40, "2" * 40, "3" * 40
SMOKE = "python -c 'import shop; assert shop.OPEN'"


def packed(sha: str, text: str = "OPEN = True\n") -> Callable[[], bytes]:
    def archive() -> bytes:
        data, buffer = text.encode(), io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            member = tarfile.TarInfo(f"{sha}/shop.py")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        return buffer.getvalue()

    return archive


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    made = Releases(tmp_path)
    for sha in (OLD, NEW):
        made.add(sha, packed(sha), SMOKE)
    return made


def test_without_releases_the_installed_package_runs_and_nothing_is_written(tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    assert (releases.current(), releases.path(INSTALLED)) == (INSTALLED, None)
    with pytest.raises(ConfigError, match="nothing to roll back"):
        releases.roll_back()
    assert list(tmp_path.iterdir()) == []


def test_a_release_whose_smoke_command_fails_is_never_there(tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    with pytest.raises(WorkFailed, match=r"ended with exit code 1.*AssertionError"):
        releases.add(BAD, packed(BAD, "OPEN = False\n"), SMOKE)
    assert not releases.has(BAD)
    with pytest.raises(ConfigError, match="there is no release"):
        releases.switch(BAD, INSTALLED)
    releases.add(BAD, packed(BAD), SMOKE)
    assert releases.has(BAD)
    assert not list(releases.folder.glob(".new-*"))


def test_the_smoke_command_sees_the_release_first_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-factory")
    look = 'import os, shop; assert "releases" in shop.__file__; assert "OPENAI_API_KEY" not in os.environ'
    Releases(tmp_path).add(NEW, packed(NEW), f"python -c '{look}'")


def test_an_archive_that_leads_out_of_its_place_is_refused(tmp_path: Path) -> None:
    def archive() -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("../../outside"))
        return buffer.getvalue()

    with pytest.raises(WorkFailed, match="outside"):
        Releases(tmp_path / "home").add(NEW, archive, "true")
    assert not (tmp_path / "outside").exists()


def test_a_switch_and_back_again(releases: Releases) -> None:
    assert releases.switch(OLD, INSTALLED)
    assert releases.switch(NEW, OLD)
    assert releases.switch(NEW, OLD)
    assert (releases.current(), releases.link.resolve()) == (NEW, releases.folder / NEW)
    assert releases.roll_back() == (NEW, OLD)
    assert releases.current() == OLD
    assert releases.roll_back() == (OLD, INSTALLED)
    with pytest.raises(ConfigError, match="nothing to roll back"):
        releases.roll_back()


def test_a_release_that_came_back_by_itself_can_be_left_too(releases: Releases) -> None:
    """After a repair was taken back, the database says that the release before is its own predecessor."""
    releases.switch(OLD, INSTALLED)
    releases.switch(NEW, OLD)
    releases.switch(OLD, OLD)
    assert releases.roll_back() == (OLD, INSTALLED)


def test_nobody_is_led_back_to_a_release_that_was_refused_here(releases: Releases) -> None:
    releases.switch(OLD, INSTALLED)
    releases.roll_back()
    releases.switch(NEW, OLD)
    assert releases.roll_back() == (NEW, INSTALLED)


def test_what_was_left_is_not_taken_again_on_this_machine(releases: Releases) -> None:
    """The database may still want it; a person, or its own warm process, said no here."""
    releases.switch(NEW, INSTALLED)
    assert releases.roll_back() == (NEW, INSTALLED)
    assert not releases.link.is_symlink()
    assert not releases.switch(NEW, INSTALLED)
    assert releases.current() == INSTALLED


def test_a_roll_back_that_was_killed_in_the_middle_is_finished_by_the_next_look(releases: Releases) -> None:
    releases.switch(OLD, INSTALLED)
    releases.switch(NEW, OLD)
    releases._note(releases.book.model_copy(update={"refused": (NEW,)}))
    assert not releases.switch(NEW, OLD)
    assert releases.current() == OLD


def test_a_process_started_from_a_release_says_so(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    place = tmp_path / "releases" / NEW
    place.mkdir(parents=True)
    (place / "infra").symlink_to(root / "infra")
    code = "from infra import releases; import pathlib; print(releases.running())"
    for path, expected in ((root, INSTALLED), (place, INSTALLED)):
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(path)}
        said = subprocess.check_output([sys.executable, "-P", "-c", code], env=environment, text=True)
        assert said.strip() == expected  # through a link it is the installed code
    (place / "infra").unlink()
    subprocess.run(["cp", "-r", str(root / "infra"), str(place / "infra")], check=True)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(place)}
    assert subprocess.check_output([sys.executable, "-P", "-c", code], env=environment, text=True).strip() == NEW
