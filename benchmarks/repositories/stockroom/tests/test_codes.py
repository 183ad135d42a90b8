import pytest

from stockroom.codes import ean_check_digit, family, is_valid_ean, next_sku, normalise_sku


def test_normalise():
    assert normalise_sku(" shirt red_042 ") == "SHIRT-RED-042"
    with pytest.raises(ValueError):
        normalise_sku("x")


def test_family():
    assert family("SHIRT-RED-042") == "SHIRT"


def test_check_digit():
    assert ean_check_digit("400638133393") == 1


def test_valid_ean():
    assert is_valid_ean("4006381333931")
    assert is_valid_ean("4 006381 333931")
    assert not is_valid_ean("4006381333932")
    assert not is_valid_ean("400638")


def test_next_sku():
    assert next_sku("SHIRT-RED", ["SHIRT-RED-001", "SHIRT-RED-002", "SHIRT-BLUE-009"]) == "SHIRT-RED-003"
    assert next_sku("HAT-BIG", []) == "HAT-BIG-001"
