"""BERT with the head that classifies: what a pretrained checkpoint is fine-tuned as.

B is the batch, T the length in tokens, D the width, K the labels.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

from training.classifier import Classifier
from training.model import BertConfig, BertEncoder, Noise, Tensor, dense, drop, weight, zeros


class BertClassifier(Classifier):
    """BERT's own head: the first token's vector, [CLS], through a tanh layer and a linear one."""

    def __init__(self, config: BertConfig, labels: int, seed: int, compute: str = "float32") -> None:
        super().__init__(parts=1, labels=labels)
        random = np.random.RandomState(seed)  # its stream is frozen, so a seed means the same everywhere
        width = config.width
        self.config = config
        self.encoder = BertEncoder(config, random, compute)
        self.pooler, self.pooler_bias = weight(random, width, width), zeros(width, "bias")
        self.head, self.head_bias = weight(random, width, labels), zeros(labels, "bias")

    def logits(self, ids: Tensor, mask: Tensor, noise: Noise | None = None) -> Tensor:
        """ids, mask: int32 (B, T) → float32 (B, 1, K)."""
        first = self.encoder(ids, mask, noise)[:, 0]  # (B, D)
        pooled = drop(tf.tanh(dense(first, self.pooler, self.pooler_bias)), self.config.dropout, noise)
        return tf.cast(dense(pooled, self.head, self.head_bias), tf.float32)[:, None]
