"""The gate: a version is published if it beats the baseline and is not worse than the version in service."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training.batches import encode, in_order
from training.dataset import Split
from training.evaluation import Baseline

Right = NDArray[np.bool_]  # (N,): whether each held-out text got its label


@dataclass(frozen=True)
class Rival:
    """The version in service on the held-out texts; without `right`, `problem` says why it can't be asked."""

    version: str
    right: Right | None
    problem: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the gate says, and why; `override` is the reason of whoever publishes all the same."""

    passed: bool
    reason: str
    override: str | None = None

    @property
    def publish(self) -> bool:
        """Whether the version is to be published."""
        return self.passed or self.override is not None

    def to_json(self) -> dict[str, Any]:
        """For the model card."""
        return {"passed": self.passed, "reason": self.reason, "override": self.override}


def judge(right: Right, baseline: Baseline, rival: Rival | None, override: str | None = None) -> Verdict:
    """Compare on the same held-out texts: more right than the baseline, and no fewer than the rival."""
    count, of = int(right.sum()), len(right)
    passed = count > baseline.test.correct
    reasons = [
        f"it has {count:,} of {of:,} held-out texts right, the baseline {baseline.test.correct:,}"
        f" ({'more' if passed else 'not more'})"
    ]
    if rival is None:
        reasons.append("no version is in service")
    elif rival.right is None:
        passed = False
        reasons.append(f"version {rival.version}, in service, can't be compared: {rival.problem}")
    else:
        theirs = int(rival.right.sum())
        worse = count < theirs
        passed = passed and not worse
        ours_alone, theirs_alone = int((right & ~rival.right).sum()), int((~right & rival.right).sum())
        reasons.append(
            f"version {rival.version}, in service, has {theirs:,} right ({'worse' if worse else 'not worse'};"
            f" {ours_alone:,} texts only it has right, {theirs_alone:,} only version {rival.version}:"
            f" by chance as far apart with probability {sign_test(ours_alone, theirs_alone):.2g})"
        )
    return Verdict(passed, "; ".join(reasons), override)


def sign_test(one: int, other: int) -> float:
    """How probable a split at least as uneven is, if either is as likely: McNemar's exact test, two-sided."""
    total, few = one + other, min(one, other)
    tail = sum(math.comb(total, n) for n in range(few + 1))
    return min(1.0, float(2 * tail / (1 << total)))


def in_service(
    models_dir: Path, name: str, version: int | None, labels: Sequence[str], held_out: Split
) -> Rival | None:
    """Ask a version of a model the held-out texts, each whole, by its own tokenizer and labels.

    Without a version, the newest, if there is one: it answers where no release is recorded.

    A text that is too long for it, or whose label it does not know, it has wrong.
    """
    if version is None:
        versions = [int(entry.name) for entry in (models_dir / name).glob("*") if entry.name.isdigit()]
        if not versions:
            return None
        version = max(versions)
    try:
        return Rival(str(version), _ask(models_dir / name / str(version), labels, held_out))
    except Exception as error:  # noqa: BLE001 -- whatever is wrong with it, it can't be compared
        return Rival(str(version), None, " ".join(str(error).split())[:300])


def _ask(version: Path, labels: Sequence[str], held_out: Split) -> Right:
    assets = version / "assets.extra"
    card = json.loads((assets / "model_card.json").read_text("utf-8"))
    known = [label["name"] for label in card["labels"]]
    tokenizer = Tokenizer.from_file(str(assets / "tokenizer.json"))
    encoded = encode(tokenizer, held_out)
    serve = tf.saved_model.load(str(version)).signatures["serving_default"]
    right = np.zeros(len(held_out.texts), bool)
    for chosen, ids, mask in in_order(encoded):
        fits = [len(encoded.ids[at]) <= card["max_length_tokens"] for at in chosen]
        if not any(fits):
            continue
        rows = np.flatnonzero(fits)
        longest = max(len(encoded.ids[chosen[row]]) for row in rows)
        ids, mask = (tf.constant(tensor[rows, :longest]) for tensor in (ids, mask))
        found = serve(input_ids=ids, attention_mask=mask)["probabilities"].numpy()
        for row, said in zip(rows, found.argmax(1)):
            at = chosen[row]
            right[at] = known[said] == labels[held_out.labels[at]]
    return right
