"""All settings of all packages: listed for people, and unknown names refused instead of ignored."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import click
from pydantic.fields import FieldInfo

from tallybook.settings import CONFIG_VARIABLE, CommonSettings
from tallybook.toml import tomllib

CLASSES = {
    "all": "tallybook.settings:CommonSettings",
    "the API": "serving.settings:ServingSettings",
    "the model server": "serving.model_server.settings:ModelServerSettings",
    "billing": "billing.settings:BillingSettings",
}
PREFIX = "TALLYBOOK_"
# Read from the environment alone: where the file is, how hard the tests' drills are, where their engine is.
OTHER_VARIABLES = {
    CONFIG_VARIABLE, "TALLYBOOK_DRILL_KILLS", "TALLYBOOK_DRILL_REQUESTS", "TALLYBOOK_ENGINE_VENV",
    "TALLYBOOK_FUZZ_EXAMPLES",
}  # fmt: skip


def known_settings() -> Iterator[tuple[str, str, FieldInfo]]:
    """Whose it is, the name and the field of every setting; a shared one is listed once."""
    for owner, target in CLASSES.items():
        module, _, name = target.partition(":")
        settings: type[CommonSettings] = getattr(importlib.import_module(module), name)
        for field_name, field in settings.model_fields.items():
            if owner == "all" or field_name not in CommonSettings.model_fields:
                yield owner, field_name, field


def refuse_unknown_settings() -> None:
    """Raises: click.ClickException: a variable or a key of the file that nothing reads (setting_unknown)."""
    names = {name for _, name, _ in known_settings()}
    variables = {v for v in os.environ if v.startswith(PREFIX)} - OTHER_VARIABLES
    unknown = sorted(v for v in variables if v.removeprefix(PREFIX).lower() not in names)
    file = Path(os.environ.get(CONFIG_VARIABLE, "tallybook.toml"))
    try:
        content = tomllib.loads(file.read_text("utf-8")) if file.exists() else {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.ClickException(f"settings_invalid: {file}: {error}") from error
    unknown += [f"{key} in {file}" for key in content if key not in names]
    if unknown:
        raise click.ClickException(f"setting_unknown: {', '.join(unknown)}; `tallybook settings` lists them")


def training_places() -> dict[str, str]:
    """The settings that are options of `tallybook train`."""
    from billing.settings import BillingSettings

    found = BillingSettings()
    places = {name: getattr(found, name) for name in ("models_dir", "training_dir", "model_config_file")}
    return {name: str(place) for name, place in places.items() if place is not None}


@click.command()
def settings() -> None:
    """List every setting, its default and what it does, as a table in Markdown."""
    click.echo(table(), nl=False)


def table() -> str:
    """The settings as a table in Markdown; `docs/settings.md` holds it."""
    rows = ["| setting | of | default | what it does |", "|---|---|---|---|"]
    for owner, name, field in known_settings():
        default = field.get_default(call_default_factory=True, validated_data={})
        shown = "" if default is None or default in ((), {}) else f"`{_plain(default)}`"
        rows.append(f"| `{name}` | {owner} | {shown} | {field.description} |")
    return "\n".join(rows) + "\n"


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
