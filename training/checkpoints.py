"""What a run needs to go on after a kill: one file, replaced whole, in a folder that one run holds."""

from __future__ import annotations

import fcntl
import io
import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.cost import flush_folder
from training.errors import TrainingError


class Checkpoints:
    """The checkpoint of one run. A worker that is not the chief only reads."""

    def __init__(self, folder: Path, every_seconds: float = 60.0, chief: bool = True) -> None:
        """Make the folder, and hold it until `close`.

        Raises: TrainingError: `run_in_progress`, `training_dir_unwritable`.
        """
        self.folder = folder
        self._file = folder / "checkpoint.npz"
        self._every, self._chief = every_seconds, chief
        self._last = time.monotonic()
        self._lock: io.IOBase | None = None
        if not chief:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(
                "run_in_progress", f"another process runs this training in {folder}"
            ) from error
        except OSError as error:
            raise TrainingError("training_dir_unwritable", f"{folder}: {error.strerror}") from error

    def read(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
        """State and arrays as last written, if there are any.

        Raises: TrainingError: `checkpoint_broken`: the file is not what was written.
        """
        if not self._file.exists():
            return None
        try:
            with np.load(str(self._file)) as arrays:
                found = {name: arrays[name] for name in arrays.files}
            return json.loads(found.pop("state").tobytes()), found
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise TrainingError(
                "checkpoint_broken", f"{self._file} can't be read; remove it to begin anew: {error}"
            ) from error

    def due(self) -> bool:
        """Whether it is time to write."""
        return self._chief and time.monotonic() - self._last >= self._every

    def write(self, state: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        """Replace the checkpoint; a kill leaves the old one or the new.

        Raises: TrainingError: `training_dir_unwritable`.
        """
        if not self._chief:
            return
        beside = self.folder / ".checkpoint.npz"
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        try:
            with beside.open("wb") as out:
                np.savez(out, state=text, **arrays)  # type: ignore[arg-type]  # its stub takes one for a flag
                out.flush()
                os.fsync(out.fileno())
            beside.rename(self._file)
            flush_folder(self.folder)
        except OSError as error:
            raise TrainingError("training_dir_unwritable", f"{self._file}: {error.strerror}") from error
        self._last = time.monotonic()

    def remove(self) -> None:
        """The run is done: nothing is left to go on from."""
        if self._chief and self._file.exists():
            self._file.unlink()

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.close()
