"""What should be served: by TensorFlow Serving's model config, or whatever lies in the folder of models."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serving.model_server.errors import InvalidRequestError
from serving.model_server.repository import find_models
from serving.protos import Message

_PLATFORM = "tensorflow"
_OLD_MODEL_TYPE_TENSORFLOW = 1  # ModelType.TENSORFLOW, of the deprecated field


@dataclass(frozen=True, slots=True)
class Policy:
    """Which of a model's versions should be loaded: these, or the newest `latest`; None: every one."""

    latest: int | None = 1
    specific: frozenset[int] | None = None

    def wanted(self, versions: Collection[int], held_back: Collection[int]) -> list[int]:
        """The versions to load, newest first, passing over those held back because they do not load.

        So an older version takes the place of a newest one that does not load; none takes a specific one's.
        """
        found = sorted(set(versions) - set(held_back), reverse=True)
        if self.specific is not None:
            return [version for version in found if version in self.specific]
        return found[: self.latest]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Where a model's versions lie, which of them to load, and the labels that they carry."""

    name: str
    base_path: Path
    policy: Policy = Policy()
    labels: Mapping[str, int] = field(default_factory=dict)


Configs = Mapping[str, ModelConfig]


def read_configs(config: Message) -> Configs:
    """The models in a ModelServerConfig, by name.

    Raises: InvalidRequestError: listed twice, a relative base path, or another platform than TensorFlow.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise InvalidRequestError("Missing custom_model_config_loader in ServerCore Options")
    configs: dict[str, ModelConfig] = {}
    for entry in config.model_config_list.config:
        if entry.name in configs:
            raise InvalidRequestError(f"Illegal to list model {entry.name} multiple times in config list")
        if not Path(entry.base_path).is_absolute():
            raise InvalidRequestError(
                f"Expected model {entry.name} to have an absolute path or URI; "
                f"got base_path()={entry.base_path}"
            )
        _check_platform(entry)
        labels = {str(label): int(version) for label, version in entry.version_labels.items()}
        configs[entry.name] = ModelConfig(entry.name, Path(entry.base_path), _policy(entry), labels)
    return configs


def folder_configs(models_dir: Path, versions_kept: int) -> Configs:
    """Every model in the folder, with its newest versions.

    Raises: OSError: can't be read; then nothing is known, rather than nothing being there.
    """
    policy = Policy(latest=versions_kept)
    return {name: ModelConfig(name, folder, policy) for name, folder in find_models(models_dir).items()}


def _check_platform(entry: Message) -> None:
    if entry.model_type:
        if entry.model_platform:
            raise InvalidRequestError(
                "Illegal setting both ModelServerConfig::model_type (deprecated) "
                "and ModelServerConfig::model_platform."
            )
        if entry.model_type != _OLD_MODEL_TYPE_TENSORFLOW:
            raise InvalidRequestError(
                f"ModelServerConfig::model_type choice {entry.model_type} not supported."
            )
    elif not entry.model_platform:
        raise InvalidRequestError(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) "
            "nor ModelServerConfig::model_platform."
        )
    elif entry.model_platform != _PLATFORM:
        raise InvalidRequestError(f"Model {entry.name} requests unsupported platform {entry.model_platform}")


def _policy(entry: Message) -> Policy:
    policy = entry.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return Policy(latest=None)
    if choice == "specific":
        return Policy(specific=frozenset(policy.specific.versions))
    return Policy(latest=max(1, policy.latest.num_versions))
