"""What `tallybook release status` tells: every version of a model, where it stands, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from serving.errors import ApiError, ModelVersionNotFoundError
from serving.inference import VersionState
from serving.release.files import CANARY, PREVIOUS, STABLE, Release, ReleaseFiles
from serving.release.share import WHOLE, percent
from serving.release.steps import ModelServer, exported

_CALL_SECONDS = 5.0


class Row(NamedTuple):
    """One version; `share` in hundredths of a percent, None where nothing is labelled."""

    version: int
    state: str
    label: str
    share: int | None
    note: str


class Status(NamedTuple):
    """A model's versions, newest first; `problem`: why the model server could not be asked."""

    release: Release | None
    rows: list[Row]
    problem: str | None


def read_status(config_path: Path, models_dir: Path, model: str, server: ModelServer) -> Status:
    """Ask the files, the folder and the model server. Raises: ConfigError: a file can't be read."""
    release = ReleaseFiles(config_path, model).read()
    problem = None
    try:
        known: Mapping[int, VersionState] = server.versions(model, _CALL_SECONDS)
    except ModelVersionNotFoundError:
        known = {}
    except ApiError as error:
        known, problem = {}, error.message
    there = exported(models_dir, model)
    labels = {version: label for label, version in (release.labels if release else {}).items()}
    rows = [
        _row(version, known.get(version), labels.get(version, ""), release, version in there, problem is None)
        for version in sorted({*known, *there, *labels}, reverse=True)
    ]
    return Status(release, rows, problem)


def _row(
    version: int,
    known: VersionState | None,
    label: str,
    release: Release | None,
    on_disk: bool,
    asked: bool,
) -> Row:
    state = known.state if known else "" if not asked else "not loaded"
    notes = [known.error] if known and known.error else []
    if not on_disk:
        notes.append("its folder is gone")
    return Row(version, state, label, _share(label, release), "; ".join(notes))


def _share(label: str, release: Release | None) -> int | None:
    if release is None or STABLE not in release.labels:
        return None
    canary = release.share if CANARY in release.labels else 0
    return {STABLE: WHOLE - canary, CANARY: canary, PREVIOUS: 0}.get(label, 0)


def table(status: Status) -> list[str]:
    """The versions as lines of a table."""
    rows = [("version", "state", "label", "users", "")]
    for row in status.rows:
        share = "" if row.share is None else f"{percent(row.share)}%"
        rows.append((str(row.version), row.state, row.label, share, row.note))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
