"""Conversations with made-up states of a base, laid out in rows, and drafters with weights all over the place."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from specdec.data.packing import Sequence, pack
from specdec.decoding import generate, steps
from specdec.drafters import Drafter, DrafterLoss, DraftState, Features, load_drafter, new_drafter
from specdec.targets import Target
from specdec.training.acceptance import AcceptanceCount
from specdec.training.features import collate, compute_features

PATTERNS = ("ppppaaaaaa", "pppaaaaa", "ppaaaapppaaaaa", "aaaaa", "ppa", "pppppp")


@dataclass(frozen=True)
class Document:
    """token_ids[T]; loss_mask[T]; hidden[T, H]; auxiliary[T, A*H]."""

    token_ids: Tensor
    loss_mask: Tensor
    hidden: Tensor
    auxiliary: Tensor | None

    def __len__(self) -> int:
        return len(self.token_ids)


def documents(
    target: Target, aux_layers: tuple[int, ...] = (), patterns: tuple[str, ...] = PATTERNS
) -> list[Document]:
    """One a pattern: p is a token of a prompt, a one of an answer."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for pattern in patterns:
        ids = torch.randint(6, 200, (len(pattern),), generator=generator)
        hidden = torch.randn(len(pattern), target.hidden_size, generator=generator)
        width = len(aux_layers) * target.hidden_size
        auxiliary = torch.randn(len(pattern), width, generator=generator) if width else None
        made.append(Document(ids, torch.tensor([c == "a" for c in pattern]), hidden, auxiliary))
    return made


def batch(rows: list[list[Document]], length: int, counts: Tensor | None = None) -> Features:
    """Packed rows, padded with token 0 and states of nonsense."""
    example = rows[0][0]
    shape = (len(rows), length)
    ids, mask = torch.zeros(shape).long(), torch.zeros(shape).bool()
    owner, positions = torch.full(shape, -1), torch.zeros(shape).long()
    hidden = torch.full((*shape, example.hidden.shape[1]), 3.0)
    auxiliary = None if example.auxiliary is None else torch.full((*shape, example.auxiliary.shape[1]), -2.0)
    for i, row in enumerate(rows):
        start = 0
        for j, document in enumerate(row):
            place = slice(start, start + len(document))
            ids[i, place], mask[i, place], owner[i, place] = document.token_ids, document.loss_mask, j
            positions[i, place], hidden[i, place] = torch.arange(len(document)), document.hidden
            if auxiliary is not None and document.auxiliary is not None:
                auxiliary[i, place] = document.auxiliary
            start += len(document)
        positions[i, start:] = torch.arange(length - start)
    return Features(ids, mask, owner, positions, hidden, auxiliary, counts)


def packed(made: list[Document]) -> Features:
    return batch([made[0:2], made[2:]], 32)


def anchors(document: Document, k: int) -> list[int]:
    """Where draft position k is trained: t+1 .. t+2+k are all answered."""
    mask = document.loss_mask.tolist()
    return [t for t in range(len(mask) - 2 - k) if all(mask[t + 1 : t + 3 + k])]


def scattered(drafter: Drafter, size: float = 0.1) -> Any:
    """Random weights, so that no part of the drafter is idle."""
    torch.manual_seed(1)
    for parameter in drafter.parameters():
        parameter.data = torch.randn_like(parameter) * size + (1 if parameter.dim() == 1 else 0)
    return drafter


def gradients(drafter: Drafter, features: Features) -> list[Tensor]:
    """The loss, and the gradients of all parameters."""
    drafter.zero_grad()
    result = drafter(features)
    result.loss.backward()
    found = [p.grad for p in drafter.parameters()]
    return [result.loss.detach(), *(g.clone() for g in found if g is not None)]


def assert_same(found: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-5) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance * float(b.abs().max()))


def identical(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def observed(document: Document, count: int, start: int = 0, state: DraftState | None = None) -> DraftState:
    """What a drafter sees when the base has read tokens `start` .. `count` - 1."""
    state = state or DraftState()
    part = slice(start, count)
    auxiliary = None if document.auxiliary is None else document.auxiliary[part]
    state.observe(document.token_ids[start + 1 : count + 1], document.hidden[part], auxiliary)
    return state


def greedy_answers(target: Target, count: int = 6, limit: int = 40) -> list[Sequence]:
    """The base's own answers to random prompts."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for _ in range(count):
        prompt = [1, 4, *torch.randint(6, 200, (5,), generator=generator).tolist(), 2, 5]
        ids = torch.tensor(prompt + generate(target, None, prompt, limit).token_ids)
        made.append(Sequence(ids.numpy(), (torch.arange(len(ids)) >= len(prompt)).numpy()))
    return made


def fit(drafter: Drafter, features: Features, count: int, learning_rate: float = 3e-3) -> list[float]:
    """A plain training loop over one batch -> the losses."""
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=learning_rate, weight_decay=0.0)
    drafter.train()
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = drafter(features).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    drafter.eval()
    return losses


def answer_features(target: Target, drafter: Drafter, answers: list[Sequence], length: int = 128) -> Features:
    return compute_features(target, collate(pack(answers, length, 0)), drafter.aux_layers)


def walked(drafter: Drafter, features: Features) -> AcceptanceCount:
    """The acceptance that training's own forward foretells."""
    count = AcceptanceCount.empty(drafter.draft_tokens)
    with torch.no_grad():
        result: DrafterLoss = drafter.loss(features, positions=drafter.draft_tokens, measure=True)
    count.add_batch(features, result)
    return count


def decoded(target: Target, drafter: Drafter, answers: list[Sequence], limit: int = 40) -> AcceptanceCount:
    """The acceptance that decoding has; drafts behind the answer's end do not count."""
    count = AcceptanceCount.empty(drafter.draft_tokens)
    for answer in answers:
        start = int(answer.loss_mask.argmax())
        made = list(steps(target, drafter, answer.token_ids[:start].tolist(), limit))
        assert [t for step in made for t in step.token_ids] == answer.token_ids[start:].tolist()
        for step in made[1:]:
            count.steps += 1
            count.accepted[: min(step.accepted, len(step.token_ids))] += 1
    return count


def new(target: Target, settings: Any, counts: Tensor | None = None) -> Any:
    """A fresh drafter with scattered weights."""
    return scattered(new_drafter(target, settings, counts))


def saved_again(drafter: Drafter, folder: Path) -> Drafter:
    """Saved, loaded, and saved once more: the same bytes."""
    drafter.save_pretrained(folder / "first")
    loaded = load_drafter(folder / "first", drafter.target)
    loaded.save_pretrained(folder / "second")
    for name in ("model.safetensors", "config.json", "specdec.json"):
        assert (folder / "first" / name).read_bytes() == (folder / "second" / name).read_bytes()
    return loaded


Change = Callable[[dict[str, Tensor]], object]


def spoilt(drafter: Drafter, folder: Path, change: Change) -> None:
    """A checkpoint with changed tensors."""
    drafter.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def without(name: str) -> Change:
    return lambda tensors: tensors.pop(name)


def moved(name: str) -> Change:
    return lambda tensors: tensors.update({name: tensors[name].roll(1)})


def cut(name: str) -> Change:
    return lambda tensors: tensors.update({name: tensors[name][1:].clone()})
