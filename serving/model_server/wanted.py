"""Where the model server learns what to serve: from its config file as that changes, or from the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from serving.model_server.config import Configs, folder_configs, read_configs
from serving.model_server.errors import InvalidRequestError
from serving.release.files import ConfigError, read_config


class Source(Protocol):
    """What a manager asks again and again."""

    def look(self) -> Configs | None:
        """What to serve; None: what was said before. Raises: ConfigError, OSError: it can't be told now."""

    def supersede(self) -> None:
        """A request has said what to serve: say something only when somebody has changed a config file."""


class FolderSource:
    """Whatever lies in the folder of models, looked at anew each time."""

    def __init__(self, models_dir: Path, versions_kept: int) -> None:
        self._models_dir = models_dir
        self._versions_kept = versions_kept
        self._superseded = False

    def look(self) -> Configs | None:
        """Raises: OSError: can't be read."""
        return None if self._superseded else folder_configs(self._models_dir, self._versions_kept)

    def supersede(self) -> None:
        """Say nothing any more."""
        self._superseded = True


class FileSource:
    """The config file where there is one, else the folder of models; a file that was there is never gone."""

    def __init__(self, path: Path, models_dir: Path, versions_kept: int) -> None:
        self._path = path
        self._folder = FolderSource(models_dir, versions_kept)
        self._last: bytes | None = None

    def look(self) -> Configs | None:
        """Raises: ConfigError: not a model config. OSError: the folder can't be read."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return self._folder.look() if self._last is None else None
        except OSError as error:
            raise ConfigError(f"{self._path} can't be read: {error.strerror}") from error
        if content == self._last:
            return None
        config = read_config(self._path)
        try:
            configs = read_configs(config) if config is not None else None
        except InvalidRequestError as error:
            raise ConfigError(f"{self._path}: {error}") from error
        self._last = content
        return configs

    def supersede(self) -> None:
        """Go by the folder no more."""
        self._folder.supersede()
