"""What is wrong with settings, one line per mistake: the place, what is allowed and the nearest name.

Reads YAML so that places have line numbers and a name that stands twice is found. Knows no setting by name.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from infra.errors import ConfigError
from infra.redaction import redact

Place = tuple[str | int, ...]
"""Names and list positions that lead to a value, as `("boards", "main", "token")`."""

MOST_VALUES = 20_000
"""Values of one file, each counted as often as aliases repeat it: nine lines of aliases can stand for a billion."""

_NAMES = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
_SECRET = re.compile(r"(key|token|secret|password|slack_webhook)$")


class Document(NamedTuple):
    """A YAML file's values, and the line (from 1) on which each of them stands."""

    values: dict[str, Any]
    lines: dict[Place, int]


class Conflicts(ValueError):
    """Values that are right alone and wrong together: (place, what is wrong) of each. For model validators."""

    def __init__(self, found: Iterable[tuple[Place, str]]) -> None:
        self.found = tuple(found)
        super().__init__("; ".join(f"{_dotted(place)}: {text}" for place, text in self.found))


def read_document(text: str, name: str) -> Document:
    """Parse `text`, the content of the file `name`. Raises ConfigError with the line for what is no mapping of names."""
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = _composed(loader)
        if node is None:
            return Document({}, {})
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{name!r} has to be `name: value` lines; correct it")
        lines = dict(_lines(node, (), name))
        return Document(loader.construct_document(node), lines)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{name!r} is not valid YAML{line}: {error.problem}; correct it") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date like 2024-13-45
        raise ConfigError(f"{name!r} is not valid YAML: {str(error).splitlines()[0]}; correct it") from None
    finally:
        if loader is not None:
            loader.dispose()


def safe_yaml(text: str) -> Any:
    """As yaml.safe_load, for text of strangers. Raises YAMLError also for aliases that repeat too much, or themselves."""
    loader = yaml.SafeLoader(text)
    try:
        node = _composed(loader)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _composed(loader: yaml.SafeLoader) -> yaml.Node | None:
    node: yaml.Node | None = loader.get_single_node()
    if node is not None and _counted(node, {}) > MOST_VALUES:
        raise yaml.YAMLError(f"it stands for more than {MOST_VALUES:,} values; use fewer aliases")
    return node


def _counted(node: yaml.Node, known: dict[int, int | None]) -> int:
    """The values below a node with aliases written out; each node is looked at once."""
    inside = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    if isinstance(inside, str):
        return 1
    if id(node) not in known:
        known[id(node)] = None
        known[id(node)] = 1 + sum(_counted(part, known) for part in inside)
    count = known[id(node)]
    if count is None:
        raise yaml.YAMLError(f"the value in line {node.start_mark.line + 1} contains itself; write it out")
    return count


def _lines(node: yaml.Node, place: Place, name: str) -> Iterator[tuple[Place, int]]:
    """The line of every value below `node`; YAML itself would let the second of two equal names win."""
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield (*place, number), item.start_mark.line + 1
            yield from _lines(item, (*place, number), name)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line, inner = key.start_mark.line + 1, (*place, str(key.value))
        if key.tag not in _NAMES:  # a number, a date, `on`, `null`, a list
            raise ConfigError(f"{name!r} line {line}: {_shown(key)} is no name in YAML; write it in quotes")
        if str(key.value) in seen:
            raise ConfigError(
                f"{name!r} line {line}: `{_dotted(inner)}` stands there twice, first in line {seen[str(key.value)]}; remove one"
            )
        seen[str(key.value)] = line
        yield inner, line
        yield from _lines(value, inner, name)


def _shown(key: yaml.Node) -> str:
    return f"`{key.value[:60]}`" if isinstance(key, yaml.ScalarNode) else "a list or mapping"


