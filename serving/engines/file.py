"""`models.toml`: the OpenAI-compatible engines behind /v1, as the operator describes them.

What a model costs stands in prices.toml, under the same model name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from tallybook.toml import tomllib
from tallybook.usage import MAX_TOKENS, NAME

Kind = Literal["chat", "completions", "embeddings"]
TOKENIZER_FILE = "tokenizer.json"


class EnginesFileError(Exception):
    """`models.toml` can't be used. `code` is stable; the message names the file and the place in it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Engine(BaseModel):
    """One model of one engine: where it answers, what it may be asked, and what counts its tokens.

    Seconds bound, in this order, connecting, the first bytes of an answer, the silence between two of them,
    and the whole answer.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    model: str
    model_version: str
    addresses: list[str] = Field(min_length=1)
    kinds: list[Kind] = Field(min_length=1)
    tokenizer: str
    max_context_tokens: int = Field(ge=1, le=MAX_TOKENS)
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    engine_model: str | None = Field(None, min_length=1)
    api_key_variable: str | None = Field(None, min_length=1)
    connect_seconds: float = Field(2.0, gt=0, le=60)
    first_token_seconds: float = Field(120.0, gt=0, le=3600)
    idle_seconds: float = Field(60.0, gt=0, le=3600)
    total_seconds: float = Field(600.0, gt=0, le=86400)
    continuous_usage: bool = False

    @field_validator("model", "model_version")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError("must be 1-128 of letters, digits and ._@:-")
        return name

    @field_validator("addresses")
    @classmethod
    def _are_addresses(cls, addresses: list[str]) -> list[str]:
        for address in addresses:
            _check_address(address)
        if len(set(addresses)) != len(addresses):
            raise ValueError("an address is given twice")
        return addresses

    @model_validator(mode="after")
    def _fits(self) -> Engine:
        if self.max_output_tokens is not None and self.max_output_tokens > self.max_context_tokens:
            raise ValueError("max_output_tokens is more than max_context_tokens")
        return self

    @property
    def name_there(self) -> str:
        """What the engine calls the model."""
        return self.engine_model or self.model

    @property
    def most_output_tokens(self) -> int:
        """The most that one answer may have."""
        return self.max_output_tokens or self.max_context_tokens


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    engines: list[Engine] = Field(default_factory=list)


def read_engines(file: Path) -> tuple[Engine, ...]:
    """The engines of a file; none if there is no such file.

    Relative tokenizer folders are relative to the file.
    Raises: EnginesFileError: engines_unreadable; engines_invalid: not TOML, or an entry is misspelt,
        incomplete or out of range; engine_duplicate; tokenizer_missing.
    """
    try:
        document = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise EnginesFileError("engines_unreadable", f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EnginesFileError("engines_invalid", f"{file}: {error}") from None
    try:
        engines = _File.model_validate(document).engines
    except ValidationError as error:
        raise EnginesFileError("engines_invalid", f"{file}: {_first_of(error)}") from None
    names = [engine.model for engine in engines]
    for name in names:
        if names.count(name) > 1:
            raise EnginesFileError("engine_duplicate", f"{file}: the model {name} is given twice")
    placed = [
        engine.model_copy(update={"tokenizer": str(file.parent / engine.tokenizer)}) for engine in engines
    ]
    for engine in placed:
        if not (Path(engine.tokenizer) / TOKENIZER_FILE).is_file():
            raise EnginesFileError(
                "tokenizer_missing", f"{file}: {engine.model}: no {TOKENIZER_FILE} in {engine.tokenizer}"
            )
    return tuple(placed)


def key_of(engine: Engine, environment: Mapping[str, str] = os.environ) -> SecretStr | None:
    """What the engine wants as a bearer token, from the environment.

    Raises: EnginesFileError: the variable is not set, or is no header value (engine_key_missing).
    """
    if engine.api_key_variable is None:
        return None
    key = environment.get(engine.api_key_variable, "")
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        message = f"{engine.model}: the variable {engine.api_key_variable} holds no key"
        raise EnginesFileError("engine_key_missing", message)
    return SecretStr(key)


def _check_address(address: str) -> None:
    """Raises: ValueError: not http[s]://HOST[:PORT][/PREFIX], whose prefix is mostly /v1."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or not address.isascii():
        raise ValueError(f"{address!r} is not http://HOST:PORT/v1 or https://HOST:PORT/v1")
    if parts.username is not None or parts.query or parts.fragment or not address.isprintable():
        raise ValueError(f"{address!r} has more than a host, a port and a path")
    _ = parts.port  # raises ValueError itself


def _first_of(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the file"
    return f"{place}: {first['msg'].removeprefix('Value error, ')}"
