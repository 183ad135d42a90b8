"""How well tickets find their repository: `python -m benchmarks.routing [FILE]` prints the shares and ends with 1 if any is wrong.

The tickets are 300 real issues of five public repositories with the true repository of each; their texts are not part of
this repository. `CONFIGURED` is what a maintainer of the five could write down in a few minutes without reading them.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from infra.boards import Ticket
from infra.llm import Frozen
from infra.sections import RepositorySection
from tasks.routing import Route, route

ISSUES = Path(__file__).parents[1].parent / "shared" / "contracts" / "tickets" / "nlbse24-github-issues.jsonl.gz"


def _configured(project: str, aliases: tuple[str, ...], keywords: tuple[str, ...]) -> RepositorySection:
    owner, name = project.split("/")
    remote = f"https://github.com/{owner}/{name}.git"
    return RepositorySection(path=Path(name), remote=remote, aliases=aliases, keywords=keywords)


CONFIGURED = {
    "bitcoin": _configured(
        "bitcoin/bitcoin",
        ("Bitcoin Core",),
        ("bitcoind", "bitcoin-cli", "bitcoin-qt", "bitcoin.conf", "mempool", "regtest", "UTXO", "PSBT", "wallet"),
    ),
    "react": _configured(
        "facebook/react",
        ("ReactJS", "React.js", "React DOM", "react-dom", "React DevTools"),
        ("useEffect", "useState", "useMemo", "JSX", "server components", "hydration"),
    ),
    "vscode": _configured(
        "microsoft/vscode",
        ("VS Code", "Visual Studio Code"),
        ("command palette", "settings.json", "extension host", "integrated terminal", "IntelliSense", "minimap"),
    ),
    "opencv": _configured(
        "opencv/opencv",
        ("opencv-python", "opencv_contrib"),
        ("cv2", "cv::Mat", "imread", "VideoCapture", "imgproc", "highgui", "calib3d"),
    ),
    "tensorflow": _configured(
        "tensorflow/tensorflow",
        ("TensorFlow Lite", "tf-nightly"),
        ("keras", "tflite", "tf.function", "tf.data", "import tensorflow", "XLA"),
    ),
}


class Routed(Frozen):
    """One issue: the configured name of its true repository, and where the rules sent it."""

    true: str
    route: Route

    @property
    def ending(self) -> str:
        if self.route.repository is None:
            return "skipped"
        return "right" if self.route.repository == self.true else "wrong"


def measure(issues: Path, repositories: Mapping[str, RepositorySection] = CONFIGURED) -> list[Routed]:
    """Route every issue of a gzipped JSON-lines file with `repo` (`owner/name`), `title` and `body`."""
    with gzip.open(issues, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        Routed(true=row["repo"].split("/")[1], route=route(_ticket(number, row), repositories, None))
        for number, row in enumerate(rows)
    ]


def _ticket(number: int, row: Mapping[str, str]) -> Ticket:
    return Ticket(key=f"N-{number}", title=row["title"] or "", body=row["body"] or "", state="todo")


def measure_unconfigured(issues: Path) -> list[Routed]:
    """The same issues while their own repository is not configured: all should be skipped."""
    measured = {name: measure(issues, {k: v for k, v in CONFIGURED.items() if k != name}) for name in CONFIGURED}
    return [each for name, routed in measured.items() for each in routed if each.true == name]


def report(routed: Sequence[Routed]) -> Iterator[str]:
    """The table, line by line: all, then by rule, then by repository."""
    yield f"{'':24}{'tickets':>8}{'right':>8}{'skipped':>9}{'wrong':>7}"
    yield _line("all", routed)
    for rule in sorted({each.route.by for each in routed}):
        yield _line(f"by {rule}" if rule else "no rule", [each for each in routed if each.route.by == rule])
    for name in sorted({each.true for each in routed}):
        yield _line(name, [each for each in routed if each.true == name])


def _line(name: str, routed: Sequence[Routed]) -> str:
    count = Counter(each.ending for each in routed)
    right, skipped = (f"{count[ending] / len(routed):.1%}" for ending in ("right", "skipped"))
    return f"{name:24}{len(routed):8}{right:>8}{skipped:>9}{count['wrong']:7}"


def main(arguments: Sequence[str]) -> int:
    issues = Path(arguments[0]) if arguments else ISSUES
    routed = measure(issues)
    print("\n".join(report(routed)))
    print(_line("own one not configured", measure_unconfigured(issues)))
    return int(any(each.ending == "wrong" for each in routed))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
