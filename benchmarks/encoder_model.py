"""Text encoders with random weights, exported as SavedModels: to measure before, and beside, any training."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCABULARY_SIZE = 8_000  # of the small one
_LABELS = 2


@dataclass(frozen=True)
class Size:
    """How large an encoder is."""

    vocabulary: int
    width: int
    heads: int
    layers: int
    longest: int = 2_048


SMALL = Size(VOCABULARY_SIZE, 128, 4, 2)
BERT_BASE = Size(21_128, 768, 12, 12)
SIZES = {"small": SMALL, "bert-base": BERT_BASE}


def export_encoder(folder: Path, size: Size = SMALL) -> None:
    """Write a transformer encoder of this size, with the signature of the exported models."""
    import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

    ids = tf.TensorSpec([None, None], tf.int32)
    random = tf.random.Generator.from_seed(0)
    width, layers = size.width, range(size.layers)

    def weights(*shape: int) -> Any:
        return tf.Variable(random.normal(shape, stddev=0.05))

    def normal(x: Any) -> Any:
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        return (x - mean) * tf.math.rsqrt(variance + 1e-6)

    class Encoder(tf.Module):  # type: ignore[misc]  # tf is untyped
        """Embeddings, layers of attention and feed-forward, mean over the mask, softmax."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens = weights(size.vocabulary, width)
            self.places = weights(size.longest, width)
            self.qkv = [weights(width, 3 * width) for _ in layers]
            self.out = [weights(width, width) for _ in layers]
            self.up = [weights(width, 4 * width) for _ in layers]
            self.down = [weights(4 * width, width) for _ in layers]
            self.head = weights(width, _LABELS)

        @tf.function(input_signature=[ids, ids])  # type: ignore[untyped-decorator]  # tf is untyped
        def serve(self, input_ids: Any, attention_mask: Any) -> Any:
            """int32 [batch, length] twice → float32 [batch, labels]."""
            mask = tf.cast(attention_mask, tf.float32)  # (B, L)
            batch, length = tf.shape(input_ids)[0], tf.shape(input_ids)[1]
            x = tf.gather(self.tokens, input_ids) + self.places[:length]  # (B, L, W)

            def heads(part: Any) -> Any:
                split = tf.reshape(part, [batch, length, size.heads, width // size.heads])
                return tf.transpose(split, [0, 2, 1, 3])  # (B, H, L, W / H)

            for layer in layers:
                q, k, v = (heads(part) for part in tf.split(normal(x) @ self.qkv[layer], 3, axis=-1))
                scores = tf.matmul(q, k, transpose_b=True) * (width // size.heads) ** -0.5
                seen = tf.nn.softmax(scores - 1e9 * (1 - mask[:, None, None, :])) @ v
                x += tf.reshape(tf.transpose(seen, [0, 2, 1, 3]), [batch, length, width]) @ self.out[layer]
                x += tf.nn.relu(normal(x) @ self.up[layer]) @ self.down[layer]
            mean = tf.reduce_sum(x * mask[..., None], 1) / tf.reduce_sum(mask, 1, keepdims=True)
            return {"probabilities": tf.nn.softmax(mean @ self.head)}

    encoder = Encoder()
    tf.saved_model.save(encoder, str(folder), signatures={"serving_default": encoder.serve})


if __name__ == "__main__":
    export_encoder(Path(sys.argv[1]), SIZES[sys.argv[2] if len(sys.argv) > 2 else "small"])
