"""What a training computes on: this machine's CPU or GPUs, or several machines by TF_CONFIG."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

from training.errors import TrainingError


@dataclass(frozen=True)
class Devices:
    """A distribution strategy, and how to compute under it. `count`: devices, of all machines.

    One of several machines is the chief: it alone writes files, and exports.
    """

    strategy: Any
    kind: str  # gpu or cpu
    count: int
    chief: bool
    compute: str  # float16, with float32 weights, where there is a GPU
    xla: bool


def find_devices() -> Devices:
    """Start what there is: a CPU, a GPU, all GPUs (MirroredStrategy), or the machines that TF_CONFIG names.

    Raises: TrainingError: `invalid_tf_config`.
    """
    told = os.environ.get("TF_CONFIG")
    chief = True
    if told:
        try:
            config = json.loads(told)
            chief = not config.get("cluster") or (
                config["task"]["type"] == "chief"
                or ("chief" not in config["cluster"] and int(config["task"]["index"]) == 0)
            )
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrainingError("invalid_tf_config", f"TF_CONFIG does not name machines: {error}") from error
    gpus = tf.config.list_logical_devices("GPU")
    if not told:
        strategy = tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy()
    return describe(strategy, "gpu" if gpus else "cpu", chief)


def describe(strategy: Any, kind: str, chief: bool = True) -> Devices:
    """How to compute under a strategy: on GPUs in half precision and compiled by XLA, on CPUs as it is."""
    return Devices(
        strategy=strategy,
        kind=kind,
        count=strategy.num_replicas_in_sync,
        chief=chief,
        compute="float16" if kind == "gpu" else "float32",
        xla=kind == "gpu",
    )
