"""The settings of the embedded model server, read once at the entry point and passed down."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from tallybook.settings import CommonSettings


class ModelServerSettings(CommonSettings):
    """Where the model server listens, what it keeps loaded, and how much it takes on at once."""

    model_server_host: str = Field("127.0.0.1", description="Address that the model server listens on.")
    model_server_port: int = Field(
        8500, ge=0, le=65535, description="Port of the model server; 0 takes any free one."
    )
    model_server_rest_port: int = Field(
        8501,
        ge=0,
        le=65535,
        description="Port of the REST API and the counters (/monitoring/prometheus/metrics); 0 takes any "
        "free one.",
    )
    model_server_poll_seconds: float = Field(
        1.0, gt=0, description="How often the model config and the folders of models are looked at."
    )
    model_server_versions_kept: int = Field(
        1,
        ge=1,
        description="How many of a model's newest versions stay loaded where no model config says.",
    )
    model_server_labels_need_available: bool = Field(
        False,
        description="Refuse a label for a version that is not loaded even when the label is new; "
        "then a config with labels can't be started with.",
    )
    model_server_batching: bool = Field(
        True, description="Compute the rows of several requests together, where a signature allows it."
    )
    model_server_batching_parameters_file: Path | None = Field(
        None,
        description="TensorFlow Serving's --batching_parameters_file; overrules model_server_max_batch_rows.",
    )
    model_server_max_batch_rows: int = Field(64, ge=1, description="Most texts computed in one batch.")
    model_server_max_batch_cells: int = Field(
        16_384,
        ge=1,
        description="Most token places in one batch, padding included; bounds the memory of long texts.",
    )
    model_server_batch_seconds: float = Field(
        0.5,
        gt=0,
        description="About the longest time that a batch of several requests may take, by what such batches "
        "took before; bounds the wait behind one.",
    )
    model_server_long_length: int = Field(
        512,
        ge=1,
        description="Longer texts are computed beside the others, so that these do not wait for them.",
    )
    model_server_max_pending: int = Field(
        128, ge=1, description="Most predictions waiting or running; one more is refused as UNAVAILABLE."
    )
    model_server_compute_threads: int | None = Field(
        None,
        ge=1,
        description="Threads that compute one operation; none: one fewer than the cores, at least 1.",
    )
    model_server_grace_seconds: float = Field(
        10.0, ge=0, description="How long a stopping model server lets running predictions finish."
    )
