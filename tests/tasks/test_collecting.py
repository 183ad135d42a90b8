"""Units' changes on one commit: edits of one file are merged, collisions are named."""

from __future__ import annotations

from hashlib import sha256
from typing import cast

import pytest

from infra.git import Mirror
from tasks.collecting import combine, manifest, merge
from tasks.models import Candidate, Change, TestChange

BASE = "a\nb\nc\nd\ne\n"


class Files:
    """The only thing `combine` asks a mirror: a file of the base commit."""

    def read(self, sha: str, path: str) -> bytes | None:
        return {"a.py": BASE.encode(), "crlf.py": BASE.replace("\n", "\r\n").encode()}.get(path)


MIRROR = cast(Mirror, Files())


def change(unit: str, files: dict[str, str | None]) -> Change:
    return Change(unit=unit, candidate=1, round=1, ending="done", files=files)


def together(*files: dict[str, str | None]) -> tuple[dict[str, str | None], tuple[str, ...]]:
    return combine(MIRROR, "base", [change(f"u{i}", f) for i, f in enumerate(files)])


def test_edits_of_different_lines_are_merged() -> None:
    assert merge(BASE, BASE.replace("a", "A"), BASE.replace("e", "E")) == "A\nb\nc\nd\nE\n"
    assert together({"a.py": BASE.replace("a", "A")}, {"a.py": BASE.replace("e", "E")}) == (
        {"a.py": "A\nb\nc\nd\nE\n"},
        (),
    )


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_a_merge_keeps_line_ends_unicode_and_a_missing_last_newline(end: str) -> None:
    base = f"a{end}b{end}c{end}d{end}ü🎉"
    assert merge(base, base.replace("a", "A"), base.replace("ü", "é")) == base.replace("a", "A").replace("ü", "é")


def test_edits_of_one_line_collide_and_the_earlier_unit_stays() -> None:
    assert merge(BASE, BASE.replace("c", "X"), BASE.replace("c", "Y")) is None
    files, conflicts = together(*({"a.py": BASE.replace("c", x)} for x in "XYZ"))
    assert (files, conflicts) == ({"a.py": BASE.replace("c", "X")}, ("a.py",))


def test_the_same_edit_twice_is_no_collision() -> None:
    assert together({"a.py": "x\n"}, {"a.py": "x\n"}) == ({"a.py": "x\n"}, ())
    assert together({"a.py": None}, {"a.py": None}) == ({"a.py": None}, ())


def test_deleting_what_another_unit_edits_collides() -> None:
    assert together({"a.py": None}, {"a.py": "x\n"}) == ({"a.py": None}, ("a.py",))
    assert together({"a.py": "x\n"}, {"a.py": None}) == ({"a.py": "x\n"}, ("a.py",))


def test_an_emptied_file_is_not_a_deleted_one() -> None:
    assert together({"a.py": ""}, {"a.py": BASE})[0] == {"a.py": ""}
    assert together({"a.py": BASE}, {"a.py": ""}) == ({"a.py": ""}, ())


def test_units_with_files_of_their_own_are_put_side_by_side() -> None:
    assert together({"a.py": "x\n"}, {"new.py": "y\n", "old.py": None}) == (
        {"a.py": "x\n", "new.py": "y\n", "old.py": None},
        (),
    )


def test_the_manifest_names_unit_commit_and_the_hash_of_every_file() -> None:
    made = manifest(Candidate(number=1, head_sha="c0ffee", changes=(change("u1", {"a.py": "x\n", "old.py": None}),),
                              tests=(TestChange(tester=2, files={"t.py": ""}, red=("t",)),), conflicts=("a.py",)))  # fmt: skip
    assert (made.commit, made.conflicts) == ("c0ffee", ("a.py",))
    assert [(p.role, p.unit, p.index) for p in made.parts] == [("coder", "u1", 1), ("tester", "tests", 2)]
    assert made.parts[0].files == {"a.py": sha256(b"x\n").hexdigest(), "old.py": None}
    assert made.parts[1].files == {"t.py": sha256(b"").hexdigest()}
