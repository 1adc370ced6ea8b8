"""The settings of serving, read once at the entry point and passed down."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, SecretStr, field_validator, model_validator
from typing_extensions import Self

from tallybook.settings import CommonSettings
from tallybook.usage import NAME

Capture = Literal["none", "hash", "prefix", "full"]
Weight = Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)]
Network = IPv4Network | IPv6Network
# prometheus-client reads this when it is imported; set when several workers count together.
METRICS_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


class ServingSettings(CommonSettings):
    """Which model answers, whose word is taken for who is asking, and what the journal keeps."""

    host: str = Field("127.0.0.1", description="Address that the API listens on.")
    port: int = Field(8000, ge=1, le=65535, description="Port that the API listens on.")
    workers: int = Field(1, ge=1, le=64, description="Processes of the API, each with a journal segment.")
    threads: int = Field(
        64, ge=1, le=1024, description="Requests for a model that a worker handles at once; more get 503."
    )
    queue_places: dict[str, PositiveInt] = Field(
        default_factory=dict,
        description="Requests that a model answers at once, by its name; more wait in turn. If not given: "
        "three quarters of `threads`, and as many as `engine_requests` for any other model.",
    )
    queue_user_weights: dict[str, Weight] = Field(
        default_factory=dict, description="How many turns a user gets for one of the others; 1 if not given."
    )
    queue_project_weights: dict[str, Weight] = Field(
        default_factory=dict, description="The same for each user of a project, unless the user has a weight."
    )
    model: str = Field(
        "review-sentiment", description="Name of the model behind POST /analyze and /v1/classify."
    )
    embedding_models: tuple[str, ...] = Field(
        (),
        description="Names of embedding models (`tallybook export-embedding`) that the model server serves; "
        "they answer POST /v1/embeddings.",
    )
    model_server_address: str = Field("127.0.0.1:8500", description="HOST:PORT of TensorFlow Serving's gRPC.")
    engines_file: Path = Field(
        Path("models.toml"), description="The OpenAI-compatible engines behind /v1; none if it is not there."
    )
    engine_requests: int = Field(
        1024,
        ge=1,
        le=8192,
        description="Requests to engines and embedding models that a worker handles at once; more get 503.",
    )
    served_models_dir: Path | None = Field(
        None,
        description="models_dir as the model server sees it, which `tallybook release` writes into a new "
        "model config; none: the same folder.",
    )
    version_poll_seconds: float = Field(
        1.0, gt=0, le=3600, description="How often the model server is asked which versions it serves."
    )
    deadline_seconds: float = Field(10.0, gt=0, le=600, description="A request is answered within this time.")
    max_body_bytes: int = Field(1 << 20, ge=1024, description="A larger request body gets 413.")
    otlp_endpoint: str | None = Field(
        None,
        description="http://HOST:4318 of an OpenTelemetry collector that gets a span of each request; "
        "none: no spans. Needs the extra `otel`.",
    )
    trusted_networks: tuple[Network, ...] = Field(
        _LOOPBACK,
        description="Peers in these networks may say who is asking by X-User-ID, without a key; by default "
        "not for whom they forward (X-Forwarded-For, Forwarded).",
    )
    gateway_secret: SecretStr | None = Field(
        None, description="A peer that sends this as X-Gateway-Secret may say so from anywhere."
    )
    trusted_proxies: tuple[Network, ...] = Field(
        (), description="Peers in these networks are believed about X-Forwarded-For."
    )
    model_networks: dict[str, tuple[Network, ...]] = Field(
        default_factory=dict, description="Networks that a model may be used from, by the model's name."
    )
    access_url: str = Field(
        "sqlite:///var/access.db",
        description="SQLAlchemy URL of the gateway's own store: keys, limits, grants, idempotent answers.",
    )
    access_poll_seconds: float = Field(
        1.0, gt=0, le=60, description="How often a worker looks for changes of keys, limits and grants."
    )
    access_stale_seconds: float = Field(
        300.0, gt=0, description="How long keys hold while the store is away; then requests with one get 503."
    )
    quota_requests_per_minute: int = Field(
        600, ge=0, description="Requests in a minute of the clock, of an API key or a user without one."
    )
    quota_concurrent_requests: int | None = Field(
        None, ge=0, description="Requests of an API key, or a user without one, at once; none: any."
    )
    prepaid: bool = Field(
        False, description="Whether a project is refused whose wallet (`tallybook wallet`) is empty."
    )
    prepaid_poll_seconds: float = Field(
        10.0, gt=0, le=3600, description="How often prepaid wallets are looked at."
    )
    redis_url: SecretStr | None = Field(
        None,
        description="Where several workers count quotas together: redis://HOST:6379/0, rediss:// or unix://; "
        "none: one worker counts in its memory.",
    )
    redis_timeout_seconds: float = Field(
        1.0, gt=0, le=30, description="How long Redis may take for an answer; then it is taken for away."
    )
    quota_lease_seconds: float = Field(
        60.0, gt=0, le=3600, description="When tokens of a request that says nothing more are given back."
    )
    default_project: str = Field("default", description="Project of a request without X-Project-ID.")
    default_department: str = Field("default", description="Department of a project that has none.")
    project_departments: dict[str, str] = Field(
        default_factory=dict, description="Department of each project, by the project's name."
    )
    prompt_capture: Capture = Field(
        "hash",
        description="What an event keeps of the text: none, its SHA-256 (hash), that and its start (prefix), "
        "or that and all of it encrypted with prompt_key (full).",
    )
    project_prompt_capture: dict[str, Capture] = Field(
        default_factory=dict, description="The same for single projects, by their names."
    )
    prompt_prefix_characters: int = Field(
        64, ge=1, le=4096, description="How much of the text prompt_capture = prefix keeps."
    )
    events_to: Literal["journal", "kafka"] = Field(
        "journal",
        description="Where usage events go before an answer leaves: the journal; or Kafka, and the journal "
        "while Kafka is away.",
    )
    journal_segment_bytes: int = Field(
        64 << 20, ge=4096, description="A journal segment of this size is followed by a fresh one."
    )

    @property
    def own_models(self) -> tuple[str, ...]:
        """The models on the model server."""
        return (self.model, *self.embedding_models)

    @field_validator("model", "default_project", "default_department")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not 1-128 of letters, digits and ._@:-")
        return name

    @field_validator("embedding_models")
    @classmethod
    def _are_different_names(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(models)) != len(models):
            raise ValueError("names a model twice")
        return tuple(map(cls._is_a_name, models))

    @field_validator("project_departments")
    @classmethod
    def _are_names(cls, departments: dict[str, str]) -> dict[str, str]:
        for names in departments.items():
            for name in names:
                cls._is_a_name(name)
        return departments

    @model_validator(mode="after")
    def _has_one_use_of_a_model(self) -> Self:
        if self.model in self.embedding_models:
            raise ValueError(f"embedding_models names {self.model}, the model behind /analyze")
        return self

    @model_validator(mode="after")
    def _has_brokers(self) -> Self:
        if self.events_to == "kafka" and self.kafka_brokers is None:
            raise ValueError("events_to = kafka needs kafka_brokers")
        return self

    @model_validator(mode="after")
    def _can_encrypt(self) -> Self:
        if "full" in (self.prompt_capture, *self.project_prompt_capture.values()) and self.prompt_key is None:
            raise ValueError("to capture texts in full needs prompt_key, to encrypt them with")
        return self

    @field_validator("gateway_secret")
    @classmethod
    def _is_hard_to_guess(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is None:
            return None
        value = secret.get_secret_value()
        # What a header can carry, and a comma would hide a header that was sent twice.
        if len(value) < 16 or not value.isascii() or not value.isprintable() or set(value) & {" ", ","}:
            raise ValueError("must be at least 16 printable ASCII characters without spaces and commas")
        return secret
