"""`tallybook up`: the embedded model server and the API together, until one of them ends."""

from __future__ import annotations

import signal
import threading

import click

from tallybook.processes import Processes, ProcessFailedError


@click.command()
@click.option("--port", default=8000, show_default=True, help="Port of the API.")
@click.option("--model-port", default=8500, show_default=True, help="Port of the model server (gRPC).")
@click.option("--model-rest-port", default=8501, show_default=True, help="Port of its counters (HTTP).")
def up(port: int, model_port: int, model_rest_port: int) -> None:
    """Start the model server and the API together; Ctrl-C ends both."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    address = {"TALLYBOOK_MODEL_SERVER_ADDRESS": f"127.0.0.1:{model_port}"}
    with Processes() as processes:
        ports = ["--port", str(model_port), "--rest-port", str(model_rest_port)]
        processes.start("the model server", ["serve-model", *ports])
        processes.start("the API", ["serve", "--port", str(port)], address)
        try:
            while not stop.wait(0.5):
                processes.check()
        except ProcessFailedError as error:
            raise click.ClickException(str(error)) from error
