"""What a runner sends back: an archive that a stranger may have made, fetched and opened within bounds."""

from __future__ import annotations

import hashlib
import io
import logging
import zipfile
import zlib

import httpx

from infra.errors import ProviderFault, Unreachable
from infra.llm import Frozen

MAX_ARCHIVE_BYTES = 8 << 20
MAX_FILE_BYTES = 16 << 20
PATCH, REPORT = "patch.diff", "report.json"
_SECONDS = 60.0

logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs whole addresses, and these open the archive


class UnitFiles(Frozen):
    """The two files of a finished unit. Nothing in them is believed yet."""

    patch: bytes
    report: bytes


def fetch(address: str) -> bytes:
    """The archive at the short-lived address that GitHub names. No token is sent there, and no redirect followed.

    Raises Unreachable, or ProviderFault when it is larger than `MAX_ARCHIVE_BYTES`.
    """
    data = bytearray()
    try:
        with httpx.stream("GET", address, timeout=_SECONDS) as answer:
            if answer.status_code != httpx.codes.OK:
                raise Unreachable(f"the store of GitHub's artifacts answered {answer.status_code}; try again later")
            for piece in answer.iter_raw():
                data += piece
                if len(data) > MAX_ARCHIVE_BYTES:
                    raise ProviderFault(f"a unit's artifact has more than {MAX_ARCHIVE_BYTES} bytes; it is not used")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        kind = type(error).__name__
        raise Unreachable(f"the store of GitHub's artifacts cannot be read ({kind}); try again later") from None
    return bytes(data)


def check_digest(archive: bytes, digest: str | None) -> None:
    """Compare with what GitHub noted at the upload (`sha256:…`; None: it noted nothing). Raises ProviderFault."""
    if digest is not None and digest != f"sha256:{hashlib.sha256(archive).hexdigest()}":
        raise ProviderFault(f"a unit's artifact is not the one that was uploaded ({digest!r}); it is not used")


def unpack(archive: bytes) -> UnitFiles:
    """Exactly the two known files, in memory, each at most `MAX_FILE_BYTES`. Raises ProviderFault for anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            names = sorted(entry.filename for entry in opened.infolist())
            if names != [PATCH, REPORT]:
                raise ProviderFault(f"a unit's artifact holds {names[:5]!r} and not {[PATCH, REPORT]!r}")
            return UnitFiles(patch=_content(opened, PATCH), report=_content(opened, REPORT))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ProviderFault(f"a unit's artifact is no readable archive: {type(error).__name__}") from None


def _content(opened: zipfile.ZipFile, name: str) -> bytes:
    """Never more than the bound, whatever the archive says about the size. A link would be its target's name: no file."""
    if (opened.getinfo(name).external_attr >> 16) & 0o170000 not in (0, 0o100000):
        raise ProviderFault(f"{name!r} in a unit's artifact is no regular file")
    with opened.open(name) as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ProviderFault(f"{name!r} in a unit's artifact has more than {MAX_FILE_BYTES} bytes")
    return data
