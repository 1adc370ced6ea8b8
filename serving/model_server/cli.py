"""`tallybook serve-model`: the embedded model server as a process."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from serving.model_server.settings import ModelServerSettings

Command = Callable[..., Any]


def _option(flag: str, field: str, kind: click.ParamType[Any]) -> Callable[[Command], Command]:
    known = ModelServerSettings.model_fields[field]
    default = "" if known.default is None else f"  [default: {known.default}]"
    return click.option(flag, field, type=kind, help=f"{known.description}{default}")


@click.command("serve-model")
@_option("--host", "model_server_host", click.STRING)
@_option("--port", "model_server_port", click.IntRange(0, 65535))
@_option("--rest-port", "model_server_rest_port", click.IntRange(0, 65535))
@_option("--models-dir", "models_dir", click.Path(path_type=Path))
@_option("--model-config-file", "model_config_file", click.Path(path_type=Path))
@_option("--batching-parameters-file", "model_server_batching_parameters_file", click.Path(path_type=Path))
@_option("--poll-seconds", "model_server_poll_seconds", click.FloatRange(0, min_open=True))
@_option("--versions-kept", "model_server_versions_kept", click.IntRange(1))
def serve_model(**options: Any) -> None:
    """Serve exported models by TensorFlow Serving's protocols, gRPC and REST."""
    run(ModelServerSettings(**{name: value for name, value in options.items() if value is not None}))


def run(settings: ModelServerSettings) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is running.

    Raises: click.ClickException: the address can't be bound.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # TensorFlow reads these when imported: its notices about instruction sets and GPUs are not ours. Keras
    # would take two seconds and 180 MB, and is not used; the old one is looked for instead, and not found.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    from serving.model_server.batching import BatchingError
    from serving.model_server.server import create_server
    from serving.release.files import ConfigError

    try:
        server = create_server(settings)
    except (OSError, ConfigError, BatchingError) as error:
        raise click.ClickException(str(error)) from error
    models = server.start()
    names = "; ".join(f"{name} {', '.join(map(str, versions))}" for name, versions in models.items())
    click.echo(f"Model server ready on {server.address}: {names or f'no model yet in {settings.models_dir}'}")
    stop.wait()
    server.stop()
