"""Packing: nothing lost, nothing mixed, every answer on exactly the tokens the base saw."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec.data.packing import Sequence, pack, sequences
from specdec.targets import Target


def segment(prompt: list[int], answer: list[int]) -> dict[str, Any]:
    return {"prompt_token_ids": prompt, "token_ids": answer, "finish_reason": "stop"}


def test_turns_that_continue_the_history_become_one_sequence() -> None:
    row = {"segments": [segment([1, 2], [3, 4]), segment([1, 2, 3, 4, 5], [6])]}
    (found,) = sequences(row)
    assert found.token_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert found.loss_mask.tolist() == [False, False, True, True, False, True]


def test_a_turn_on_rewritten_history_is_a_sequence_of_its_own() -> None:
    row = {"segments": [segment([1, 2], [3, 4]), segment([1, 2, 9], [6])]}
    first, second = sequences(row)
    assert first.token_ids.tolist() == [1, 2, 3, 4]
    assert second.token_ids.tolist() == [1, 2, 9, 6]
    assert second.loss_mask.tolist() == [False, False, False, True]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(8, 32))
def test_packing_loses_nothing(lengths: list[int], room: int) -> None:
    made = [Sequence(np.full(n, i + 1), np.arange(n) % 2 == 0) for i, n in enumerate(lengths)]
    rows = pack(made, room, pad_id=0)
    found = {}
    for row in rows:
        assert len(row.token_ids) == len(row.positions) == room
        for document in set(row.document_ids.tolist()) - {-1}:
            inside = row.document_ids == document
            (name,) = set(row.token_ids[inside].tolist())
            assert row.positions[inside].tolist() == list(range(inside.sum()))
            assert row.loss_mask[inside].tolist() == (np.arange(inside.sum()) % 2 == 0).tolist()
            assert name not in found
            found[name] = int(inside.sum())
        assert not row.loss_mask[row.document_ids == -1].any()
    assert found == {i + 1: min(n, room) for i, n in enumerate(lengths)}


def test_packed_documents_do_not_see_each_other(target: Target) -> None:
    generator = np.random.default_rng(0)
    made = [Sequence(generator.integers(6, 200, n), np.ones(n, bool)) for n in (17, 9, 5)]
    (row,) = pack(made, 40, pad_id=0)
    packed = target.forward(torch.tensor(row.token_ids[None]), torch.tensor(row.positions[None])).hidden[0]
    for document, sequence in enumerate(made):
        alone = target.forward(torch.tensor(sequence.token_ids[None])).hidden[0]
        torch.testing.assert_close(packed[row.document_ids == document], alone, rtol=1e-4, atol=1e-4)
