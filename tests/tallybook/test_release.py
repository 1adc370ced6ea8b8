"""`tallybook release` on the command line: what it prints, and its exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tallybook.acts import Act
from tallybook.processes import free_port
from tallybook.release import release
from tests.modelservers import running_server
from tests.version_requests import MODEL, write_requests


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """A runner with a folder of its own, and no model server."""
    for name, value in {
        "CONFIG": tmp_path / "no.toml",
        "MODELS_DIR": tmp_path / "models",
        "JOURNAL_DIR": tmp_path / "journal",
        "LEDGER_URL": f"sqlite:///{tmp_path / 'ledger.db'}",
        "MODEL_SERVER_ADDRESS": f"127.0.0.1:{free_port()}",
    }.items():
        monkeypatch.setenv(f"TALLYBOOK_{name}", str(value))
    return CliRunner()


def ask(run: CliRunner, *arguments: str) -> Result:
    return run.invoke(release, arguments)


def test_a_release_is_made_and_shown(
    run: CliRunner, tmp_path: Path, model_versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model_versions / "1", tmp_path / "models" / MODEL / "1")
    with running_server(tmp_path / "models") as server:
        monkeypatch.setenv("TALLYBOOK_MODEL_SERVER_ADDRESS", server.address)
        shown = ask(run, "status", MODEL).output
        assert shown.splitlines()[1].split() == ["1", "AVAILABLE"]
        assert "is not in" in shown
        assert "the newest version answers" in shown
        assert ask(run, "adopt", MODEL, "--by", "ann").output == f"{MODEL} 1 is the stable version.\n"
        shutil.copytree(model_versions / "2", tmp_path / "models" / MODEL / "2")
        told = ask(run, "canary", MODEL, "2", "--share", "2.5%", "--by", "bob").output
        assert told == f"{MODEL} 2 answers 2.5% of the users.\n"
        assert ask(run, "status", MODEL).output.splitlines() == [
            "version  state      label   users",
            "2        AVAILABLE  canary  2.5%",
            "1        AVAILABLE  stable  97.5%",
        ]
        assert ask(run, "rollback", MODEL).output == (
            f"{MODEL} 2 is out of service; 1 is the stable version.\n"
        )
    files = sorted((tmp_path / "journal").glob("act-*.jsonl"))
    acts = [Act.from_record(json.loads(file.read_text().splitlines()[0])) for file in files]
    told_acts = [(act.who, act.kind, act.details.get("version")) for act in acts]
    assert told_acts[:3] == [
        ("ann", "release.adopted", 1),
        ("bob", "release.staged", 2),
        ("bob", "release.canaried", 2),
    ]
    assert acts[2].details == {"model": MODEL, "version": 2, "stable": 1, "percent": "2.5"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("status", "none"), "Error: model_unknown: neither"),
        (("stage", "none"), "Error: version_unknown: "),
        (("adopt", MODEL), "Error: server_unreachable: the model server can't be reached or is overloaded"),
        (("promote", MODEL), f"Error: no_canary: {MODEL} has no canary"),
        (("rollback", MODEL), "Error: nothing_to_roll_back: "),
        (("canary", MODEL, "--share", "200"), "'200' is not a percentage from 0 to 100"),
    ],
)
def test_what_can_not_be_done_is_told_in_one_line_with_its_code(
    run: CliRunner, arguments: tuple[str, ...], told: str
) -> None:
    result = ask(run, *arguments)
    assert result.exit_code != 0
    assert told in result.output
    assert "Traceback" not in result.output


def test_comparing_says_good_worse_or_too_early_by_its_exit_code(run: CliRunner, tmp_path: Path) -> None:
    from billing.cli import ingest

    write_requests(tmp_path / "journal", "stable", "1", 0.1, count=2)
    write_requests(tmp_path / "journal", "canary", "2", 0.1, count=2)
    write_requests(tmp_path / "journal", "canary", "3", 0.9, count=2)
    assert run.invoke(ingest).exit_code == 0
    good = ask(run, "compare", MODEL, "2", "--min-requests", "2")
    assert (good.exit_code, good.output.count("good: ")) == (0, 3)
    worse = ask(run, "compare", MODEL, "3", "--min-requests", "2", "--json")
    assert worse.exit_code == 1
    assert json.loads(worse.output)["passed"] is False
    early = ask(run, "compare", MODEL, "2")
    assert (early.exit_code, early.output) == (
        3,
        "2 requests of the canary and 2 of the stable version; 200 of each are needed to compare\n",
    )
    later = ask(run, "compare", MODEL, "2", "--since", "2999-01-01T00:00:00", "--min-requests", "1")
    assert later.exit_code == 3
