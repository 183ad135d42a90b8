"""INI text to nested dictionaries and back."""

from inifold.errors import ConfigError

COMMENTS = ("#", ";")


def strip_comment(value):
    """The value without a trailing comment; a comment sign counts only after a space and outside quotes."""
    quote = None
    for index, letter in enumerate(value):
        if quote:
            if letter == quote:
                quote = None
        elif letter in "\"'":
            quote = letter
        elif letter in COMMENTS and (index == 0 or value[index - 1].isspace()):
            return value[:index].rstrip()
    return value.rstrip()


def unquote(value):
    """The value without a pair of equal quotes around it."""
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value


def parse_line(line, number):
    """("section", name) or ("pair", key, value) for one logical line; None for blank lines and comments."""
    text = line.strip()
    if not text or text.startswith(COMMENTS):
        return None
    if text.startswith("["):
        header = strip_comment(text)
        if not header.endswith("]"):
            raise ConfigError(f"section header is not closed: {header!r}", number)
        return ("section", header[1:-1].strip().lower())
    key, found, value = text.partition("=")
    if not found:
        raise ConfigError(f"no '=' in {text!r}", number)
    if not key.strip():
        raise ConfigError("empty key", number)
    return ("pair", key.strip().lower(), unquote(strip_comment(value.strip())))


def logical_lines(text):
    """(number, line) with lines that end in a backslash joined to the next; the number is that of the first."""
    pending = ""
    start = None
    for number, line in enumerate(text.splitlines(), start=1):
        if start is None:
            start = number
        if line.endswith("\\"):
            pending += line[:-1].rstrip() + " "
            continue
        yield start, pending + (line.lstrip() if pending else line)
        pending = ""
        start = None
    if pending:
        yield start, pending.rstrip()


def parse_ini(text):
    """{section: {key: value}}; keys before the first section belong to "". Dots nest: [a.b] is {"a": {"b": ...}}.

    A section that appears twice is continued; a key that appears twice in a section is an error.
    """
    result = {}
    seen = set()
    section = ""
    for number, line in logical_lines(text):
        parsed = parse_line(line, number)
        if parsed is None:
            continue
        if parsed[0] == "section":
            section = parsed[1]
            _section(result, section)
            continue
        _, key, value = parsed
        if (section, key) in seen:
            raise ConfigError(f"duplicate key {key!r} in section {section!r}", number)
        seen.add((section, key))
        _section(result, section)[key] = value
    return result


def _section(result, name):
    node = result
    for part in name.split("."):
        node = node.setdefault(part, {})
    return node


def _quoted(value):
    text = str(value)
    if text != text.strip() or "#" in text or ";" in text:
        return f'"{text}"'
    return text


def dump_ini(config):
    """INI text of {section: {key: value}}; nested dictionaries become dotted sections, in the given order."""
    blocks = []

    def walk(node, name):
        pairs = [f"{key} = {_quoted(value)}" for key, value in node.items() if not isinstance(value, dict)]
        if pairs:
            blocks.append("\n".join(([f"[{name}]"] if name else []) + pairs))
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{name}.{key}" if name else key)

    walk(config, "")
    return "\n\n".join(blocks) + "\n" if blocks else ""
