"""Bringing this machine to the release that is wanted: fetch, prove, switch. Without Prefect, for nodes and the command line."""

from __future__ import annotations

from infra.errors import ConfigError, FactoryError
from infra.git import Mirror
from infra.releases import INSTALLED, Releases
from infra.remotes import remote_of, token_of
from infra.repairs import ReleaseState
from infra.sections import RepositorySection
from infra.settings import Settings


def factory_repository(settings: Settings) -> tuple[str, RepositorySection]:
    """The configured repository with the factory's own code. Raises ConfigError when it is not clear which one that is, or
    when the steward would merge there by itself."""
    known, named = settings.repositories, settings.repair.repository
    if named is None and len(known) != 1:
        raise ConfigError(
            f"set `repair.repository` to one of {', '.join(sorted(known)) or 'your repositories (none yet)'}"
        )
    name = named or next(iter(known))
    if name not in known:
        raise ConfigError(f"`repair.repository` is {name!r}, which is not configured; correct it")
    if known[name].steward.merge != "never":
        raise ConfigError(f"a repair is merged after its gates only; set `steward.merge: never` for {name!r}")
    return name, known[name]


def fetched(settings: Settings) -> tuple[Mirror, str, str]:
    """The mirror with the newest base branch of the remote, that remote, and the branch's name."""
    name, configured = factory_repository(settings)
    token = token_of(configured)
    mirror = Mirror.open(settings.root / "repos", name, str(configured.path.expanduser()))
    branch, _ = mirror.base(configured.base_branch)
    remote = remote_of(configured) or str(settings.root / "forge" / name / "repo.git")
    mirror = Mirror(mirror.path, token)
    mirror.take(remote, [branch])
    return mirror, remote, branch


def refusal(release: str) -> str:
    """What a machine says of a release that a person, or its own warm process, refused there."""
    return f"release {release} was refused on this machine"


def follow(settings: Settings, state: ReleaseState) -> str:
    """Bring this home to the wanted release. Returns why it is not there, or nothing; what runs goes on as it is."""
    releases, wanted = Releases(settings.root), state.wanted
    if wanted == INSTALLED == releases.current():
        return ""
    try:
        if not releases.has(wanted):
            mirror, _, _ = fetched(settings)
            releases.add(wanted, lambda: mirror.tar(wanted, wanted), settings.repair.smoke)
        if releases.switch(wanted, state.previous):
            return ""
        return refusal(wanted)
    except FactoryError as error:
        return str(error)
