"""The house of the design: data flows one way, and imports point only backwards along it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each package may import what is listed, besides itself; `tallybook` here means its ground floor only.
MAY_IMPORT = {
    "training": set(),
    "serving": {"tallybook"},
    "billing": {"tallybook"},
    "dags": {"tallybook", "billing"},
}
GROUND = {
    "acts",
    "usage",
    "calendar",
    "captured",
    "database",
    "files",
    "settings",
    "release_steps",
    "segments",
    "toml",
    "unread",
}  # modules that every package may stand on
STANDARD_LIBRARY_ONLY = {"acts", "usage", "calendar", "files", "segments", "unread"}
OURS = {"tallybook", *MAY_IMPORT}
LONGEST_LINES = 400


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(file: Path) -> set[str]:
    """Dotted names of every import in a file, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_only_backwards(package: str) -> None:
    assert sources(package)
    wrong = []
    for file in sources(package):
        for name in imports(file):
            top, _, rest = name.partition(".")
            if top not in OURS or top == package:
                continue
            if top not in MAY_IMPORT[package] or (top == "tallybook" and rest.split(".")[0] not in GROUND):
                wrong.append(f"{file.relative_to(ROOT)} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("module", sorted(GROUND))
def test_the_ground_floor_stands_on_nothing_of_ours(module: str) -> None:
    ours = {n for n in imports(ROOT / "tallybook" / f"{module}.py") if n.split(".")[0] in OURS}
    assert {n.split(".")[1] for n in ours} <= GROUND


def test_no_two_locks_of_a_database_have_one_number() -> None:
    """Whoever delivers mails, for one, must not keep others from storing events."""
    found = [
        number.replace("_", "")
        for package in OURS
        for file in sources(package)
        for number in re.findall(r"_LOCK(?:_KEY)? = (\d[\d_]*)", file.read_text("utf-8"))
    ]
    assert len(found) > 5
    assert sorted(found) == sorted(set(found))


@pytest.mark.parametrize("module", sorted(STANDARD_LIBRARY_ONLY))
def test_an_event_and_its_journal_are_read_with_the_standard_library_alone(module: str) -> None:
    tops = {name.split(".")[0] for name in imports(ROOT / "tallybook" / f"{module}.py")}
    assert tops <= set(sys.stdlib_module_names) | {"tallybook"}


@pytest.mark.parametrize("package", sorted(OURS))
def test_a_file_can_be_read_in_one_sitting(package: str) -> None:
    long = {
        str(f.relative_to(ROOT)): n
        for f in sources(package)
        if "migrations" not in f.parts and (n := len(f.read_text("utf-8").splitlines())) > LONGEST_LINES
    }
    assert long == {}


def test_the_command_line_starts_without_the_heavy_packages() -> None:
    code = """
import sys
from tallybook.cli import main
main(["--help"], standalone_mode=False)
print("\\n", *sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    loaded = set(told.stdout.splitlines()[-1].split())
    assert not loaded & {"tensorflow", "flask", "sqlalchemy", "airflow", "matplotlib", "numpy"}
