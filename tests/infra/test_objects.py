"""Objects in a folder, and the atomic write that boards, forges and objects share."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.errors import ConfigError, DiskFull
from infra.files import write_atomically
from infra.objects import FolderObjects, open_objects
from infra.settings import Settings


@pytest.fixture
def objects(tmp_path: Path) -> FolderObjects:
    return FolderObjects(tmp_path / "objects")


def test_what_is_put_is_got_listed_and_replaced(objects: FolderObjects) -> None:
    assert objects.get("T-1/1/diff") is None
    assert objects.list() == []
    objects.put("T-1/1/diff", b"\x00one")
    objects.put("T-1/1/diff", b"two")
    objects.put("T-10/log", b"")
    assert objects.get("T-1/1/diff") == b"two"
    assert objects.get("T-1") is None
    assert objects.get("T-10/log/deeper") is None
    assert objects.list() == ["T-1/1/diff", "T-10/log"]
    assert objects.list("T-1/") == ["T-1/1/diff"]
    assert objects.list("T-1") == ["T-1/1/diff", "T-10/log"]
    assert objects.list("T-9/1/") == []


def test_what_is_deleted_is_gone_and_deleting_it_again_changes_nothing(objects: FolderObjects) -> None:
    objects.put("T-1/1/diff", b"one")
    objects.put("T-1/1/log", b"two")
    for _ in range(2):
        objects.delete("T-1/1/diff")
    objects.delete("T-1/1/log/deeper")
    assert objects.list() == ["T-1/1/log"]


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".hidden", "a/.b", "a\0b", "a\n", "ä", "x" * 201]
)
def test_a_key_that_is_not_plain_names_is_refused(objects: FolderObjects, key: str) -> None:
    with pytest.raises(ConfigError, match="object key"):
        objects.put(key, b"")


def test_a_link_does_not_lead_out_of_the_folder(objects: FolderObjects, tmp_path: Path) -> None:
    objects.put("a/b", b"")
    (objects.path / "out").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="leads out"):
        objects.put("out/x", b"")
    assert not (tmp_path / "x").exists()


def test_a_key_below_another_object_is_a_clear_error(objects: FolderObjects) -> None:
    objects.put("a", b"")
    with pytest.raises(ConfigError, match="cannot write"):
        objects.put("a/b", b"")


def test_the_objects_live_in_the_home_folder(tmp_path: Path) -> None:
    open_objects(Settings(home=tmp_path)).put("a", b"1")
    assert (tmp_path / "objects/a").read_bytes() == b"1"


def test_a_reader_sees_whole_files_only_while_writers_are_killed(tmp_path: Path) -> None:
    path = tmp_path / "value"
    code = (
        "import sys, pathlib; from infra.files import write_atomically\n"
        "while True:\n  [write_atomically(pathlib.Path(sys.argv[1]), c * 300_000) for c in (b'a', b'b')]"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as writer:
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        for _ in range(50):
            assert path.read_bytes() in (b"a" * 300_000, b"b" * 300_000)
        writer.send_signal(signal.SIGKILL)
    assert path.read_bytes() in (b"a" * 300_000, b"b" * 300_000)


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.write_bytes(b"old")
    code = (
        "import sys, resource, signal, pathlib; from infra.files import write_atomically; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "
        "write_atomically(pathlib.Path(sys.argv[1]), b'x' * 5000)"
    )
    failed = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "ConfigError: cannot write" in failed.stderr
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["value"]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # no small file system can be mounted here
    with pytest.raises(DiskFull, match="value"):
        write_atomically(tmp_path / "value", b"x")
    assert list(tmp_path.iterdir()) == []


def test_the_mode_of_a_new_secret_is_closed_from_its_first_byte(tmp_path: Path) -> None:
    write_atomically(tmp_path / "secret", b"x", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
