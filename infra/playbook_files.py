"""The YAML file of a playbook: what may stand in it, what is refused with its line, and what it does with text from a ticket.

A value from outside reaches a step only as an environment variable in double quotes, and only of letters that mean nothing to
a shell. Knows neither runs nor tickets.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from infra.errors import ConfigError
from infra.llm import Frozen
from infra.mistakes import Conflicts, Document, Place, explain, read_document
from infra.playbook_conditions import Facts, Unclear, named_in, parse_condition

FOLDER = ".darkfactory/playbooks"
"""Where a repository keeps its playbooks, as NAME.yaml."""
VERIFY = "verify"
"""The step that `verify` becomes."""
MAX_STEPS = 8
MAX_FILE_BYTES = 32 << 10
VALUE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._/:@+=,%-]{0,199}")
"""All that a parameter's value may ever be, whatever its own pattern allows: nothing here has a meaning to a shell, and it
cannot be taken for an option."""
PLAIN_VALUE = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
DESTRUCTIVE = frozenset({
    "rm", "rmdir", "unlink", "shred", "dd", "mkfs", "truncate", "delete", "del", "remove", "destroy", "drop", "purge", "wipe",
    "prune", "erase", "rotate", "revoke", "scale", "drain", "evict", "kill", "pkill", "killall", "terminate", "uninstall",
    "deprovision", "flushall", "flushdb", "reset", "force",
})  # fmt: skip
"""Words of a command that a person has to approve in every run."""

_PATTERN_CHARS = 200
_UNBOUNDED = 3
_RESERVED = frozenset({"http_proxy", "https_proxy", "no_proxy", "all_proxy", "ftp_proxy", "steps", "and", "or", "not"})
_REFERENCE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")
_INTERPRETER = r"(?:sh|bash|dash|zsh|ksh|python[\d.]*|perl|ruby|node|php|awk|env)"
_RUNS_TEXT = re.compile(rf"""(?x)
    (?:^|[\s;&|(/\\]) (?: (?:eval|source|xargs|ssh|su|watch|trap)\s
    | {_INTERPRETER}(?:\s+-\S+(?:\s+[^-\s]\S*)?)*\s+(?:-\w*[ceEprS]|--eval|--exec|--print)\b )
    | \|\s*(?:\S*/)?{_INTERPRETER}(?:\s+-\S*)*\s*(?:$|[;&|)])
    | (?:^|[;&|]\s*)\.\s
