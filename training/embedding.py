"""A pretrained checkpoint as an embedding model: exported like any other version, ready to serve."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.export import check_model_name, export_model
from training.model import BertEmbedder, BertEncoder
from training.pretrained import load_checkpoint


def export_embedding(source: str, models_dir: Path, name: str) -> Path:
    """Export the encoder of a checkpoint as models_dir/name/<next version>; return it.

    Signature: input_ids, attention_mask int32 (B, T) → `embeddings` float32 (B, D), unit vectors. The card's
    task is `embedding`, and it has no labels.

    Raises: TrainingError, with the codes of `load_checkpoint` and `export_model`.
    """
    check_model_name(name)
    checkpoint = load_checkpoint(source)
    encoder = BertEncoder(checkpoint.config, np.random.RandomState(0))
    checkpoint.fill(encoder)
    card = {
        "task": "embedding",
        "labels": [],
        "dimension": checkpoint.config.width,
        "pooling": "mean of the token vectors, unit length",
        "checkpoint": {"source": checkpoint.source, "sha256": checkpoint.sha256},
    }
    longest = checkpoint.config.max_length_tokens
    return export_model(BertEmbedder(encoder), checkpoint.tokenizer, longest, models_dir, name, card)
