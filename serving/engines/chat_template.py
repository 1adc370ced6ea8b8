"""A model's chat template: the text that its engine makes of the messages, as `transformers` renders it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class ChatTemplate:
    """Renders messages. Safe for many threads."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises: jinja2.TemplateError: not a template."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _as_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        # transformers marks the assistant's words for training; there is nothing to mark here.
        source = source.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        self._template: Template = environment.from_string(source)
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: object = None,
        more: Mapping[str, Any] | None = None,
    ) -> str | None:
        """The prompt, or None where the template has no answer for these messages: the engine won't either.

        Args: more: further variables, such as `enable_thinking`.
        """
        try:
            return self._template.render(
                {
                    **self._special_tokens,
                    "add_generation_prompt": True,
                    **(more or {}),
                    "messages": messages,
                    "tools": tools,
                }
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, OverflowError):
            return None


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """The template of a tokenizer's folder, or None if it has none.

    Raises: OSError, ValueError, jinja2.TemplateError: a file can't be read, or is not what it should be.
    """
    config: Any = {}
    file = folder / "tokenizer_config.json"
    if file.exists():
        config = json.loads(file.read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"{file} is not a JSON object")
    own = folder / "chat_template.jinja"
    source = own.read_text("utf-8") if own.exists() else config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise ValueError(f"{file}: chat_template is not a text")  # noqa: TRY004 -- of a file, not of a call
    tokens = {name: _text(config[name]) for name in _SPECIAL_TOKENS if config.get(name) is not None}
    return ChatTemplate(source, tokens)


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _as_json(value: Any, indent: int | None = None, **_: Any) -> str:
    """As transformers has it: not escaped for HTML, as Jinja's own would be."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 -- the engine's template asks for its local time
