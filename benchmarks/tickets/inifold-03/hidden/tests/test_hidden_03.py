from inifold.layers import fold


def test_layers_are_not_changed():
    defaults = {"server": {"port": 8080, "tls": {"on": False}}, "paths": ["a"]}
    tenant = {"server": {"port": 9000, "tls": {"on": True}}}
    assert fold([defaults, tenant])["server"]["port"] == 9000
    assert defaults == {"server": {"port": 8080, "tls": {"on": False}}, "paths": ["a"]}
    assert tenant == {"server": {"port": 9000, "tls": {"on": True}}}
    assert fold([defaults, {}])["server"]["port"] == 8080


def test_the_result_is_independent():
    defaults = {"server": {"port": 8080}, "paths": ["a"]}
    result = fold([defaults])
    result["server"]["port"] = 1
    result["paths"].append("b")
    assert defaults == {"server": {"port": 8080}, "paths": ["a"]}


def test_merging():
    assert fold([{"a": {"x": 1}}, {"a": {"y": 2}}, {"a": {"x": None}}]) == {"a": {"y": 2}}
    assert fold([{"a": 1}, {"a": {"x": 2}}]) == {"a": {"x": 2}}
    assert fold([{"a": {"x": 2}}, {"a": 1}]) == {"a": 1}
