"""Small real models, made on the spot, and git that knows nothing of the machine it runs on."""

import os
import signal
from pathlib import Path

import hypothesis
import pytest
import torch

from specdec.targets import Target
from tests.tiny import write_base

os.environ.update(
    DO_NOT_TRACK="true",
    DVC_NO_ANALYTICS="1",
    GIT_CONFIG_GLOBAL=os.devnull,
    GIT_CONFIG_SYSTEM=os.devnull,
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_OFFLINE="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    OMP_WAIT_POLICY="PASSIVE",  # of what tests start: threads that wait by turning take the cores of all others
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    TOKENIZERS_PARALLELISM="false",
)


# A busy disk or core makes one example slow: that is the machine's, and no failure of the code.
hypothesis.settings.register_profile("specdec", deadline=None)
hypothesis.settings.load_profile("specdec")

# A shell that starts the tests in the background makes them, and all they start, deaf to Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side (`pytest -n 2 --dist loadfile`), the whole pipeline first: at the end it would run alone."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: "tests/integration/" not in item.nodeid)


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Two, or one where tests run side by side (`pytest -n`)."""
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with a byte-level tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("base") / "tiny-llama"
    write_base(folder)
    return folder


@pytest.fixture(scope="session")
def target(base_folder: Path) -> Target:
    return Target.from_pretrained(base_folder, device="cpu")
