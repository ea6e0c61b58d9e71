"""Attention of unrolled draft positions equals a loop over queries in float64, forward and backward."""

from dataclasses import dataclass
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention

from specdec.drafters import attention
from specdec.drafters.attention import attend_to, block_mask, blockwise, flexible

SIZE = 8
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 4 + [-1] * 2, [0] * 2 + [1] * 9])


@dataclass
class Case:
    """tensors: query[n, h, D], keys, values[B*T, kv, D], then a key and a value [n, kv, D] of each own row."""

    tensors: list[Tensor]
    rows: Tensor
    documents: Tensor

    def by(self, function: object, tensors: list[Tensor]) -> list[Tensor]:
        """The result, and the gradients of a sum of it with random weights."""
        tensors = [t.detach().requires_grad_() for t in tensors]
        query, keys, values, *own = tensors
        chain = list(zip(own[::2], own[1::2], strict=True))
        found = function(query, self.rows, keys, values, chain, self.documents)  # type: ignore[operator]
        weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(3)).to(found.device)
        (found.float() * weights).sum().backward()
        return [found.detach(), *(t.grad for t in tensors if t.grad is not None)]


def case(
    documents: Tensor = DOCUMENTS, chain: int = 2, heads: int = 4, groups: int = 2, share: float = 0.6, seed: int = 0
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.rand(documents.numel(), generator=generator) < share).nonzero().squeeze(-1)
    shapes = [(len(rows), heads), *[(documents.numel(), groups)] * 2, *[(len(rows), groups)] * (2 * chain)]
    return Case([2 * torch.randn(*shape, SIZE, generator=generator) for shape in shapes], rows, documents)


def naive(
    query: Tensor, rows: Tensor, keys: Tensor, values: Tensor, chain: list[tuple[Tensor, Tensor]], documents: Tensor
) -> Tensor:
    """One query and head after the other."""
    length = documents.shape[1]
    owners = documents.flatten().tolist()
    share = query.shape[1] // keys.shape[1]
    found = []
    for i, row in enumerate(rows.tolist()):
        seen = [j for j in range(row // length * length, row + 1) if owners[j] == owners[row]]
        for h in range(query.shape[1]):
            g = h // share
            all_keys = torch.stack([*keys[seen, g], *(k[i, g] for k, _ in chain)])
            all_values = torch.stack([*values[seen, g], *(v[i, g] for _, v in chain)])
            found.append(torch.softmax(all_keys @ query[i, h] / SIZE**0.5, 0) @ all_values)
    return torch.stack(found).view(len(rows), -1)


def assert_naive(made: Case, function: object = attend_to) -> None:
    wanted = made.by(naive, [t.double() for t in made.tensors])
    found = made.by(function, made.tensors)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5 * (1 + float(b.abs().max())))


def flexibly(*given: object) -> Tensor:
    """FlexAttention in its plain operations, which go backward on a CPU, though its door says that they do not."""
    plainly = patch.object(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    with patch.object(flex_attention, "_validate_device"), plainly:
        return flexible(*given, block_mask(given[5]))  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [attend_to, blockwise, flexibly])
@pytest.mark.parametrize("chain", [0, 1, 2, 3])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (4, 1)])
def test_equals_one_query_after_the_other(function: object, chain: int, heads: int, groups: int) -> None:
    assert_naive(case(chain=chain, heads=heads, groups=groups), function)


@pytest.mark.parametrize("block", [1, 3, 11])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    assert_naive(case(), blockwise)


@given(
    lengths=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=3),
    chain=st.integers(0, 3),
    share=st.floats(0.3, 1),
    block=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
@settings(max_examples=12, deadline=None)
def test_equals_one_query_after_the_other_in_any_rows(
    lengths: list[list[int]], chain: int, share: float, block: int, seed: int
) -> None:
    longest = max(sum(row) for row in lengths)
    documents = torch.full((len(lengths), longest), -1)
    for owners, row in zip(documents, lengths, strict=True):
        owners[: sum(row)] = torch.arange(len(row)).repeat_interleave(torch.tensor(row))
    made = case(documents, chain, share=share, seed=seed)
    assume(len(made.rows))
    assert_naive(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "QUERY_BLOCK", block)
        assert_naive(made, blockwise)


@pytest.mark.parametrize("function", [attend_to, blockwise])
def test_what_another_document_or_the_padding_holds_changes_no_bit(function: object) -> None:
    made = case()
    before = made.by(function, made.tensors)
    strange = (DOCUMENTS != 1).flatten()
    for tensor in made.tensors[1:3]:
        tensor[strange] = torch.randn(tensor[strange].shape) * 9
    after = made.by(function, made.tensors)
    inside = ~strange[made.rows]
    assert inside.any()
    assert torch.equal(before[0][inside], after[0][inside])
    assert torch.equal(before[1][inside], after[1][inside])
    assert not torch.equal(before[0][~inside], after[0][~inside])


@pytest.mark.parametrize("function", [attend_to, blockwise])
def test_no_query_gives_nothing(function: object) -> None:
    found = case(share=0.0).by(function, case(share=0.0).tensors)
    assert found[0].shape == (0, 4 * SIZE)
    assert not any(gradient.any() for gradient in found[1:])


@pytest.mark.parametrize("function", [attend_to, blockwise])
def test_bfloat16_is_close(function: object) -> None:
    made = case()
    wanted = made.by(naive, [t.bfloat16().double() for t in made.tensors])
    found = made.by(function, [t.bfloat16() for t in made.tensors])
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype is torch.bfloat16
        assert torch.cosine_similarity(a.double().flatten(), b.flatten(), 0) > 0.999


@pytest.mark.parametrize("function", [attend_to, blockwise])
def test_scores_far_apart_stay_finite(function: object) -> None:
    made = case()
    made.tensors[0] *= 60
    wanted = made.by(naive, [t.double() for t in made.tensors])
    for a, b in zip(made.by(function, made.tensors), wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
