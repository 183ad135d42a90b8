import pytest

from keepwarm.versions import Version, newest, satisfies


def test_parse():
    assert str(Version("v1.2")) == "1.2.0"
    assert str(Version("1.2.3-rc.1+build5")) == "1.2.3-rc.1"
    with pytest.raises(ValueError):
        Version("one")


def test_order():
    assert Version("1.2.3") < Version("1.3.0") < Version("2.0.0")
    assert Version("1.0.0-rc.1") < Version("1.0.0")


def test_bump():
    assert str(Version("1.2.3").bump("minor")) == "1.3.0"
    assert str(Version("1.2.3-rc.1").bump("patch")) == "1.2.4"


def test_ranges():
    assert satisfies("1.4.0", ">=1.2, <2")
    assert not satisfies("2.0.0", ">=1.2, <2")
    assert satisfies("1.9.0", "^1.4")
    assert not satisfies("2.0.0", "^1.4")
    assert satisfies("1.4.9", "~1.4.2")
    assert not satisfies("1.5.0", "~1.4.2")


def test_newest():
    assert newest(["1.0.0", "1.10.0", "1.9.0"]) == "1.10.0"
    assert newest(["1.0.0", "2.0.0-rc.1"]) == "1.0.0"
    assert newest([]) is None
