"""The TOML reader of this Python: its own from 3.11 on, the package that it came from before."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["tomllib"]
