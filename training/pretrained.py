"""Hugging Face's BERT checkpoints, from a folder or the hub: config.json, safetensors, a tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training.bert_classifier import BertClassifier
from training.errors import TrainingError
from training.model import ACTIVATIONS, BertConfig, BertEncoder
from training.tokenizer import SPECIAL_TOKENS, open_tokenizer

WEIGHTS = "model.safetensors"
FILES = ("config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json", "vocab.txt")  # what is fetched
_LISTED = 8  # names in a message
_FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "vocabulary_size": ("vocab_size", int),
    "max_length_tokens": ("max_position_embeddings", int),
    "width": ("hidden_size", int),
    "heads": ("num_attention_heads", int),
    "layers": ("num_hidden_layers", int),
    "feed_forward_width": ("intermediate_size", int),
    "token_types": ("type_vocab_size", int),
    "activation": ("hidden_act", str),
    "norm_epsilon": ("layer_norm_eps", float),
    "dropout": ("hidden_dropout_prob", float),
    "attention_dropout": ("attention_probs_dropout_prob", float),
}
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Checkpoint:
    """Pretrained weights by Hugging Face's names, without the prefix `bert.`; `sha256` is of their file."""

    source: str
    config: BertConfig
    weights: dict[str, Array]
    tokenizer: Tokenizer
    sha256: str

    def fill(self, encoder: BertEncoder) -> None:
        """Give the encoder these weights."""
        at = self.weights
        encoder.token_embedding.assign(at["embeddings.word_embeddings.weight"])
        encoder.position_embedding.assign(at["embeddings.position_embeddings.weight"])
        encoder.type_embedding.assign(at["embeddings.token_type_embeddings.weight"])
        encoder.embedding_scale.assign(at["embeddings.LayerNorm.weight"])
        encoder.embedding_shift.assign(at["embeddings.LayerNorm.bias"])
        for number, layer in enumerate(encoder.layers):
            base = f"encoder.layer.{number}."
            parts = [base + f"attention.self.{part}" for part in ("query", "key", "value")]
            layer.query_key_value.assign(np.concatenate([at[p + ".weight"].T for p in parts], 1))
            layer.query_key_value_bias.assign(np.concatenate([at[p + ".bias"] for p in parts]))
            layer.output.assign(at[base + "attention.output.dense.weight"].T)
            layer.output_bias.assign(at[base + "attention.output.dense.bias"])
            layer.output_scale.assign(at[base + "attention.output.LayerNorm.weight"])
            layer.output_shift.assign(at[base + "attention.output.LayerNorm.bias"])
            layer.inner.assign(at[base + "intermediate.dense.weight"].T)
            layer.inner_bias.assign(at[base + "intermediate.dense.bias"])
            layer.outer.assign(at[base + "output.dense.weight"].T)
            layer.outer_bias.assign(at[base + "output.dense.bias"])
            layer.outer_scale.assign(at[base + "output.LayerNorm.weight"])
            layer.outer_shift.assign(at[base + "output.LayerNorm.bias"])

    def fill_classifier(self, classifier: BertClassifier) -> list[str]:
        """Give a classifier the encoder and, where there is one, the pooler; names what stays as it was."""
        self.fill(classifier.encoder)
        if "pooler.dense.weight" not in self.weights:
            return ["pooler", "head"]
        classifier.pooler.assign(self.weights["pooler.dense.weight"].T)
        classifier.pooler_bias.assign(self.weights["pooler.dense.bias"])
        return ["head"]


def load_checkpoint(source: str) -> Checkpoint:
    """Read a checkpoint from a folder, or from the Hugging Face hub: "owner/name", or "owner/name@revision".

    Raises: TrainingError: `checkpoint_missing` (no such folder, and the hub does not give it),
        `checkpoint_unreadable` (a file lacks or is broken), `checkpoint_unsupported` (not a BERT that this
        encoder computes), `checkpoint_mismatch` (its weights are not those of its config; names and shapes).
    """
    folder = Path(source) if Path(source).is_dir() else _fetch(source)
    config = _read_config(folder)
    weights = _read_weights(folder / WEIGHTS)
    _check(weights, config)
    tokenizer = open_tokenizer(folder)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    lacking = [token for token in SPECIAL_TOKENS if token not in ids]
    if lacking:
        raise TrainingError(
            "checkpoint_unsupported", f"the tokenizer of {folder} has no {', '.join(lacking)}"
        )
    if max(ids.values()) >= config.vocabulary_size:
        raise TrainingError(
            "checkpoint_mismatch",
            f"the tokenizer has ids up to {max(ids.values())}, the model {config.vocabulary_size} rows",
        )
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    return Checkpoint(source, config, weights, tokenizer, digest)


