"""Ten thousand tokens with trees, up to the very end of the context: nothing drifts, nothing piles up."""

import gc
from pathlib import Path

import psutil
import pytest
import torch

from specdec.decoding import Stop, generate
from specdec.drafters import StaticTree, Tree, new_drafter
from specdec.targets import Target
from tests.settings import eagle3_settings
from tests.tiny import write_base

POSITIONS = 2560
STATIC = StaticTree.of([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])


@pytest.mark.soak
def test_ten_thousand_tokens(tmp_path: Path) -> None:
    write_base(tmp_path / "long", max_position_embeddings=POSITIONS)
    target = Target.from_pretrained(tmp_path / "long", device="cpu")
    torch.manual_seed(0)
    drafter = new_drafter(target, eagle3_settings()).eval()
    prompts = [[1, 4, 40 + i, 2, 5] for i in range(4)]
    never = Stop(frozenset())
    plain = [generate(target, None, prompt, POSITIONS, stop=never).token_ids for prompt in prompts]
    assert sum(map(len, plain)) > 10_000
    held = []
    for prompt, answer, tree in zip(prompts, plain, (Tree(4, 3, 12), STATIC, Tree(4, 3, 12), STATIC), strict=True):
        made = generate(target, drafter, prompt, POSITIONS, tree=tree, stop=never)
        assert made.token_ids == answer
        assert len(prompt) + len(made.token_ids) == POSITIONS
        gc.collect()
        held.append(psutil.Process().memory_info().rss / 2**20)
    assert held[-1] - held[1] < 64, f"resident megabytes after each answer: {held}"
