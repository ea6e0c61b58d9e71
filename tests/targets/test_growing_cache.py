"""What a growing cache holds is what a DynamicCache holds, and no pass copies the context."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import Cache, DynamicCache

from specdec.targets import Target
from specdec.targets.growing_cache import GrowingCache
from tests.targets.families import FAMILIES, write_family
from tests.targets.test_fixed_cache import passes

STEP = st.tuples(st.integers(1, 90), st.integers(0, 100), st.integers(0, 3))


def rows(count: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 2, count, 4)


def take(caches: list[Cache], keys: Tensor, values: Tensor) -> None:
    for layer in range(2):
        made = [cache.update(keys + layer, values + layer, layer) for cache in caches]
        for ours, theirs in zip(*made, strict=True):
            assert torch.equal(ours, theirs)


def same(ours: Cache, theirs: Cache) -> None:
    assert ours.get_seq_length() == theirs.get_seq_length()
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


@given(st.lists(STEP, min_size=1, max_size=12))
def test_it_holds_what_a_dynamic_cache_holds(steps: list[tuple[int, int, int]]) -> None:
    """Rows come, some of them stay, and some are cut back: down to nothing, too."""
    caches: list[Cache] = [GrowingCache(), DynamicCache()]
    for count, cut, stay in steps:
        held = caches[0].get_seq_length()
        take(caches, rows(count), rows(count))
        places = torch.randperm(count)[: min(stay, count)].sort().values
        for cache in caches:
            if stay:
                Target.keep(cache, held, places)
            Target.crop(cache, max(0, cache.get_seq_length() - cut))
        same(*caches)


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.batch_select_indices(torch.tensor([2, 0])),
        lambda cache: cache.reorder_cache(torch.tensor([1, 1, 0])),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.reset(),
    ],
)
def test_what_the_other_methods_put_there_is_gone_on_with(change: object) -> None:
    assert callable(change)
    caches: list[Cache] = [GrowingCache(), DynamicCache()]
    take(caches, rows(5, 3), rows(5, 3))
    for cache in caches:
        change(cache)
    batch = len(caches[1].layers[0].keys) if caches[1].get_seq_length() else 1
    for _ in range(2):
        take(caches, rows(1, batch), rows(1, batch))
        same(*caches)


def test_a_pass_writes_its_own_rows_and_no_others() -> None:
    cache = GrowingCache()
    cache.update(rows(1000), rows(1000), 0)
    places = set()
    for _ in range(300):
        keys, _values = cache.update(rows(4), rows(4), 0)
        Target.crop(cache, cache.get_seq_length() - 3)
        places.add(keys.data_ptr())
    assert len(places) <= 2, "300 passes copied the context more than once"
    assert keys.untyped_storage().nbytes() < 1.5 * keys.numel() * keys.element_size(), "it holds room for far more"


@pytest.mark.parametrize("family", FAMILIES)
def test_bases_say_what_they_say_with_a_dynamic_cache(tmp_path: Path, family: str) -> None:
    write_family(tmp_path, family)
    target = Target.from_pretrained(tmp_path, device="cpu")
    for ours, theirs in zip(passes(target, target.new_cache()), passes(target, DynamicCache()), strict=True):
        assert torch.equal(ours, theirs)
