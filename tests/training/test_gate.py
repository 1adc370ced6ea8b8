"""The gate: what is published, what is not, and the reason that is written down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.savedmodels import export_tiny_model
from training.dataset import Split
from training.evaluation import Baseline, measure
from training.gate import Rival, in_service, judge, sign_test


def right(count: int, of: int = 10) -> np.ndarray:
    return np.arange(of) < count


def baseline(count: int, of: int = 10) -> Baseline:
    said = np.where(right(count, of), 0, 1)
    return Baseline("a baseline", measure([0] * of, np.eye(2)[said]))


@pytest.mark.parametrize(
    ("ours", "simple", "theirs", "passes"),
    [
        (8, 7, None, True),
        (7, 7, None, False),
        (8, 7, 7, True),
        (8, 7, 8, True),
        (8, 7, 9, False),
        (7, 7, 6, False),
    ],
)
def test_a_version_must_beat_the_baseline_and_not_be_worse_than_the_one_in_service(
    ours: int, simple: int, theirs: int | None, passes: bool
) -> None:
    rival = None if theirs is None else Rival("3", right(theirs))
    verdict = judge(right(ours), baseline(simple), rival)
    assert (verdict.passed, verdict.publish) == (passes, passes)
    assert f"{ours} of 10 held-out texts right, the baseline {simple}" in verdict.reason
    assert ("no version is in service" if theirs is None else "version 3, in service,") in verdict.reason


def test_a_version_that_can_not_be_compared_is_not_passed_over() -> None:
    verdict = judge(right(9), baseline(5), Rival("3", None, "saved_model.pb lacks"))
    assert not verdict.publish
    assert "version 3, in service, can't be compared: saved_model.pb lacks" in verdict.reason


def test_publishing_anyway_is_written_down_and_hides_nothing() -> None:
    verdict = judge(right(5), baseline(7), None, "for the demo")
    assert (verdict.passed, verdict.publish) == (False, True)
    assert verdict.to_json() == {"passed": False, "reason": verdict.reason, "override": "for the demo"}


@pytest.mark.parametrize(
    ("one", "other", "chance"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 32), (1, 5, 2 * 7 / 64), (600, 900, 0)],
)
def test_the_sign_test_is_exact(one: int, other: int, chance: float) -> None:
    assert sign_test(one, other) == pytest.approx(chance, rel=1e-6, abs=1e-13)


TEXTS = Split(("abc", "房间很干净", "x " * 200, "服务态度差"), (0, 1, 0, 1))


def test_the_newest_version_is_asked_by_its_own_tokenizer_and_labels(tmp_path: Path) -> None:
    assert in_service(tmp_path, "m", None, ("a", "b"), TEXTS) is None
    for version in (2, 10):
        export_tiny_model(tmp_path, "m", version)
    labels = ("negative", "positive")
    said = [in_service(tmp_path, "m", None, labels, Split(TEXTS.texts, (at,) * 4)) for at in (0, 1)]
    assert [rival and rival.version for rival in said] == ["10", "10"]
    [negative, positive] = [rival.right for rival in said if rival is not None and rival.right is not None]
    assert (negative | positive).tolist() == [True, True, False, True]  # one is too long for it
    assert not (negative & positive).any()
    chosen = in_service(tmp_path, "m", 2, labels, TEXTS)
    assert chosen is not None
    assert (chosen.version, chosen.problem) == ("2", "")
    other = in_service(tmp_path, "m", None, ("negativ", "positiv"), TEXTS)
    assert other is not None
    assert other.right is not None
    assert not other.right.any()  # it does not know these labels


def test_a_broken_version_in_service_is_told(tmp_path: Path) -> None:
    folder = export_tiny_model(tmp_path, "m", 1)
    (folder / "saved_model.pb").write_bytes(b"torn")
    rival = in_service(tmp_path, "m", None, ("negative", "positive"), TEXTS)
    assert rival is not None
    assert rival.right is None
    assert rival.problem
    assert "\n" not in rival.problem
