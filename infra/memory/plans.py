"""Consolidations on disk: how far one looked, the one that is being done, and those that were done, to be undone."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, ValidationError

from infra.errors import ConfigError
from infra.files import write_atomically
from infra.memory import Noun
from infra.memory.outbox import private_folder
from infra.memory.upkeep import Plan


class Cursor(Noun):
    """Where the next consolidation begins: a place in the journal, and points that wait for another look."""

    upto: int = Field(default=0, ge=0)
    again: tuple[str, ...] = ()


class Plans:
    """The folder of one home. A plan appears as `open.json` before anything of it is done, and gets its own name after."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def cursor(self) -> Cursor:
        """From the beginning where it is missing or spoiled: what was done already is found to be done."""
        try:
            return Cursor.model_validate_json((self.folder / "cursor.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return Cursor()

    def opened(self) -> Plan | None:
        """The plan that was begun and not finished."""
        return self._read(self.folder / "open.json")

    def begin(self, plan: Plan) -> None:
        private_folder(self.folder.parent)
        private_folder(self.folder)
        self._write("open.json", plan)

    def finish(self, plan: Plan) -> None:
        """All of it is done: move the cursor on, and keep the plan as its undo record."""
        self._write("cursor.json", Cursor(upto=plan.upto, again=plan.again))
        place = self.folder / "open.json"
        if plan.acts:
            place.replace(self._place(plan.id))
        else:
            place.unlink()

    def find(self, name: str) -> Plan:
        """A finished plan that was not undone. Raises ConfigError."""
        found = self._read(self._place(name)) if re.fullmatch(r"[\w-]{1,80}", name) else None
        if found is not None:
            return found
        if self._place(name, ".reverted").exists():
            raise ConfigError(f"the consolidation {name!r} was reverted already")
        known = ", ".join(self.names()[-5:]) or "none"
        raise ConfigError(f"there is no consolidation {name!r}; the last ones are: {known}")

    def names(self) -> list[str]:
        """Finished plans, oldest first."""
        return sorted(path.stem for path in self.folder.glob("*T*.json") if path.suffixes == [".json"])

    def reverted(self, plan: Plan) -> None:
        self._place(plan.id).replace(self._place(plan.id, ".reverted"))

    def forget(self, points: set[str]) -> None:
        """Remove the texts of these summaries from all plans, and what was refused, which quotes any point."""
        for path in sorted(self.folder.glob("*.json")):
            plan = self._read(path) if path.name != "cursor.json" else None
            if plan is not None and (plan.refused or any(summary.id in points for summary in plan.written)):
                kept = tuple(summary for summary in plan.written if summary.id not in points)
                self._write(path.name, plan.model_copy(update={"written": kept, "refused": ()}))

    def _place(self, name: str, ending: str = "") -> Path:
        return self.folder / f"{name}{ending}.json"

    def _read(self, path: Path) -> Plan | None:
        try:
            return Plan.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise ConfigError(f"{str(path)!r} cannot be read ({error.error_count()} mistakes); move it away") from None

    def _write(self, name: str, what: Noun) -> None:
        write_atomically(self.folder / name, what.model_dump_json(indent=1).encode(), mode=0o600)
