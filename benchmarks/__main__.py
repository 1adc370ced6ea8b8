"""Measures what runs hot beside the limits of this machine: `python -m benchmarks [DIR]`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks import alerts, api, closing, gateway, ledger, model_server, reports, training
from benchmarks.model_server import Row


def main() -> None:
    """Measure and print one table."""
    models_dir = Path(sys.argv[1] if len(sys.argv) > 1 else "models")
    started = time.monotonic()
    parts = (training, model_server, api, gateway, ledger, closing, alerts, reports)
    for part in parts:
        for measured in part.rows(models_dir):
            print(line(measured), flush=True)  # noqa: T201
        print()  # noqa: T201
    print(f"{time.monotonic() - started:.0f} s")  # noqa: T201


def line(measured: Row) -> str:
    """A row of the table."""
    share = f"{measured['ratio']:6.2f} of {measured['of']}" if measured["of"] else ""
    return f"{measured['name']:66} {measured['value']:10,.1f} {measured['unit']:12}{share}".rstrip()


if __name__ == "__main__":
    main()
