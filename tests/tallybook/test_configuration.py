from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tallybook.cli import main
from tallybook.configuration import known_settings, refuse_unknown_settings, table

ROOT = Path(__file__).parents[2]


def test_every_setting_is_documented() -> None:
    written = (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert table() in written, "run: tallybook settings, and put its table into docs/settings.md"
    assert [name for _, name, field in known_settings() if not field.description] == []


def test_no_two_packages_mean_different_things_by_one_name() -> None:
    names = [name for _, name, _ in known_settings()]
    assert len(names) == len(set(names))


def test_a_misspelt_variable_is_refused_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYBOOK_LEGDER_URL", "sqlite:///x.db")
    with pytest.raises(click.ClickException, match=r"setting_unknown: TALLYBOOK_LEGDER_URL;"):
        refuse_unknown_settings()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('legder_url = "sqlite:///x.db"', "setting_unknown: legder_url in "),
        ("ledger_url = ", "settings_invalid: "),
    ],
)
def test_a_wrong_file_is_refused_not_ignored(
    content: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tallybook.toml"
    file.write_text(content)
    monkeypatch.setenv("TALLYBOOK_CONFIG", str(file))
    with pytest.raises(click.ClickException, match=told):
        refuse_unknown_settings()


def test_known_settings_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tallybook.toml"
    file.write_text('ledger_url = "sqlite:///x.db"\n')
    monkeypatch.setenv("TALLYBOOK_CONFIG", str(file))
    monkeypatch.setenv("TALLYBOOK_PORT", "8001")
    refuse_unknown_settings()


def test_training_goes_where_the_settings_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("a file, where a folder is needed")
    file = tmp_path / "tallybook.toml"
    file.write_text(f'training_dir = "{tmp_path}/taken/below"\n')
    told = CliRunner().invoke(
        main, ["--config", str(file), "train", "--models-dir", str(tmp_path / "models")]
    )
    assert told.exit_code == 1
    assert told.output.startswith("error: training_dir_unwritable: ")
    assert f"{tmp_path}/taken/below: Not a directory" in told.output
