"""Programs that are missing, not logged in, outdated, or misbehave: each is named or contained, and nothing is left of it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from infra.agents import Report, Session
from infra.agents.opening import KINDS, open_agent
from infra.errors import AuthFailed, ConfigError, Unreachable
from infra.git import Mirror
from infra.settings import Settings, parse_settings
from tests.infra.agents.programs import BOX, agent_of, script
from tests.shop import fingerprint, git, make_repository

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

ENDPOINT_OUTSIDE = "https://models.invalid/v1"
EVENTS = ["claude-code", "codex", "opencode"]


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    path = tmp_path / "worktree"
    path.mkdir()
    (path / "file.txt").write_text("old\n")
    return path


async def run(folder: Path, text: str, *, kind: str = "command", max_seconds: float = 30, **section: object) -> Report:
    """A session of a script: as the program of an agent, or as the command."""
    program = script(folder, text) if kind != "command" else text
    agent = agent_of(folder, kind, program, **section)
    return await agent.run(
        Session(prompt="Change old to new.", max_seconds=max_seconds), worktree=folder / "worktree", sandbox=BOX
    )


def left(folder: Path) -> list[str]:
    """Session folders of the agent."""
    return [path.name for path in (folder / "agents/a").glob("sessions/*")]


def alive(word: str) -> bool:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in entry.read_bytes():
                return True
        except OSError:
            continue
    return False


# --- before the start -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["claude-code", "codex", "opencode", "mini-swe-agent"])
async def test_a_program_that_is_missing_is_named_with_what_to_install(
    kind: str, worktree: Path, tmp_path: Path
) -> None:
    agent = agent_of(tmp_path, kind, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="install"):
        await agent.check(BOX, worktree)
    with pytest.raises(ConfigError, match="nowhere"):
        await agent.run(Session(prompt="p", max_seconds=5), worktree=worktree, sandbox=BOX)


@pytest.mark.parametrize("said", ["0.0.1", "", "hello", "\\377\\001\\002", "segmentation fault"])
@pytest.mark.parametrize("kind", EVENTS)
async def test_a_program_of_an_unknown_version_is_refused(kind: str, said: str, worktree: Path, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nprintf '{said}'\n")
    program.chmod(0o755)
    with pytest.raises(ConfigError, match=r"npm install|version"):
        await agent_of(tmp_path, kind, program).check(BOX, worktree)


@pytest.mark.parametrize("kind", EVENTS)
async def test_an_agent_that_is_not_logged_in_says_how_to(kind: str, worktree: Path, tmp_path: Path) -> None:
    agent = agent_of(tmp_path, kind, script(tmp_path, "exit 0"), url=None, login=tmp_path / "no-login")
    with pytest.raises(AuthFailed, match="log in with"):
        await agent.check(BOX, worktree)
    with pytest.raises(AuthFailed, match="not logged in"):
        await agent.run(Session(prompt="p", max_seconds=5), worktree=worktree, sandbox=BOX)
    assert left(tmp_path) == []


async def test_an_endpoint_that_is_not_there_is_noticed_before_anything_is_spent(
    worktree: Path, tmp_path: Path
) -> None:
    agent = agent_of(tmp_path, "codex", script(tmp_path, "exit 0"))
    with pytest.raises(Unreachable):
        await agent.check(BOX, worktree)


@pytest.mark.parametrize("kind", ["command", "mini-swe-agent"])
async def test_an_agent_without_what_it_needs_is_refused(kind: str, worktree: Path, tmp_path: Path) -> None:
    program = None if kind == "command" else script(tmp_path, "exit 0")
    agent = agent_of(tmp_path, kind, program, url=None)
    with pytest.raises(ConfigError, match=r"agents\.a"):
        await agent.run(Session(prompt="p", max_seconds=5), worktree=worktree, sandbox=BOX)


async def test_a_command_that_is_no_program_is_refused(worktree: Path, tmp_path: Path) -> None:
    assert await agent_of(tmp_path, "command", "sh -c true").check(BOX, worktree) == "command 'sh'"
    with pytest.raises(ConfigError, match="'no-such-program'"):
        await agent_of(tmp_path, "command", "no-such-program --yes").check(BOX, worktree)


def test_an_unknown_agent_is_named_with_those_that_are_known(tmp_path: Path) -> None:
    settings = Settings.model_validate({"home": tmp_path, "agents": {"mine": {"kind": "command", "program": "true"}}})
    assert open_agent(settings, "mine").provider == "command"
    with pytest.raises(ConfigError, match=r"'other'.*mine"):
        open_agent(settings, "other")


def test_a_role_that_names_no_agent_is_a_mistake_in_the_file() -> None:
    text = "agents:\n  claude: {kind: claude-code}\nroles:\n  coder: {agent: claud}\n"
    with pytest.raises(ConfigError, match=r"(?s)'claud' is not in `agents`.*claude"):
        parse_settings(text, "factory.yaml")


def test_every_kind_has_a_class() -> None:
    from infra.sections import AgentSection

    assert set(KINDS) == set(AgentSection.model_fields["kind"].annotation.__args__)  # type: ignore[union-attr]  # a Literal


async def test_a_session_that_is_unknown_is_not_resumed(worktree: Path, tmp_path: Path) -> None:
    agent = agent_of(tmp_path, "codex", script(tmp_path, "exit 0"))
    for name in ("nobody", "../../worktree", ""):
        with pytest.raises(ConfigError, match="resume"):
            await agent.run(Session(prompt="p", max_seconds=5, resume=name), worktree=worktree, sandbox=BOX)


# --- at work ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVENTS)
@pytest.mark.parametrize(
    "text",
    [
        "head -c 300000 /dev/urandom",
        "yes '{\"type\":' | head -c 300000",
        'printf \'{"type": "result", "is_error": null, "modelUsage": [1], "usage": 7}\\n\'',
        'printf \'{"type": "turn.completed", "usage": {"input_tokens": -5}}\\n{"type": "turn.failed"}\\n\'',
        'printf \'{"type": "assistant", "message": {"content": [1, {"type": ["text"]}]}}\\n\'',
        'printf \'{"type": "step_finish", "part": "none"}\\n{"type": {}}\\n{"type": "error", "error": 5}\\n\'',
        'printf \'\\000\\000{"type": "item.completed", "item": {"type": "agent_message", "text": 7}}\\n\'',
    ],
    ids=["noise", "broken-json", "result", "codex", "assistant", "opencode", "nul"],
)
async def test_a_program_that_prints_garbage_ends_badly_and_counts_nothing(
    kind: str, text: str, worktree: Path, tmp_path: Path
) -> None:
    report = await run(tmp_path, text, kind=kind)
    assert not report.finished
    assert report.usage.prompt_tokens == 0
    report.model_dump_json()
    assert left(tmp_path) == []


async def test_a_program_that_prints_without_end_is_killed(worktree: Path, tmp_path: Path) -> None:
    report = await run(tmp_path, "yes", kind="codex")
    assert (report.finished, report.ran_out) == (False, "output")
    assert len(report.output) < 10_000


async def test_a_session_that_never_ends_is_ended(worktree: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    report = await run(tmp_path, "trap '' TERM INT; while :; do sleep 1; done", max_seconds=1)
    assert (report.finished, report.ran_out) == (False, "time")
    assert time.monotonic() - began < 15


async def test_daemons_die_with_their_session(worktree: Path, tmp_path: Path) -> None:
    word = "31415.92653"
    report = await run(
        tmp_path, f"setsid nohup sleep {word} >/dev/null 2>&1 & (setsid sleep {word} &) ; echo new > file.txt"
    )
    assert report.finished
    for _ in range(50):
        if not alive(word):
            break
        await asyncio.sleep(0.1)
    assert not alive(word)


async def test_cancelling_ends_the_session_and_removes_its_folder(worktree: Path, tmp_path: Path) -> None:
    word = "27182.81828"
    agent = agent_of(tmp_path, "command", f"sleep {word}")
    running = asyncio.create_task(agent.run(Session(prompt="p", max_seconds=60), worktree=worktree, sandbox=BOX))
    for _ in range(100):
        if alive(word):
            break
        await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    for _ in range(40):  # a process that is told to die while it starts needs the kernel's time for it
        if not alive(word):
            break
        await asyncio.sleep(0.05)
    assert (alive(word), left(tmp_path)) == (False, [])


async def test_nothing_outside_the_worktree_is_written(worktree: Path, tmp_path: Path) -> None:
    (tmp_path / "host").write_text("mine\n")
    before = fingerprint(tmp_path)
    text = f"echo x > {tmp_path}/host; echo x > {tmp_path}/other; echo x > /etc/x; ln -s {tmp_path} out; echo x > out/y"
    await run(tmp_path, f"{text}; echo new > file.txt")
    after = fingerprint(tmp_path)
    assert {
        name for name in before | after if before.get(name) != after.get(name) and not name.startswith("agents")
    } == {
        "worktree/file.txt",
        "worktree/out",
    }


async def test_a_folder_made_unreadable_is_removed_all_the_same(worktree: Path, tmp_path: Path) -> None:
    text = (
        'mkdir -p "$CODEX_HOME/a/b"; touch "$CODEX_HOME/a/b/c"; ln -s /etc "$CODEX_HOME/etc"; chmod 000 "$CODEX_HOME/a"'
    )
    await run(tmp_path, text, kind="codex")
    assert left(tmp_path) == []


async def test_a_session_file_that_is_a_link_is_not_read(worktree: Path, tmp_path: Path) -> None:
    """The host reads what the sandbox left: a link there must not lead it anywhere."""
    secret = tmp_path / "secret.jsonl"
    usage = {"total_token_usage": {"input_tokens": 5}, "last_token_usage": {"input_tokens": 5}}
    secret.write_text(json.dumps({"payload": {"type": "token_count", "info": usage}}) + "\n")
    text = f'ln -s {secret} "$CODEX_HOME/rollout.jsonl"; mkfifo "$CODEX_HOME/pipe.jsonl"; echo \'{{"type": "turn.completed"}}\''
    report = await run(tmp_path, text, kind="codex")
    assert report.finished
    assert report.usage.prompt_tokens == 0


async def test_a_read_only_session_cannot_write_the_worktree(worktree: Path, tmp_path: Path) -> None:
    agent = agent_of(tmp_path, "command", "echo new > file.txt; touch more; cat file.txt")
    session = Session(prompt="p", max_seconds=10, read_only=True)
    report = await agent.run(session, worktree=worktree, sandbox=BOX)
    assert "old" in report.output
    assert sorted(path.name for path in worktree.iterdir()) == ["file.txt"]
    assert (worktree / "file.txt").read_text() == "old\n"


async def test_what_it_does_to_git_has_no_effect_on_the_host(tmp_path: Path) -> None:
    """An agent commits, plants a hook and a monitor, and rewrites the config: the host's git runs nothing of it."""
    source = make_repository(tmp_path / "shop")
    mirror = Mirror.open(tmp_path / "repos", "shop", str(source))
    base = mirror.base(None)[1]
    marker = tmp_path / "planted"
    evil = (
        "git log --oneline | head -3; echo '# more' >> README.md; git add -A; git -c user.name=a -c user.email=a@b commit -qm evil; "
        f"git config core.fsmonitor 'touch {marker}'; git config core.hooksPath /workspace/hooks; mkdir hooks; "
        f"printf '#!/bin/sh\\ntouch {marker}\\n' > hooks/post-checkout; chmod +x hooks/post-checkout; "
        "printf '* filter=evil\\n' > /git/info/attributes; git update-ref refs/heads/main HEAD; rm -rf /objects/*"
    )
    with mirror.worktree(tmp_path / "worktrees", "T-1", "coder", base) as worktree:
        report = await agent_of(tmp_path, "command", evil).run(
            Session(prompt="p", max_seconds=30), worktree=worktree.path, sandbox=BOX, binds=tuple(worktree.git_binds())
        )
        head = await worktree.commit(BOX, "T-1 u1")
    assert "Open the shop" in report.output
    assert sorted(file.path for file in mirror.changed(base, head)) == ["README.md", "hooks/post-checkout"]
    assert mirror.base(None)[1] == base
    assert git(source, "status", "--porcelain") == ""
    assert not marker.exists()


