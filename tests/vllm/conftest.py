"""A small base that vLLM's CPU build can run, and drafters that have learnt its own greedy answers.

`make test-vllm` names the python of vLLM in SPECDEC_VLLM_PYTHON.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from specdec.data.packing import Sequence
from specdec.decoding import generate
from specdec.drafters import new_drafter
from specdec.serving.vllm import Vllm, find_vllm
from specdec.targets import Target
from tests.drafters.examples import answer_features, fit
from tests.settings import eagle3_settings, eagle_settings, medusa_settings
from tests.tiny import write_base

ANSWER = 24
SETTINGS = {
    "medusa": medusa_settings(),
    "eagle": eagle_settings(),
    "eagle3": eagle3_settings({"draft_vocab_size": 200, "fc_norm": True, "norm_output": True}),
}


@pytest.fixture(scope="session")
def vllm() -> Vllm:
    found = find_vllm()
    assert found is not None, "vLLM is not installed: `make test-vllm` sees to it"
    return found


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five layers, so that the default auxiliary layers are distinct; heads of 32, the least of the CPU build."""
    folder = tmp_path_factory.mktemp("vllm") / "base"
    write_base(folder, num_hidden_layers=5, initializer_range=0.15)
    return folder


@pytest.fixture(scope="session")
def served(base: Path) -> Target:
    return Target.from_pretrained(base, device="cpu")


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Token ids of questions that a conversation could begin with."""
    return [[1, 4, *np.random.default_rng(seed).integers(6, 200, 8).tolist(), 2, 5] for seed in range(12)]


@pytest.fixture(scope="session")
def drafters(served: Target, prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoint of each method, which has learnt the very answers that are asked for: some are accepted."""
    answers = []
    for prompt in prompts:
        ids = np.array(prompt + generate(served, None, prompt, ANSWER).token_ids)
        answers.append(Sequence(ids, np.arange(len(ids)) >= len(prompt)))
    counts = torch.bincount(torch.tensor(np.concatenate([a.token_ids for a in answers])), minlength=served.vocab_size)
    folder = tmp_path_factory.mktemp("drafters")
    for name, settings in SETTINGS.items():
        torch.manual_seed(0)
        drafter = new_drafter(served, settings, counts)
        fit(drafter, answer_features(served, drafter, answers, 80), 120, 4e-3)
        drafter.save_pretrained(folder / name)
    return {name: folder / name for name in SETTINGS}
