"""The two files of a release: TensorFlow Serving's model config, and beside it the shares of the canaries.

The model config is the truth about which versions are loaded and which labels they carry; TensorFlow Serving
has no place for a share of traffic, so that stands in `canary_shares.json`. Each file is replaced as a whole.
A share without a canary means nothing, and a canary without a share gets no traffic: between the two writes
of a change nothing is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import text_format  # type: ignore[import-untyped]  # ships no types

from serving.protos import Message, model_server_config_pb2
from serving.release.share import InvalidShareError, parse_percent, percent
from tallybook.files import write_whole

STABLE, CANARY, PREVIOUS = "stable", "canary", "previous"
_SHARES = "canary_shares.json"


class ConfigError(Exception):
    """A file of the release that can't be read; the message names it and says why."""


@dataclass(frozen=True)
class Release:
    """What the files say of one model: its labels, and the canary's share in hundredths of a percent."""

    labels: Mapping[str, int] = field(default_factory=dict)
    share: int = 0


def read_config(path: Path) -> Message | None:
    """The ModelServerConfig in the file; None: there is no file.

    Raises: ConfigError: unreadable, or not a text protobuf of this type.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except text_format.ParseError as error:
        raise ConfigError(f"{path} is not a model config: {error}") from error


def write_config(path: Path, config: Message) -> None:
    """Replace the file at once: whoever reads it sees the old one or the new one. Raises: OSError."""
    write_whole(path, text_format.MessageToString(config).encode())


def read_shares(config_path: Path) -> dict[str, int]:
    """The canary's share of every model that has one.

    Raises: ConfigError: unreadable, or not an object of percentages.
    """
    path = config_path.with_name(_SHARES)
    try:
        document = json.loads(path.read_text("utf-8"))
        return {str(model): parse_percent(str(share)) for model, share in document.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        why = error if isinstance(error, InvalidShareError) else "not a JSON object of percentages"
        raise ConfigError(f"{path} can't be read: {why}") from error


def write_shares(config_path: Path, shares: Mapping[str, int]) -> None:
    """Replace the shares at once. Raises: OSError."""
    document = {model: percent(share) for model, share in sorted(shares.items())}
    write_whole(config_path.with_name(_SHARES), json.dumps(document, indent=2).encode() + b"\n")


def entry_of(config: Message | None, model: str) -> Message | None:
    """The model's entry in the config, to read or to change; None: it has none."""
    if config is None:
        return None
    return next((entry for entry in config.model_config_list.config if entry.name == model), None)


class ReleaseFiles:
    """Reads a model's release again when its files have changed. For one thread."""

    def __init__(self, config_path: Path, model: str) -> None:
        self._path = config_path
        self._model = model
        self._stamp: object = None
        self._release: Release | None = None

    def read(self) -> Release | None:
        """What the files say now; None: no config, or the model is not in it.

        Raises: ConfigError: as `read_config` and `read_shares`.
        """
        stamp = (_stamp(self._path), _stamp(self._path.with_name(_SHARES)))
        if stamp != self._stamp:
            entry = entry_of(read_config(self._path), self._model)
            self._release = None
            if entry is not None:
                share = read_shares(self._path).get(self._model, 0)
                self._release = Release(dict(entry.version_labels), share)
            self._stamp = stamp
        return self._release


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
