"""What counts as a model and a version."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.model_server.repository import find_models, find_versions, stamp


def test_models_and_versions_are_folders_with_proper_names(tmp_path: Path) -> None:
    for folder in ("reviews/1", "reviews/12", "reviews/01", "reviews/-3", "reviews/1.5", "reviews/.2.new",
                   "reviews/99999999999999999999", "reviews/٣", "bad name/1", "bad\nname/1"):  # fmt: skip
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "reviews" / "7").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "reviews" / "20").symlink_to(tmp_path / "reviews" / "12")
    models = find_models(tmp_path)
    assert models == {"reviews": tmp_path / "reviews"}
    assert sorted(find_versions(models["reviews"])) == [1, 12, 20]


def test_a_missing_folder_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_models(tmp_path / "none")


def test_a_stamp_changes_with_the_files(tmp_path: Path) -> None:
    stamps = [stamp(tmp_path)]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_text("one")
    stamps.append(stamp(tmp_path))
    (tmp_path / "deep" / "file").write_text("two, longer")
    stamps.append(stamp(tmp_path))
    (tmp_path / "deep" / "file").unlink()
    stamps.append(stamp(tmp_path))
    assert len(set(stamps)) == len(stamps)
    assert stamp(tmp_path) == stamps[-1]
