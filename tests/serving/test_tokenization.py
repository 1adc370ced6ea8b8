import hashlib
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from serving.errors import EmptyTextError, ModelRejectedError, TextTooLongError
from serving.tokenization import ModelVersion, VersionRefusedError, load_version
from tests.apis import MODEL, alter_card, export
from tests.savedmodels import LABELS


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models_dir = tmp_path_factory.mktemp("models")
    export(models_dir, 1)
    return models_dir


@pytest.fixture(scope="module")
def version(exported: Path) -> ModelVersion:
    return load_version(exported, MODEL, 1)


@given(st.text(max_size=60))
def test_a_prompt_is_counted_as_its_own_tokenizer_counts_it(
    exported: Path, version: ModelVersion, text: str
) -> None:
    tokenizer = Tokenizer.from_file(str(exported / MODEL / "1" / "assets.extra" / "tokenizer.json"))
    expected = tokenizer.encode(text).ids
    try:
        assert version.prompt_ids(text) == expected
    except TextTooLongError:
        assert len(expected) > version.max_length_tokens
    except EmptyTextError:
        assert len(expected) == 2


@given(st.floats(0, 1, width=32))
def test_an_output_is_counted_without_special_tokens_and_as_often_as_asked(
    exported: Path, version: ModelVersion, probability: float
) -> None:
    tokenizer = Tokenizer.from_file(str(exported / MODEL / "1" / "assets.extra" / "tokenizer.json"))
    for _ in range(2):
        answer = version.answer([probability, 1 - probability])
        assert answer.completion_tokens == len(tokenizer.encode(answer.output, add_special_tokens=False).ids)


def test_the_output_names_the_likeliest_label_its_explanation_and_its_probability(
    version: ModelVersion,
) -> None:
    name, explanation = LABELS[1]
    answer = version.answer([0.1234, 0.8766])
    assert answer.output == f"{name}：{explanation}，把握 87.7%。"
    assert answer.label == name
    assert answer.probabilities == {LABELS[0][0]: 0.1234, name: 0.8766}


@pytest.mark.parametrize(
    "wrong", [[], [1.0], [0.1, 0.2, 0.7], [float("nan"), 0.5], [-0.1, 1.1], [0.0, float("inf")]]
)
def test_an_answer_that_is_not_a_probability_a_label_is_refused(
    version: ModelVersion, wrong: list[float]
) -> None:
    with pytest.raises(ModelRejectedError):
        version.answer(wrong)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"name": "another"}, "version 1 of another"),
        ({"version": 2}, "version 2"),
        ({"version": "1"}, "version"),
        ({"labels": []}, "labels"),
        ({"labels": [{"name": "a", "explanation": "b"}] * 2}, "twice"),
        ({"max_length_tokens": 0}, "max_length_tokens"),
        ({"tokenizer_fingerprint": "0" * 64}, "fingerprint"),
        ({"tokenizer_fingerprint": None}, "tokenizer_fingerprint"),
    ],
)
def test_a_version_whose_card_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    alter_card(export(tmp_path, 1), **changes)
    with pytest.raises(VersionRefusedError, match=why):
        load_version(tmp_path, MODEL, 1)


def test_a_version_without_its_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VersionRefusedError, match=r"model_card\.json: No such file"):
        load_version(tmp_path, MODEL, 1)
    (export(tmp_path, 1) / "assets.extra" / "tokenizer.json").unlink()
    with pytest.raises(VersionRefusedError, match=r"tokenizer\.json: No such file"):
        load_version(tmp_path, MODEL, 1)


@pytest.mark.parametrize(
    ("tokenizer", "why"),
    [
        (b"{}", "can't be read"),
        (b"\xff", "can't be read"),
        ("truncation", "miscount"),
        ("padding", "miscount"),
    ],
)
def test_a_tokenizer_that_would_miscount_is_refused(tmp_path: Path, tokenizer: bytes | str, why: str) -> None:
    folder = export(tmp_path, 1)
    file = folder / "assets.extra" / "tokenizer.json"
    if isinstance(tokenizer, str):
        spoilt = Tokenizer.from_file(str(file))
        if tokenizer == "truncation":
            spoilt.enable_truncation(16)
        else:
            spoilt.enable_padding(length=16)
        tokenizer = spoilt.to_str().encode()
    file.write_bytes(tokenizer)
    alter_card(folder, tokenizer_fingerprint=hashlib.sha256(tokenizer).hexdigest())
    with pytest.raises(VersionRefusedError, match=why):
        load_version(tmp_path, MODEL, 1)


def test_a_card_may_say_more_than_serving_needs(tmp_path: Path) -> None:
    folder = export(tmp_path, 1)
    assert "metrics" in orjson.loads((folder / "assets.extra" / "model_card.json").read_bytes())
    assert load_version(tmp_path, MODEL, 1).version_name == "1"
