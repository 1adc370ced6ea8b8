"""How settings are read: the environment (`TALLYBOOK_*`) before `tallybook.toml` before the defaults."""

from __future__ import annotations

import os
from pathlib import Path
from zoneinfo import ZoneInfo

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from typing_extensions import Self

from tallybook.captured import KEY_ID, TextKeys, key_of

CONFIG_VARIABLE = "TALLYBOOK_CONFIG"


class CommonSettings(BaseSettings):
    """What serving and billing must agree on. Each package adds its own fields in its `settings.py`.

    One flat file serves all packages, so a package ignores the names of the others here;
    `tallybook.cli` refuses names that no package knows.
    """

    model_config = SettingsConfigDict(env_prefix="TALLYBOOK_", frozen=True, extra="ignore")

    time_zone: str = Field("Asia/Shanghai", description="IANA time zone of the billing day.")
    models_dir: Path = Field(Path("models"), description="Exported models: <name>/<version>/.")
    model_config_file: Path | None = Field(
        None,
        description="TensorFlow Serving's model config, which `tallybook release` writes; "
        "none: models.config in models_dir, where there is one.",
    )
    journal_dir: Path = Field(
        Path("var/journal"), description="Usage events wait here for `tallybook ingest`."
    )

    @property
    def model_config_path(self) -> Path:
        """Where the model config is, if there is one."""
        return self.model_config_file or self.models_dir / "models.config"

    ledger_url: str = Field(
        "sqlite:///var/ledger.db",
        description="SQLAlchemy URL of the ledger: sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME.",
    )

    kafka_brokers: str | None = Field(
        None,
        description="HOST:PORT of Kafka brokers, separated by commas, whose events `tallybook ingest` reads "
        "besides the journal's, and to which the API writes if `events_to` is kafka; none: only the journal.",
    )
    kafka_topic: str = Field("tallybook.usage", description="The topic that usage events are in.")
    kafka_options: dict[str, SecretStr] = Field(
        default_factory=dict,
        description="Further properties of librdkafka, such as security.protocol and sasl.password.",
    )
    prompt_keys: dict[str, SecretStr] = Field(
        default_factory=dict,
        description="Keys of captured texts by their ids: 32 bytes in Base64 each, as `openssl rand -base64 "
        "32` writes them. Keep an old one for as long as its texts are to be read.",
    )
    prompt_key: str | None = Field(
        None, description="The id of the key that encrypts texts captured in full from now on."
    )

    quotas: bool = Field(
        True,
        description="Whether the API holds users and projects to quotas, and alerts tell of them; false: "
        "everybody may use any amount.",
    )
    quota_user_day_tokens: int = Field(
        50_000, ge=0, description="Tokens that a user may use in a billing day."
    )
    quota_project_month_tokens: int = Field(
        2_000_000, ge=0, description="Tokens that a project may use in a calendar month."
    )

    @property
    def text_keys(self) -> TextKeys:
        """What encrypts and reads captured texts."""
        keys = {key_id: key_of(key.get_secret_value()) for key_id, key in self.prompt_keys.items()}
        return TextKeys(keys, self.prompt_key)

    @property
    def zone(self) -> ZoneInfo:
        """The billing time zone."""
        return ZoneInfo(self.time_zone)

    @field_validator("prompt_keys")
    @classmethod
    def _are_keys(cls, keys: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for key_id, key in keys.items():
            if not KEY_ID.fullmatch(key_id):
                raise ValueError("the id of a key must be 1-64 of letters, digits and ._-")
            key_of(key.get_secret_value())
        return keys

    @model_validator(mode="after")
    def _has_the_current_key(self) -> Self:
        if self.prompt_key is not None and self.prompt_key not in self.prompt_keys:
            raise ValueError(f"prompt_key: there is no key {self.prompt_key!r} in prompt_keys")
        return self

    @field_validator("time_zone")
    @classmethod
    def _zone_exists(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{name!r} is not an IANA time zone such as Asia/Shanghai") from error
        return name

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments (tests), then the environment, then the TOML file."""
        file = Path(os.environ.get(CONFIG_VARIABLE, "tallybook.toml"))
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=file)
