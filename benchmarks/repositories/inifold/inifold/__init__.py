"""Layered configuration."""

from inifold.errors import ConfigError, MissingKey
from inifold.ini import dump_ini, parse_ini
from inifold.interpolate import interpolate
from inifold.layers import diff, flatten, fold, from_environment, get, set_path
from inifold.pattern import matches
from inifold.table import parse_csv, to_csv, to_records
from inifold.values import parse_bool, parse_list, parse_size

__all__ = [
    "ConfigError",
    "MissingKey",
    "diff",
    "dump_ini",
    "flatten",
    "fold",
    "from_environment",
    "get",
    "interpolate",
    "matches",
    "parse_bool",
    "parse_csv",
    "parse_ini",
    "parse_list",
    "parse_size",
    "set_path",
    "to_csv",
    "to_records",
]
