"""Exports a model as the next version of its folder: whole, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import tensorflow as tf  # type: ignore[import-untyped]  # ships no types
from tokenizers import Tokenizer

from training.cost import flush_folder
from training.errors import TrainingError
from training.model import Tensor
from training.tokenizer import save_tokenizer

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,127}")


class Servable(Protocol):
    """A tf.Module that can be exported."""

    def answers(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """ids, mask: int32 (B, T) → the outputs of the signature `serving_default`, by name."""


def export_model(
    model: Servable,
    tokenizer: Tokenizer,
    max_length_tokens: int,
    models_dir: Path,
    name: str,
    card: dict[str, Any],
    pictures: dict[str, bytes] | None = None,
) -> Path:
    """Write models_dir/name/<highest version + 1>, a SavedModel that holds its tokenizer and card; return it.

    `card`: what only training knows; name, version, time, code, framework, length and fingerprint are added.
    `pictures`: files to lie beside the card, by name.

    It is written beside, under a name that model servers pass over, flushed to disk and renamed: a version
    that can be seen is whole. A failure removes what was written; a kill leaves a hidden folder `.export-*`.

    Raises: TrainingError: `invalid_model_name`, `export_failed` (the folder can't be written).
    """
    check_model_name(name)
    parent = models_dir / name
    beside = parent / f".export-{uuid.uuid4().hex}"
    try:
        beside.mkdir(parents=True)
        _save(model, beside)
        assets = beside / "assets.extra"
        assets.mkdir()
        save_tokenizer(tokenizer, assets, max_length_tokens)
        for picture, content in (pictures or {}).items():
            (assets / picture).write_bytes(content)
        facts = {
            "name": name,
            "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "framework": f"tensorflow {tf.__version__}",
            "code_version": code_version(),
            "max_length_tokens": max_length_tokens,
            "tokenizer_fingerprint": hashlib.sha256((assets / "tokenizer.json").read_bytes()).hexdigest(),
        }
        return _publish(beside, parent, {**facts, **card})
    except OSError as error:
        raise TrainingError(
            "export_failed", f"{parent} can't be written: {error.strerror or error}"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_refused(folder: Path, name: str, card: dict[str, Any], pictures: dict[str, bytes]) -> Path:
    """Keep the card and the pictures of a model that is not published, as folder/name-<time>; return it.

    Raises: TrainingError: `export_failed`.
    """
    moment = datetime.now(timezone.utc)
    made = folder / f"{name}-{moment.strftime('%Y%m%dT%H%M%S%fZ')}"
    facts = {
        "name": name,
        "created_at": moment.isoformat(timespec="seconds"),
        "framework": f"tensorflow {tf.__version__}",
        "code_version": code_version(),
    }
    text = json.dumps({**facts, **card}, ensure_ascii=False, indent=2)
    try:
        made.mkdir(parents=True)
        (made / "model_card.json").write_text(text + "\n", "utf-8")
        for picture, content in pictures.items():
            (made / picture).write_bytes(content)
    except OSError as error:
        raise TrainingError("export_failed", f"{made} can't be written: {error.strerror or error}") from error
    return made


def check_model_name(name: str) -> None:
    """Raises: TrainingError: `invalid_model_name`."""
    if not MODEL_NAME.fullmatch(name):
        raise TrainingError(
            "invalid_model_name",
            "a model's name is 1-128 of letters, digits and ._-, a letter or digit first",
        )


def code_version() -> str:
    """SHA-256 of the sources of this package: the same code has the same version, in an image as well."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return f"training-sha256:{digest.hexdigest()}"


def _save(model: Servable, folder: Path) -> None:
    ids = tf.TensorSpec([None, None], tf.int32, name="input_ids")
    mask = tf.TensorSpec([None, None], tf.int32, name="attention_mask")

    @tf.function(input_signature=[ids, mask], autograph=False)  # type: ignore[untyped-decorator]  # tf is untyped
    def serve(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return model.answers(input_ids, attention_mask)

    tf.saved_model.save(model, str(folder), signatures={"serving_default": serve})


def _publish(beside: Path, parent: Path, card: dict[str, Any]) -> Path:
    """Rename to the next free version; another export may take one at the same time, so try the one after."""
    taken = [int(entry.name) for entry in parent.iterdir() if re.fullmatch("[0-9]+", entry.name)]
    version = max(taken, default=0) + 1
    while True:
        text = json.dumps({"version": version, **card}, ensure_ascii=False, indent=2)
        (beside / "assets.extra" / "model_card.json").write_text(text + "\n", "utf-8")
        _flush(beside)
        final = parent / str(version)
        try:
            beside.rename(final)
        except OSError:
            if not final.exists():
                raise
            version += 1
        else:
            flush_folder(parent)
            return final


def _flush(folder: Path) -> None:
    """Put every file and folder of a tree on disk, so that a power cut after the rename finds them whole."""
    for at, _, files in os.walk(folder):
        for name in files:
            with (Path(at) / name).open("rb") as file:
                os.fsync(file.fileno())
        flush_folder(Path(at))
