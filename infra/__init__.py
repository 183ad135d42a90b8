"""One small adapter per outside system. Knows nothing of Prefect and nothing of the packages above it.

Adapters take explicit arguments; only the `open_*` factories read `infra.settings`.
Foreign errors are translated once, here, into `infra.errors`.
"""
