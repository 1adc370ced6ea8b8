"""The commands of serving: parse, call, print."""

from __future__ import annotations

from typing import Any

import click

from serving.settings import ServingSettings


@click.command()
@click.option("--host", help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Port to listen on; 8000 if no setting says else."
)
@click.option("--workers", type=click.IntRange(1, 64), help="Processes; 1 if no setting says else.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Requests that a worker handles at once.")
def serve(**options: Any) -> None:
    """Serve the API: POST /analyze, OpenAI's /v1 for the engines in models.toml, and what watches them."""
    from serving.engines.file import EnginesFileError
    from serving.engines.models import load_engine_models
    from serving.server import serve as run

    settings = ServingSettings(**{name: value for name, value in options.items() if value is not None})
    try:
        load_engine_models(settings.engines_file, settings.own_models)  # workers would die of it, ever again
    except EnginesFileError as error:
        raise click.ClickException(str(error)) from error
    if settings.workers > 1 and settings.quotas and settings.redis_url is None:
        raise click.ClickException(
            f"redis_missing: {settings.workers} workers count quotas together in Redis: set redis_url, or "
            "switch quotas off"
        )
    try:
        run(settings)
    except OSError as error:
        raise click.ClickException(f"{settings.host}:{settings.port}: {error.strerror}") from error
