"""The folder of models: which versions lie in `models_dir/<name>/<version>/`."""

from __future__ import annotations

from pathlib import Path

from tallybook.usage import NAME

_GREATEST_VERSION = 2**63 - 1  # the protocol's int64

Stamp = frozenset[tuple[str, int, int, int]]


def find_models(models_dir: Path) -> dict[str, Path]:
    """The folder of every model, by name; names that a usage event could not carry are passed over.

    Raises: OSError: can't be read; then nothing is known, rather than nothing being there.
    """
    return {path.name: path for path in models_dir.iterdir() if NAME.fullmatch(path.name) and path.is_dir()}


def find_versions(model_dir: Path) -> dict[int, Path]:
    """A model's version folders; those with other names, such as an export being written, are no versions.

    Raises: OSError: can't be read.
    """
    return {int(path.name): path for path in model_dir.iterdir() if _is_version(path.name) and path.is_dir()}


def stamp(folder: Path) -> Stamp:
    """What changes when any file below the folder is added, removed, written to, or made readable."""
    files = []
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except OSError:
            continue  # as good as absent
        files.append((str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return frozenset(files)


def _is_version(name: str) -> bool:
    # One spelling only: 1 and 01 would be the same version.
    return name.isascii() and name.isdecimal() and str(int(name)) == name and int(name) <= _GREATEST_VERSION
