"""Folding layers of nested dictionaries into one; later layers win."""

from copy import deepcopy

from inifold.errors import ConfigError, MissingKey
from inifold.values import parse_bool

_REQUIRED = object()


def fold(layers):
    """One nested dictionary; dictionaries are merged key by key, everything else is replaced.

    A value of None in a later layer removes the key. No layer is changed.
    """
    result = {}
    for layer in layers:
        _merge(result, layer)
    return result


def _merge(target, layer):
    for key, value in layer.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            if not isinstance(target.get(key), dict):
                target[key] = {}
            _merge(target[key], value)
        else:
            target[key] = deepcopy(value)


def get(config, path, convert=None, default=_REQUIRED):
    """The value at a dotted path, converted. Raises MissingKey when it is not there and no default is given."""
    node = config
    for part in path.split("."):
        if not isinstance(node, dict) or part not in node:
            if default is _REQUIRED:
                raise MissingKey(f"missing key {path!r}")
            return default
        node = node[part]
    if convert is None or not isinstance(node, str):
        return node
    converter = parse_bool if convert is bool else convert
    try:
        return converter(node)
    except ValueError:
        raise ConfigError(f"{path}: cannot read {node!r} as {convert.__name__}") from None


def set_path(config, path, value):
    """A copy of `config` with the value at the dotted path; sections on the way are made."""
    result = deepcopy(config)
    node = result
    *parents, last = path.split(".")
    for part in parents:
        if not isinstance(node.get(part), dict):
            node[part] = {}
        node = node[part]
    node[last] = value
    return result


def flatten(config, prefix=""):
    """{"a.b": value} for every value that is not a dictionary."""
    flat = {}
    for key, value in config.items():
        path = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict):
            flat.update(flatten(value, path))
        else:
            flat[path] = value
    return flat


def from_environment(environment, prefix):
    """A layer from variables such as APP_SERVER__PORT for prefix "APP": two underscores nest."""
    start = prefix.upper() + "_"
    layer = {}
    for name in sorted(environment):
        if name.startswith(start) and len(name) > len(start):
            path = name[len(start) :].lower().replace("__", ".")
            layer = set_path(layer, path, environment[name])
    return layer


def from_pairs(pairs):
    """A layer from command line arguments such as ["server.port=80"]; later pairs win."""
    layer = {}
    for pair in pairs:
        path, found, value = pair.partition("=")
        if not found or not path.strip():
            raise ConfigError(f"expected key=value, not {pair!r}")
        layer = set_path(layer, path.strip(), value.strip())
    return layer


def diff(before, after):
    """{"added": [...], "removed": [...], "changed": [...]} as sorted dotted paths."""
    old, new = flatten(before), flatten(after)
    return {
        "added": sorted(path for path in new if path not in old),
        "removed": sorted(path for path in old if path not in new),
        "changed": sorted(path for path in new if path in old and new[path] != old[path]),
    }
