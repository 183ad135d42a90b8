"""What a release has to do before it is used: import every module of the factory, as the processes that run flows do."""

from __future__ import annotations

import importlib
import pkgutil
import sys

PACKAGES = ("infra", "tasks", "flows", "deployments")
_LEFT_OUT = ("infra.migrations.", "deployments.demo")
"""Alembic runs the first by itself; the second is the demo's own repository."""


def main() -> int:
    """0 when everything can be imported; the first error ends it otherwise."""
    for package in PACKAGES:
        root = importlib.import_module(package)
        for found in pkgutil.walk_packages(root.__path__, f"{package}."):
            if not found.name.startswith(_LEFT_OUT) and not found.name.endswith(".__main__"):
                importlib.import_module(found.name)
    print(f"{sum(name.partition('.')[0] in PACKAGES for name in sys.modules)} modules")
    return 0


if __name__ == "__main__":
    sys.exit(main())
