"""Sightings become a playbook only where what changed can be told for sure, and never with text that a shell would run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra.playbook_files import Playbook, render_playbook
from infra.playbooks import Observed, ObservedStep, Operation
from tasks.operating import only_looks
from tasks.operations import equal_sightings, generalise, parse_operation, shape_of

AT = datetime(2026, 1, 5, tzinfo=UTC)
Seen = tuple[str, Sequence[str | tuple[str, str]]]


def observed(number: int, title: str, steps: Sequence[str | tuple[str, str]], verify: str | None = None) -> Observed:
    said = tuple(ObservedStep(run=s) if isinstance(s, str) else ObservedStep(run=s[0], undo=s[1]) for s in steps)
    return Observed(
        id=number, repository="shop", title=title, steps=said, verify=verify, succeeded=True, source=str(number), at=AT
    )


def made(*seen: Seen) -> Playbook | None:
    return generalise([observed(number, title, steps) for number, (title, steps) in enumerate(seen, 1)])


def runs(playbook: Playbook | None) -> list[str]:
    assert playbook is not None
    return [step.run for step in playbook.steps]


def test_what_changed_with_the_title_becomes_a_parameter_and_the_rest_stays() -> None:
    found = made(
        *((f"Clear the cache of {name}", [(f"mv $STATE/{name}.db $STATE/{name}.old", f"mv $STATE/{name}.old $STATE/{name}.db"),
                                          f"curl -s 'http://localhost:8000/reload?name={name}&quiet=1'"])
          for name in ("shop", "blog", "mail-2"))
    )  # fmt: skip
    assert runs(found) == [
        'mv "$STATE/$target.db" "$STATE/$target.old"',
        'curl -s "http://localhost:8000/reload?name=$target&quiet=1"',
    ]
    assert found is not None
    assert found.steps[0].undo == 'mv "$STATE/$target.old" "$STATE/$target.db"'
    assert found.trigger.pattern == "Clear the cache of {target}"
    assert found.parameters["target"].pattern == "[a-z][a-z0-9-]*"
    assert found.provenance == (1, 2, 3)
    assert found.name == "clear-cache"


def test_a_constant_that_looks_like_a_value_of_one_sighting_stays_a_constant() -> None:
    found = made(*((f"Restart service {n}", [f"./web restart {n}"]) for n in ("web", "mail", "db")))
    assert runs(found) == ['./web restart "$service"']


def test_equal_titles_make_a_playbook_without_parameters() -> None:
    found = made(*(("Flush the mail queue", ["./tools/flush --all"]) for _ in range(3)))
    assert found is not None
    assert found.parameters == {}


def test_a_value_that_no_title_gives_becomes_a_parameter_that_a_ticket_cannot_fill() -> None:
    found = made(*((f"Move shop to {p}", [f"./move {p} {n}"]) for p, n in (("lab", "7"), ("hall", "9"), ("yard", "3"))))
    assert runs(found) == ['./move "$target" "$value"']
    assert found is not None
    assert found.taken_from("Move shop to lab") == {"target": "lab"}
    assert set(found.parameters) == {"target", "value"}


def test_destructive_steps_are_gated_in_the_written_file() -> None:
    found = made(*((f"Rotate the key of {n}", [f"./keys rotate {n}", f"./keys show {n}"]) for n in ("a", "b", "c")))
    assert found is not None
    assert render_playbook(found).count("approval: true") == 1


@pytest.mark.parametrize(
    "seen",
    [
        [("Clear cache of a", ["rm a; id"]), ("Clear cache of b", ["rm b; ls"])],
        [("Clear cache of a", ["rm $(a)"]), ("Clear cache of b", ["rm $(b)"])],
        [("Clear cache of a", ["rm `a`"]), ("Clear cache of b", ["rm `b`"])],
        [("Clear cache of a", ["sh -c 'rm a'"]), ("Clear cache of b", ["sh -c 'rm b'"])],
        [("Clear cache of a", ["X=a ./run"]), ("Clear cache of b", ["X=b ./run"])],
        [("Clear cache of a", ["rm '$a'"]), ("Clear cache of b", ["rm '$b'"])],
        [("Clear cache of a", ["rm a*"]), ("Clear cache of b", ["rm b*"])],
        [("Clear cache of a", ["rm a"]), ("Clear cache of b", ["rm b now"])],
        [("Clear cache of a", ["rm a"]), ("Clear the cache of b", ["rm b"])],
        [("Clear cache of $(id)", ["rm $(id)"]), ("Clear cache of `id`", ["rm `id`"])],
        [("Clear a b c", ["rm a"]), ("Clear d e f", ["rm d"])],
        [("Clear cache of a", ["cat ../a"]), ("Clear cache of b", ["cat ../b"])],
    ],
)  # fmt: skip
def test_what_cannot_be_told_for_sure_or_would_be_code_makes_no_playbook(seen: list[Seen]) -> None:
    assert made(*seen) is None


def test_a_sighting_of_another_kind_does_not_stop_the_equal_ones() -> None:
    alike = [observed(n, f"Clear cache of {name}", [f"rm {name}"]) for n, name in ((5, "a"), (4, "b"), (2, "c"))]
    other = observed(3, "Clear table of x", ["rm --force y"])
    assert [each.id for each in equal_sightings([alike[0], other, *alike[1:]])] == [5, 4, 2]


def test_operations_of_one_kind_have_one_shape() -> None:
    first, second, third = (
        Operation(title=t, steps=(ObservedStep(run=c),))
        for t, c in (("Clear a", "rm a"), ("clear b!", "rm b"), ("Clear a", "ls a"))
    )
    assert shape_of(first) == shape_of(second) != shape_of(third)


def test_a_broken_operation_names_its_lines() -> None:
    from infra.errors import ConfigError

    with pytest.raises(
        ConfigError, match=r"(?s)op\.yaml.*line 3: steps\.0\.rnu: no such name \(did you mean 'run'\?\)"
    ):
        parse_operation("title: x\nsteps:\n- rnu: ls\n", "op.yaml")


@pytest.mark.parametrize(
    ("command", "looks"),
    [("ls -la", True), ("cat a | grep b", False), ("cat a > b", False), ("find . -delete", False), ("grep x y", True), ("./run", False), ("", False)],
)  # fmt: skip
def test_looking_is_no_step(command: str, looks: bool) -> None:
    assert only_looks(command) is looks


def test_a_secret_with_letters_that_json_escapes_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import services
    from tasks.operations import _without_secrets

    monkeypatch.setenv("DARKFACTORY_HOME", str(tmp_path))
    monkeypatch.setenv("YARD_WORD", 'open"sesame\\4711ü')
    section = {"shop": {"path": "/shop", "operations": {"secrets": {"WORD": "$YARD_WORD"}}}}
    monkeypatch.setenv("DARKFACTORY_REPOSITORIES", json.dumps(section))
    services.close()
    kept = _without_secrets("shop", Operation(title="x", steps=(ObservedStep(run='login open"sesame\\4711ü'),)))
    services.close()
    assert kept.steps[0].run == "login $WORD"


def test_a_token_is_masked_before_the_end_of_an_output_is_cut_out_of_it() -> None:
    from infra.sandbox import CommandResult
    from tasks.playbooks import how_it_ended

    said = f"ghp_{'a' * 20}SECRET{'b' * 290}"
    assert "b" * 50 not in how_it_ended(CommandResult(exit_code=1, output=said, seconds=0.1))