""")
"""Programs that read an argument, or what is piped into them, as code of their own."""
_COMMAND_NAME = re.compile(r"""(?x)
    (?:^|[;&|]|\b(?:then|do|else|if|elif|while|until)\s|\b(?:exec|command|nohup|time|timeout|nice|sudo|setsid|env)\s+(?:[-\d]\S*\s+)*)
    \s*(?:!\s+)?(?:\w+=(?:"[^"]*"|\S*)\s+)*"\$\{?(\w+)(?![^"]*"\s*[=!])
""")
"""A variable where a command's name stands; not one that is compared in `[[ a || "$b" == c ]]`."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,59}$")]
ParameterName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,29}$")]
Command = Annotated[
    str,
    Field(min_length=1, max_length=1000, pattern=r"^[^\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$"),
]
"""One line of shell, without letters that would show a person another command than the one that runs."""


class Parameter(Frozen):
    """A value that is not known before the run. `pattern` is a small regular expression that the whole value has to match."""

    pattern: str = Field(default=PLAIN_VALUE, min_length=1, max_length=_PATTERN_CHARS)
    description: str = ""

    @model_validator(mode="after")
    def _is_harmless(self) -> Self:
        if problem := _pattern_problem(self.pattern):
            raise ValueError(f"its pattern: {problem}")
        return self

    def problem(self, value: str) -> str | None:
        """Why the value may not be used; None when it may."""
        if not VALUE.fullmatch(value) or ".." in value:
            return f"{value!r:.80} has letters that no parameter may have (or `..`, or is longer than 200)"
        return None if re.fullmatch(self.pattern, value) else f"{value!r:.80} does not match {self.pattern!r}"


class Trigger(Frozen):
    """`pattern` is the ticket's title word by word; `{name}` in it takes a parameter's value."""

    pattern: str = Field(min_length=1, max_length=300)


class Step(Frozen):
    """One command. `undo` takes it back and may run twice; `approval` None: only when the command is destructive.

    `accept` are the exit codes that are no failure; `when` is a condition on parameters and earlier steps.
    """

    id: Name
    run: Command
    when: str | None = Field(default=None, max_length=300)
    timeout: float = Field(default=120, gt=0, le=3600)
    approval: bool | None = None
    undo: Command | None = None
    accept: tuple[int, ...] = (0,)

    @property
    def gated(self) -> bool:
        """A person has to approve it in every run."""
        return is_destructive(self.run) if self.approval is None else self.approval


class Playbook(Frozen):
    """A whole file. `secrets` are names of `operations.secrets` of the repository's section in factory.yaml."""

    name: Name
    version: int = Field(default=1, ge=1)
    description: str = ""
    trigger: Trigger
    parameters: dict[ParameterName, Parameter] = {}
    secrets: tuple[Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")], ...] = ()
    steps: tuple[Step, ...] = Field(min_length=1, max_length=MAX_STEPS)
    verify: Command | None = None
    provenance: tuple[int, ...] = ()
    """The observed operations that it was made from."""

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if found := list(_conflicts(self)):
            raise Conflicts(found)
        return self

    @property
    def destructive(self) -> bool:
        """Whether it, or what takes it back, does what a person has to look at first."""
        return any(is_destructive(command) or step.gated for step in self.steps for command in _commands(step))

    @property
    def all_steps(self) -> tuple[Step, ...]:
        """The steps, and `verify` as the last one."""
        return (*self.steps, Step(id=VERIFY, run=self.verify, approval=False)) if self.verify else self.steps

    def values(self, given: Mapping[str, str]) -> dict[str, str]:
        """The parameters of a run, checked. Raises ConfigError for one that is unknown, missing, or not allowed."""
        problems = [f"there is no parameter {name!r}" for name in given if name not in self.parameters]
        problems += [f"the parameter {name!r} is missing" for name in self.parameters if name not in given]
        for name, value in given.items():
            if name in self.parameters and (problem := self.parameters[name].problem(value)):
                problems.append(f"the parameter {name!r} is refused: {problem}")
        if problems:
            known = ", ".join(self.parameters) or "none"
            raise ConfigError(f"playbook {self.name!r}: {'; '.join(problems)} (its parameters: {known}); correct it")
        return dict(given)

    def taken_from(self, title: str) -> dict[str, str] | None:
        """The parameters as a ticket's title gives them; None when it is another kind of title, or a value is not allowed."""
        pairs = list(zip(words_of(self.trigger.pattern), words_of(title), strict=False))
        if len(words_of(self.trigger.pattern)) != len(words_of(title)) or len(title) > 300:
            return None
        found: dict[str, str] = {}
        for wanted, word in pairs:
            taken = _taken(wanted, word)
            if taken is None or any(found.get(name, value) != value for name, value in taken.items()):
                return None
            found |= taken
        fits = all(self.parameters[name].problem(value) is None for name, value in found.items())
        return found if fits else None


def words_of(title: str) -> list[str]:
    """The words of a title, without a `[mark]` before and a full stop after it."""
    return re.sub(r"^\s*\[[^\]]*\]\s*", "", title).strip().rstrip(".!?").split()


def _taken(wanted: str, word: str) -> dict[str, str] | None:
    """What a word of a title gives: None when it is another one."""
    before, mark, rest = wanted.partition("{")
    if not mark:
        return {} if wanted.casefold() == word.casefold() else None
    name, _, after = rest.partition("}")
    fits = word.startswith(before) and word.endswith(after) and len(word) > len(before) + len(after)
    return {name: word[len(before) : len(word) - len(after)]} if fits else None


def is_destructive(command: str) -> bool:
    """Whether a word of the command is one of those that destroy. What a program of the repository does inside is not seen."""
    return not DESTRUCTIVE.isdisjoint(re.split(r"[^a-z]+", command.casefold()))


def shown(command: str, values: Mapping[str, str]) -> str:
    """The command with its parameters, as a person could type it."""
    used = [name for name in values if name in references(command)]
    return " ".join([*(f"{name}={shlex.quote(values[name])};" for name in used), command])


def references(command: str) -> set[str]:
    """The variables that a command names."""
    return {one or other for one, other in _REFERENCE.findall(command)}


# --- the file ---------------------------------------------------------------------------------------------------------


def digest_of(data: bytes) -> str:
    """What a person approves: the file's exact content."""
    return hashlib.sha256(data).hexdigest()


def parse_playbook(data: bytes, path: str) -> Playbook:
    """The playbook in a file. Raises ConfigError with the file, and the line of every mistake."""
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path!r} has {len(data)} bytes; a playbook has at most {MAX_FILE_BYTES}")
    try:
        document = _read(data.decode(), path)
    except UnicodeDecodeError:
        raise ConfigError(f"{path!r} is not UTF-8 text; correct it") from None
    try:
        playbook = Playbook.model_validate(document.values)
    except ValidationError as error:
        wrong = "\n  ".join(explain(error, Playbook, document.lines))
        raise ConfigError(f"playbook {path!r} is not valid; correct these and commit:\n  {wrong}") from None
    if path.rpartition("/")[2] != f"{playbook.name}.yaml":
        line = document.lines[("name",)]
        raise ConfigError(
            f"playbook {path!r} line {line}: its name {playbook.name!r} is not that of the file; correct one"
        )
    return playbook


def _read(text: str, path: str) -> Document:
    """As `read_document`, without aliases: a few of them make a small file a huge one."""
    try:
        aliases = [event for event in yaml.parse(text, yaml.SafeLoader) if isinstance(event, yaml.AliasEvent)]
    except yaml.YAMLError:
        aliases = []  # it is explained below
    if aliases:
        mark = aliases[0].start_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"playbook {path!r}{line}: an alias (`*{aliases[0].anchor}`) is not allowed; write it out")
    return read_document(text, path)


def render_playbook(playbook: Playbook) -> str:
    """The file's text, in the order of the model; what is a default is left out."""
    plain = playbook.model_dump(mode="json", exclude_defaults=True) | {"version": playbook.version}
    ordered = {name: plain[name] for name in Playbook.model_fields if name in plain}
    for name, parameter in playbook.parameters.items():
        ordered["parameters"][name] = parameter.model_dump()
    for step, dumped in zip(playbook.steps, ordered["steps"], strict=True):
        if step.gated:
            dumped["approval"] = True
    text: str = yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=120)
    return text


