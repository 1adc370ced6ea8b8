"""The training image: what goes into it runs on Python 3.8 and finds all it imports there."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "training").glob("*.py"))
# Part of the base image; everything else is in the requirements.
IN_THE_IMAGE = {"tensorflow", "numpy", "google"}
DONE_WITHOUT = {"noto_cjk_sans_otc"}  # needs a later Python
DISTRIBUTIONS = {"sklearn": "scikit-learn", "huggingface_hub": "huggingface-hub"}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_code_is_python_3_8(source: Path) -> None:
    ast.parse(source.read_text("utf-8"), feature_version=(3, 8))


def test_all_that_the_code_imports_is_in_the_image_pinned() -> None:
    requirements = (ROOT / "docker" / "requirements.tf29.txt").read_text("utf-8")
    pinned = set(re.findall(r"^([a-z0-9-]+)==[\w.]+$", requirements, re.MULTILINE))
    imported = {
        name.split(".")[0]
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text("utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    foreign = imported - set(sys.stdlib_module_names) - IN_THE_IMAGE - DONE_WITHOUT - {"training"}
    assert foreign >= {"click", "sklearn", "tokenizers"}
    assert {DISTRIBUTIONS.get(name, name) for name in foreign} | {"snownlp"} <= pinned
    assert "tensorflow" not in pinned


def test_the_image_holds_the_training_code_alone_and_does_not_run_as_root() -> None:
    lines = (ROOT / "Dockerfile.tf29").read_text("utf-8").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert steps[0] == ["FROM", "tensorflow/tensorflow:2.9.3-gpu"]
    assert [rest for word, rest in steps if word == "COPY"] == [
        "docker/requirements.tf29.txt requirements.txt",
        "training/ training/",
    ]
    assert steps[-1] == ["ENTRYPOINT", '["python", "-m", "training.cli"]']
    assert [rest for word, rest in steps if word == "USER"] == ["trainer"]
