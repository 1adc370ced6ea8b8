"""BERT once more, in numpy and text by text, from the names of Hugging Face: ours is held against it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = Any  # float64 of any shape

_erf = np.vectorize(math.erf)


def token_vectors(weights: dict[str, Array], heads: int, ids: list[int]) -> Array:
    """The last layer's vector for each token: float64 (T, D)."""
    at = {
        name.removeprefix("bert.").replace("gamma", "weight").replace("beta", "bias"): value.astype(
            np.float64
        )
        for name, value in weights.items()
    }

    def linear(x: Array, name: str) -> Array:
        return x @ at[f"{name}.weight"].T + at[f"{name}.bias"]

    def norm(x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return centred / deviation * at[f"{name}.weight"] + at[f"{name}.bias"]

    x = at["embeddings.word_embeddings.weight"][ids] + at["embeddings.token_type_embeddings.weight"][0]
    x = norm(x + at["embeddings.position_embeddings.weight"][: len(ids)], "embeddings.LayerNorm")
    layer = 0
    while f"encoder.layer.{layer}.output.dense.bias" in at:
        base = f"encoder.layer.{layer}."
        query, key, value = (
            np.split(linear(x, f"{base}attention.self.{part}"), heads, 1)
            for part in ("query", "key", "value")
        )
        mixed = []
        for q, k, v in zip(query, key, value, strict=True):
            powers = np.exp(q @ k.T / math.sqrt(q.shape[1]))
            mixed.append(powers / powers.sum(1, keepdims=True) @ v)
        y = linear(np.concatenate(mixed, 1), f"{base}attention.output.dense")
        x = norm(x + y, f"{base}attention.output.LayerNorm")
        y = linear(x, f"{base}intermediate.dense")
        y = linear(y * (1 + _erf(y / math.sqrt(2))) / 2, f"{base}output.dense")
        x = norm(x + y, f"{base}output.LayerNorm")
        layer += 1
    return x
