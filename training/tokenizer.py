"""The model's own WordPiece tokenizer: made from the training texts, the same from the same texts."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from training.errors import TrainingError

PAD, UNKNOWN, START, END, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_OWN = {"strip_accents": False}  # how the texts of a tokenizer of our own are made plain
MIN_WORD_COUNT = 10  # a Latin word seen as often becomes a token of its own


def build_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer in the manner of BERT's Chinese one: a token a Chinese character, WordPiece for the rest.

    Every character of the texts is a token, and so are the frequent words of letters and digits. The trainer
    of `tokenizers` breaks ties at random; counted here, the same texts give the same vocabulary to the byte.
    WordPiece as in https://arxiv.org/abs/1609.08144, used as in https://arxiv.org/abs/1810.04805.
    """
    parts = _wordpiece({token: number for number, token in enumerate(SPECIAL_TOKENS)}, _OWN)
    ids = {token: number for number, token in enumerate(_vocabulary(_words(parts, texts)))}
    return _wordpiece(ids, _OWN)


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint: its tokenizer.json, or else BERT's own made of its vocab.txt.

    It truncates and pads nothing. Raises: TrainingError: `checkpoint_unreadable`.
    """
    whole, vocabulary, told = (folder / n for n in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"))
    try:
        if whole.is_file():
            tokenizer = Tokenizer.from_file(str(whole))
        else:
            config = json.loads(told.read_text("utf-8")) if told.is_file() else {}
            lines = vocabulary.read_text("utf-8").rstrip("\n").split("\n")
            tokenizer = _wordpiece({token: number for number, token in enumerate(lines)}, config)
    except Exception as error:
        raise TrainingError("checkpoint_unreadable", f"the tokenizer of {folder}: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _wordpiece(ids: dict[str, int], config: dict[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=config.get("do_lower_case", True),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing((END, ids[END]), (START, ids[START]))
    tokenizer.add_special_tokens([token for token in SPECIAL_TOKENS if token in ids])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length_tokens: int) -> None:
    """Write tokenizer.json and tokenizer_config.json, which `AutoTokenizer.from_pretrained(folder)` opens.

    The file truncates and pads nothing, whatever the tokenizer was used for before: whoever counts with it
    counts the whole text and no padding.
    """
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    whole.no_padding()
    whole.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length_tokens,
        "model_input_names": ["input_ids", "attention_mask"],
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "cls_token": START,
        "sep_token": END,
        "mask_token": MASK,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text + "\n", "utf-8")


def _words(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    words: Counter[str] = Counter()
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    return words


def _vocabulary(words: Counter[str]) -> list[str]:
    """Special tokens, then characters, then continuing characters, then words; each part sorted."""
    plain = set(string.ascii_lowercase + string.digits)  # so that no Latin word is unknown
    first = plain.union(string.punctuation, *(set(word) for word in words))
    later = plain.union(*(set(word[1:]) for word in words))
    frequent = {word for word, count in words.items() if count >= MIN_WORD_COUNT and len(word) > 1}
    return [*SPECIAL_TOKENS, *sorted(first), *sorted("##" + c for c in later), *sorted(frequent)]
