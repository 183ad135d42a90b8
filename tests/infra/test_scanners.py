"""The scanners run for real on small files; secrets in here are put together so that no scan finds them in this file."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.sandbox import Bubblewrap, Limits
from infra.scanners import ScanFinding, find_cheats, find_secrets, new_findings, scan

SANDBOX = Bubblewrap(Limits(timeout_seconds=60))
RANDOM = "q7Zr" + "T2mK9wXv4LpB8nJc"


async def scanned(root: Path, files: dict[str, str]) -> list[ScanFinding]:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return await scan(SANDBOX, root, list(files))


def rules(findings: list[ScanFinding]) -> set[tuple[str, str, int, str]]:
    return {(f.rule, f.path, f.line, f.severity) for f in findings}


async def test_real_errors_are_found_whatever_the_repository_configures(tmp_path: Path) -> None:
    files = {
        "src/a.py": "import subprocess\n\n\ndef run(x):\n    subprocess.call('ls ' + x, shell=True)  # nosec\n    return undefined  # noqa\n",
        "-b.py": "def f(:\n",
        "ruff.toml": "exclude = ['*']\n",
        ".bandit": "[bandit]\nskips = B602\n",
        "notes.md": "eval(x)\n",
    }
    found = rules(await scanned(tmp_path, files))
    assert ("B602", "src/a.py", 5, "high") in found
    assert ("F821", "src/a.py", 6, "medium") in found
    assert ("invalid-syntax", "-b.py", 1, "high") in found
    assert not any(path == "notes.md" for _, path, _, _ in found)


async def test_new_syntax_is_no_error(tmp_path: Path) -> None:
    found = await scanned(tmp_path, {"a.py": "type Pair[T] = tuple[T, T]\n\n\ndef f[T](x: T) -> T:\n    return x\n"})
    assert not any(f.tool == "ruff" or f.severity == "high" for f in found)


async def test_a_file_that_bandit_cannot_read_is_a_finding(tmp_path: Path) -> None:
    found = await scanned(tmp_path, {"deep.py": "x = " + "-" * 20_000 + "1\n"})
    assert any(f.tool == "bandit" and f.rule == "scan-failed" and f.severity == "high" for f in found)


async def test_links_and_missing_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "link.py").symlink_to("/etc/passwd")
    (tmp_path / "folder").symlink_to("/etc")
    assert await scan(SANDBOX, tmp_path, ["link.py", "folder/passwd", "missing.py"]) == []


async def test_a_moved_line_is_not_new_and_a_repeated_one_is(tmp_path: Path) -> None:
    before = await scanned(tmp_path, {"a.py": "def f(x):\n    return eval(x)\n"})
    moved = await scanned(tmp_path, {"a.py": "# a comment\n\n\ndef f(x):\n    return eval(x)\n"})
    assert before
    assert new_findings(before, moved) == []
    twice = await scanned(tmp_path, {"a.py": "def f(x):\n    return eval(x)\n\n\ndef g(x):\n    return eval(x)\n"})
    assert rules(new_findings(before, twice)) == {("B307", "a.py", 6, "medium")}


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("aws-access-key", "key = 'AKIA" + "QWERTYUIOPASDFGH'"),
        ("github-token", "ghp_" + "aB3" * 12),
        ("slack-token", "xoxb-" + "987654321098-QbRdStGhIj"),
        ("model-provider-key", "OPENAI=sk-proj-" + RANDOM * 2),
        ("private-key", "-----BEGIN RSA " + "PRIVATE KEY-----"),
        ("assigned-secret", f"DB_PASSWORD = '{RANDOM}'"),
        ("assigned-secret", f'"apiKey": "{RANDOM}",'),
        ("assigned-secret", f'settings["auth_token"] = "{RANDOM}"'),
    ],
)
def test_secrets_are_found_and_never_repeated(rule: str, line: str) -> None:
    found = list(find_secrets("src/config.py", f"\n{line}\n"))
    assert [(f.rule, f.line) for f in found] == [(rule, 2)]
    assert RANDOM not in str(found)


@pytest.mark.parametrize(
    "line",
    [
        "password = 'changeme-changeme-1'",
        "token = 'xxxxxxxxxxxxxxxxxxxx1'",
        "API_KEY = 'your-api-key-here-42'",
        "aws_access_key_id = 'AKIAIOSFODNN7EXAMPLE'",
        "secret = os.environ['SESSION_SECRET']",
        "password = '${DATABASE_PASSWORD}'",
        "token_url = 'https://id.acme.io/oauth2/token'",
        "password_hint = 'the name of the first pet'",
        "def reset_password(token): ...",
        "api_key: '<insert key 1 here>'",
    ],
)
def test_placeholders_raise_no_false_alarm(line: str) -> None:
    assert list(find_secrets("src/config.py", line)) == []


def test_values_in_tests_are_only_suspicious_in_a_known_shape() -> None:
    assert list(find_secrets("tests/test_login.py", f"password = '{RANDOM}'")) == []
    assert list(find_secrets("tests/test_login.py", "ghp_" + "aB3" * 12))


@pytest.mark.parametrize(
    ("path", "line", "severity"),
    [
        ("a.py", "if 'PYTEST_CURRENT_TEST' in os.environ:", "high"),
        ("a.py", 'if "pytest" in sys.modules:', "high"),
        ("a.py", "from _pytest.reports import TestReport", "high"),
        ("a.py", "sys.modules['pytest'].raises = lambda *a: None", "high"),
        ("tests/test_a.py", "pytest_plugins = ['a']", "high"),
        ("a.py", "def pytest_runtest_makereport(item, call):", "high"),
        ("a.py", "import __main__", "high"),
        ("a.py", "sys.modules['__main__'].Recorder.keep = f", "high"),
        ("a.py", "os._exit(0)", "medium"),
        ("a.js", "if (process.env.NODE_TEST_CONTEXT) {", "high"),
        ("a.mjs", "process.exit(0);", "medium"),
    ],
)
def test_code_that_looks_for_the_tests_is_found(path: str, line: str, severity: str) -> None:
    assert [f.severity for f in find_cheats(path, line)] == [severity]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("tests/test_a.py", "import pytest"),
        ("a.py", "sys.exit(main())"),
        ("README.md", "set PYTEST_CURRENT_TEST"),
        ("a.js", "process.exit(1)"),
    ],
)
def test_ordinary_code_is_not_suspected(path: str, line: str) -> None:
    assert list(find_cheats(path, line)) == []


async def test_what_a_tool_says_of_many_files_is_read_although_the_sandbox_cuts_long_output(tmp_path: Path) -> None:
    small = Bubblewrap(Limits(timeout_seconds=60, output_bytes=150_000))
    calls = "".join(f"    subprocess.call('ls {n} ' + x, shell=True)\n" for n in range(60))
    names = [f"m{n}.py" for n in range(4)]
    for name in names:
        (tmp_path / name).write_text(f"import subprocess\n\n\ndef run(x):\n{calls}")
    found = await scan(small, tmp_path, names)
    assert [f for f in found if f.rule == "scan-failed"] == []
    assert {f.path for f in found if f.rule == "B602"} == set(names)
