"""Mirrors, worktrees, commits and pushes with real git; and that nothing planted in a repository runs on the host."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from infra.errors import ConfigError, DiskFull, InfraError, InvalidOutput, Unreachable
from infra.git import Mirror, Worktree, branch_name, directory_name, ensure_bare, is_dirty
from infra.sandbox import Bubblewrap, Limits, Sandbox, Unsandboxed

needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
BOX = Bubblewrap(Limits(timeout_seconds=30))
EVERYTHING = {"max_files": 100, "max_lines": 1000}


def git(where: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "init.defaultBranch=main")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=where, check=True, capture_output=True, text=True).stdout.strip()


def commit_all(where: Path, message: str = "work") -> str:
    git(where, "add", "-A")
    git(where, "commit", "-q", "--allow-empty", "-m", message)
    return git(where, "rev-parse", "HEAD")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A person's repository with two files on `main`, and its mirror: made once, copied for each test."""
    folder = tmp_path_factory.mktemp("template")
    path = folder / "source"
    (path / "src").mkdir(parents=True)
    git(path, "init", "-q", "-b", "main")
    (path / "app.py").write_text("print('hello')\n")
    (path / "src/lib.py").write_text("x = 1\ny = 2\nz = 3\n")
    commit_all(path, "first")
    Mirror.open(folder / "mirrors", "project", str(path))
    return folder


@pytest.fixture
def source(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template / "source", tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def mirror(template: Path, tmp_path: Path) -> Mirror:
    shutil.copytree(template / "mirrors", tmp_path / "mirrors")
    return Mirror(tmp_path / "mirrors/project.git")


@pytest.fixture
def sha(mirror: Mirror) -> str:
    return mirror.base(None)[1]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "worktrees"


@pytest.fixture
def worktree(mirror: Mirror, root: Path, sha: str) -> Iterator[Worktree]:
    with mirror.worktree(root, "T-1", "coder", sha) as tree:
        yield tree


# Names


def test_a_plain_key_is_its_own_name() -> None:
    """WS2."""
    assert directory_name("fix-the-login_2.0") == "fix-the-login_2.0"
    assert branch_name("add-greeting") == "agent/add-greeting"


def test_no_two_keys_share_a_name_even_where_case_does_not_count() -> None:
    """WS2."""
    keys = ["a b", "a_b", "a/b", "A_B", "a_b ", "", ".", "..", "...", "_", "__", "x" * 80, "x" * 81, "x" * 82, "é", "é"]
    keys += ["-a", ".a", "_a", "a.lock", "a_lock", "a.", "a..b", "ENG-1", "eng-1", "Eng-1", "\ud800", "a\0b", "a\nb"]
    keys += [directory_name(key) for key in keys if directory_name(key) != key]
    names = {directory_name(key).casefold() for key in keys}
    assert len(names) == len(set(keys))


@pytest.mark.parametrize(
    "key", ["", ".", "..", "a/../b", "-x", ".git", "a.lock", "a..b", "x" * 5000, "ü\n\0", "@{", "a."]
)
def test_every_name_is_a_safe_folder_and_a_valid_branch(key: str, tmp_path: Path) -> None:
    """WS2."""
    name = directory_name(key)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert name[0] not in ".-"
    assert len(name) <= 97
    git(tmp_path, "check-ref-format", "--branch", branch_name(key))


# Mirrors


def test_a_mirror_follows_its_source(mirror: Mirror, source: Path, tmp_path: Path) -> None:
    branch, first = mirror.base(None)
    assert branch == "main"
    (source / "new.py").write_text("n = 1\n")
    second = commit_all(source)
    git(source, "branch", "side", first)
    again = Mirror.open(tmp_path / "mirrors", "project", str(source))
    assert again.path == mirror.path
    assert again.base(None) == ("main", second)
    assert again.base("side") == ("side", first)
    git(source, "branch", "-D", "side")
    Mirror.open(tmp_path / "mirrors", "project", str(source))
    with pytest.raises(ConfigError, match="side"):
        mirror.base("side")


def test_a_detached_head_asks_for_a_base_branch(source: Path, tmp_path: Path) -> None:
    head = git(source, "rev-parse", "HEAD")
    git(source, "checkout", "-q", "--detach")
    mirror = Mirror.open(tmp_path, "m", str(source))
    with pytest.raises(ConfigError, match="base_branch"):
        mirror.base(None)
    assert mirror.base("main") == ("main", head)


def test_sources_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "-q")
    for name, words in {"missing": "no folder", "plain": "not a git repository", "empty": "empty"}.items():
        with pytest.raises(ConfigError, match=words):
            Mirror.open(tmp_path / "mirrors", name, str(tmp_path / name))
    with pytest.raises(Unreachable) as caught:
        Mirror.open(tmp_path / "mirrors", "x", "http://user:secret@127.0.0.1:1/x.git")
    assert "secret" not in str(caught.value)
    with pytest.raises((Unreachable, ConfigError), match="ext"):
        Mirror.open(tmp_path / "mirrors", "x", f"ext::touch% {tmp_path}/canary")
    assert not (tmp_path / "canary").exists()


