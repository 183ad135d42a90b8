"""Slugs and safe file names."""

import re
import unicodedata

_NOT_ALLOWED = re.compile(r"[^a-z0-9]+")
_REPLACED = {"ß": "ss", "æ": "ae", "ø": "o", "œ": "oe", "&": " and "}
_RESERVED = {"con", "prn", "aux", "nul"}


def ascii_fold(text):
    """The text without accents: "Crème" -> "Creme"; letters without an equivalent are dropped."""
    for letter, replacement in _REPLACED.items():
        text = text.replace(letter, replacement)
    decomposed = unicodedata.normalize("NFKD", text)
    return decomposed.encode("ascii", "ignore").decode("ascii")


def slugify(text, separator="-", max_length=None):
    """A lower case slug of letters, digits and single separators.

    Cut at `max_length` characters, but never in the middle of a word unless the first word is longer.
    """
    folded = ascii_fold(text.lower())
    words = [word for word in _NOT_ALLOWED.split(folded) if word]
    slug = separator.join(words)
    if max_length is None or len(slug) <= max_length:
        return slug
    return _shortened(words, separator, max_length)


def _shortened(words, separator, max_length):
    kept = words[0][:max_length]
    for word in words[1:]:
        longer = kept + separator + word
        if len(longer) > max_length:
            break
        kept = longer
    return kept


def unique_slug(text, taken, separator="-"):
    """A slug that is not in `taken`: "news", "news-2", "news-3"."""
    base = slugify(text, separator) or "untitled"
    if base not in taken:
        return base
    number = 2
    while f"{base}{separator}{number}" in taken:
        number += 1
    return f"{base}{separator}{number}"


def filename(text, extension="", max_length=80):
    """A file name that is safe on every system; the extension keeps its place within `max_length`."""
    suffix = f".{extension.lstrip('.')}" if extension else ""
    stem = slugify(text, "_", max_length - len(suffix)) or "file"
    if stem in _RESERVED:
        stem += "_"
    return stem + suffix


def split_slug(slug, separator="-"):
    """The base and the number of a slug made by `unique_slug`: "news-2" -> ("news", 2), "news" -> ("news", 1)."""
    base, found, tail = slug.rpartition(separator)
    if found and tail.isdigit():
        return base, int(tail)
    return slug, 1
