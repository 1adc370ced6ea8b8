"""The settings of the embedded model server, read once at the entry point and passed down."""

from __future__ import annotations

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
        description="Port of GET /monitoring/prometheus/metrics, its counters; 0 takes any free one.",
    )
    model_server_poll_seconds: float = Field(
        1.0, gt=0, description="How often models_dir is searched for new versions."
    )
    model_server_versions_kept: int = Field(
        1,
        ge=1,
        description="How many of a model's newest versions stay loaded, as TensorFlow Serving's latest.",
    )
    model_server_max_batch_rows: int = Field(64, ge=1, description="Most texts computed in one batch.")
    model_server_max_batch_cells: int = Field(
        16_384,
        ge=1,
        description="Most token places in one batch, padding included; bounds the memory of long texts.",
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