def test_a_half_made_mirror_and_stale_locks_do_not_stop_the_next_run(
    mirror: Mirror, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mirrors"
    half = folder / "half.git"
    (half / "objects").mkdir(parents=True)
    (folder / "half.git.new/objects").mkdir(parents=True)
    assert Mirror.open(folder, "half", str(source)).base(None)[0] == "main"
    for name in ("HEAD.lock", "packed-refs.lock", "config.lock", "refs/source/heads/main.lock", "refs/agent.lock"):
        (mirror.path / name).touch()
    second = commit_all(source)
    Mirror.open(folder, "project", str(source))
    mirror.point("refs/agent", second)
    assert mirror.base(None)[1] == second


def test_a_lock_belongs_to_the_living(mirror: Mirror, source: Path, tmp_path: Path) -> None:
    """Killed with -9 while it holds the lock; the next one goes on."""
    script = f"from infra.git import *\nwith Mirror(Path({str(mirror.path)!r}))._locked():\n print('held', flush=True); time.sleep(60)"
    victim = subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    )
    assert victim.stdout is not None
    with victim, victim.stdout:
        assert victim.stdout.readline() == "held\n"
        victim.send_signal(signal.SIGKILL)
    Mirror.open(tmp_path / "mirrors", "project", str(source))


def test_a_shallow_source_works_up_to_the_push(source: Path, tmp_path: Path, root: Path) -> None:
    commit_all(source, "second")
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{source}", "shallow")
    mirror = Mirror.open(tmp_path / "mirrors", "shallow", str(tmp_path / "shallow"))
    _, sha = mirror.base(None)
    ensure_bare(tmp_path / "forge.git", mirror, "main")
    with mirror.worktree(root, "t", "c", sha) as tree:
        tree.write("new.txt", "new\n")
        head = asyncio.run(tree.commit(Unsandboxed(Limits()), "new"))
    mirror.push(str(tmp_path / "forge.git"), "agent/t", head)
    assert git(tmp_path / "forge.git", "rev-parse", "agent/t") == head


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make another owner")
def test_a_source_of_another_user_can_be_read(source: Path, tmp_path: Path) -> None:
    subprocess.run(["chown", "-R", "65534:65534", source], check=True)
    assert Mirror.open(tmp_path / "m", "x", str(source)).base(None)[0] == "main"


