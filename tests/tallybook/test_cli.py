from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tallybook.cli import COMMANDS, HELP, main


def test_every_command_is_found_and_described_in_the_words_of_its_own_help() -> None:
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None, name
        assert HELP[name], name
        assert command.help, name


def test_an_unknown_command_is_refused() -> None:
    told = CliRunner().invoke(main, ["bill"])
    assert told.exit_code == 2
    assert "No such command" in told.output


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["close", "2999-01-01"], "day_in_future"), (["close", "2026-01-01"], "prices_missing")],
)
def test_an_error_is_told_in_one_line_with_its_code(
    arguments: list[str], code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TALLYBOOK_LEDGER_URL", f"sqlite:///{tmp_path}/ledger.db")
    if code != "prices_missing":
        (tmp_path / "prices.toml").write_text('currency = "CNY"\n')
    told = CliRunner().invoke(main, arguments)
    assert told.exit_code == 1
    assert told.output.startswith(f"Error: {code}: ")
    assert told.output.count("\n") == 1


def test_ingest_says_that_there_is_no_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYBOOK_LEDGER_URL", f"sqlite:///{tmp_path}/ledger.db")
    monkeypatch.setenv("TALLYBOOK_JOURNAL_DIR", str(tmp_path / "none"))
    told = CliRunner().invoke(main, ["ingest"])
    assert told.exit_code == 0
    assert f"There is no folder {tmp_path / 'none'}" in told.stderr
    assert told.stdout.startswith("0 events stored")
