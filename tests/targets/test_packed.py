"""Packed layers say what torch's own say, and never something of yesterday."""

import copy
import gc
import io
import weakref
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.functional import linear

from specdec.targets import Target
from specdec.targets.packed import PackedLinear, pack

HERE = torch.backends.mkldnn.is_available()
pytestmark = pytest.mark.skipif(not HERE, reason="this torch has no oneDNN")


def layer(rows: int, columns: int, bias: bool, dtype: torch.dtype = torch.float32) -> nn.Linear:
    return nn.Linear(columns, rows, bias=bias).to(dtype).requires_grad_(False)


def is_packed(module: nn.Module) -> bool:
    return isinstance(module, PackedLinear)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 70), st.integers(1, 90), st.lists(st.integers(1, 5), min_size=0, max_size=2), st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_they_say_what_torch_says(rows: int, columns: int, shape: list[int], bias: bool, dtype: torch.dtype) -> None:
    one = layer(rows, columns, bias, dtype)
    given = torch.randn(*shape, columns).to(dtype)
    own = linear(given, one.weight, one.bias)
    pack(one)
    with torch.no_grad():
        made = one(given)
    assert made.shape == own.shape
    assert made.dtype == own.dtype
    torch.testing.assert_close(made, own)


def test_one_row_is_torchs_own() -> None:
    one, row = layer(300, 200, False), torch.randn(1, 1, 200)
    own = one(row)
    pack(one)
    with torch.inference_mode():
        assert torch.equal(one(row), own)


@pytest.mark.parametrize("inference", [True, False])
def test_weights_that_change_are_read_again(inference: bool) -> None:
    with torch.inference_mode(inference):
        one, rows = layer(30, 20, True), torch.randn(3, 20)
        pack(one)
        with torch.no_grad():
            one(rows)
        one.weight.data = torch.randn(30, 20)
        with torch.no_grad():
            torch.testing.assert_close(one(rows), linear(rows, one.weight, one.bias))
    if inference:
        return  # such weights do not say when they change in place
    with torch.no_grad():
        one.weight[3] = 7.0
        torch.testing.assert_close(one(rows), linear(rows, one.weight, one.bias))


def test_gradients_flow_as_ever() -> None:
    one, rows = layer(30, 20, True), torch.randn(3, 20, requires_grad=True)
    pack(one)
    one(rows).sum().backward()
    assert rows.grad is not None
    torch.testing.assert_close(rows.grad, one.weight.sum(0).expand(3, 20))


def test_a_copy_is_its_own() -> None:
    one, rows = layer(30, 20, False), torch.randn(3, 20)
    pack(one)
    other = copy.deepcopy(one)
    with torch.no_grad():
        one.weight.zero_()
        torch.testing.assert_close(other(rows), linear(rows, other.weight))
        assert other(rows).any()


def test_what_is_copied_or_saved_of_it_is_a_linear_layer() -> None:
    one, rows = layer(300, 200, True), torch.randn(3, 200)
    pack(one)
    with torch.no_grad():
        made = one(rows)
        other = copy.deepcopy(one)
        assert type(other) is nn.Linear
        torch.testing.assert_close(other(rows), made)
    file = io.BytesIO()
    torch.save(one, file)
    assert b"PackedLinear" not in file.getvalue(), "who reads it needs this project"


def test_it_goes_when_its_layer_does() -> None:
    """And not when Python looks for cycles: a base may be larger than what is left of the memory."""
    one = layer(300, 200, True)
    pack(one)
    with torch.no_grad():
        one(torch.randn(3, 200))
    gone = [weakref.ref(one), weakref.ref(one.weight)]
    gc.disable()
    try:
        del one
        assert [still() for still in gone] == [None, None]
    finally:
        gc.enable()


def test_a_change_that_leaves_no_mark_is_seen_when_decoding_begins() -> None:
    """As adapters are merged."""
    one, rows = layer(300, 200, False), torch.randn(3, 200)
    pack(one)
    with torch.inference_mode():
        one(rows)
        one.weight.data += 0.1
        pack(one)
        torch.testing.assert_close(one(rows), linear(rows, one.weight))


@pytest.mark.parametrize(("rows", "columns"), [(256, 128), (128, 256), (1024, 64), (300, 200)])
@pytest.mark.parametrize("axis", [0, 1])
def test_of_such_a_change_one_row_or_column_is_enough(rows: int, columns: int, axis: int) -> None:
    one, given = layer(rows, columns, False), torch.randn(3, columns)
    pack(one)
    with torch.inference_mode():
        for place in (0, 1, one.weight.shape[axis] - 1):
            one(given)
            one.weight.data.select(axis, place).fill_(1.0)
            pack(one)
            torch.testing.assert_close(one(given), linear(given, one.weight), rtol=1e-3, atol=1e-3)


def test_another_weight_in_the_same_memory_is_another_weight() -> None:
    one, rows = layer(64, 48, False), torch.randn(3, 48)
    pack(one)
    with torch.inference_mode():
        for _ in range(20):
            one.weight = None  # type: ignore[assignment]
            one.weight = nn.Parameter(torch.randn(64, 48))
            torch.testing.assert_close(one(rows), linear(rows, one.weight))
            scaled = {"weight": torch.randn(64, 48)}
            torch.testing.assert_close(functional_call(one, scaled, rows), linear(rows, scaled["weight"]))


def test_under_autocast_torch_computes() -> None:
    one, rows = layer(300, 200, False), torch.randn(3, 200)
    pack(one)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert one(rows).dtype is torch.bfloat16
        assert one(rows.bfloat16()).dtype is torch.bfloat16


def test_what_is_no_plain_linear_layer_stays() -> None:
    class Own(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return input

    model = nn.Sequential(Own(3, 3), layer(3, 3, False), nn.Linear(3, 3).double(), nn.LayerNorm(3))
    pack(model)
    assert [is_packed(part) for part in model] == [False, True, False, False]


def test_not_where_the_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    one = layer(30, 20, False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * one.weight.nbytes - 1))
    pack(one)
    assert not is_packed(one)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * one.weight.nbytes))
    pack(one)
    assert is_packed(one)


def test_a_base_that_decodes_is_packed_and_says_the_same(base_folder: str) -> None:
    target = Target.from_pretrained(base_folder, device="cpu")
    linears = [part for part in target.model.modules() if type(part) is nn.Linear]
    assert linears
    assert not any(map(is_packed, linears))
    ids = torch.arange(6, 20)[None]
    with torch.inference_mode():
        before = target.logits(target.forward(ids).hidden)
        cache = target.new_cache()
        assert all(map(is_packed, linears))
        torch.testing.assert_close(target.logits(target.forward(ids, cache=cache).hidden), before)
