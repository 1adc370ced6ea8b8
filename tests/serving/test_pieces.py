from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from serving import pieces
from serving.pieces import Pieces
from tests.savedmodels import VOCABULARY
from training.tokenizer import build_tokenizer

TEXTS = ["房间很干净，wifi不错 123 ok", "Café ünïted [MASK] 很好！", "hotel hotels unhotel, ０１２ ②③"] * 12
# What tokenizers treat apart: marks that vanish or join, special tokens, compatibility characters, blanks.
TRICKY = ["\u0301", "\u200b", "\x00", "\ufffd", "[MASK]", "[mask]", "[", "\u037e", "豈", "İ", "é", "😀", " ",
          "\n", "\u3000", "\u2028", "。。", "ab很", "##a", "x" * 40, "房间", "ok", "，"]  # fmt: skip
texts = st.lists(st.sampled_from(TRICKY) | st.text(max_size=3), max_size=12).map("".join)


def word_piece(**normalizer: Any) -> Tokenizer:
    ids = {token: number for number, token in enumerate([*VOCABULARY, "ab", "ok", "。"])}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))  # noqa: S106  a token of the vocabulary
    tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def with_tokens(tokenizer: Tokenizer, *tokens: str | AddedToken) -> Tokenizer:
    tokenizer.add_tokens(list(tokens))
    return tokenizer


TOKENIZERS = {
    "trained": build_tokenizer(TEXTS),
    "as the tests export it": word_piece(),
    "cased": word_piece(lowercase=False),
    "accents kept": word_piece(strip_accents=False),
    "Chinese in words": word_piece(handle_chinese_chars=False),
    "a token of marks": with_tokens(word_piece(), "。。"),
    "a token of letters": with_tokens(word_piece(), AddedToken("ok", normalized=True, single_word=True)),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40)
@given(text=texts)
def test_a_text_has_the_ids_that_its_tokenizer_gives_also_when_all_its_pieces_are_known(
    name: str, text: str
) -> None:
    tokenizer = TOKENIZERS[name]
    counted = Pieces(tokenizer)
    expected = tokenizer.encode(text).ids
    for _ in range(min(len(text), 12) + 1):
        assert counted.ids(text) == expected


class Watched:
    """A tokenizer that notes which texts it was asked to count."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.counted: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode_batch_fast(self, texts: list[str]) -> Any:
        self.counted += texts
        return self._tokenizer.encode_batch_fast(texts)


def test_a_text_of_known_pieces_is_not_given_to_the_tokenizer() -> None:
    watched = Watched(TOKENIZERS["trained"])
    counted = Pieces(watched)  # type: ignore[arg-type]  # it quacks
    for _ in range(5):  # each teaches it one piece
        counted.ids("很好, wifi很")
    assert len(watched.counted) == 5
    counted.ids("很好, wifi很")
    counted.ids("wifi, 好")
    assert len(watched.counted) == 5
    counted.ids("é")
    assert watched.counted[-1] == "é"


def test_a_tokenizer_of_another_kind_counts_every_text_itself() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))  # noqa: S106  a token of the vocabulary
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    watched = Watched(tokenizer)
    counted = Pieces(watched)  # type: ignore[arg-type]  # it quacks
    assert [counted.ids("a b") for _ in range(3)] == [[0, 1]] * 3
    assert len(watched.counted) == 3


def test_what_is_known_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_MOST_PIECES", 10)
    tokenizer = TOKENIZERS["trained"]
    counted = Pieces(tokenizer)
    for number in range(100):
        assert counted.ids(f"w{number}é很") == tokenizer.encode(f"w{number}é很").ids
        assert len(counted._known) + len(counted._dependent) <= 10


def test_a_long_text_is_counted_whole() -> None:
    tokenizer = TOKENIZERS["trained"]
    text = "很好" * 5000
    counted = Pieces(tokenizer)
    assert [len(counted.ids(text)) for _ in range(3)] == [10_002] * 3
