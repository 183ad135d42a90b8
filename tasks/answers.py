"""Reading what models write: fenced code blocks, and JSON objects of a pydantic model, asked once more if unusable."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import TypeVar

from pydantic import BaseModel

from infra.errors import InvalidOutput
from tasks.asking import Asker, ask
from tasks.models import Message, ModelRequest, Usage

Answer = TypeVar("Answer", bound=BaseModel)
_OBJECTS = 1_000
"""Opening braces that are tried; each costs up to the length of the answer."""


def continued(opening: str, text: str) -> str:
    """A whole answer whose first words were given: servers go on after them, repeat them, or begin a block anew."""
    anew = opening.rstrip().count("```") % 2 == 1 and re.search(r"^```\w", text, flags=re.MULTILINE) is not None
    return text if anew or text.startswith(opening) else opening + text


def code_blocks(answer: str) -> list[str]:
    """The fenced blocks of an answer in order; an unclosed last block counts."""
    return [
        block for block in re.findall(r"```[\w+-]*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", answer, flags=re.S) if block.strip()
    ]


def parse(text: str, shape: type[Answer]) -> Answer | None:
    """The first JSON object in `text` that has a field of `shape` and fits it; None when there is none.

    Unknown fields are dropped.
    """
    decoder = json.JSONDecoder(strict=False)
    for found in islice(re.finditer(r"\{", text), _OBJECTS):
        try:
            value, _ = decoder.raw_decode(text, found.start())
            known = {k: v for k, v in value.items() if k in shape.model_fields}
            if known:
                return shape.model_validate(known)
        except (ValueError, RecursionError):  # ValidationError is a ValueError; deep nesting recurses
            continue
    return None


async def ask_for(shape: type[Answer], asker: Asker, request: ModelRequest, model: str) -> tuple[Answer | None, Usage]:
    """Ask, and ask once more with the mistake named. The answer is None when both are unusable."""
    request = request.model_copy(update={"json_schema": shape.model_json_schema()})
    completion = await ask(asker, request, model)
    answer = parse(completion.text, shape)
    if answer is not None or completion.finish_reason == "length":
        return answer, completion.usage
    complaint = f"That was not a JSON object of this schema. Answer again with only that:\n{json.dumps(shape.model_json_schema())}"
    again = request.model_copy(
        update={
            "messages": (
                *request.messages,
                Message(role="assistant", content=completion.text or "(nothing)"),
                Message(role="user", content=complaint),
            )
        }
    )
    second = await ask(asker.model_copy(update={"sample": asker.sample + 1}), again, model)
    return parse(second.text, shape), completion.usage + second.usage


def required(answer: Answer | None, role: str) -> Answer:
    """The answer, or InvalidOutput: for roles without which the ticket cannot go on."""
    if answer is None:
        raise InvalidOutput(f"the {role} answered twice in a form that cannot be used; try a more capable model")
    return answer