def _fetch(source: str) -> Path:
    """Download a model of the hub, or find it in the hub's cache on this machine."""
    name, _, revision = source.partition("@")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(FILES)))
    except ImportError as error:
        raise TrainingError("checkpoint_missing", f"to fetch {source}, install huggingface-hub") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TrainingError(
            "checkpoint_missing",
            f"{source} is no folder, and the Hugging Face hub does not give it: {reason}",
        ) from error


def _read_config(folder: Path) -> BertConfig:
    file = folder / "config.json"
    try:
        told: Any = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise TrainingError("checkpoint_unreadable", f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise TrainingError("checkpoint_unreadable", f"{file}: {error}") from error
    kind = told.get("model_type") if isinstance(told, dict) else None
    if kind != "bert":
        raise TrainingError("checkpoint_unsupported", f"{file} is of model type {kind!r}, not 'bert'")
    try:
        config = BertConfig(**{ours: read(told[theirs]) for ours, (theirs, read) in _FIELDS.items()})
    except KeyError as error:
        raise TrainingError("checkpoint_unreadable", f"{file} does not say {error}") from error
    except (ValueError, TypeError) as error:
        raise TrainingError("checkpoint_unreadable", f"{file}: {error}") from error
    if config.activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise TrainingError("checkpoint_unsupported", f"hidden_act is {config.activation!r}; known: {known}")
    if told.get("position_embedding_type", "absolute") != "absolute" or told.get("is_decoder"):
        raise TrainingError("checkpoint_unsupported", f"{file}: has relative positions or is a decoder")
    if config.width % config.heads:
        raise TrainingError(
            "checkpoint_unsupported", f"{file}: {config.width} do not split into {config.heads} heads"
        )
    return config


def _read_weights(file: Path) -> dict[str, Array]:
    from safetensors import SafetensorError, safe_open

    weights: dict[str, Array] = {}
    try:
        with safe_open(str(file), framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 -- not a dict
                weights[_plain(name)] = tensors.get_tensor(name)
    except FileNotFoundError as error:
        raise TrainingError("checkpoint_unreadable", f"{file} lacks; only safetensors are read") from error
    except (OSError, SafetensorError, TypeError) as error:
        raise TrainingError("checkpoint_unreadable", f"{file}: {error}") from error
    return weights


def _plain(name: str) -> str:
    """The name without the prefix of a BERT with heads, and with today's words for old ones."""
    name = name[len("bert.") :] if name.startswith("bert.") else name
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _check(weights: dict[str, Array], config: BertConfig) -> None:
    wanted = _shapes(config)
    pooler = {"pooler.dense.weight": (config.width, config.width), "pooler.dense.bias": (config.width,)}
    if any(name in weights for name in pooler):
        wanted.update(pooler)
    buffers = {"embeddings.position_ids"}  # 0, 1, 2, ...
    found = {n for n in weights if n.startswith(("embeddings.", "encoder.", "pooler."))} - buffers
    wrong = [f"{name} {list(wanted[name])} lacks" for name in wanted if name not in weights]
    wrong += [f"{name} {list(weights[name].shape)} is not known" for name in sorted(found - set(wanted))]
    wrong += [
        f"{name} is {list(weights[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    if wrong:
        more = f"; and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        raise TrainingError(
            "checkpoint_mismatch",
            f"the weights are not those of the config's BERT: {'; '.join(wrong[:_LISTED])}{more}",
        )


def _shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the encoder, by Hugging Face's name."""
    width, inner = config.width, config.feed_forward_width
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config.vocabulary_size, width),
        "embeddings.position_embeddings.weight": (config.max_length_tokens, width),
        "embeddings.token_type_embeddings.weight": (config.token_types, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    dense = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (inner, width),
        "output.dense": (width, inner),
    }
    for number in range(config.layers):
        base = f"encoder.layer.{number}."
        for name, shape in dense.items():
            shapes[f"{base}{name}.weight"] = shape
            shapes[f"{base}{name}.bias"] = shape[:1]
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{base}{name}.weight"] = shapes[f"{base}{name}.bias"] = (width,)
    return shapes
