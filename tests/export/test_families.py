"""Every method on every family of bases in every layout that takes it, read again: docs/serving.md has the table."""

from pathlib import Path

import pytest
import torch

from specdec.drafters import Drafter
from specdec.errors import ModelError
from specdec.export import load_any, write_as
from specdec.targets import Target
from tests.export import folders
from tests.targets.families import FAMILIES, write_family

LAYOUTS = {"medusa": ("medusa",), "eagle": ("sglang",), "eagle3": ("speculators", "sglang", "trtllm")}


def drafters(target: Target) -> list[Drafter]:
    """The base has three layers."""
    return [
        folders.medusa(target, 1),
        folders.eagle(target),
        folders.eagle3(target, aux_layers=[1, 2], fc_norm=True, norm_output=True),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_comes_back_as_the_very_drafter(tmp_path: Path, family: str) -> None:
    """But EAGLE for SGLang, where the base scales its logits."""
    write_family(tmp_path / family, family)
    target = Target.from_pretrained(tmp_path / family, device="cpu")
    for drafter in drafters(target):
        for layout in LAYOUTS[drafter.method]:
            folder = tmp_path / layout / drafter.method
            if (drafter.method, layout) == ("eagle", "sglang") and target.logit_scale != 1.0:
                with pytest.raises(ModelError, match="SGLang's EAGLE leaves the logits as they are"):
                    write_as(layout, drafter, folder, family)
                continue
            write_as(layout, drafter, folder, family)
            loaded, _ = load_any(folder, target, layout)
            own, read = drafter.checkpoint_tensors(), loaded.checkpoint_tensors()
            assert own.keys() == read.keys()
            assert all(torch.equal(read[name], tensor) for name, tensor in own.items())
            assert (loaded.method, loaded.aux_layers) == (drafter.method, drafter.aux_layers)
            ours, theirs = drafter.checkpoint_config(), loaded.checkpoint_config()
            assert {key: theirs.get(key) for key in ours} == ours
