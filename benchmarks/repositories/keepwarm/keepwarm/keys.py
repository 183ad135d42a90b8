"""Stable keys for function arguments."""

import hashlib


def freeze(value):
    """A hashable stand-in: equal containers give equal results, whatever the order of their keys.

    Lists and tuples are told apart, and so are 1, 1.0 and True.
    """
    if isinstance(value, dict):
        return ("dict", tuple(sorted((str(key), freeze(item)) for key, item in value.items())))
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, tuple(freeze(item) for item in value))
    if isinstance(value, (set, frozenset)):
        return ("set", tuple(sorted(repr(freeze(item)) for item in value)))
    return (type(value).__name__, repr(value))


def call_key(args, kwargs):
    """A hashable key for one call; the order of keyword arguments does not matter."""
    positional = tuple(freeze(value) for value in args)
    named = tuple((name, freeze(kwargs[name])) for name in sorted(kwargs))
    return (positional, named)


def digest(*parts, length=16):
    """A short hexadecimal name for parts, for example for a file; parts are kept apart."""
    joined = "\x1f".join(str(part) for part in parts)
    return hashlib.sha256(joined.encode()).hexdigest()[:length]


def namespaced(namespace, key):
    """Text such as "users:42"; colons in the key are doubled so that two keys never collide."""
    if ":" in namespace:
        raise ValueError(f"namespace must not hold a colon: {namespace!r}")
    return f"{namespace}:{str(key).replace(':', '::')}"
