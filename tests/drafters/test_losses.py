"""The chunked loss equals a plain one in float64, gradients included."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from specdec.drafters import losses
from specdec.drafters.losses import chunked_cross_entropy


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_equals_a_plain_float64_loss(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", chunk * 50)
    torch.manual_seed(0)
    head = nn.Linear(16, 50, bias=False)
    states = torch.randn(33, 16, requires_grad=True)
    labels = torch.randint(0, 50, (33,))
    total, right = chunked_cross_entropy(head, states, labels, 50)
    total.backward()

    plain_head, plain_states = head.weight.detach().double().requires_grad_(), states.detach().double()
    plain_states.requires_grad_()
    logits = plain_states @ plain_head.T
    plain = cross_entropy(logits, labels, reduction="sum")
    plain.backward()
    assert abs(total.item() / plain.item() - 1) < 1e-6
    torch.testing.assert_close(states.grad, plain_states.grad.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.weight.grad, plain_head.grad.float(), rtol=1e-5, atol=1e-5)
    assert right.tolist() == (logits.argmax(-1) == labels).tolist()


def test_no_position_gives_zero_and_a_gradient() -> None:
    head = nn.Linear(4, 5, bias=False)
    total, right = chunked_cross_entropy(head, torch.empty(0, 4), torch.empty(0, dtype=torch.long), 5)
    total.backward()
    assert total.item() == 0
    assert len(right) == 0
    assert head.weight.grad is not None
