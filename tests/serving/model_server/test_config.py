"""What a model config says: which versions, under which labels; and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]  # ships no types

from serving.model_server.config import ModelConfig, Policy, read_configs
from serving.model_server.errors import InvalidRequestError
from serving.model_server.wanted import FileSource
from serving.protos import model_server_config_pb2
from serving.release.files import ConfigError

ENTRY = 'name: "m" base_path: "/models/m" model_platform: "tensorflow"'


def configs(*entries: str) -> dict[str, ModelConfig]:
    text = "model_config_list {" + "".join(f" config {{ {entry} }}" for entry in entries) + " }"
    return dict(read_configs(text_format.Parse(text, model_server_config_pb2.ModelServerConfig())))


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("", [9]),
        ("model_version_policy { latest { num_versions: 2 } }", [9, 4]),
        ("model_version_policy { latest { } }", [9]),
        ("model_version_policy { all { } }", [9, 4, 2, 1]),
        ("model_version_policy { specific { versions: 4 versions: 1 versions: 7 } }", [4, 1]),
    ],
)
def test_a_policy_says_which_versions_are_wanted(policy: str, wanted: list[int]) -> None:
    config = configs(f"{ENTRY} {policy}")["m"]
    assert config.base_path == Path("/models/m")
    assert config.policy.wanted([1, 2, 4, 9], []) == wanted


def test_an_older_version_takes_the_place_of_one_that_does_not_load_unless_it_was_named() -> None:
    assert Policy(latest=2).wanted([1, 2, 3], held_back=[3]) == [2, 1]
    assert Policy(specific=frozenset({3, 2})).wanted([1, 2, 3], held_back=[3]) == [2]


def test_labels_are_read() -> None:
    config = configs(f'{ENTRY} version_labels {{ key: "stable" value: 3 }}')["m"]
    assert config.labels == {"stable": 3}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([ENTRY, ENTRY], "Illegal to list model m multiple times in config list"),
        (
            ['name: "m" base_path: "models/m" model_platform: "tensorflow"'],
            "Expected model m to have an absolute path or URI; got base_path()=models/m",
        ),
        (
            ['name: "m" base_path: "/m"'],
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            "ModelServerConfig::model_platform.",
        ),
        (
            ['name: "m" base_path: "/m" model_platform: "torch"'],
            "Model m requests unsupported platform torch",
        ),
        (
            [f"{ENTRY} model_type: TENSORFLOW"],
            "Illegal setting both ModelServerConfig::model_type (deprecated) and "
            "ModelServerConfig::model_platform.",
        ),
    ],
)
def test_a_config_that_is_wrong_is_refused_in_tensorflow_servings_words(
    entries: list[str], message: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        configs(*entries)
    assert str(caught.value) == message


def test_a_file_is_told_once_and_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    (tmp_path / "reviews").mkdir()
    source = FileSource(file, tmp_path, versions_kept=2)
    whole = {"reviews": ModelConfig("reviews", tmp_path / "reviews", Policy(latest=2))}
    assert source.look() == source.look() == whole  # no file: whatever lies there
    file.write_text(f"model_config_list {{ config {{ {ENTRY} }} }}")
    assert source.look() == {"m": ModelConfig("m", Path("/models/m"))}
    assert source.look() is None
    file.write_text("model_config_list { }")
    assert source.look() == {}
    file.write_text("model_config_list {")
    with pytest.raises(ConfigError, match="is not a model config"):
        source.look()
    file.unlink()
    assert source.look() is None
