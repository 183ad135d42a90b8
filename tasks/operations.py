"""Operations as they are seen: kept as observations, and made into a playbook once enough equal ones went well.

What was the same in all sightings stays; what changed becomes a parameter. Where that cannot be told for sure there is no
playbook: nothing is guessed into a command.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence

from prefect import task
from pydantic import ValidationError

from infra.errors import ConfigError
from infra.git import branch_name
from infra.mistakes import explain, read_document
from infra.playbook_files import (
    FOLDER,
    PLAIN_VALUE,
    VALUE,
    Parameter,
    Playbook,
    Step,
    Trigger,
    parse_playbook,
    render_playbook,
    words_of,
)
from infra.playbooks import Observed, Operation
from tasks import services
from tasks.models import Frozen, Repository
from tasks.playbooks import operations_of, shelf_of

PATTERNS = (r"[0-9]+", r"[a-z][a-z0-9-]*", PLAIN_VALUE, r"[A-Za-z0-9_][A-Za-z0-9_.:@+=,%/-]*")
"""The narrowest that fits all values that were seen is what a new parameter takes."""
_SMALL_WORDS = frozenset("a an the of for on in at to from with by and or is are my our this that".split())
_WORD = re.compile(r"""((?:[^\s'"\\]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+)""")
_PLAIN = re.compile(r"(?:[\w./:@+=,%-]|\$[A-Z][A-Z0-9_]*|\$\{[A-Z][A-Z0-9_]*\})+")
_QUOTED = re.compile(r"""(?:[^"'$`\\\x00-\x1f]|\$[A-Z][A-Z0-9_]*|\$\{[A-Z][A-Z0-9_]*\})+""")
_REDIRECT = re.compile(r"[0-9]?(?:>>?|<)")


class Noted(Frozen):
    """What came of an observation. `operation` None: this source told it before. `playbook` is proposed at `url`."""

    operation: int | None
    sightings: int = 0
    wanted: int
    playbook: str | None = None
    url: str = ""
    content: str = ""


def shape_of(operation: Operation) -> str:
    """The same for operations that may be sightings of one kind: the request's verb and length, and the verbs of the steps."""
    words = words_of(operation.title) or [""]
    verbs = [(_WORD.findall(step.run) or [""])[0] for step in operation.steps]
    return " ".join([words[0].casefold(), str(len(words)), *verbs])


def parse_operation(text: str, name: str) -> Operation:
    """An operation that a person wrote down as YAML. Raises ConfigError with the line of every mistake."""
    document = read_document(text, name)
    try:
        return Operation.model_validate(document.values)
    except ValidationError as error:
        wrong = "\n  ".join(explain(error, Operation, document.lines))
        raise ConfigError(f"the operation in {name!r} is not valid; correct these:\n  {wrong}") from None


async def observe(repository: Repository, operation: Operation) -> Noted:
    """Keep an operation; with enough equal ones, propose the playbook they make as a pull request."""
    wanted, playbooks = services.settings().playbooks.sightings, services.playbooks()
    operation = _without_secrets(repository.name, operation)
    number = playbooks.observe(repository.name, shape_of(operation), operation)
    if number is None or not operation.succeeded:
        return Noted(operation=number, wanted=wanted)
    alike = playbooks.alike(repository.name, shape_of(operation))
    if any(each.playbook and each.playbook.taken_from(operation.title) is not None for each in shelf_of(repository)):
        return Noted(operation=number, sightings=len(alike), wanted=wanted)
    equal = equal_sightings(alike)
    made = generalise(equal) if len(equal) >= wanted else None
    if made is None:
        return Noted(operation=number, sightings=len(equal), wanted=wanted)
    content, url = await propose(repository, made)
    return Noted(operation=number, sightings=len(equal), wanted=wanted, playbook=made.name, url=url, content=content)


def _without_secrets(repository: str, operation: Operation) -> Operation:
    """Values of configured secrets are named, never kept."""
    said = operation.model_dump_json()
    for name, secret in operations_of(repository).secrets.items():
        said = said.replace(json.dumps(secret.get_secret_value(), ensure_ascii=False)[1:-1], f"${name}")
    return Operation.model_validate_json(said)


@task(name="note operation", task_run_name="note operation")
async def note_operation(repository: Repository, operation: Operation) -> Noted:
    """As `observe`, as a step of a ticket's run."""
    return await observe(repository, operation)


def equal_sightings(alike: Sequence[Observed]) -> list[Observed]:
    """Of operations of one shape, newest first: those that are the newest one again, as far as a playbook could say so."""
    equal: list[Observed] = []
    for each in alike:
        if generalise([*equal, each]) is not None:
            equal.append(each)
    return equal


def generalise(seen: Sequence[Observed]) -> Playbook | None:
    """The playbook of which all these are runs; None when that cannot be told for sure."""
    title = _Title([words_of(each.title) for each in seen])
    if not title.agrees or len({len(each.steps) for each in seen}) != 1:
        return None
    try:
        steps = tuple(
            Step(id=_step_id(number, together[0].run), run=title.command([each.run for each in together]),
                 undo=title.optional([each.undo for each in together]))
            for number, together in enumerate(zip(*(each.steps for each in seen), strict=True), 1)
        )  # fmt: skip
        verify = title.optional([each.verify for each in seen])
        made = Playbook(
            name=title.name, description=f"Made from {len(seen)} operations like {seen[0].title!r}.",
            trigger=Trigger(pattern=title.pattern), parameters=title.parameters, steps=steps, verify=verify,
            secrets=_named_secrets(steps, seen[0].repository), provenance=tuple(sorted(each.id for each in seen)),
        )  # fmt: skip
        return parse_playbook(render_playbook(made).encode(), f"{made.name}.yaml")
    except (_Unlike, ValidationError, ConfigError):
        return None


def _named_secrets(steps: Sequence[Step], repository: str) -> tuple[str, ...]:
    text = " ".join(f"{step.run} {step.undo or ''}" for step in steps)
    return tuple(name for name in operations_of(repository).secrets if re.search(rf"\$\{{?{name}\b", text))


def _step_id(number: int, command: str) -> str:
    words = re.findall(r"[a-z]+", command.casefold())[:2]
    return f"step-{number}-{'-'.join(words)}"[:59]


class _Unlike(Exception):
    """The sightings differ in a way that no parameter can stand for."""


class _Title:
    """The words of the requests side by side: constants, and parameters with the value that each sighting had."""

    def __init__(self, rows: Sequence[Sequence[str]]) -> None:
        self._sightings = len(rows)
        self._values: dict[str, tuple[str, ...]] = {}
        self._words: list[str] = []
        same_length = len({len(row) for row in rows}) == 1
        for column in zip(*rows, strict=False) if same_length else ():
            self._words.append(self._word(column))
        constants = [word for word in self._words if "{" not in word]
        self.agrees = same_length and len(constants) * 2 >= len(self._words) > 0 and self._words[0] in constants

    @property
    def pattern(self) -> str:
        return " ".join(self._words)

    @property
    def name(self) -> str:
        words = [re.sub(r"[^a-z0-9]+", "-", word.casefold()).strip("-") for word in self._words if "{" not in word]
        kept = "-".join(word for word in words if word and word not in _SMALL_WORDS)[:59].strip("-")
        return kept if re.match("[a-z]", kept) else f"p-{kept}".rstrip("-")

    @property
    def parameters(self) -> dict[str, Parameter]:
        found = {}
        for name, values in self._values.items():
            pattern = next((p for p in PATTERNS if all(re.fullmatch(p, v) for v in values)), None)
            if pattern is None or not all(VALUE.fullmatch(value) for value in values):
                raise _Unlike
            found[name] = Parameter(pattern=pattern, description=f"Seen: {', '.join(dict.fromkeys(values))}"[:200])
        return found

    def _word(self, column: Sequence[str]) -> str:
        if len({word.casefold() for word in column}) == 1:
            return column[0]
        quote = column[0][0]
        quoted = quote in "'\"`" and all(len(w) > 2 and w[0] == w[-1] == quote for w in column)
        before = self._words[-1].casefold() if len(self._words) > 1 else ""  # the first one is a verb
        name = self._parameter(tuple(w[1:-1] if quoted else w for w in column), before)
        return f"{quote}{{{name}}}{quote}" if quoted else f"{{{name}}}"

    def _parameter(self, values: tuple[str, ...], before: str) -> str:
        """The parameter that had these values, made when there is none yet."""
        for name, known in self._values.items():
            if known == values:
                return name
        usable = re.fullmatch(r"[a-z][a-z_]{1,20}", before) and before not in _SMALL_WORDS and "{" not in before
        first = before if usable else "target"
        names = (first if n == 1 else f"{first}{n}" for n in range(1, 99))
        name = next(each for each in names if each not in self._values)
        self._values[name] = values
        return name

    def optional(self, said: Sequence[str | None]) -> str | None:
        """As `command`, for what not everybody said: then nobody did."""
        return self.command([each for each in said if each is not None]) if all(said) else None

    def command(self, said: Sequence[str]) -> str:
        """The one command that all of these are. Raises _Unlike."""
        if len(set(said)) == 1:
            return said[0]
        split = [_WORD.split(each) for each in said]
        if len({len(each) for each in split}) != 1:
            raise _Unlike
        return "".join(
            column[0] if len(set(column)) == 1 else self._varied(column) for column in zip(*split, strict=True)
        )

    def _varied(self, column: Sequence[str]) -> str:
        """A word that changed, with the parameter that tells how, in double quotes."""
        operator = _REDIRECT.match(column[0])
        before = operator[0] if operator else ""
        if not all(word.startswith(before) for word in column):
            raise _Unlike
        bare = [_unquoted(word[len(before) :]) for word in column]
        return f'{before}"{self._explained(bare)}"'

    def _explained(self, words: Sequence[str]) -> str:
        for names in self._tries():
            filled = {self._filled(word, n, names) for n, word in enumerate(words)}
            if len(filled) == 1:
                return _as_variables(filled.pop())
        return _as_variables(f"\0{self._parameter(tuple(words), 'value')}\0")

    def _tries(self) -> Iterator[list[str]]:
        """Each parameter alone, then all of them, those with long values first."""
        yield from ([name] for name in self._values)
        yield sorted(self._values, key=lambda name: -len(self._values[name][0]))

    def _filled(self, word: str, sighting: int, names: Sequence[str]) -> str:
        for name in names:
            value = re.escape(self._values[name][sighting])
            word = re.sub(rf"(?<![A-Za-z0-9$]){value}(?![A-Za-z0-9])", f"\0{name}\0", word)
        return word


def _as_variables(text: str) -> str:
    return re.sub(r"\0(\w+)\0(\w?)", lambda m: f"${{{m[1]}}}{m[2]}" if m[2] else f"${m[1]}", text)


def _unquoted(word: str) -> str:
    """A word without its quotes. Raises _Unlike for one that is more than letters that stay what they are."""
    quoted = len(word) > 1 and word[0] == word[-1] and word[0] in "'\""
    inner = word[1:-1] if quoted else word
    literal = word.startswith("'") and "$" in word
    if literal or not (_QUOTED if quoted else _PLAIN).fullmatch(inner) or re.match(r"\w+=", word):
        raise _Unlike
    return inner


# --- the file ---------------------------------------------------------------------------------------------------------


async def propose(repository: Repository, playbook: Playbook) -> tuple[str, str]:
    """The playbook as a file on a branch of its own, with a pull request. Returns content and address; again changes nothing."""
    known = services.playbooks().decisions(repository.name).get(playbook.name)
    content = render_playbook(playbook)
    if known is not None and known.state != "proposed":
        return content, known.url
    mirror, branch = services.mirror(repository), branch_name(f"playbook-{playbook.name}")
    with mirror.worktree(
        services.worktrees(), f"playbook-{playbook.name}", "proposal", repository.base_sha
    ) as worktree:
        worktree.write(f"{FOLDER}/{playbook.name}.yaml", content)
        sha = await worktree.commit(services.sandbox(), f"Playbook {playbook.name}")
    await asyncio.to_thread(mirror.push, repository.remote, branch, sha)
    pull_request = await asyncio.to_thread(
        services.forge(repository.name).publish, branch=branch, base=repository.base_branch, head_sha=sha,
        title=f"Playbook {playbook.name}", body=_words(playbook, content), draft=False,
    )  # fmt: skip
    services.playbooks().decide(
        repository.name, playbook.name, "proposed", provenance=list(playbook.provenance), url=pull_request.url
    )
    return content, pull_request.url


def _words(playbook: Playbook, content: str) -> str:
    seen = ", ".join(map(str, playbook.provenance))
    approval = " Its destructive steps ask a person in every run." if playbook.destructive else ""
    return (
        f'Operations {seen} did the same. Tickets like "{playbook.trigger.pattern}" can run as this playbook, without a model, '
        f"once it is merged and `darkfactory playbook approve {playbook.name}` was said.{approval}\n\n```yaml\n{content}```\n"
    )
