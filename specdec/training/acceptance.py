"""The acceptance that decoding will have, read off teacher-forced answers.

Greedy decoding of a prompt gives the very answer that the base gave before, so walking over the answer the way
decoding does (draft at an anchor, accept a, go on a+1 tokens later) counts the same steps and the same accepted
tokens, without decoding. Averaging over all anchors instead would weigh easy stretches too heavily.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.drafters import DrafterLoss, Features
from specdec.training.processes import sum_over_processes


@dataclass
class AcceptanceCount:
    """steps: verification steps walked. accepted[K]: how many of them accepted draft position i."""

    steps: int
    accepted: NDArray[np.int64]

    @classmethod
    def empty(cls, draft_tokens: int) -> "AcceptanceCount":
        return cls(0, np.zeros(draft_tokens, dtype=np.int64))

    def over_processes(self) -> "AcceptanceCount":
        """The sum over all processes of a training."""
        total = sum_over_processes(torch.from_numpy(np.append(self.accepted, self.steps)))
        return AcceptanceCount(int(total[-1]), total[:-1].numpy())

    @property
    def acceptance_length(self) -> float:
        """1 + accepted / steps; 1 without a step."""
        return 1 + float(self.accepted.sum()) / max(1, self.steps)

    @property
    def position_rates(self) -> list[float]:
        """r_i = accepted at position i / steps."""
        return [float(a) / max(1, self.steps) for a in self.accepted]

    def add_batch(self, features: Features, result: DrafterLoss) -> None:
        """Walks over every answer of a batch of packed rows."""
        rows = zip(_numpy(features.document_ids), _numpy(features.loss_mask), _numpy(result.accepted), strict=True)
        for documents, mask, accepted in rows:
            for run in _answer_runs(documents, mask):
                self._walk(accepted[run.start : run.stop])

    def _walk(self, accepted: NDArray[np.int64]) -> None:
        place = 0
        while place < len(accepted) and accepted[place] >= 0:
            taken = int(accepted[place])
            self.steps += 1
            self.accepted[:taken] += 1
            place += taken + 1


def _answer_runs(documents: NDArray[np.int64], mask: NDArray[np.bool_]) -> Iterable[range]:
    """The places t from which each answer is drafted: from the last prompt token to the answer's last but one."""
    inside = mask & (documents >= 0)
    same = np.concatenate([[False], documents[1:] == documents[:-1]])
    starts = np.flatnonzero(inside & ~(np.concatenate([[False], inside[:-1]]) & same))
    ends = np.flatnonzero(inside & ~(np.concatenate([inside[1:], [False]]) & np.concatenate([same[1:], [False]])))
    for start, end in zip(starts, ends, strict=True):
        # A document without a prompt is drafted from its own first token on.
        yield range(int(start) - int(same[start]), int(end))


def _numpy(tensor: Tensor) -> NDArray[np.int64]:
    array: NDArray[np.int64] = tensor.cpu().numpy()
    return array
