#!/bin/sh
# Sets up the checkout it lies in: system packages, .venv from a lock file with hashes, the `darkfactory` command.
# Usage: bootstrap.sh [run|dev]. May be run again at any time, also after it was killed; does nothing when all is there.
set -eu

flavour=${1:-run}
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
venv=$root/.venv
state=$root/.setup
log=$state/pip.log
venv_python=$venv/bin/python
recipe=1 # raise when an existing .venv must be set up again although no lock changed
started=$(date +%s)

case $flavour in
run) lock=requirements.lock ;;
dev) lock=requirements-dev.lock ;;
*)
    echo "usage: $0 [run|dev]" >&2
    exit 2
    ;;
esac

say() { echo "set-up: $*" >&2; }

# exit 2: the user has to change something; exit 3: the machine or the network failed, run it again
stop() {
    status=$1
    shift
    echo "set-up: error: $*" >&2
    exit "$status"
}

elapsed() { echo "$(($(date +%s) - started)) s"; }

digest() { (echo "$recipe $root" && cat "$1") | cksum | tr ' ' '-'; }

is_done() { [ -x "$venv/bin/darkfactory" ] && [ "$(cat "$state/$flavour" 2>/dev/null)" = "$(digest "$lock")" ]; }

has_system_packages() {
    command -v git >/dev/null && { command -v bwrap >/dev/null || [ "${DARKFACTORY_SANDBOX:-}" = none ]; }
}

# apt_install PACKAGE WHY: installs it when root, otherwise says in one line what to run.
apt_install() {
    command -v apt-get >/dev/null || stop 2 "$1 is missing ($2); install it with this system's package tool, then run this again"
    [ "$(id -u)" = 0 ] || stop 2 "$1 is missing ($2); run: sudo apt-get install -y $1"
    say "installing the system package $1 ($2)"
    mkdir -p "$state"
    if ! { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends "$1"; } >"$state/apt.log" 2>&1 </dev/null; then
        tail -n 5 "$state/apt.log" >&2
        stop 3 "apt-get could not install $1; mend that, or install it by hand, then run this again"
    fi
}

ensure_system_packages() {
    command -v git >/dev/null || apt_install git "worktrees and branches"
    command -v bwrap >/dev/null && return
    if [ "${DARKFACTORY_SANDBOX:-}" = none ]; then
        say "WARNING: DARKFACTORY_SANDBOX=none: commands of tickets and repositories will run without isolation"
    else
        apt_install bubblewrap "the sandbox for commands of tickets and repositories"
    fi
}

is_fitting() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

find_python() {
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if is_fitting "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    stop 2 "no Python 3.11, 3.12 or 3.13 found; install one (Debian: apt-get install -y python3) or set PYTHON=/path/to/python3.11"
}

# Scripts in a .venv carry its path, so one that was copied or moved is of no use.
is_usable_venv() {
    grep -qF "$venv" "$venv/bin/activate" 2>/dev/null && is_fitting "$venv_python" && "$venv_python" -m pip --version >/dev/null 2>&1
}

# A set-up that was killed leaves the mark `installing`; half-written packages cannot be mended, so it starts afresh.
ensure_venv() {
    python=$(find_python)
    [ -e "$state/installing" ] && rm -rf "$venv"
    is_usable_venv && return
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install "python$version-venv" "virtual environments"
    say "making .venv with Python $version ($python)"
    : >"$state/installing"
    "$python" -m venv --clear "$venv" || stop 3 "$python could not make $venv"
}

show_progress() {
    total=$(grep -c '^[A-Za-z0-9]' "$lock" || :)
    while kill -0 "$1" 2>/dev/null; do
        seen=$(grep -c -E '^(Collecting|Requirement already)' "$log" || :)
        step="collecting $seen of about $total packages"
        grep -q '^Installing collected' "$log" && step="installing packages"
        [ -t 2 ] && printf '\r\033[Kset-up: %s, %s' "$step" "$(elapsed)" >&2
        sleep 1
    done
    [ -t 2 ] && printf '\r\033[K' >&2
    return 0
}

install_packages() {
    say "installing the packages of $lock (first time: a few minutes)"
    : >"$state/installing"
    rm -f "$state/run" "$state/dev"
    # Debian's pip (23.0) refuses a hashed requirement that another package asks for with extras: the lock's own pip first
    sed -n '/^pip==/,/[^\\]$/p' "$lock" >"$state/pip.txt"
    "$venv_python" -m pip --disable-pip-version-check --no-input -q install --require-hashes -r "$state/pip.txt" \
        >"$log" 2>&1 </dev/null || stop 3 "pip could not be updated (whole log: $log); check the network, then run this again"
    "$venv_python" -m pip --disable-pip-version-check --no-input --retries 10 install --progress-bar off --no-compile \
        --require-hashes -r "$lock" >>"$log" 2>&1 </dev/null &
    pip=$!
    trap 'kill $pip 2>/dev/null; exit 130' INT TERM HUP
    show_progress $pip
    wait $pip || {
        grep -q '^Installing collected' "$log" || rm -f "$state/installing" # nothing was written yet
        grep -E '^ *(ERROR|error)' "$log" | tail -n 5 >&2 || :
        stop 3 "pip could not install $lock (whole log: $log); check the network or the package index, then run this again"
    }
    trap - INT TERM HUP
}

# No build back-end is needed: a path file makes the checkout importable, a script is the command. -P: the folder it is
# started in may be a hostile repository and must not be imported from.
link_project() {
    site=$("$venv_python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "$root" >"$site/darkfactory.pth"
    printf '#!/bin/sh\nexec "%s" -P -m deployments "$@"\n' "$venv_python" >"$venv/bin/darkfactory.new"
    chmod +x "$venv/bin/darkfactory.new"
    mv "$venv/bin/darkfactory.new" "$venv/bin/darkfactory"
}

# Prefect takes seconds longer to import without bytecode, and PYTHONDONTWRITEBYTECODE may be set. Templates of some
# packages do not compile and are never imported, so the exit status says nothing.
compile_bytecode() {
    say "compiling bytecode"
    PYTHONDONTWRITEBYTECODE='' "$venv_python" -m compileall -q -j 0 -x 'deployments/demo/' "$site" deployments flows tasks infra >/dev/null 2>&1 || :
}

has_system_packages && is_done && exit 0
mkdir -p "$state"
if command -v flock >/dev/null; then
    exec 9>"$state/lock"
    flock -n 9 || {
        say "waiting for another set-up of this checkout"
        flock -w 1800 9 || stop 3 "another set-up of this checkout has been running for 30 minutes; end it, then run this again"
    }
fi
ensure_system_packages
is_done && exit 0
ensure_venv
install_packages
link_project
compile_bytecode
digest "$lock" >"$state/$flavour"
[ "$flavour" = run ] || digest requirements.lock >"$state/run" # the dev lock holds all of the other
rm -f "$state/installing"
say "done in $(elapsed)"
