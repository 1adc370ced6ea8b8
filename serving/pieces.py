"""A text's tokens, put together from what is known of its pieces: for tokenizers like BERT's, and exactly.

BERT's tokenizers split a text at spaces, before and behind each Chinese character and each punctuation
mark, and then look at every piece by itself. So the ids of a piece that was seen once are known for ever,
and most texts need no more than a look-up for each character or word. Whatever depends on its neighbours
(an accent, a letter outside ASCII, the beginning of a special token) makes the tokenizer itself count the
whole text, as does any piece that was not seen before.
"""

from __future__ import annotations

import json
import re
from itertools import chain

from tokenizers import Tokenizer

_PIECE = re.compile(r"[A-Za-z0-9]+|.", re.DOTALL)
_MOST_CHARACTERS = 4096  # of a text that is cut into pieces; a longer one would need much memory for it
_LONGEST_WORD = 32
_MOST_PIECES = 1 << 16  # known at a time
_TRIED = "很"  # a piece by itself, to see what a tokenizer puts around a text


class Pieces:
    """Counts texts as one tokenizer does. Safe for many threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        definition = json.loads(tokenizer.to_str())
        self._splits = _splits_like_bert(definition)
        beginnings = (token["content"][:1] for token in definition["added_tokens"])
        self._beginnings = {*chain.from_iterable((c, c.lower()) for c in beginnings)}
        around = tokenizer.encode(_TRIED).ids
        inner = tokenizer.encode(_TRIED, add_special_tokens=False).ids
        start = next((n for n in range(len(around)) if around[n : n + len(inner)] == inner), 0)
        self._before, self._behind = around[:start], around[start + len(inner) :]
        self._known: dict[str, list[int]] = {}
        self._dependent: set[str] = set()

    def ids(self, text: str) -> list[int]:
        """The ids of this text, special tokens included: those of `Tokenizer.encode`."""
        if self._splits and len(text) <= _MOST_CHARACTERS:
            try:
                inner = chain.from_iterable(map(self._known.__getitem__, _PIECE.findall(text)))
                ids: list[int] = [*self._before, *inner, *self._behind]
            except KeyError as unknown:
                # One piece a text, so that no text costs much more than counting it.
                self._learn(unknown.args[0])
            else:
                return ids
        # The batch call returns the same ids without the character offsets, which cost a quarter of the time.
        counted: list[int] = self._tokenizer.encode_batch_fast([text])[0].ids
        return counted

    def _learn(self, piece: str) -> None:
        if piece in self._dependent:
            return
        if len(self._known) + len(self._dependent) >= _MOST_PIECES:
            self._known, self._dependent = {}, set()
        if self._stands_alone(piece):
            self._known[piece] = self._tokenizer.encode(piece, add_special_tokens=False).ids
        else:
            self._dependent.add(piece)

    def _stands_alone(self, piece: str) -> bool:
        """Whether the tokenizer counts this piece the same, whatever stands beside it."""
        if len(piece) > _LONGEST_WORD or not self._beginnings.isdisjoint(piece):
            return False
        normal: str = self._tokenizer.normalizer.normalize_str(f"很{piece}很")
        if not self._beginnings.isdisjoint(normal):
            return False
        if piece.isascii() and piece.isalnum():
            return True  # letters beside it would be in the same piece
        between = self._tokenizer.normalizer.normalize_str(f"a{piece}a")
        split = [word for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(between)]
        return split[0] == split[-1] == "a" and len(split) in (2, 3)


def _splits_like_bert(definition: dict[str, dict[str, object]]) -> bool:
    kinds = [(definition[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
    around = definition["post_processor"] or {}
    # A template may put anything anywhere.
    return kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and around.get("type") in (
        None,
        "BertProcessing",
    )