# --- what is refused --------------------------------------------------------------------------------------------------


def _commands(step: Step) -> list[str]:
    return [step.run, *([step.undo] if step.undo else [])]


def _conflicts(playbook: Playbook) -> Iterator[tuple[Place, str]]:
    yield from _trigger_conflicts(playbook)
    for name in playbook.parameters:
        if name in _RESERVED:
            yield ("parameters", name), "this name has another meaning; choose another one"
    for number, step in enumerate(playbook.steps):
        place: Place = ("steps", number)
        yield from _step_conflicts(playbook, number, step, place)
        for field, command in (("run", step.run), ("undo", step.undo)):
            yield from (((*place, field), problem) for problem in _problems(command or "", playbook.parameters))
    yield from ((("verify",), problem) for problem in _problems(playbook.verify or "", playbook.parameters))
    if playbook.verify and is_destructive(playbook.verify):
        yield ("verify",), "it has a destructive word; make it a step of its own"


def _trigger_conflicts(playbook: Playbook) -> Iterator[tuple[Place, str]]:
    place: Place = ("trigger", "pattern")
    words = words_of(playbook.trigger.pattern)
    for word in words:
        named = re.fullmatch(r"[^{}]*\{([a-z][a-z0-9_]*)\}[^{}]*", word)
        if ("{" in word or "}" in word) and (named is None or named[1] not in playbook.parameters):
            yield place, f"{word!r} is no `{{name}}` of one of the parameters"
    if all("{" in word for word in words):
        yield place, "it would fit every title; it needs a word of its own"


