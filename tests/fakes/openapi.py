"""What openapi-core lets pass: names in a query or a body that a service's document does not have, such as a misspelt filter,
which the service would ignore without a word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Node = dict[str, Any]


class Names:
    """The names that a document knows, by operation."""

    def __init__(self, document: Node) -> None:
        self._document = document
        paths = document["paths"].items()
        self._paths = [(re.compile(re.sub(r"\{[^}]*\}", "[^/]+", re.sub(r"[.+]", r"\\\g<0>", p))), i) for p, i in paths]

    def strange(self, method: str, path: str, query: Mapping[str, str], body: object) -> list[str]:
        """One line for every parameter of the query and every field of the body that the operation does not have."""
        fitting = [item for pattern, item in self._paths if pattern.fullmatch(path) and method.lower() in item]
        if not fitting:
            return [f"{method} {path} is not in the document"]
        item = fitting[0]
        operation = item[method.lower()]
        parameters = map(self._resolved, [*item.get("parameters", ()), *operation.get("parameters", ())])
        known = {parameter["name"] for parameter in parameters if parameter["in"] == "query"}
        content = self._resolved(operation.get("requestBody", {})).get("content", {})
        schema = content.get("application/json", {}).get("schema", {})
        lines = [f"the query has {name!r}" for name in query if name not in known]
        return lines + [f"the body has {name!r}" for name in self._fields(schema, body, "")]

    def _resolved(self, node: Node) -> Node:
        while "$ref" in node:
            found: Any = self._document
            for name in node["$ref"].removeprefix("#/").split("/"):
                found = found[name.replace("~1", "/").replace("~0", "~")]
            node = found
        return node

    def _fields(self, schema: Node, value: object, at: str) -> Iterator[str]:
        schema = self._resolved(schema)
        variants = schema.get("oneOf") or schema.get("anyOf")
        if variants:
            yield from min(([*self._fields(variant, value, at)] for variant in variants), key=len)
        elif isinstance(value, list):
            for item in value:
                yield from self._fields(schema.get("items", {}), item, at)
        elif isinstance(value, dict) and "properties" in schema and not schema.get("additionalProperties"):
            for name, inner in value.items():
                if name in schema["properties"]:
                    yield from self._fields(schema["properties"][name], inner, f"{at}{name}.")
                else:
                    yield f"{at}{name}"