def explain(error: ValidationError, model: type[BaseModel], lines: Mapping[Place, int] = {}) -> list[str]:
    """One line per mistake. `lines` are those of the file that the values came from; no secret is quoted."""
    found: list[str] = []
    for mistake in error.errors():
        for place, text in _said(mistake, model):
            line = next((lines[place[:end]] for end in range(len(place), 0, -1) if place[:end] in lines), None)
            found.append(f"line {line}: {_dotted(place)}: {text}" if line else f"{_dotted(place)}: {text}")
    return list(dict.fromkeys(found))


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean …?)` when one of the known names looks like it, else nothing."""
    close = difflib.get_close_matches(name.lower(), list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def secrets_in(values: object, place: Place = ()) -> Iterator[Place]:
    """The places of all SecretStr in nested mappings and lists."""
    if isinstance(values, SecretStr):
        yield place
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from secrets_in(value, (*place, name))
    if isinstance(values, list | tuple):
        for number, value in enumerate(values):
            yield from secrets_in(value, (*place, number))


def _said(mistake: ErrorDetails, model: type[BaseModel]) -> Iterator[tuple[Place, str]]:
    place, holder = _walk(model, mistake["loc"])
    context = mistake.get("ctx", {})
    match mistake["type"]:
        case "extra_forbidden":
            known = sorted(holder.model_fields) if holder else []
            yield place, f"no such name{nearest(str(place[-1]), known)}; known here: {', '.join(known)}"
        case "missing":
            yield place, "is missing; add it"
        case "union_tag_not_found":
            yield (*place, "kind"), f"is missing; it is one of {', '.join(_kinds(model, mistake['loc']))}"
        case "union_tag_invalid":
            kinds, given = _kinds(model, mistake["loc"]), str(context["tag"])
            yield (*place, "kind"), f"{given!r} is no known kind{nearest(given, kinds)}; kinds: {', '.join(kinds)}"
        case "value_error" if isinstance(context.get("error"), Conflicts):
            yield from context["error"].found
        case "value_error":
            yield place, redact(str(context.get("error", mistake["msg"])))
        case "model_type" | "model_attributes_type" | "dict_type":
            yield place, f"has to be `name: value` lines{_got(mistake['input'], place)}"
        case "tuple_type" | "list_type":
            yield place, f"has to be a list, as in [a, b]{_got(mistake['input'], place)}"
        case _:
            yield place, f"{mistake['msg'][:1].lower()}{mistake['msg'][1:]}{_got(mistake['input'], place)}"


def _got(value: object, place: Place) -> str:
    """The value that was given, unless it may be a secret or is long and nested."""
    if any(_SECRET.search(str(part)) for part in place) or not isinstance(value, (str, int, float)):
        return ""
    return f" (got {redact(repr(value)[:80])})"


def _dotted(place: Place) -> str:
    return ".".join(map(str, place)) or "all settings together"


def _walk(model: type[BaseModel], location: Place) -> tuple[Place, type[BaseModel] | None]:
    """pydantic's location without the tags of unions, and the model that holds its last name, where there is one."""
    kind: Any = model
    place: list[str | int] = []
    holder: type[BaseModel] | None = None
    for part in location:
        kind = _bare(kind)
        variants = [v for v in _variants(kind) if part in _tags(v)]
        if variants and not _is_model(kind):
            kind = variants[0]
            continue
        holder = kind if _is_model(kind) else None
        place.append(part)
        kind = _inner(kind, part)
    return tuple(place), holder


def _inner(kind: Any, part: str | int) -> Any:
    if _is_model(kind):
        field = kind.model_fields.get(str(part))
        return field.annotation if field else None
    return next((a for a in reversed(get_args(kind)) if a is not Ellipsis), None)


def _bare(kind: Any) -> Any:
    """Without `Annotated` and `| None`."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    variants = _variants(kind)
    return _bare(variants[0]) if len(variants) == 1 else kind


def _variants(kind: Any) -> list[Any]:
    if get_origin(kind) not in (Union, types.UnionType):
        return []
    return [each for each in get_args(kind) if each is not type(None)]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _tags(variant: Any) -> list[str]:
    """The values of the field `kind` by which this variant of a union is chosen."""
    field = variant.model_fields.get("kind") if _is_model(variant) else None
    return list(get_args(field.annotation)) if field and get_origin(field.annotation) is Literal else []


def _kinds(model: type[BaseModel], location: Place) -> list[str]:
    kind: Any = model
    for part in location:
        kind = _inner(_bare(kind), part)
    return sorted(tag for variant in _variants(_bare(kind)) for tag in _tags(variant))
