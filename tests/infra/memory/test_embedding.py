"""Text to vectors: words always, meaning where the model's packages are, and never a download."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from infra.errors import ConfigError
from infra.memory import embedding
from infra.memory.embedding import Bm25, Bm25Only, MiniLM, has_minilm, open_embedder, with_parts

needs_model = pytest.mark.skipif(not has_minilm(), reason="the extra `embed` is not installed")


def test_names_in_code_are_found_by_their_parts_and_prose_stays_as_it_is() -> None:
    assert with_parts("checkRecovery in HTTPServer") == "checkRecovery in HTTPServer check Recovery HTTP Server"
    assert (
        with_parts("Plain words, check_recovery and src/app/foo.py") == "Plain words, check_recovery and src/app/foo.py"
    )
    assert len(with_parts("aB" * 100_000)) < 300_000


def test_words_weigh_the_same_on_every_machine_and_stop_words_nothing() -> None:
    """The numbers are what the engine of a server makes of the same text, as its documentation says."""
    pytest.importorskip("qdrant_edge", reason="memory's packages are not installed")
    model = Bm25()
    running, runs = model.query("running"), model.query("runs")
    assert running.indices == runs.indices
    assert running.values == [1.0]
    assert model.query("the of and") == ([], [])
    assert set(model.query("recovery").indices) <= set(model.document("checkRecovery fails").indices)


@needs_model
def test_the_model_knows_what_is_said_in_other_words() -> None:
    asked, near, far = MiniLM().embed(
        ["the app crashes when it starts", "program aborts on launch", "prices are rounded to two places"]
    )
    assert len(asked) == MiniLM.size
    assert math.isclose(sum(x * x for x in asked), 1.0, abs_tol=1e-4)
    assert sum(map(lambda a, b: a * b, asked, near)) > sum(map(lambda a, b: a * b, asked, far)) + 0.3


@needs_model
def test_a_text_has_one_vector_whatever_stands_beside_it_and_however_odd_it_is() -> None:
    model = MiniLM()
    texts = ["a lesson about the cart", "", "word " * 5_000, "\u2028 \U0001f600 日本語", *map(str, range(20))]
    alone = model.embed([texts[0]])[0]
    together = model.embed(texts)
    assert len(together) == len(texts)
    assert together[0] == pytest.approx(alone, abs=1e-4)


def test_without_the_packages_words_alone_are_used_and_a_wish_for_the_model_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    assert isinstance(open_embedder("auto"), Bm25Only)
    with pytest.raises(ConfigError, match="embed"):
        open_embedder("minilm")


@needs_model
def test_weights_that_were_changed_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_bytes(b"something else")
    monkeypatch.setattr(embedding, "_folder", lambda package: tmp_path)
    with pytest.raises(ConfigError, match="digest"):
        MiniLM()
