"""Path patterns: `*` within one folder name, `?` one letter, `**` any number of folders."""

import re


def _part_regex(part):
    pieces = []
    for letter in part:
        if letter == "*":
            pieces.append("[^/]*")
        elif letter == "?":
            pieces.append("[^/]")
        else:
            pieces.append(re.escape(letter))
    return "".join(pieces)


def to_regex(pattern):
    """Regular expression text for a whole path."""
    parts = pattern.strip("/").split("/")
    expression = ""
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "**":
            expression += ".*" if last else "(?:[^/]+/)*"
        else:
            expression += _part_regex(part) + ("" if last else "/")
    return expression


def matches(path, pattern):
    """Whether the whole path matches; a leading slash is ignored on both sides."""
    return re.fullmatch(to_regex(pattern), path.strip("/")) is not None


def select(paths, include=("**",), exclude=()):
    """Paths that match any `include` and no `exclude`, in order."""
    chosen = []
    for path in paths:
        wanted = any(matches(path, pattern) for pattern in include)
        unwanted = any(matches(path, pattern) for pattern in exclude)
        if wanted and not unwanted:
            chosen.append(path)
    return chosen


def specificity(pattern):
    """Sort key: patterns with more fixed text come first."""
    fixed = sum(1 for letter in pattern if letter not in "*?")
    return (-fixed, pattern.count("**"), pattern)


def first_match(path, rules):
    """The value of the most specific pattern in {pattern: value} that matches, or None."""
    for pattern in sorted(rules, key=specificity):
        if matches(path, pattern):
            return rules[pattern]
    return None
