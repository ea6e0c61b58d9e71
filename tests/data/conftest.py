from pathlib import Path

import pytest

from tests.data.repositories import CARD, ROWS, commit, git


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "README.md").write_bytes(CARD)
    commit(folder, ROWS)
    return folder
