"""References between values: `${section.key}` and `${section.key:fallback}`; `$$` is a dollar sign."""

import re

from inifold.errors import ConfigError, MissingKey
from inifold.layers import flatten, set_path

_REFERENCE = re.compile(r"\$\$|\$\{([^}:]+)(?::([^}]*))?\}")


def references(text):
    """The paths a text refers to, in order, each once."""
    found = []
    for match in _REFERENCE.finditer(text):
        path = match.group(1)
        if path and path.strip() not in found:
            found.append(path.strip())
    return found


def interpolate(config):
    """A copy with all references resolved. Raises MissingKey, or ConfigError for a circle."""
    flat = flatten(config)
    result = config
    for path, value in flat.items():
        if isinstance(value, str):
            result = set_path(result, path, resolve(value, flat, (path,)))
    return result


def resolve(text, flat, chain=()):
    """The text with its references replaced; `chain` holds the paths being resolved right now."""

    def replace(match):
        if match.group(0) == "$$":
            return "$"
        path = match.group(1).strip()
        if path in chain:
            raise ConfigError(f"circular reference: {' -> '.join([*chain, path])}")
        if path not in flat:
            if match.group(2) is None:
                raise MissingKey(f"{text!r} refers to {path!r}, which does not exist")
            return match.group(2)
        value = flat[path]
        return resolve(value, flat, (*chain, path)) if isinstance(value, str) else str(value)

    return _REFERENCE.sub(replace, text)


def order(config):
    """Dotted paths so that each comes after those it refers to; otherwise in the given order."""
    flat = flatten(config)
    done = []

    def visit(path):
        if path in done or path not in flat:
            return
        value = flat[path]
        for needed in references(value) if isinstance(value, str) else ():
            visit(needed)
        done.append(path)

    for path in flat:
        visit(path)
    return done
