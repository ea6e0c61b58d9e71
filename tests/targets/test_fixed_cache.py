"""A cache of fixed size says what a growing one says, in passes whose shapes never change."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Cache

from specdec.errors import ConfigError
from specdec.targets import FixedCache, Target
from tests.targets.families import FAMILIES, WINDOW, write_family

SEES = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]], dtype=torch.bool)


def deep(count: int) -> Tensor:
    """A tree of `count` nodes: a leaf below the first one, and a path of all others."""
    sees = torch.ones(count, count, dtype=torch.bool).tril()
    sees[2:, 1] = False
    return sees


def passes(target: Target, cache: Cache) -> list[Tensor]:
    """A prompt, a tree of which one path stays, a chain that is cut back, and one more token."""
    ids = torch.randint(6, target.vocab_size, (1, WINDOW + 12), generator=torch.Generator().manual_seed(0))
    layers = (0, 1)
    with torch.inference_mode():
        read = [target.forward(ids[:, : WINDOW + 4], cache=cache, layers=layers)]
        held = WINDOW + 4
        read.append(target.forward_tree(ids[:, held : held + 4], SEES, cache, layers))
        target.keep(cache, held + 1, torch.tensor([1, 2]))
        read.append(target.forward(ids[:, -4:-1], cache=cache, layers=layers))
        target.crop(cache, held + 4)
        read.append(target.forward(ids[:, -1:], cache=cache, layers=layers))
    assert cache.get_seq_length() == held + 5
    found = []
    for one in read:
        assert one.auxiliary is not None
        found += [one.hidden, one.auxiliary]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_it_says_what_a_growing_cache_says(tmp_path: Path, family: str) -> None:
    write_family(tmp_path, family)
    target = Target.from_pretrained(tmp_path, device="cpu")
    cache = target.fixed_cache(40, 4)
    wanted = passes(target, target.new_cache())
    for _ in range(2):  # once more in the same memory, with the old rows in it
        for ours, theirs in zip(passes(target, cache), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        cache.reset()


@pytest.mark.parametrize("family", ["mistral", "gemma-2"])
def test_a_window_is_counted_in_positions_not_in_places(tmp_path: Path, family: str) -> None:
    write_family(tmp_path, family)
    target = Target.from_pretrained(tmp_path, device="cpu")
    ids, sees = torch.arange(6, 30)[None], deep(WINDOW + 4)
    found = []
    with torch.inference_mode():
        for cache in (target.new_cache(), target.fixed_cache(40, WINDOW + 4)):
            target.forward(ids[:, :3], cache=cache)
            found.append(target.forward_tree(ids[:, 3 : 3 + len(sees)], sees, cache).hidden)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_one_compiled_form_serves_every_step(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the cache holds, and however many tokens (up to its step) are read."""
    forms = []

    def compiler(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> torch.fx.GraphModule:
        forms.append(graph)
        return graph

    compile_with = torch.compile

    def compiled(function: object, **choices: object) -> object:
        return compile_with(function, backend=compiler, fullgraph=True, **choices)  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "compile", compiled)
    fresh = Target(target.model, target.tokenizer, target.identity, target.name)
    wanted = passes(fresh, fresh.new_cache())
    fresh.compile()
    cache = fresh.fixed_cache(40, 4)
    for _ in range(3):
        for ours, theirs in zip(passes(fresh, cache), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        cache.reset()
    assert len(forms) == 1


def test_its_memory_stays_where_it_is(target: Target) -> None:
    cache = target.fixed_cache(40, 4)
    passes(target, cache)
    where = [layer.keys.data_ptr() for layer in cache.layers if layer.keys is not None]
    assert len(where) == target.num_layers
    cache.reset()
    passes(target, cache)
    assert [layer.keys.data_ptr() for layer in cache.layers if layer.keys is not None] == where


def test_what_does_not_fit_is_said(target: Target) -> None:
    with pytest.raises(ConfigError, match="a cache for 3 positions cannot take 4 tokens at once"):
        FixedCache(2, 3, 4, torch.device("cpu"))
    cache = target.fixed_cache(8, 4)
    ids = torch.arange(6, 15)[None]
    target.forward(ids[:, :8], cache=cache)
    target.forward(ids[:, :4], cache=cache)
    with pytest.raises(ConfigError, match="a cache for 8 positions holds 12 already: make a longer one"):
        target.forward(ids[:, :1], cache=cache)
