"""A small text encoder with random weights, exported as a SavedModel: to measure before any training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

VOCABULARY_SIZE = 8_000
LONGEST = 512
_WIDTH, _HEADS, _LAYERS, _LABELS = 128, 4, 2, 2


def export_encoder(folder: Path) -> None:
    """Write a two-layer, 128-wide transformer encoder with the signature of the exported models."""
    import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

    ids = tf.TensorSpec([None, None], tf.int32)
    random = tf.random.Generator.from_seed(0)

    def weights(*shape: int) -> Any:
        return tf.Variable(random.normal(shape, stddev=0.05))

    class Encoder(tf.Module):  # type: ignore[misc]  # tf is untyped
        """Embeddings, layers of attention and feed-forward, mean over the mask, softmax."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens = weights(VOCABULARY_SIZE, _WIDTH)
            self.places = weights(LONGEST, _WIDTH)
            self.qkv = [weights(_WIDTH, 3 * _WIDTH) for _ in range(_LAYERS)]
            self.out = [weights(_WIDTH, _WIDTH) for _ in range(_LAYERS)]
            self.up = [weights(_WIDTH, 4 * _WIDTH) for _ in range(_LAYERS)]
            self.down = [weights(4 * _WIDTH, _WIDTH) for _ in range(_LAYERS)]
            self.head = weights(_WIDTH, _LABELS)

        @tf.function(input_signature=[ids, ids])  # type: ignore[untyped-decorator]  # tf is untyped
        def serve(self, input_ids: Any, attention_mask: Any) -> Any:
            """int32 [batch, length] twice → float32 [batch, labels]."""
            mask = tf.cast(attention_mask, tf.float32)  # (B, L)
            batch, length = tf.shape(input_ids)[0], tf.shape(input_ids)[1]
            x = tf.gather(self.tokens, input_ids) + self.places[:length]  # (B, L, W)

            def heads(part: Any) -> Any:
                split = tf.reshape(part, [batch, length, _HEADS, _WIDTH // _HEADS])
                return tf.transpose(split, [0, 2, 1, 3])  # (B, H, L, W / H)

            for layer in range(_LAYERS):
                q, k, v = (heads(part) for part in tf.split(x @ self.qkv[layer], 3, axis=-1))
                scores = tf.matmul(q, k, transpose_b=True) * (_WIDTH // _HEADS) ** -0.5
                seen = tf.nn.softmax(scores - 1e9 * (1 - mask[:, None, None, :])) @ v
                x += tf.reshape(tf.transpose(seen, [0, 2, 1, 3]), [batch, length, _WIDTH]) @ self.out[layer]
                x += tf.nn.relu(x @ self.up[layer]) @ self.down[layer]
            mean = tf.reduce_sum(x * mask[..., None], 1) / tf.reduce_sum(mask, 1, keepdims=True)
            return {"probabilities": tf.nn.softmax(mean @ self.head)}

    encoder = Encoder()
    tf.saved_model.save(encoder, str(folder), signatures={"serving_default": encoder.serve})


if __name__ == "__main__":
    export_encoder(Path(sys.argv[1]))
