"""Case styles, plurals and lists in a sentence."""

import re

_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SMALL_WORDS = {"a", "an", "and", "as", "at", "by", "for", "in", "of", "on", "or", "the", "to"}
_IRREGULAR = {"child": "children", "person": "people", "mouse": "mice", "foot": "feet"}
_ORDINALS = {1: "st", 2: "nd", 3: "rd"}
_SAME = {"sheep", "series", "fish"}


def words(name):
    """The words of an identifier in any style: "parseHTTPHeader" -> ["parse", "HTTP", "Header"]."""
    spaced = _BOUNDARY.sub(" ", name)
    return [word for word in re.split(r"[\s_\-.]+", spaced) if word]


def snake(name):
    """snake_case."""
    return "_".join(word.lower() for word in words(name))


def kebab(name):
    """kebab-case."""
    return "-".join(word.lower() for word in words(name))


def camel(name, upper_first=False):
    """camelCase, or PascalCase with `upper_first`."""
    parts = [word.lower().capitalize() for word in words(name)]
    if parts and not upper_first:
        parts[0] = parts[0].lower()
    return "".join(parts)


def title(text):
    """Title Case; small words stay lower case except at the start and at the end."""
    parts = text.split()
    last = len(parts) - 1
    result = []
    for position, word in enumerate(parts):
        lowered = word.lower()
        if lowered in _SMALL_WORDS and 0 < position < last:
            result.append(lowered)
        else:
            result.append(word[:1].upper() + word[1:])
    return " ".join(result)


def pluralize(noun, count=2):
    """The noun as it stands after `count`: "box" -> "boxes", but "box" after 1."""
    if count == 1 or noun in _SAME:
        return noun
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return noun + "es"
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + "s"


def sentence_list(items, conjunction="and"):
    """Words for a list: "a", "a and b", "a, b, and c"."""
    texts = [str(item) for item in items]
    if len(texts) <= 1:
        return "".join(texts)
    if len(texts) == 2:
        return f"{texts[0]} {conjunction} {texts[1]}"
    return ", ".join(texts[:-1]) + f", {conjunction} {texts[-1]}"


def initials(name, limit=3):
    """Upper case initials of a person's name, at most `limit`."""
    return "".join(word[0].upper() for word in words(name))[:limit]


def ordinal(number):
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    if 10 <= number % 100 <= 20:
        return f"{number}th"
    return f"{number}{_ORDINALS.get(number % 10, 'th')}"
