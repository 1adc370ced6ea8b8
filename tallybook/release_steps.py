"""The steps of the DAG train_and_release: commands of `tallybook`, and what is read of their results.

Each runs as a process of its own, by the interpreter that runs this: so a workflow needs neither training's
packages nor serving's in its own process, and does exactly what a person would do by hand.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tallybook.settings import CommonSettings

log = logging.getLogger("tallybook.dags")

_RESULT = re.compile(r"^(?:exported|not published; its card is in) (?P<folder>.+)$", re.MULTILINE)
_BY = ("--by", "airflow")
# Exit codes of commands: failed, or worse; refused by the gate, or too little to tell.
_FAILED, _REFUSED = 1, 3


class StepError(Exception):
    """A command that failed; `code` is the command's own, or `step_failed`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Gate(NamedTuple):
    """What the gate said of a version, and why."""

    passed: bool
    reason: str


class Verdict(NamedTuple):
    """What a comparison says; `passed` None: it can't tell yet."""

    passed: bool | None
    reason: str


def adopt(model: str) -> None:
    """Keep what answers now, if anything does, as the stable version, so that what is trained next waits."""
    told = _tallybook("release", "adopt", model, *_BY, allowed={_FAILED})
    if told.returncode and "nothing_served" not in told.stderr:
        raise _failure(told)


def train(model: str, version: int | None, arguments: list[str]) -> str:
    """The folder of a fresh version, or of its card if the gate refused it; with a version, that one's."""
    if version is not None:
        return str(CommonSettings().models_dir / model / str(version))
    told = _tallybook("train", "--model-name", model, *arguments, allowed={_REFUSED})
    found = _RESULT.search(told.stdout)
    if found is None:
        raise _failure(told)
    return found["folder"]


def evaluation(folder: str) -> str:
    """What the card says of the version on texts that were held out, beside the baseline."""
    card = _card(folder)
    metrics, baseline = card.get("metrics", {}).get("test", {}), card.get("baseline", {})
    right, beside = metrics.get("accuracy"), baseline.get("test", {}).get("accuracy")
    if right is None:
        return f"the card of {folder} has no metrics"
    return f"{right:.1%} of the held-out texts right; {baseline.get('name', 'baseline')}: {beside or 0:.1%}"


def gate(folder: str) -> Gate:
    """What the gate said when the version was trained; one that never met a gate may pass."""
    said = _card(folder).get("gate")
    if said is None:
        return Gate(True, "its card tells of no gate")
    override = said.get("override")
    passed = bool(said["passed"]) or override is not None
    return Gate(passed, said["reason"] + (f"; published anyway: {override}" if override else ""))


def stage(model: str, folder: str) -> int:
    """Load the version beside those in service; its number."""
    version = int(Path(folder).name)
    _tallybook("release", "stage", model, str(version), *_BY)
    return version


def canary(model: str, version: int, share: str) -> None:
    """Let it answer a share of the users."""
    _tallybook("release", "canary", model, str(version), "--share", share, *_BY)


def compare(model: str, version: int, since: str, requests: int) -> Verdict:
    """Set it beside the stable version by the ledger."""
    told = _tallybook(
        "release",
        "compare",
        model,
        str(version),
        "--since",
        since,
        "--min-requests",
        str(requests),
        "--json",
        allowed={_FAILED, _REFUSED},
    )
    try:
        document = json.loads(told.stdout)
    except ValueError:
        raise _failure(told) from None
    return Verdict(document["passed"], "; ".join(document["reasons"]))


def promote(model: str) -> None:
    """Make the canary the stable version."""
    _tallybook("release", "promote", model, *_BY)


def roll_back(model: str) -> None:
    """Take the canary out of service."""
    _tallybook("release", "rollback", model, *_BY)


def _card(folder: str) -> dict[str, Any]:
    for file in (Path(folder) / "assets.extra" / "model_card.json", Path(folder) / "model_card.json"):
        if file.exists():
            card: dict[str, Any] = json.loads(file.read_text("utf-8"))
            return card
    raise StepError("card_missing", f"{folder} has no model card")


def _tallybook(*arguments: str, allowed: set[int] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tallybook.cli", *arguments]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    log.info("tallybook %s\n%s", " ".join(arguments), (told.stdout + told.stderr).strip())
    if told.returncode and told.returncode not in (allowed or set()):
        raise _failure(told)
    return told


def _failure(told: subprocess.CompletedProcess[str]) -> StepError:
    last = (told.stderr.strip() or told.stdout.strip() or "it said nothing").splitlines()[-1]
    code, _, message = re.sub("^[Ee]rror: ", "", last).partition(": ")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", code):
        code, message = "step_failed", last
    return StepError(code, f"{' '.join(told.args[3:])}: {message}")
