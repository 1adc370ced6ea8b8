"""The model config and the shares beside it, as they are read and replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.release.files import (
    ConfigError,
    Release,
    ReleaseFiles,
    entry_of,
    read_config,
    read_shares,
    write_config,
    write_shares,
)

CONFIG = """
model_config_list {
  config {
    name: "reviews"
    base_path: "/models/reviews"
    model_platform: "tensorflow"
    model_version_policy { specific { versions: 1 versions: 2 } }
    version_labels { key: "stable" value: 1 }
    version_labels { key: "canary" value: 2 }
  }
}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "models.config").write_text(CONFIG)
    return tmp_path / "models.config"


def test_a_release_is_read_of_both_files(path: Path) -> None:
    write_shares(path, {"reviews": 25})
    assert ReleaseFiles(path, "reviews").read() == Release({"stable": 1, "canary": 2}, 25)
    assert ReleaseFiles(path, "titles").read() is None
    assert ReleaseFiles(path.with_name("none"), "reviews").read() is None


def test_a_change_of_either_file_is_seen(path: Path) -> None:
    files = ReleaseFiles(path, "reviews")
    assert files.read() == Release({"stable": 1, "canary": 2}, 0)
    write_shares(path, {"reviews": 10_000})
    assert files.read() == Release({"stable": 1, "canary": 2}, 10_000)
    config = read_config(path)
    entry = entry_of(config, "reviews")
    assert entry is not None
    del entry.version_labels["canary"]
    write_config(path, config)
    assert files.read() == Release({"stable": 1}, 10_000)


def test_what_is_written_is_read_again_with_all_that_it_had(path: Path) -> None:
    config = read_config(path)
    write_config(path, config)
    assert read_config(path) == config
    write_shares(path, {"b": 500, "a": 1})
    assert read_shares(path) == {"a": 1, "b": 500}
    assert sorted(file.name for file in path.parent.iterdir()) == ["canary_shares.json", "models.config"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("models.config", b"model_config_list { config { nam", "is not a model config"),
        ("models.config", b"versions: 1", "is not a model config: .*versions"),
        ("models.config", b"\xff\xfe", "can't be read"),
        ("canary_shares.json", b'{"reviews": ', "can't be read: not a JSON object of percentages"),
        ("canary_shares.json", b"[5]", "can't be read: not a JSON object of percentages"),
        ("canary_shares.json", b'{"reviews": 101}', "'101' is not a percentage from 0 to 100"),
    ],
)
def test_a_file_that_can_not_be_read_is_named(path: Path, file: str, content: bytes, message: str) -> None:
    path.with_name(file).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        ReleaseFiles(path, "reviews").read()
    assert str(caught.value).startswith(str(path.with_name(file)))
