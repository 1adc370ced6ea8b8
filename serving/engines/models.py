"""The engines of `models.toml`, ready to be asked: each with its tokenizer and its connections."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path

from serving.engines.file import Engine, EnginesFileError, key_of, read_engines
from serving.engines.tokens import EngineTokenizer
from serving.engines.upstream import Upstream


class EngineModel:
    """A model that an engine runs. Safe for many threads."""

    def __init__(self, engine: Engine) -> None:
        """Raises: EnginesFileError."""
        key = key_of(engine)
        self.engine = engine
        self.model = engine.model
        self.version_name = engine.model_version
        self.tokenizer = EngineTokenizer(engine)
        self.tokenizer_fingerprint = self.tokenizer.fingerprint
        self.upstream = Upstream(
            engine.addresses, None if key is None else key.get_secret_value(), engine.connect_seconds
        )
        self.since = int(time.time())


def load_engine_models(file: Path, taken: Collection[str] = ()) -> Mapping[str, EngineModel]:
    """Every engine of a file, by the name that clients ask for. Raises: as `check_engines`."""
    check_engines(file, taken)
    return {engine.model: EngineModel(engine) for engine in read_engines(file)}


def check_engines(file: Path, taken: Collection[str] = ()) -> None:
    """Raises: EnginesFileError: what can be seen without reading the tokenizers; a name is `taken`."""
    for engine in read_engines(file):
        if engine.model in taken:
            raise EnginesFileError("engines_invalid", f"{engine.model} is a model of the model server too")
        key_of(engine)
