"""The version in service, read from a model config as TensorFlow Serving takes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.errors import TrainingError
from training.released import stable_version

CONFIG = """
# by hand, with fields that training does not know
model_config_list {
  config {
    name: "sentiment" base_path: "/models/sentiment" model_platform: "tensorflow"
    model_version_policy { specific { versions: 4 versions: 9 } }
    version_labels { key: "canary" value: 9 }
    version_labels { key: "stable" value: 4 }
    logging_config { sampling_config { sampling_rate: 0.5 } }
  }
  config: { name: 'topics', version_labels: [{ key: 'stable', value: 12 }] }
  config { name: "new" base_path: "/models/new" }
}
"""


@pytest.mark.parametrize(
    ("model", "version"), [("sentiment", 4), ("topics", 12), ("new", None), ("other", None)]
)
def test_the_stable_label_says_which_version_is_in_service(
    tmp_path: Path, model: str, version: int | None
) -> None:
    file = tmp_path / "models.config"
    assert stable_version(file, model) is None  # there is no file yet
    file.write_text(CONFIG)
    assert stable_version(file, model) == version


@pytest.mark.parametrize("content", [b"model_config_list {", b"no config", b"\xff"])
def test_a_config_that_can_not_be_read_is_told(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "models.config"
    file.write_bytes(content)
    with pytest.raises(TrainingError) as caught:
        stable_version(file, "m")
    assert caught.value.code == "config_invalid"
