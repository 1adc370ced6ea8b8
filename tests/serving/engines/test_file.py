from pathlib import Path
from typing import Any

import pytest

from serving.engines.file import EnginesFileError, key_of, read_engines
from tests.engines import write_engines, write_tokenizer

ADDRESS = "http://127.0.0.1:8001/v1"


def test_no_file_means_no_engines(tmp_path: Path) -> None:
    assert read_engines(tmp_path / "models.toml") == ()


def test_the_file_of_the_project_is_one(tmp_path: Path) -> None:
    file = Path(__file__).parents[3] / "models.toml"
    assert read_engines(file) == ()
    lines = file.read_text().splitlines()
    example = "\n".join(line.removeprefix("# ") for line in lines[lines.index("# [[engines]]") :])
    (tmp_path / "models.toml").write_text(example)
    write_tokenizer(tmp_path / "tokenizers" / "chat")
    [engine] = read_engines(tmp_path / "models.toml")
    assert (engine.model, engine.name_there, engine.most_output_tokens) == ("chat", "chat", 32768)


def test_the_reference_lists_every_key() -> None:
    from serving.engines.file import Engine

    reference = (Path(__file__).parents[3] / "docs" / "gateway.md").read_text()
    assert [name for name in Engine.model_fields if f"| `{name}` |" not in reference] == []


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ({"prices": 5}, "engines.0.prices"),
        ({"model": "a b"}, "engines.0.model"),
        ({"addresses": []}, "engines.0.addresses"),
        ({"addresses": ["127.0.0.1:8001"]}, "engines.0.addresses"),
        ({"addresses": ["http://user:secret@host/v1"]}, "engines.0.addresses"),
        ({"addresses": ["http://host:99999/v1"]}, "engines.0.addresses"),
        ({"addresses": [ADDRESS, ADDRESS]}, "engines.0.addresses"),
        ({"kinds": ["speech"]}, "engines.0.kinds.0"),
        ({"max_context_tokens": "1000"}, "engines.0.max_context_tokens"),
        ({"max_output_tokens": 1001}, "engines.0"),
        ({"idle_seconds": 0}, "engines.0.idle_seconds"),
    ],
)
def test_an_entry_that_is_wrong_is_refused_with_its_place(
    tmp_path: Path, entry: dict[str, Any], place: str
) -> None:
    file = write_engines(tmp_path, {"addresses": [ADDRESS], **entry})
    with pytest.raises(EnginesFileError) as caught:
        read_engines(file)
    assert caught.value.code == "engines_invalid"
    assert f"models.toml: {place}: " in str(caught.value)


def test_two_engines_can_not_have_one_name(tmp_path: Path) -> None:
    file = write_engines(tmp_path, {"addresses": [ADDRESS]}, {"addresses": ["http://127.0.0.1:8002/v1"]})
    with pytest.raises(EnginesFileError, match="engine_duplicate"):
        read_engines(file)


def test_a_tokenizer_that_is_not_there_is_told(tmp_path: Path) -> None:
    file = write_engines(tmp_path, {"addresses": [ADDRESS], "tokenizer": "elsewhere"})
    with pytest.raises(EnginesFileError, match="tokenizer_missing"):
        read_engines(file)


@pytest.mark.parametrize(
    ("variables", "key"), [({"KEY": "sk-1"}, "sk-1"), ({}, None), ({"KEY": "a\r\nb"}, None)]
)
def test_a_key_comes_from_the_environment_or_the_start_fails(
    tmp_path: Path, variables: dict[str, str], key: str | None
) -> None:
    file = write_engines(tmp_path, {"addresses": [ADDRESS], "api_key_variable": "KEY"})
    [engine] = read_engines(file)
    if key is None:
        with pytest.raises(EnginesFileError, match="engine_key_missing"):
            key_of(engine, variables)
    else:
        found = key_of(engine, variables)
        assert found is not None
        assert found.get_secret_value() == key
        assert key not in repr(found)
