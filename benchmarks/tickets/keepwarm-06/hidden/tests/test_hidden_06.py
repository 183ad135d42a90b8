import pytest

from keepwarm.versions import newest, satisfies


@pytest.mark.parametrize(
    ("version", "requirement", "expected"),
    [
        ("0.3.1", "^0.3.1", True),
        ("0.3.9", "^0.3.1", True),
        ("0.3.0", "^0.3.1", False),
        ("0.4.0", "^0.3.1", False),
        ("0.9.0", "^0.3", False),
        ("0.0.3", "^0.0.3", True),
        ("0.0.4", "^0.0.3", False),
        ("1.9.0", "^1.2.3", True),
        ("2.0.0", "^1.2.3", False),
        ("10.4.0", "^10.0", True),
    ],
)
def test_caret(version, requirement, expected):
    assert satisfies(version, requirement) is expected


def test_newest():
    assert newest(["0.3.2", "0.3.10", "0.4.0", "0.9.0"], "^0.3.1") == "0.3.10"
