"""Semantic versions: parsing, ordering, ranges."""

import functools
import re

_VERSION = re.compile(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?")
_CONDITION = re.compile(r"(>=|<=|==|!=|>|<|\^|~)?\s*(\S+)")


@functools.total_ordering
class Version:
    """major.minor.patch with an optional pre-release; missing numbers are 0, build metadata is ignored."""

    def __init__(self, text):
        match = _VERSION.fullmatch(text.strip())
        if not match:
            raise ValueError(f"not a version: {text!r}")
        self.major, self.minor, self.patch = (int(group or 0) for group in match.groups()[:3])
        self.pre = tuple(match.group(4).split(".")) if match.group(4) else ()

    @property
    def numbers(self):
        return (self.major, self.minor, self.patch)

    def __str__(self):
        text = ".".join(str(number) for number in self.numbers)
        return f"{text}-{'.'.join(self.pre)}" if self.pre else text

    def __repr__(self):
        return f"Version({str(self)!r})"

    def _key(self):
        parts = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in self.pre]
        return (self.numbers, not self.pre, parts)

    def __eq__(self, other):
        return isinstance(other, Version) and self._key() == other._key()

    def __lt__(self, other):
        return self._key() < other._key()

    def __hash__(self):
        return hash((self.numbers, self.pre))

    def bump(self, part):
        """The next version: "major", "minor" or "patch"; smaller numbers become 0, a pre-release is dropped."""
        major, minor, patch = self.numbers
        if part == "major":
            return Version(f"{major + 1}.0.0")
        if part == "minor":
            return Version(f"{major}.{minor + 1}.0")
        if part == "patch":
            return Version(f"{major}.{minor}.{patch + 1}")
        raise ValueError(f"unknown part {part!r}")


def _caret_limit(version):
    """The first version that `^version` excludes: the leftmost number that is not 0 must stay."""
    if version.major:
        return version.bump("major")
    if version.minor:
        return version.bump("minor")
    return version.bump("patch")


def _holds(version, operator, wanted):
    if operator == "^":
        return wanted <= version < _caret_limit(wanted)
    if operator == "~":
        return wanted <= version < wanted.bump("minor")
    comparisons = {
        ">=": version >= wanted,
        "<=": version <= wanted,
        ">": version > wanted,
        "<": version < wanted,
        "!=": version != wanted,
        "==": version == wanted,
    }
    return comparisons[operator]


def satisfies(version, requirement):
    """Whether a version text meets every comma separated condition, e.g. ">=1.2, <2" or "^1.4"."""
    candidate = Version(version)
    for condition in requirement.split(","):
        match = _CONDITION.fullmatch(condition.strip())
        if not match:
            raise ValueError(f"cannot read condition {condition!r}")
        if not _holds(candidate, match.group(1) or "==", Version(match.group(2))):
            return False
    return True


def newest(versions, requirement=None):
    """The highest of the version texts, as given, or None; pre-releases only when there is nothing else."""
    fitting = [text for text in versions if requirement is None or satisfies(text, requirement)]
    stable = [text for text in fitting if not Version(text).pre]
    return max(stable or fitting, key=Version, default=None)
