"""Archives by strangers: two files of bounded size come out, or nothing does."""

from __future__ import annotations

import io
import stat
import warnings
import zipfile

import pytest

from infra.actions import archive
from infra.actions.archive import MAX_FILE_BYTES, unpack
from infra.errors import ProviderFault
from tests.fakes.actions import archived, zipped

REPORT = b'{"ending": "done"}'


def test_the_two_files_come_out() -> None:
    files = unpack(archived("a patch", steps=2))
    assert files.patch == b"a patch"
    assert b'"steps": 2' in files.report


@pytest.mark.parametrize(
    "names",
    [
        ("patch.diff",),
        ("patch.diff", "report.json", "more.txt"),
        ("../patch.diff", "report.json"),
        ("/etc/passwd", "report.json"),
        ("unit/patch.diff", "unit/report.json"),
        (),
    ],
)
def test_other_names_than_the_two_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ProviderFault, match="holds"):
        unpack(zipped(dict.fromkeys(names, REPORT)))


def test_a_name_that_stands_twice_is_refused() -> None:
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "w") as made:
        for name in ("patch.diff", "patch.diff", "report.json"):
            made.writestr(name, REPORT)
    with pytest.raises(ProviderFault, match="holds"):
        unpack(buffer.getvalue())


def test_a_link_is_no_file() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        link = zipfile.ZipInfo("patch.diff")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(link, "/etc/passwd")
        made.writestr("report.json", REPORT)
    with pytest.raises(ProviderFault, match="no regular file"):
        unpack(buffer.getvalue())


def test_a_bomb_is_stopped_at_the_bound_also_when_it_lies_about_its_size() -> None:
    bomb = zipped({"patch.diff": bytes(MAX_FILE_BYTES + 1), "report.json": REPORT})
    assert len(bomb) < 100_000
    with pytest.raises(ProviderFault, match="more than"):
        unpack(bomb)
    size = (MAX_FILE_BYTES + 1).to_bytes(4, "little")
    lying = bomb.replace(size, (10).to_bytes(4, "little"))
    assert lying != bomb
    with pytest.raises(ProviderFault):
        unpack(lying)


@pytest.mark.parametrize("data", [b"", b"not a zip", archived("x")[:-30], archived("x" * 500)[:200]])
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(ProviderFault, match="no readable archive"):
        unpack(data)


def test_a_damaged_or_locked_archive_is_refused() -> None:
    good = bytearray(archived("some text that is stored" * 40))
    good[60] ^= 0xFF
    with pytest.raises(ProviderFault):
        unpack(bytes(good))
    locked = bytearray(zipped({"patch.diff": b"x", "report.json": REPORT}))
    place = locked.index(b"PK\x01\x02")
    locked[place + 8] |= 1  # "encrypted"
    with pytest.raises(ProviderFault, match="no readable archive"):
        unpack(bytes(locked))


def test_a_digest_is_compared_when_there_is_one() -> None:
    archive.check_digest(b"x", None)
    archive.check_digest(b"x", "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881")
    with pytest.raises(ProviderFault):
        archive.check_digest(b"y", "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881")
