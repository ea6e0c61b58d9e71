"""A base that is deep enough for low, middle and high states to be layers of their own."""

from pathlib import Path

import pytest

from specdec.targets import Target
from tests.tiny import write_base


@pytest.fixture(scope="package")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Target:
    folder: Path = tmp_path_factory.mktemp("deep") / "tiny-llama-8"
    write_base(folder, num_hidden_layers=8)
    return Target.from_pretrained(folder, device="cpu")
