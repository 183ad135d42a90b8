from keepwarm.versions import Version, newest


def test_digits_compare_as_numbers():
    assert Version("1.0.0-rc.10") > Version("1.0.0-rc.2")
    assert Version("1.0.0-9") < Version("1.0.0-10")
    assert newest(["2.0.0-rc.9", "2.0.0-rc.11", "2.0.0-rc.10"]) == "2.0.0-rc.11"


def test_the_order_of_the_semver_document():
    texts = ["alpha", "alpha.1", "alpha.beta", "beta", "beta.2", "beta.11", "rc.1"]
    versions = [Version(f"1.0.0-{text}") for text in texts] + [Version("1.0.0")]
    assert sorted(reversed(versions)) == versions


def test_equality():
    assert Version("1.0.0-rc.1") == Version("1.0-rc.1+b7")
    assert Version("1.0.0-rc.1") != Version("1.0.0-rc.2")
