"""The tokenizer: the same from the same texts, and it counts alike wherever it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from training.dataset import ALWAYS_FIT_CHARACTERS, held_out_texts, load_texts
from training.small_model import SmallConfig
from training.tokenizer import SPECIAL_TOKENS, build_tokenizer, save_tokenizer

REVIEWS = load_texts(limit=600)
LONG = "房间很大，早餐一般。" * 300
STRANGE = ["", " ", "[SEP] 你好", "ünï ﷽ 😀👍 İstanbul", "a" * 300, "line\nbreak\ttab", "ＡＢＣ１２３", LONG]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer(REVIEWS.train.texts)


def saved(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    save_tokenizer(tokenizer, folder, 512)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_the_same_texts_give_the_same_file_whatever_their_order(tokenizer: Tokenizer, tmp_path: Path) -> None:
    saved(tokenizer, tmp_path)
    first = (tmp_path / "tokenizer.json").read_bytes()
    saved(build_tokenizer(reversed(REVIEWS.train.texts)), tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == first


def test_a_chinese_character_is_a_token_and_a_latin_word_is_cut_into_known_pieces() -> None:
    tokenizer = build_tokenizer(["很好 wifi"] * 10)
    assert tokenizer.encode("很好WIFI,wix").tokens == [
        "[CLS]", "很", "好", "wifi", ",", "w", "##i", "##x", "[SEP]",
    ]  # fmt: skip


def test_a_character_outside_the_training_texts_is_unknown(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("龘").tokens == ["[CLS]", "[UNK]", "[SEP]"]


def test_padding_is_id_0_and_unknown_is_id_1_as_the_model_expects(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(t) for t in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]


def test_use_that_truncates_and_pads_does_not_reach_the_saved_file(tmp_path: Path) -> None:
    used = build_tokenizer(REVIEWS.train.texts)
    used.enable_truncation(16)
    used.enable_padding(length=16)
    loaded = saved(used, tmp_path)
    assert len(loaded.encode(LONG).ids) == len(LONG) + 2
    assert len(loaded.encode("好").ids) == 3
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    assert (content["truncation"], content["padding"]) == (None, None)
    assert used.truncation  # and the tokenizer in use is left as it was
    assert used.padding


def test_transformers_opens_the_folder_and_counts_alike(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    loaded = saved(tokenizer, tmp_path)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    texts = [*STRANGE, *REVIEWS.test.texts]
    theirs(texts, padding=True, truncation=True, max_length=8)  # changes its state
    for text in texts:
        assert theirs(text)["input_ids"] == loaded.encode(text).ids == tokenizer.encode(text).ids
    assert (theirs.pad_token_id, theirs.unk_token_id, theirs.model_max_length) == (0, 1, 512)


def test_every_held_out_text_fits_the_model_whole(tokenizer: Tokenizer) -> None:
    longest = max(len(encoding.ids) for encoding in tokenizer.encode_batch(held_out_texts()))
    assert longest <= ALWAYS_FIT_CHARACTERS + 2 == SmallConfig(vocabulary_size=1).max_length_tokens
