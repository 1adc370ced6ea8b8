"""Reads requests to /v1 as far as the gateway must; everything else in them is the engine's to judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from serving.engines.file import Engine
from serving.engines.tokens import EngineTokenizer, Prompt
from serving.errors import (
    BadRequestError,
    ContextTooLongError,
    InvalidValueError,
)
from tallybook.usage import MAX_TOKENS

_MOST_CHOICES = 128  # as OpenAI has it
_MOST_INPUTS = 2048  # as OpenAI has it


class Asked(NamedTuple):
    """What somebody asks of an engine.

    `most_tokens` is the limit for each of the `choices` to be generated, if the client named one.
    `document` is the body, which will be altered on its way to the engine.
    """

    model: str
    document: dict[str, Any]
    stream: bool = False
    wants_usage: bool = False
    choices: int = 1
    most_tokens: int | None = None


def model_of(document: Mapping[str, Any]) -> str:
    """Raises: InvalidValueError."""
    model = document.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidValueError("model", '"model" must be the name of a model; GET /v1/models lists them.')
    return model


def generation_of(document: dict[str, Any], inputs: int = 1) -> Asked:
    """What a request for chat or completions asks; `inputs`: the prompts that are each answered.

    Raises: InvalidValueError.
    """
    stream = document.get("stream")
    if stream is not None and type(stream) is not bool:
        raise InvalidValueError("stream", '"stream" must be true or false.')
    options = document.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise InvalidValueError("stream_options", '"stream_options" must be an object.')
    if options is not None and not stream:
        raise InvalidValueError("stream_options", '"stream_options" goes with "stream": true only.')
    choices = _whole(document, "n", _MOST_CHOICES) or 1
    choices = max(choices, _whole(document, "best_of", _MOST_CHOICES) or 1)
    limits = [
        limit
        for name in ("max_completion_tokens", "max_tokens")
        if (limit := _whole(document, name, MAX_TOKENS)) is not None
    ]
    return Asked(
        model=model_of(document),
        document=document,
        stream=bool(stream),
        wants_usage=options is not None and options.get("include_usage") is True,
        choices=choices * inputs,
        most_tokens=max(limits, default=None),
    )


def messages_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Raises: InvalidValueError."""
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise InvalidValueError("messages", '"messages" must be a list of at least one message.')
    for number, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise InvalidValueError(f"messages[{number}].role", "A message's role must be a text.")
        if not isinstance(message.get("content"), str | list | None):
            raise InvalidValueError(
                f"messages[{number}].content", "A message's content must be a text or a list of parts."
            )
    return messages


def inputs_of(document: dict[str, Any], param: str) -> list[str | list[int]]:
    """The prompts, or the inputs of embeddings: one or several, each a text or a list of tokens.

    Raises: InvalidValueError.
    """
    given = document.get(param)
    several: list[Any] = given if isinstance(given, list) and not _are_tokens(given) else [given]
    if not 0 < len(several) <= _MOST_INPUTS:
        raise InvalidValueError(param, f'"{param}" must hold 1 to {_MOST_INPUTS} entries.')
    for one in several:
        if not (isinstance(one, str) and one) and not (isinstance(one, list) and _are_tokens(one)):
            raise InvalidValueError(
                param,
                f'"{param}" must be a text, a list of token ids, or a list of either; none of them empty.',
            )
    return several


def chat_prompt(tokenizer: EngineTokenizer, document: dict[str, Any]) -> Prompt:
    """What the messages come to. Raises: InvalidValueError. BadRequestError: nested too deeply."""
    more = document.get("chat_template_kwargs")
    if more is not None and not isinstance(more, dict):
        raise InvalidValueError("chat_template_kwargs", '"chat_template_kwargs" must be an object.')
    try:
        return tokenizer.chat(messages_of(document), document.get("tools"), more)
    except RecursionError:
        raise BadRequestError("The body is nested too deeply.") from None


def most_tokens(engine: Engine, asked: Asked, prompt: Prompt) -> int:
    """What a request may come to at most, its prompt included.

    Raises: InvalidValueError: more was asked for than an answer may have. ContextTooLongError.
    """
    limit = engine.most_output_tokens
    if asked.most_tokens is not None and asked.most_tokens > limit:
        name = "max_tokens" if "max_tokens" in asked.document else "max_completion_tokens"
        raise InvalidValueError(name, f"The model {asked.model} answers with at most {limit} tokens.")
    room = room_for_answer(engine, prompt)
    answer = min(asked.most_tokens or limit, room if room is not None else limit)
    return (prompt.tokens if prompt.exact else engine.max_context_tokens) + asked.choices * answer


def room_for_answer(engine: Engine, prompt: Prompt) -> int | None:
    """What is left of the context for an answer; None if only the engine knows.

    Raises: ContextTooLongError: nothing is.
    """
    if not prompt.exact:
        return None
    room = engine.max_context_tokens - prompt.longest
    if room < 1:
        raise ContextTooLongError(
            f"The prompt has {prompt.longest} tokens; {engine.model} takes {engine.max_context_tokens} "
            "with the answer."
        )
    return room


def check_embedding_lengths(engine: Engine, prompt: Prompt) -> None:
    """Raises: ContextTooLongError: an input is longer than the model takes."""
    if prompt.longest > engine.max_context_tokens:
        raise ContextTooLongError(
            f"An input has {prompt.longest} tokens; {engine.model} takes {engine.max_context_tokens}."
        )


def for_engine(engine: Engine, asked: Asked, room: int | None) -> bytes:
    """The body that the engine gets: its own name of the model, and usage asked for.

    A chat without a limit gets the operator's, where that is what bounds the answer.
    Raises: BadRequestError: it holds a number that JSON has no room for.
    """
    document = asked.document
    document["model"] = engine.name_there
    if asked.stream:
        options = {**(document.get("stream_options") or {}), "include_usage": True}
        if engine.continuous_usage:
            options["continuous_usage_stats"] = True
        document["stream_options"] = options
    limit = engine.max_output_tokens
    bounds = limit is not None and (room is None or limit < room)
    if bounds and asked.most_tokens is None and "messages" in document:
        document["max_tokens"] = limit
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError as error:
        raise BadRequestError(f"The body can't be passed on: {error}") from None


def _are_tokens(value: Sequence[Any]) -> bool:
    return bool(value) and all(type(one) is int and one >= 0 for one in value)


def _whole(document: dict[str, Any], name: str, most: int) -> int | None:
    value = document.get(name)
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= most:
        raise InvalidValueError(name, f'"{name}" must be a whole number from 1 to {most}.')
    return value