async def test_the_key_stays_outside(worktree: Path, tmp_path: Path) -> None:
    report = await run(
        tmp_path, "env; cat /proc/*/environ 2>/dev/null", key="sk-very-secret-key-12345", url=ENDPOINT_OUTSIDE
    )
    assert "added-by-the-gateway" in report.output
    assert "very-secret" not in report.model_dump_json()


async def test_the_login_is_shared_and_masked(worktree: Path, tmp_path: Path) -> None:
    """A refreshed token must reach everybody who uses the login, so it is the user's own file and no copy."""
    login = tmp_path / "login"
    login.mkdir()
    (login / "auth.json").write_text(json.dumps({"tokens": {"access": "token-0123456789abcdefghij"}}))
    (login / "config.toml").write_text("mine")
    text = 'cat "$CODEX_HOME/auth.json"; ls "$CODEX_HOME"; printf \'{"tokens": {}}\' > "$CODEX_HOME/auth.json"'
    report = await run(tmp_path, text, kind="codex", url=None, login=login)
    assert "token-0123456789" not in report.model_dump_json()
    assert "***" in report.model_dump_json()
    assert "config.toml" not in report.output, "the rest of the user's folder is not shown"
    assert json.loads((login / "auth.json").read_text()) == {"tokens": {}}


async def test_a_check_that_succeeded_is_remembered(tmp_path: Path, worktree: Path) -> None:
    """Starting some agents takes ten seconds, so it is not done for every session."""
    login = tmp_path / "login"
    login.mkdir()
    (login / "auth.json").write_text("{}")
    program = script(tmp_path, "exit 0")
    agent = agent_of(tmp_path, "codex", program, url=None, login=login)
    said = await agent.check(BOX, worktree)
    assert "codex 9.9.9, logged in" in said
    stamp = program.stat()
    program.write_text("#!/bin/sh\nexit 1\n")
    os.utime(program, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert await agent.check(BOX, worktree) == said
    os.utime(program)
    with pytest.raises(ConfigError):
        await agent.check(BOX, worktree)