def _step_conflicts(playbook: Playbook, number: int, step: Step, place: Place) -> Iterator[tuple[Place, str]]:
    earlier = [each.id for each in playbook.steps[:number]]
    if step.id in earlier or step.id == VERIFY:
        yield (*place, "id"), f"{step.id!r} is taken; every step has a name of its own"
    if step.approval is False and is_destructive(step.run):
        yield (*place, "approval"), "a destructive command needs a person's approval; remove this line"
    if step.when is not None:
        try:
            unknown = (
                named_in(parse_condition(step.when)) - set(playbook.parameters) - {f"steps.{one}" for one in earlier}
            )
        except Unclear as error:
            yield (*place, "when"), str(error)
        else:
            yield from (((*place, "when"), f"{name!r} is no parameter and no earlier step") for name in sorted(unknown))


def _problems(command: str, parameters: Mapping[str, Parameter]) -> Iterator[str]:
    """Ways out of the checkout, and ways in which a parameter's value could become code."""
    if re.search(r"(?:^|[^\w.])\.\.(?:$|[^\w.])", command):
        yield "`..` leads out of the checkout; name a folder that factory.yaml grants"
    if parameters and re.search(r"\$\{(?!\w+\})", command):
        yield "only `$name` and `${name}` are understood here; put the rest into a script of the repository"
    used = references(command) & set(parameters)
    if not used:
        return
    if "`" in command or "$(" in command or "<<" in command or re.search(r"\$['\"]", command):
        yield "with a parameter there is neither command substitution nor `<<` or `$'`; put it into a script"
    if _RUNS_TEXT.search(command):
        yield "a parameter must not reach a program that takes text as code; put it into a script of the repository"
    if named := sorted(used & set(_COMMAND_NAME.findall(command))):
        yield f"the parameter {named[0]!r} must not be the name of a command; write the command out"
    if bare := sorted(used & _outside_double_quotes(command)):
        yield f'write a parameter in double quotes: "${bare[0]}"'


def _outside_double_quotes(command: str) -> set[str]:
    """The variables that stand anywhere but between double quotes."""
    found, quote, place = set[str](), "", 0
    while place < len(command):
        letter = command[place]
        reference = _REFERENCE.match(command, place)
        if letter == "\\" and quote != "'":
            place += 2
            continue
        if letter in "'\"" and quote in ("", letter):
            quote = "" if quote else letter
        elif reference and quote != '"':
            found.add(reference[1] or reference[2])
        place += 1
    return found


def _pattern_problem(pattern: str) -> str | None:
    """Patterns are short and have no repeated groups, so that no value makes matching slow."""
    try:
        re.compile(pattern)
    except re.error as error:
        return f"it is no regular expression ({error}); correct it"
    bare = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", pattern)
    if "(?" in bare or re.search(r"\)[*+?{]", bare) or re.search(r"\\[0-9]", pattern):
        return "it has a repeated group, a reference or `(?`; use letters, classes and alternatives"
    return "it repeats more than three times; make it simpler" if len(re.findall(r"[*+{]", bare)) > _UNBOUNDED else None


def condition_holds(step: Step, parameters: Mapping[str, str], facts: Mapping[str, Any]) -> bool:
    """Whether the step is to run. `facts` are the earlier steps' exit codes and outcomes by `steps.ID.exit` and `.outcome`."""
    if step.when is None:
        return True
    known: Facts = {**parameters, **facts}
    return parse_condition(step.when).holds(known)
