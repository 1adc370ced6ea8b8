import json
from pathlib import Path
from typing import Any

import pytest

from serving.engines.chat_template import load_chat_template
from serving.engines.file import EnginesFileError, read_engines
from serving.engines.tokens import EngineTokenizer
from tests.engines import write_engines, write_tokenizer


def tokenizer(tmp_path: Path, chat_template: str | None = None) -> EngineTokenizer:
    file = write_engines(tmp_path, {"addresses": ["http://127.0.0.1:1/v1"]})
    if chat_template is not None:
        write_tokenizer(tmp_path / "tokenizer", chat_template)
    return EngineTokenizer(read_engines(file)[0])


def test_messages_are_counted_as_the_template_renders_them(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}]
    prompt = tokenizer(tmp_path).chat(messages, None, None)
    assert prompt.text == "<system> be short </> <user> hello </> <assistant>"
    assert (prompt.tokens, prompt.longest, prompt.exact) == (8, 8, True)


def test_parts_of_text_are_one_text_and_pictures_make_the_count_inexact(tmp_path: Path) -> None:
    text = [{"type": "text", "text": "what is"}, {"type": "text", "text": "this"}]
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    counter = tokenizer(tmp_path)
    assert counter.chat([{"role": "user", "content": text}], None, None)[1:] == (6, 6, True)
    assert counter.chat([{"role": "user", "content": [*text, picture]}], None, None)[1:] == (6, 6, False)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[99].content.nothing }}",
        "{{ messages + 1 }}",
        "{{ ''.__class__.__mro__ }}",  # the sandbox's business
    ],
)
def test_messages_that_a_template_does_not_take_are_estimated(tmp_path: Path, template: str) -> None:
    prompt = tokenizer(tmp_path, template).chat([{"role": "user", "content": "a b c"}], None, None)
    assert not prompt.exact
    assert prompt.tokens >= 4


def test_a_template_may_use_what_transformers_offers(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }} {% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %} {{ tools | tojson }} "
        "{{ strftime_now('%Y') | length }}{% if think %} thinking{% endif %}"
    )
    folder = write_tokenizer(tmp_path, template)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": {"content": "<s>"}}))
    made = load_chat_template(folder)
    assert made is not None
    messages = [{"content": "<b>你好</b>"}, {"content": "no"}]
    assert (
        made.render(messages, [{"a": "<你>"}], {"think": True})
        == '<s> <b>你好</b> [{"a": "<你>"}] 4 thinking'
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"chat_template": "a"}, "a"),
        ({"chat_template": [{"name": "default", "template": "b"}]}, "b"),
        ({"chat_template": [{"name": "rag", "template": "b"}]}, None),
        ({}, None),
    ],
)
def test_where_a_template_is_found(tmp_path: Path, content: dict[str, Any], expected: str | None) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    made = load_chat_template(tmp_path)
    assert (made and made.render([])) == expected
    (tmp_path / "chat_template.jinja").write_text("own")
    made = load_chat_template(tmp_path)
    assert made is not None
    assert made.render([]) == "own"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"chat_template": 5}'),
        ("chat_template.jinja", "{% if %}"),
    ],
)
def test_a_folder_that_can_not_be_read_stops_the_start(tmp_path: Path, name: str, content: str) -> None:
    file = write_engines(tmp_path, {"addresses": ["http://127.0.0.1:1/v1"]})
    (tmp_path / "tokenizer" / name).write_text(content)
    with pytest.raises(EnginesFileError, match="tokenizer_invalid"):
        EngineTokenizer(read_engines(file)[0])


def test_a_tokenizer_that_cuts_or_pads_does_so_no_more(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    file = write_engines(tmp_path, {"addresses": ["http://127.0.0.1:1/v1"]})
    path = str(tmp_path / "tokenizer" / "tokenizer.json")
    cutting = Tokenizer.from_file(path)
    cutting.enable_truncation(2)
    cutting.enable_padding(length=9)
    cutting.save(path)
    counter = EngineTokenizer(read_engines(file)[0])
    assert (counter.count("a b c d"), counter.count("a")) == (4, 1)
