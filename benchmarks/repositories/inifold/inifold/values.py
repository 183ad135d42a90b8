"""Text values to Python values."""

import re

from inifold.errors import ConfigError

TRUE = {"1", "true", "yes", "on", "y"}
FALSE = {"0", "false", "no", "off", "n", ""}
SIZES = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?")


def parse_bool(text):
    """True or False for the usual words in any case. Raises ConfigError for anything else."""
    word = text.strip().lower()
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    raise ConfigError(f"not a yes/no value: {text!r}")


def parse_int(text):
    """An int; "1_000", "0x1f" and surrounding space are fine."""
    try:
        return int(text.strip(), 0)
    except ValueError:
        raise ConfigError(f"not a whole number: {text!r}") from None


def parse_size(text):
    """Bytes of "512", "10k", "1.5 MB", "2GiB"; all units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip().lower())
    if not match:
        raise ConfigError(f"not a size: {text!r}")
    return int(float(match.group(1)) * SIZES[match.group(2)])


def format_size(count):
    """Short text of a number of bytes: 1536 -> "1.5 KB", 1023 -> "1023 B"."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024:
            break
        size /= 1024
    else:
        unit = "TB"
    number = f"{size:.1f}".removesuffix(".0")
    return f"{number} {unit}"


def parse_list(text, separator=","):
    """The items of a list, stripped, without empty ones."""
    return [item.strip() for item in text.split(separator) if item.strip()]


def parse_choice(text, allowed):
    """The allowed value that equals the text in any case. Raises ConfigError."""
    for value in allowed:
        if value.lower() == text.strip().lower():
            return value
    raise ConfigError(f"{text!r} is not one of {', '.join(allowed)}")


def parse_range(text):
    """Sorted whole numbers of "1-3,7": [1, 2, 3, 7]. Both ends are included; each number appears once."""
    numbers = set()
    for part in parse_list(text):
        first, found, last = part.partition("-")
        start = parse_int(first)
        stop = parse_int(last) if found else start
        if stop < start:
            raise ConfigError(f"range runs backwards: {part!r}")
        numbers.update(range(start, stop + 1))
    return sorted(numbers)


def guess(text):
    """bool, int, float, None or the text itself, whichever the text looks like."""
    word = text.strip().lower()
    if word in ("true", "false"):
        return word == "true"
    if word in ("none", "null"):
        return None
    for convert in (int, float):
        try:
            return convert(word)
        except ValueError:
            continue
    return text