def test_no_inherited_git_variable_or_user_configuration_counts(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    (tmp_path / "config").write_text("[broken")
    assert Mirror.open(tmp_path / "m", "x", str(source)).base(None)[0] == "main"


@needs_bwrap
async def test_no_git_that_we_start_knows_a_token(
    source: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WS7: asked of a git that writes down what it was given, on every path from the mirror to the push."""
    seen, real = tmp_path / "seen", shutil.which("git")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").write_text(f'#!/bin/sh\nenv >> "{seen}"\nexec {real} "$@"\n')
    (tmp_path / "bin/git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name in ("GITHUB_TOKEN", "LINEAR_API_KEY", "JIRA_TOKEN", "DARKFACTORY_BOARDS", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "planted-token")
    mirror = Mirror.open(tmp_path / "m", "x", str(source))
    ensure_bare(tmp_path / "forge.git", mirror, "main")
    with mirror.worktree(root, "t", "c", mirror.base(None)[1]) as tree:
        tree.write("app.py", "x = 2\n")
        inside = await BOX.run("env; git log -1", worktree=tree.path, binds=tree.git_binds())
        head = await tree.commit(BOX, "work")
    mirror.push(str(tmp_path / "forge.git"), "agent/t", head)
    await is_dirty(source, BOX)
    said = seen.read_text()
    assert said.count("GIT_TERMINAL_PROMPT=0") > 10
    assert "planted-token" not in said + inside.output


# Reading


def test_paths_and_read_show_regular_files_only(source: Path, tmp_path: Path) -> None:
    (source / "link").symlink_to("app.py")
    (source / "naïve name.txt").write_bytes(b"\xff\x00")
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)
    git(source, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},module")
    sha = commit_all(source)
    mirror = Mirror.open(tmp_path / "m", "x", str(source))
    assert mirror.paths(sha) == ["app.py", "naïve name.txt", "run.sh", "src/lib.py"]
    assert mirror.read(sha, "naïve name.txt") == b"\xff\x00"
    for missing in ("nothing", "src", "HEAD", "src/lib.py/x", "../app.py"):
        assert mirror.read(sha, missing) is None


def test_many_files_are_read_at_once_and_byte_for_byte(source: Path, tmp_path: Path) -> None:
    """What a line-wise reader would stumble over: no last line end, empty, binary, odd names; and what is no file."""
    files = {
        "a b": b"",
        "blob 5\n": b"x",
        "last": b"no end",
        "bin": bytes(range(256)) * 40,
        "same": b"x",
        "crlf": b"\r\n\n",
    }
    for name, content in files.items():
        (source / name).write_bytes(content)
    (source / "link").symlink_to("last")
    sha = commit_all(source)
    mirror = Mirror.open(tmp_path / "m", "x", str(source))
    asked = ["same", "nothing", *files, "link", "src", "src/lib.py"]
    found = mirror.read_all(sha, asked)
    assert found == {**files, "src/lib.py": b"x = 1\ny = 2\nz = 3\n"}
    assert list(found)[:2] == ["same", "a b"]
    assert mirror.read_all(sha, ["nothing"]) == mirror.read_all(sha, []) == {}


def test_changed_counts_lines_and_finds_renames(source: Path, tmp_path: Path, sha: str, mirror: Mirror) -> None:
    (source / "app.py").rename(source / "main.py")
    (source / "src/lib.py").write_text("x = 1\ny = 3\nz = 3\n")
    (source / "picture").write_bytes(bytes(range(256)))
    head = commit_all(source)
    Mirror.open(tmp_path / "mirrors", "project", str(source))
    found = {f.path: (f.previous, f.status, f.added, f.removed) for f in mirror.changed(sha, head)}
    assert found == {
        "main.py": ("app.py", "renamed", 0, 0),
        "picture": (None, "added", 0, 0),
        "src/lib.py": (None, "modified", 1, 1),
    }
    text = mirror.diff(sha, head)
    assert "rename from app.py" in text
    assert "-y = 2\n+y = 3\n" in text
    assert "Binary files" in text
    assert mirror.changed(sha, sha) == []


def link(source: Path) -> None:
    (source / "link").symlink_to("/etc/passwd")


def became_link(source: Path) -> None:
    (source / "app.py").unlink()
    (source / "app.py").symlink_to("src/lib.py")


def submodule(source: Path) -> None:
    git(source, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},module")


def workflow(source: Path) -> None:
    (source / ".GitHub/workflows").mkdir(parents=True)
    (source / ".GitHub/workflows/ci.yml").write_text("on: push\n")


def moved_away(source: Path) -> None:
    (source / "src/lib.py").rename(source / "lib.py")


def many_lines(source: Path) -> None:
    (source / "big.txt").write_text("line\n" * 1001)


def many_files(source: Path) -> None:
    for number in range(101):
        (source / f"{number}.txt").touch()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (link, "symbolic link"), (became_link, "symbolic link"), (submodule, "submodule"), (workflow, "protected"),
        (moved_away, "'src/lib.py' is protected"), (many_lines, "1001 changed lines"), (many_files, "101 files"),
    ],
)  # fmt: skip
def test_each_forbidden_change_is_a_violation(
    make: Callable[[Path], None], words: str, source: Path, tmp_path: Path, mirror: Mirror, sha: str
) -> None:
    make(source)
    if make is submodule:
        git(source, "commit", "-q", "-m", "module")
    head = git(source, "rev-parse", "HEAD") if make is submodule else commit_all(source)
    Mirror.open(tmp_path / "mirrors", "project", str(source))
    found = mirror.violations(sha, head, protected_paths=[".git*", ".github/**", "src/**"], **EVERYTHING)
    assert len(found) == 1
    assert words in found[0]


def test_text_that_git_takes_for_binary_does_not_pass_uncounted(
    source: Path, tmp_path: Path, mirror: Mirror, sha: str
) -> None:
    (source / "large.py").write_text("x = 1\n" * 800_000)
    (source / "picture.png").write_bytes(b"\x89PNG\0\0" * 100)
    head = commit_all(source)
    Mirror.open(tmp_path / "mirrors", "project", str(source))
    (found,) = mirror.violations(sha, head, protected_paths=[], **EVERYTHING)
    assert "'large.py' is text whose lines git does not count" in found


def test_an_ordinary_change_is_no_violation(source: Path, tmp_path: Path, mirror: Mirror, sha: str) -> None:
    (source / "app.py").write_text("print('bye')\n")
    head = commit_all(source)
    Mirror.open(tmp_path / "mirrors", "project", str(source))
    assert mirror.violations(sha, head, protected_paths=[".git*", "app", "**/app.pyc"], **EVERYTHING) == ()


# Worktrees


def test_a_worktree_is_a_checkout_that_goes_away(mirror: Mirror, root: Path, sha: str) -> None:
    """WS1: at root/<key>/<name>, nowhere else."""
    with mirror.worktree(root, "T 1", "coder", sha) as tree:
        assert tree.path == root / directory_name("T 1") / "coder"
        assert (tree.path / "src/lib.py").read_text() == "x = 1\ny = 2\nz = 3\n"
        assert git(mirror.path, "worktree", "list").count("\n") == 1
    assert not tree.path.exists()
    assert git(mirror.path, "worktree", "list").count("\n") == 0


def test_a_worktree_goes_away_after_an_error_and_when_its_folders_cannot_be_read(
    mirror: Mirror, root: Path, sha: str
) -> None:
    def interrupted() -> None:
        with mirror.worktree(root, "t", "coder", sha) as tree:
            (tree.path / "locked/deep").mkdir(parents=True)
            (tree.path / "locked/deep").chmod(0)
            (tree.path / "locked").chmod(0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not (root / "t/coder").exists()


def test_what_a_killed_run_left_is_replaced_at_the_same_place(mirror: Mirror, root: Path, sha: str) -> None:
    """WS3: same ticket, same path; leftovers, half-made registrations and plain files in the way are handled."""
    script = (
        f"from infra.git import *\nwith Mirror(Path({str(mirror.path)!r})).worktree(Path({str(root)!r}), 't', 'c', {sha!r}) as w:"
        "\n (w.path / 'app.py').write_text('dirty'); (w.path / 'more').touch(); os.kill(os.getpid(), 9)"
    )
    dead = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=False)
    assert dead.returncode == -9
    assert (root / "t/c/more").exists()
    admin = next((mirror.path / "worktrees").iterdir())
    (admin / "locked").write_text("initializing")
    (admin / "index.lock").touch()
    with mirror.worktree(root, "t", "c", sha) as tree:
        assert tree.path == root / "t/c"
        assert sorted(p.name for p in tree.path.iterdir()) == [".git", "app.py", "src"]
        assert tree.read("app.py") == "print('hello')\n"


def test_a_session_that_was_killed_gets_its_changes_back_at_the_same_place(
    mirror: Mirror, root: Path, sha: str
) -> None:
    """WS3: the same session only, and only once it had begun; when it ends well, nothing is left."""
    script = (
        f"from infra.git import *\nwith Mirror(Path({str(mirror.path)!r})).worktree(Path({str(root)!r}), 't', 'c', {sha!r}, 's1') as w:"
        f"\n w.begin({sha!r}); (w.path / 'half.py').write_text('half'); os.kill(os.getpid(), 9)"
    )
    for _ in range(2):
        dead = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=False)
        assert dead.returncode == -9
        with mirror.worktree(root, "t", "c", sha, "s1") as tree:
            assert (tree.begun, tree.read("half.py"), tree.path) == (sha, "half", root / "t/c")
        assert list(root.iterdir()) == []
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=False).returncode == -9
    for other in ("s2", ""):
        with mirror.worktree(root, "t", "c", sha, other) as tree:
            assert (tree.begun, tree.read("half.py")) == (None, None)


def test_a_session_keeps_its_changes_over_an_error_unless_there_are_none(mirror: Mirror, root: Path, sha: str) -> None:
    """WS3: a limit, a stop, a cancellation."""

    def cut_off(*, begins: bool, ends: bool) -> bool:
        with suppress(KeyboardInterrupt), mirror.worktree(root, "t", "c", sha, "s1") as tree:
            if begins:
                tree.begin(sha)
            if ends:
                tree.end()
            raise KeyboardInterrupt
        return (root / "t/c").exists()

    assert [cut_off(begins=False, ends=False), cut_off(begins=True, ends=True)] == [False, False]
    assert cut_off(begins=True, ends=False)
    shutil.rmtree(root / "t/c")
    (root / "t/c").symlink_to(root.parent, target_is_directory=True)
    with pytest.raises(ConfigError, match="leads out"), mirror.worktree(root, "t", "c", sha, "s1"):
        pass  # WS1: what lies there now is somewhere else


def test_what_a_removal_that_was_killed_left_is_no_unfinished_work(mirror: Mirror, root: Path, sha: str) -> None:
    """WS3, FM1: half of the files are gone, which would look as if the session had deleted them."""
    script = (
        "import shutil\nfrom infra.git import *\nremove = shutil.rmtree\n"
        "def cut_short(path, **given):\n"
        " if path.name == 'c' and path.parent.name == 't': (path / 'app.py').unlink(); os.kill(os.getpid(), 9)\n"
        " remove(path, **given)\nshutil.rmtree = cut_short\n"
        f"with Mirror(Path({str(mirror.path)!r})).worktree(Path({str(root)!r}), 't', 'c', {sha!r}, 's1') as w: w.begin({sha!r})"
    )
    dead = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=False)
    assert dead.returncode == -9
    assert not (root / "t/c/app.py").exists()
    with mirror.worktree(root, "t", "c", sha, "s1") as tree:
        assert (tree.begun, tree.read("app.py")) == (None, "print('hello')\n")


def test_a_session_begins_anew_when_its_mirror_was_made_anew(
    mirror: Mirror, source: Path, root: Path, sha: str
) -> None:
    """WS3: without the commit that it began with nobody can tell what it changed."""
    with suppress(KeyboardInterrupt), mirror.worktree(root, "t", "c", sha, "s1") as tree:
        tree.begin("1" * 40)
        raise KeyboardInterrupt
    shutil.rmtree(mirror.path)
    again = Mirror.open(mirror.path.parent, "project", str(source))
    with again.worktree(root, "t", "c", sha, "s1") as tree:
        assert tree.begun is None


def test_a_session_that_filled_the_disk_keeps_nothing(mirror: Mirror, root: Path, sha: str) -> None:
    """WS3: its files would keep every later run from starting."""
    with suppress(DiskFull), mirror.worktree(root, "t", "c", sha, "s1") as tree:
        tree.begin(sha)
        raise DiskFull("no space left")
    assert list(root.iterdir()) == []


@needs_bwrap
async def test_work_that_goes_on_becomes_one_commit_on_the_base(mirror: Mirror, root: Path, sha: str) -> None:
    """WS3: what an earlier session changed and what the next one does, without what it planted in its own git folder."""
    with suppress(KeyboardInterrupt), mirror.worktree(root, "t", "c", sha, "s1") as tree:
        start = tree.begin(await tree.commit(BOX, "before"))
        await BOX.run("echo 1 > one; git commit -qam mine; git config core.hooksPath /workspace", worktree=tree.path, binds=tree.git_binds())  # fmt: skip
        raise KeyboardInterrupt
    with mirror.worktree(root, "t", "c", sha, "s1") as tree:
        assert tree.begun == start
        seen = await BOX.run(
            "git status --short; git config core.hooksPath", worktree=tree.path, binds=tree.git_binds()
        )
        assert seen.output == "?? one\n"
        tree.write("two", "2\n")
        head = await tree.commit(BOX, "all")
    assert [file.path for file in mirror.changed(start, head)] == ["one", "two"]


@pytest.mark.parametrize("place", ["t", "t/c", "t/.private"])
def test_a_plain_file_in_the_way_is_replaced(place: str, mirror: Mirror, root: Path, sha: str) -> None:
    """WS3."""
    (root / place).parent.mkdir(parents=True)
    (root / place).write_text("in the way")
    with mirror.worktree(root, "t", "c", sha) as tree:
        assert tree.read("app.py") is not None


@pytest.mark.parametrize("place", ["t", "t/c"])
def test_a_place_that_leads_out_of_the_root_is_refused_and_left_alone(
    place: str, mirror: Mirror, root: Path, sha: str, tmp_path: Path
) -> None:
    """WS1, on creation and on delete."""
    (tmp_path / "outside/c").mkdir(parents=True)
    (tmp_path / "outside/c/precious").touch()
    (root / place).parent.mkdir(parents=True)
    (root / place).symlink_to(tmp_path / "outside", target_is_directory=True)
    with pytest.raises(ConfigError, match="leads out"), mirror.worktree(root, "t", "c", sha):
        pass
    (root / place).unlink()
    with mirror.worktree(root, "t", "c", sha) as tree:
        shutil.rmtree(tree.path)
        tree.path.symlink_to(tmp_path / "outside")
        with pytest.raises(ConfigError, match="leads out"):
            mirror._remove(root, tree.path)
        with pytest.raises(ConfigError, match="leads out"):
            mirror._remove(root, root)
        tree.path.unlink()
    assert (tmp_path / "outside/c/precious").exists()


def test_sweep_removes_the_tickets_that_are_not_kept(mirror: Mirror, root: Path, sha: str, tmp_path: Path) -> None:
    """RC6."""
    with mirror.worktree(root, "KEEP me", "c", sha) as kept:
        (root / "gone/c").mkdir(parents=True)
        (root / "file").touch()
        assert mirror.sweep(root, {directory_name("KEEP me")}) == ["file", "gone"]
        assert kept.read("app.py") is not None
        assert mirror.sweep(root, {directory_name("KEEP me")}) == []
    assert mirror.sweep(tmp_path / "none", set()) == []


def test_files_are_read_written_and_deleted(worktree: Worktree) -> None:
    worktree.write("deep/er/new.txt", "ü\r\n")
    assert (worktree.path / "deep/er/new.txt").read_bytes() == "ü\r\n".encode()
    worktree.write("app.py", "short")
    assert worktree.read("app.py") == "short"
    worktree.delete("app.py")
    worktree.delete("app.py")
    worktree.delete("no/such/file")
    assert worktree.read("app.py") is None
    assert worktree.read("no/such/file") is None
    (worktree.path / "binary").write_bytes(b"\xff\xfe")
    assert worktree.read("binary") is None


@pytest.mark.parametrize(
    "path",
    ["/etc/x", "../x", "a/../x", "", ".", "a//b", "./a", ".git", ".git/config", "sub/.GIT/config", "git~1/x", ".git./x",
     "a\0b", "a\nb", "link", "link/x", "outside/x", "app.py/x", "src", "x" * 300, "fifo"],
)  # fmt: skip
def test_no_write_or_delete_leaves_the_worktree(path: str, worktree: Worktree, tmp_path: Path) -> None:
    """WS1."""
    (tmp_path / "target").mkdir()
    (worktree.path / "outside").symlink_to(tmp_path / "target")
    (worktree.path / "link").symlink_to(tmp_path / "made-through-a-link")
    os.mkfifo(worktree.path / "fifo")
    with pytest.raises(InvalidOutput):
        worktree.write(path, "evil")
    if path not in ("link", "x" * 300, "fifo"):
        with pytest.raises(InvalidOutput):
            worktree.delete(path)
    assert list((tmp_path / "target").iterdir()) == []
    assert not (tmp_path / "made-through-a-link").exists()


def test_text_that_is_not_unicode_is_the_models_fault(worktree: Worktree) -> None:
    with pytest.raises(InvalidOutput):
        worktree.write("a.txt", "\ud800")


# Commits


@pytest.fixture(params=[pytest.param("bubblewrap", marks=needs_bwrap), "none"])
def box(request: pytest.FixtureRequest) -> Sandbox:
    return BOX if request.param == "bubblewrap" else Unsandboxed(Limits())


async def test_a_commit_holds_the_worktree_and_is_reproducible(
    box: Sandbox, mirror: Mirror, root: Path, sha: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = set()
    for name in ("one", "two"):
        with mirror.worktree(root, "t", name, sha) as tree:
            assert await tree.commit(box, "nothing") == sha
            tree.write("new.py", "n = 1\n")
            tree.delete("app.py")
            (tree.path / "__pycache__").mkdir()
            (tree.path / "__pycache__/new.pyc").touch()
            heads.add(await tree.commit(box, "Say it\n\nbody"))
            assert await tree.commit(box, "Say it\n\nbody") in heads
    (head,) = heads
    assert {f.path: f.status for f in mirror.changed(sha, head)} == {"new.py": "added", "app.py": "deleted"}
    shown = git(mirror.path, "show", "-s", "--format=%P %ae %ce %ct %B", head)
    born = int(git(mirror.path, "show", "-s", "--format=%ct", sha))
    assert shown == f"{sha} darkfactory@localhost darkfactory@localhost {born + 1} Say it\n\nbody"


async def test_the_next_worktree_can_start_from_a_commit(box: Sandbox, mirror: Mirror, root: Path, sha: str) -> None:
    with mirror.worktree(root, "t", "one", sha) as tree:
        tree.write("a", "1\n")
        first = await tree.commit(box, "one")
    with mirror.worktree(root, "t", "two", first) as tree:
        tree.write("b", "2\n")
        second = await tree.commit(box, "two")
    assert mirror.paths(second) == ["a", "app.py", "b", "src/lib.py"]


@needs_bwrap
async def test_an_agent_has_git_of_its_own_inside(worktree: Worktree, sha: str, mirror: Mirror) -> None:
    worktree.write("app.py", "print('changed')\n")
    command = (
        "git status --porcelain && git diff --stat && git log --format=%H && git commit -qam mine && git log --oneline"
    )
    result = await BOX.run(command, worktree=worktree.path, binds=await asyncio.to_thread(worktree.git_binds))
    assert result.exit_code == 0, result.output
    assert " M app.py\n" in result.output
    assert sha in result.output
    hostile = "rm -rf /objects/* /git/objects; echo x > /objects/x"
    await BOX.run(hostile, worktree=worktree.path, binds=await asyncio.to_thread(worktree.git_binds))
    head = await worktree.commit(BOX, "ours")
    assert git(mirror.path, "rev-parse", f"{head}^") == sha
    git(mirror.path, "fsck", "--strict")


PAYLOAD = """
set -e
evil='touch {canary} /workspace/ran-in-the-sandbox'
rm -rf .git 2>/dev/null || mkdir -p sub
for dir in /git sub/.git; do
  mkdir -p $dir/hooks
  [ $dir = /git ] || (cd sub && git init -q && git -c user.name=x -c user.email=x commit -q --allow-empty -m x)
  git config -f $dir/config core.fsmonitor "$evil"
  git config -f $dir/config core.hooksPath "$PWD/hooks"
  git config -f $dir/config filter.evil.clean "$evil; cat"
  git config -f $dir/config filter.evil.smudge "$evil; cat"
  git config -f $dir/config diff.evil.textconv "$evil; cat"
  git config -f $dir/config diff.external "$evil"
  git config -f $dir/config core.sshCommand "$evil"
  git config -f $dir/config uploadpack.packObjectsHook "$evil"
done
mkdir hooks
for hook in pre-commit post-commit post-checkout reference-transaction post-index-change pre-push; do
  printf '#!/bin/sh\\n%s\\n' "$evil" > hooks/$hook; chmod +x hooks/$hook
done
cp hooks/* /git/hooks/ && cp hooks/* sub/.git/hooks/
echo '* filter=evil diff=evil' > .gitattributes
ln -s {outside} linked-folder
echo done
"""


@needs_bwrap
async def test_nothing_an_agent_plants_runs_on_the_host(
    mirror: Mirror, root: Path, sha: str, tmp_path: Path, source: Path
) -> None:
    """The canary lies where only a host process could make it; the commit and all that follows are done for real."""
    outside, canary = tmp_path / "outside", tmp_path / "canary"
    outside.mkdir()
    ensure_bare(tmp_path / "forge.git", mirror, "main")
    with mirror.worktree(root, "t", "c", sha) as tree:
        payload = PAYLOAD.format(canary=canary, outside=outside)
        binds = await asyncio.to_thread(tree.git_binds)
        result = await BOX.run(payload, worktree=tree.path, binds=binds)
        assert result.output.endswith("done\n"), result.output
        await BOX.run("git status", worktree=tree.path, binds=binds)
        assert (tree.path / "ran-in-the-sandbox").exists()  # the payload works
        (tree.path / "ran-in-the-sandbox").unlink()
        with pytest.raises(InvalidOutput):
            tree.write("linked-folder/x", "y")
        head = await tree.commit(BOX, "evil")
        assert not (tree.path / "ran-in-the-sandbox").exists()
    found = mirror.violations(sha, head, protected_paths=[".git*"], **EVERYTHING)
    assert {s.split("'")[1] for s in found} == {".gitattributes", "linked-folder", "sub"}
    mirror.diff(sha, head)
    mirror.push(str(tmp_path / "forge.git"), "agent/t", head)
    with mirror.worktree(root, "t", "verify", head) as tree:
        await tree.commit(BOX, "again")
    Mirror.open(tmp_path / "mirrors", "project", str(source))
    assert not canary.exists()
    assert list(outside.iterdir()) == []


@needs_bwrap
async def test_content_that_git_refuses_is_the_works_fault(worktree: Worktree) -> None:
    (worktree.path / "nested").mkdir()
    git(worktree.path / "nested", "init", "-q")
    with pytest.raises(InvalidOutput, match="nested"):
        await worktree.commit(BOX, "x")


# Pushing


@pytest.fixture
def forge(tmp_path: Path, mirror: Mirror) -> Path:
    path = tmp_path / "forge.git"
    ensure_bare(path, mirror, "main")
    return path


def made(mirror: Mirror, root: Path, sha: str, text: str) -> str:
    with mirror.worktree(root, "t", "c", sha) as tree:
        tree.write("made.txt", text)
        return asyncio.run(tree.commit(Unsandboxed(Limits()), text))


def test_the_bare_forge_holds_the_base_branch_and_keeps_what_was_merged(
    forge: Path, mirror: Mirror, source: Path, tmp_path: Path, root: Path, sha: str
) -> None:
    assert git(forge, "symbolic-ref", "HEAD") == "refs/heads/main"
    second = commit_all(source)
    Mirror.open(tmp_path / "mirrors", "project", str(source))
    ensure_bare(forge, mirror, "main")
    assert git(forge, "rev-parse", "main") == second
    merged = made(mirror, root, sha, "merged")
    mirror.push(str(forge), "merged", merged)
    git(forge, "update-ref", "refs/heads/main", merged)
    ensure_bare(forge, mirror, "main")
    assert git(forge, "rev-parse", "main") == merged


def test_a_push_may_be_repeated_and_replaces_only_our_own_work(
    forge: Path, mirror: Mirror, root: Path, sha: str, tmp_path: Path
) -> None:
    first, second = made(mirror, root, sha, "one"), made(mirror, root, sha, "two")
    for head in (first, first, second):
        mirror.push(str(forge), "agent/t", head)
        assert git(forge, "rev-parse", "agent/t") == head
    git(tmp_path, "clone", "-q", "-b", "agent/t", str(forge), "person")
    theirs = commit_all(tmp_path / "person")
    git(tmp_path / "person", "push", "-q")
    with pytest.raises(ConfigError, match=r"ann@example\.org"):
        mirror.push(str(forge), "agent/t", first)
    assert git(forge, "rev-parse", "agent/t") == theirs


def test_a_mirror_made_anew_still_knows_our_own_branch(
    forge: Path, mirror: Mirror, root: Path, sha: str, source: Path, tmp_path: Path
) -> None:
    mirror.push(str(forge), "agent/t", made(mirror, root, sha, "one"))
    other = Mirror.open(tmp_path / "other-node", "project", str(source))
    head = made(other, tmp_path / "other-root", sha, "two")
    other.push(str(forge), "agent/t", head)
    assert git(forge, "rev-parse", "agent/t") == head


def test_no_hook_runs_on_either_side_of_a_push(
    forge: Path, mirror: Mirror, root: Path, sha: str, tmp_path: Path
) -> None:
    for where, names in (
        (forge, ("pre-receive", "update", "post-receive", "post-update")),
        (mirror.path, ("pre-push",)),
    ):
        (where / "hooks").mkdir(exist_ok=True)
        for name in names:
            (where / "hooks" / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/canary\n")
            (where / "hooks" / name).chmod(0o755)
    mirror.push(str(forge), "agent/t", made(mirror, root, sha, "one"))
    assert not (tmp_path / "canary").exists()


def test_a_remote_that_is_not_there_is_named(mirror: Mirror, sha: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        mirror.push(str(tmp_path / "nowhere"), "x", sha)
    with pytest.raises(ConfigError):
        mirror.push(f"file://{tmp_path}/nowhere", "x", sha)
    with pytest.raises(Unreachable):
        mirror.push("http://127.0.0.1:1/x.git", "x", sha)


# The user's checkout


@needs_bwrap
async def test_a_checkout_is_dirty_when_something_is_not_committed(source: Path, tmp_path: Path) -> None:
    git(source, "worktree", "add", "-q", str(tmp_path / "linked"))
    for checkout in (source, tmp_path / "linked"):
        assert not await is_dirty(checkout, BOX)
        (checkout / "new").touch()
        assert await is_dirty(checkout, BOX)


@needs_bwrap
async def test_looking_at_a_checkout_runs_nothing_of_it_on_the_host(source: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    git(source, "config", "core.fsmonitor", f"touch {canary}")
    git(source, "config", "filter.evil.clean", f"touch {canary}; cat")
    (source / ".git/info/attributes").write_text("* filter=evil\n")
    (source / "app.py").write_text("print('howdy')\n")
    before = (source / ".git/index").read_bytes()
    assert await is_dirty(source, BOX)
    assert not canary.exists()
    assert (source / ".git/index").read_bytes() == before


# Open branches


def branched(source: Path, name: str, path: str, text: str) -> str:
    """A branch of the source with one more commit, which replaces a file; `main` stays checked out."""
    git(source, "checkout", "-q", "-b", name)
    (source / path).write_text(text)
    head = commit_all(source, name)
    git(source, "checkout", "-q", "main")
    return head


def test_branches_of_a_remote_are_taken_and_a_missing_one_is_left_out(mirror: Mirror, source: Path) -> None:
    head = branched(source, "agent/T-1", "app.py", "print('bye')\n")
    tips = mirror.take(str(source), ["agent/T-1", "main", "gone"])
    assert tips == {"agent/T-1": head, "main": git(source, "rev-parse", "main")}
    assert mirror.tips(str(source)) == tips
    assert mirror.merge_base(head, tips["main"]) == tips["main"]
    assert mirror.contains(head, tips["main"])
    assert not mirror.contains(tips["main"], head)
    assert mirror.take(str(source), ["gone"]) == {}


def test_two_branches_are_merged_without_a_checkout_and_a_collision_is_named(mirror: Mirror, source: Path) -> None:
    ours = branched(source, "ours", "app.py", "print('ours')\n")
    other = branched(source, "other", "new.py", "n = 1\n")
    theirs = branched(source, "theirs", "app.py", "print('theirs')\n")
    mirror.take(str(source), ["ours", "other", "theirs"])
    clean = mirror.merge(ours, other)
    commit = mirror.commit_tree(clean.tree, (ours, other), "Merge")
    assert clean.conflicts == ()
    assert (mirror.read(commit, "app.py"), mirror.read(commit, "new.py")) == (b"print('ours')\n", b"n = 1\n")
    assert mirror.commit_tree(clean.tree, (ours, other), "Merge") == commit
    assert mirror.contains(commit, ours)
    assert mirror.contains(commit, other)
    collided = mirror.merge(ours, theirs)
    assert collided.conflicts == ("app.py",)
    assert b"<<<<<<<" in (mirror.read(mirror.commit_tree(collided.tree, (ours, theirs), "x"), "app.py") or b"")


def test_a_branch_is_only_moved_forward_and_only_from_where_it_was_seen(
    mirror: Mirror, source: Path, tmp_path: Path
) -> None:
    """SM11: whoever comes late is refused, and nobody's commit is lost."""
    git(tmp_path, "clone", "-q", "--bare", str(source), "bare.git")
    bare = tmp_path / "bare.git"
    before = git(bare, "rev-parse", "main")
    after = mirror.commit_tree(before, (before,), "more")
    mirror.advance(str(bare), "main", after, before)
    mirror.advance(str(bare), "main", after, before)
    assert git(bare, "rev-parse", "main") == after
    late = mirror.commit_tree(before, (before,), "late")
    with pytest.raises(Unreachable, match="moved meanwhile"):
        mirror.advance(str(bare), "main", late, before)
    with pytest.raises(InfraError, match="does not follow"):
        mirror.advance(str(bare), "main", before, after)
    assert git(bare, "rev-parse", "main") == after


def test_a_persons_commit_below_the_factorys_is_not_overwritten(
    mirror: Mirror, source: Path, tmp_path: Path, sha: str
) -> None:
    git(tmp_path, "clone", "-q", "--bare", str(source), "bare.git")
    mine = branched(source, "agent/T-1", "app.py", "print('mine')\n")
    mirror.take(str(source), ["agent/T-1"])
    ours = mirror.commit_tree(mine, (mine,), "the factory's, on top of a person's")
    git(source, "push", "-q", str(tmp_path / "bare.git"), "agent/T-1")
    git(source, "branch", "-D", "agent/T-1")
    mirror = Mirror.open(mirror.path.parent, "project", str(source))
    mirror.advance(str(tmp_path / "bare.git"), "agent/T-1", ours, mine)
    with pytest.raises(ConfigError, match=re.escape("holds commits by 'ann@example.org'")):
        mirror.push(str(tmp_path / "bare.git"), "agent/T-1", mirror.commit_tree(sha, (sha,), "anew"))


def test_files_left_behind_are_found_by_globs_and_no_link_is_followed(worktree: Worktree, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"s")
    (worktree.path / "out").mkdir()
    (worktree.path / "out/shot.png").write_bytes(b"\x89PNG")
    (worktree.path / "out/link.png").symlink_to(tmp_path / "secret.png")
    assert worktree.matching(["*.png"], 9) == ["out/link.png", "out/shot.png"]
    assert worktree.matching(["*.png"], 1) == ["out/link.png"]
    assert worktree.read_bytes("out/shot.png", 4) == b"\x89PNG"
    assert worktree.read_bytes("out/shot.png", 3) is None
    with pytest.raises(InvalidOutput):
        worktree.read_bytes("out/link.png", 9)
