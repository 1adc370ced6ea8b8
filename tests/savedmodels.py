"""A tiny exported model for tests: a real SavedModel with tokenizer and model card, written in a moment."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LABELS = (("negative", "这是一条负面评价"), ("positive", "这是一条正面评价"))
_CHARACTERS = "".join(map(chr, range(33, 127))) + "这是一条负正面评价：，。把握房间很干净服务态度差不好吃"
_INSIDE_WORDS = (f"##{character}" for character in string.ascii_lowercase + string.digits)
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(_CHARACTERS), *_INSIDE_WORDS)
MAX_LENGTH_TOKENS = 64
EMBEDS: dict[str, Any] = {"task": "embedding", "labels": [], "dimension": len(LABELS)}  # on a card


def tiny_probabilities(input_ids: Sequence[int], version: int = 1) -> NDArray[np.float32]:
    """What the tiny model answers for one text, computed without TensorFlow: float32 [labels]."""
    logits = _table()[list(input_ids)].mean(axis=0) + _bias(version)
    powers = np.exp(logits - logits.max())
    probabilities: NDArray[np.float32] = powers / powers.sum()
    return probabilities


def export_tiny_model(
    models_dir: Path, name: str = "review-sentiment", version: int = 1, model: Any = None, **card: Any
) -> Path:
    """Write models_dir/name/version, beside and renamed, and return it. Versions differ in their answers.

    Ids outside the vocabulary make the model fail. `model`: another tf.Module with a method `serve`. `card`:
    what its card says differently.
    """
    import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

    model = model or _tiny_module(version)
    beside = models_dir / f".{name}-{version}"
    tf.saved_model.save(model, str(beside), signatures={"serving_default": model.serve})
    write_assets(beside / "assets.extra", name, version, **card)
    folder = models_dir / name / str(version)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return beside.rename(folder)


def tiny_embedding(input_ids: Sequence[int]) -> NDArray[np.float32]:
    """What the tiny embedder answers for one text, computed without TensorFlow: float32 [dimension]."""
    mean = _table()[list(input_ids)].mean(axis=0)
    embedding: NDArray[np.float32] = mean / np.linalg.norm(mean)
    return embedding


def export_tiny_embedder(models_dir: Path, name: str) -> Path:
    """The same for a model that embeds, as `tallybook export-embedding` writes it."""
    import tensorflow as tf

    ids = tf.TensorSpec([None, None], tf.int32)

    class TinyEmbedder(tf.Module):  # type: ignore[misc]  # tf is untyped
        """The masked mean of one learnt row for each token, as a unit vector."""

        def __init__(self) -> None:
            super().__init__()
            self.table = tf.Variable(_table())

        @tf.function(input_signature=[ids, ids])  # type: ignore[untyped-decorator]  # tf is untyped
        def serve(self, input_ids: Any, attention_mask: Any) -> Any:
            """int32 [batch, length] twice → float32 [batch, dimension]."""
            mask = tf.cast(attention_mask, tf.float32)[..., None]
            mean = tf.reduce_sum(tf.gather(self.table, input_ids) * mask, 1) / tf.reduce_sum(mask, 1)
            return {"embeddings": tf.math.l2_normalize(mean, 1)}

    return export_tiny_model(models_dir, name, model=TinyEmbedder(), **EMBEDS)


def export_half_plus_two(models_dir: Path, name: str = "half_plus_two", version: int = 123) -> Path:
    """Write a model as TensorFlow Serving's own tests have one: x / 2 + 2, by tensors and by tf.Examples.

    Signatures: `serving_default` (x, a float [batch]),
    `regress`, `classify` (classes and scores), `scores` (scores alone), `shout` (strings, as text and as
    bytes) and `matrix` (x of [batch, 2]).
    """
    import tensorflow as tf

    v1 = tf.compat.v1
    graph = tf.Graph()
    with graph.as_default(), v1.Session(graph=graph) as session:
        half = v1.get_variable("half", initializer=0.5, use_resource=True)
        examples = v1.placeholder(tf.string, [None], "examples")
        x_of = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
        x = v1.placeholder(tf.float32, [None], "x")
        pairs = v1.placeholder(tf.float32, [None, 2], "pairs")
        words = v1.placeholder(tf.string, [None], "words")
        y_of = x_of * half + 2.0
        classes = tf.tile(tf.constant([["up", "down"]]), [tf.shape(y_of)[0], 1])
        scores = tf.concat([y_of, -y_of], 1)
        loud = tf.strings.upper(words)
        session.run(v1.global_variables_initializer())

        def signature(method: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> Any:
            info = v1.saved_model.build_tensor_info
            return v1.saved_model.build_signature_def(
                {key: info(tensor) for key, tensor in inputs.items()},
                {key: info(tensor) for key, tensor in outputs.items()},
                f"tensorflow/serving/{method}",
            )

        beside = models_dir / f".{name}-{version}"
        builder = v1.saved_model.Builder(str(beside))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={
                "serving_default": signature("predict", {"x": x}, {"y": x * half + 2.0}),
                "matrix": signature(
                    "predict", {"x": pairs}, {"sum": tf.reduce_sum(pairs, 1), "pairs": pairs + 0}
                ),
                "shout": signature("predict", {"words": words}, {"loud": loud, "loud_bytes": loud}),
                "regress": signature("regress", {"inputs": examples}, {"outputs": y_of}),
                "classify": signature(
                    "classify", {"inputs": examples}, {"classes": classes, "scores": scores}
                ),
                "scores": signature("classify", {"inputs": examples}, {"scores": scores}),
            },
        )
        builder.save()
    folder = models_dir / name / str(version)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return beside.rename(folder)


def _table() -> NDArray[np.float32]:
    # Any fixed numbers of which no two rows are alike.
    return np.sin(np.arange(len(VOCABULARY) * len(LABELS), dtype=np.float32)).reshape(-1, len(LABELS)) * 3


def _bias(version: int) -> NDArray[np.float32]:
    return np.array([0.0, 0.25 * version], np.float32)


def _tiny_module(version: int) -> Any:
    import tensorflow as tf

    ids = tf.TensorSpec([None, None], tf.int32)

    class TinyClassifier(tf.Module):  # type: ignore[misc]  # tf is untyped
        """Softmax of the masked mean of one learnt row for each token."""

        def __init__(self) -> None:
            super().__init__()
            self.table = tf.Variable(_table())
            self.bias = tf.Variable(_bias(version))

        @tf.function(input_signature=[ids, ids])  # type: ignore[untyped-decorator]  # tf is untyped
        def serve(self, input_ids: Any, attention_mask: Any) -> Any:
            """int32 [batch, length] twice → float32 [batch, labels]."""
            mask = tf.cast(attention_mask, tf.float32)[..., None]
            mean = tf.reduce_sum(tf.gather(self.table, input_ids) * mask, 1) / tf.reduce_sum(mask, 1)
            return {"probabilities": tf.nn.softmax(mean + self.bias)}

    return TinyClassifier()


def write_assets(folder: Path, name: str, version: int, **changes: Any) -> None:
    """Write what the API reads of an export: tokenizer, and card with these changes. Needs no TensorFlow."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import BertProcessing

    ids = {token: number for number, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))  # noqa: S106  a token of the vocabulary
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    fingerprint = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_LENGTH_TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    card = {
        "name": name,
        "version": version,
        "created_at": "2026-11-22T00:00:00+00:00",
        "framework": "tensorflow",
        "labels": [{"name": label, "explanation": text} for label, text in LABELS],
        "max_length_tokens": MAX_LENGTH_TOKENS,
        "tokenizer_fingerprint": fingerprint,
        "data": {"name": "none", "sha256": "0" * 64, "counts": {}},
        "code_version": "test",
        "metrics": {},
        "baseline": {},
        "training": {},
        **changes,
    }
    (folder / "model_card.json").write_text(json.dumps(card, ensure_ascii=False))
