"""One interface for every drafter, and what passes through it.

Positions (docs/drafters.md has the picture): `hidden[t]` is the base's state after reading `token_ids[t]`; the
base's own head turns it into token t+1. A drafter starts from `hidden[t]` and the newest token t+1, and proposes
tokens t+2, t+3, ... An *anchor* is a t from which decoding may draft: t+1 and t+2 belong to the same answer.
"""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import specdec
from specdec.drafters.deployable import BaseFacts, findings
from specdec.drafters.sampling import Draw
from specdec.drafters.trees import Proposal, Shape
from specdec.errors import ModelError
from specdec.io import replacing_dir, write_json
from specdec.targets import FixedCache, Target

PROVENANCE = "specdec.json"


@dataclass(frozen=True)
class Features:
    """What the frozen base says about one batch of packed rows.

    token_ids[B, T]; loss_mask[B, T]: True on tokens that the base answered; document_ids[B, T]: which
    conversation a token belongs to, -1 for padding; positions[B, T]: restart in each document; hidden[B, T, H]:
    after the final norm; auxiliary[B, T, A*H]: the outputs of the layers that the drafter asked for, or None.
    counts[K]: positions by which each draft position's loss is divided, where a step has more batches than this
    one; None: this batch's own.
    """

    token_ids: Tensor
    loss_mask: Tensor
    document_ids: Tensor
    positions: Tensor
    hidden: Tensor
    auxiliary: Tensor | None = None
    counts: Tensor | None = None

    def answer_run(self, length: int) -> Tensor:
        """bool[B, T]: see `answer_run`."""
        return answer_run(self.loss_mask, self.document_ids, length)


def answer_run(loss_mask: Tensor, document_ids: Tensor, length: int) -> Tensor:
    """bool[B, T]: tokens t+1 .. t+length all belong to the answer of t's own document."""
    run = torch.ones_like(loss_mask)
    for shift in range(1, length + 1):
        inside = torch.zeros_like(run)
        same = document_ids[:, shift:] == document_ids[:, :-shift]
        inside[:, :-shift] = loss_mask[:, shift:] & same & (document_ids[:, :-shift] >= 0)
        run &= inside
    return run


def answer_counts(loss_mask: Tensor, document_ids: Tensor, positions: int) -> Tensor:
    """int[K]: how many anchors each of the first K draft positions has."""
    return torch.stack([answer_run(loss_mask, document_ids, 2 + k).sum() for k in range(positions)])


@dataclass(frozen=True)
class DrafterLoss:
    """loss: what is minimised. sums[name][K], counts[K]: figures by draft position over this batch, detached
    (`loss`, `accuracy`; when measured also `top_4`, `agreement` with the base's first choice, `overlap`).

    accepted[B, T]: how many leading draft positions are right when drafting at t; -1 where t is no anchor.
    """

    loss: Tensor
    sums: dict[str, Tensor]
    counts: Tensor
    accepted: Tensor


def accepted(runs: list[Tensor], rows: list[Tensor], rights: list[Tensor]) -> Tensor:
    """int[B, T]: how many leading draft positions are right at each anchor, -1 elsewhere.

    runs[k][B, T]: anchors of draft position k; rows[k][n_k]: the same as flat indices; rights[k][n_k].
    """
    count = torch.where(runs[0], 0, -1).flatten()
    for k, (row, right) in enumerate(zip(rows, rights, strict=True)):
        count[row] += right & (count[row] == k)
    return count.view_as(runs[0])


@dataclass
class DraftState:
    """What a drafter knows of one sequence: the base's states that it has not read yet, and a cache of its own.

    token_ids[n]: the token behind each state; hidden[n, H], auxiliary[n, A*H]: the base's states at true tokens.
    """

    token_ids: Tensor | None = None
    hidden: Tensor | None = None
    auxiliary: Tensor | None = None
    cache: Any = None
    start: int | None = None  # the context's very first token, which stands behind no state
    fixed: FixedCache | None = None  # the base's cache, where its size is fixed; mind that an empty one is falsy

    def observe(self, token_ids: Tensor, hidden: Tensor, auxiliary: Tensor | None) -> None:
        """The base read n more true tokens; token_ids[i] is what came behind hidden[i]."""
        self.token_ids = token_ids if self.token_ids is None else torch.cat([self.token_ids, token_ids])
        self.hidden = hidden if self.hidden is None else torch.cat([self.hidden, hidden])
        if auxiliary is not None:
            self.auxiliary = auxiliary if self.auxiliary is None else torch.cat([self.auxiliary, auxiliary])

    def forget(self) -> None:
        """What was observed has been read."""
        self.token_ids = self.hidden = self.auxiliary = None


class Proposer(Protocol):
    """What decoding asks of a drafter: all there is to one that needs no training."""

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """Of the base, whose outputs `auxiliary` holds (`Target.forward`)."""

    @property
    def draft_tokens(self) -> int:
        """Of the chain that is drafted in a step where nothing else is said."""

    def propose(
        self, state: DraftState, budget: int, tree: Shape | None = None, draw: Draw | None = None
    ) -> Proposal:
        """Reads what `state` observed (one token at least) and proposes a path of `budget` tokens at most.

        tree: its form; None: a chain, as long as the budget and the drafter allow. draw: how tokens are drawn; None:
        the most probable ones. A drafter that cannot draw proposes what it has, without laws.
        """


class Drafter(nn.Module, ABC):
    """Base class. `config.json` and `model.safetensors` are the layout that vLLM loads for `method`."""

    method: ClassVar[str]
    target: Target  # frozen, and no part of the drafter's weights
    aux_layers: tuple[int, ...] = ()  # of the base, whose outputs `auxiliary` holds (`Target.forward`)
    draft_tokens: int  # of the chain that is drafted in a step where nothing else is said
    trained_as: dict[str, Any] | None = None  # the method's settings

    @classmethod
    @abstractmethod
    def from_config(cls, target: Target, settings: Any, token_counts: Tensor | None = None) -> Self:
        """A fresh drafter for `target`, in float32 on the target's device.

        token_counts[V]: how often the base answers each token, for a draft vocabulary that is smaller than V.
        """

    @classmethod
    @abstractmethod
    def from_checkpoint(
        cls, target: Target, config: dict[str, Any], tensors: dict[str, Tensor], settings: Any = None
    ) -> Self:
        """The drafter that `config.json` and the tensors describe.

        settings: as in `from_config`, where it is to be trained further.
        Raises ModelError on missing or wrong tensors.
        """

    @abstractmethod
    def checkpoint_config(self) -> dict[str, Any]:
        """`config.json` as vLLM reads it."""

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """`model.safetensors`, by vLLM's names."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(self.state_dict().items())}

    @property
    @abstractmethod
    def loss_positions(self) -> int:
        """K of the training loss."""

    @abstractmethod
    def loss(self, features: Features, positions: int | None = None, measure: bool = False) -> DrafterLoss:
        """The loss over every anchor of a batch; never holds [B, T, V].

        positions: draft positions; None for `loss_positions`. measure: the figures of validation too.
        """

    @abstractmethod
    def propose(
        self, state: DraftState, budget: int, tree: Shape | None = None, draw: Draw | None = None
    ) -> Proposal:
        """See `Proposer.propose`."""

    def compile_drafting(self) -> None:
        """From now on chains and trees are drafted in compiled passes where the base's cache has a fixed size.

        A drafter that has no such form drafts as it did.
        """

    def forward(self, features: Features, positions: int | None = None, measure: bool = False) -> DrafterLoss:
        """The loss: training wrappers (autocast, DDP, FSDP) hook into `forward`."""
        return self.loss(features, positions, measure)

    def save_pretrained(self, folder: Path | str, provenance: dict[str, Any] | None = None) -> None:
        """Writes the checkpoint and `specdec.json` atomically; the same drafter gives the same bytes.

        Raises ModelError, and writes nothing, where vLLM would serve another drafter than this one.
        """
        config, tensors = self.checkpoint_config(), self.checkpoint_tensors()
        record = {
            "method": self.method,
            "specdec": specdec.__version__,
            "draft_tokens": self.draft_tokens,
            "trained_as": self.trained_as,
            "base": self.target.identity.as_dict(),
            **(provenance or {}),
        }
        if wrong := findings(self.method, config, tensors, record, BaseFacts.of(self.target)):
            raise ModelError(
                f"{folder}: the drafter is none that vLLM can serve, and was not saved: {'; '.join(wrong)}"
            )
        with replacing_dir(Path(folder)) as aside:
            write_json(aside / "config.json", config)
            save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})
            (aside / "model.safetensors").chmod(0o644)  # safetensors writes 0600: no other user could serve it
            write_json(aside / PROVENANCE, record)


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """(config, tensors, provenance) of a drafter's folder. Raises ModelError when a part is missing or torn."""
    missing = [part for part in ("config.json", "model.safetensors", PROVENANCE) if not (folder / part).is_file()]
    if missing:
        raise ModelError(f"{folder} is no drafter: {missing[0]} is missing; fetch it again, or train one")
    try:
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        provenance = json.loads((folder / PROVENANCE).read_text())
    except (ValueError, OSError, SafetensorError) as error:
        raise ModelError(f"{folder} is damaged ({error}): train or download the drafter again") from None
    if not isinstance(config, dict) or not isinstance(provenance, dict):
        raise ModelError(f"{folder} is damaged: config.json and {PROVENANCE} must be objects")
    return config, tensors, provenance


def check_identity(folder: Path, provenance: dict[str, Any], target: Target) -> None:
    """Raises ModelError, naming both hashes in short, when the drafter was trained on another base."""
    trained_on = provenance.get("base", {})
    for part, actual in target.identity.as_dict().items():
        if trained_on.get(part) != actual:
            raise ModelError(
                f"{folder} was trained for another base: its {part.replace('_', ' ')} "
                f"({str(trained_on.get(part))[:12]}) differ from those of {target.name} ({actual[:12]}); train a "
                "drafter for this base (in Python, force=True loads it all the same)"
            )


def check_tensors(kind: str, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Raises ModelError, naming each, when tensors are missing, superfluous, of another shape or not finite."""
    shapes = [{name: tuple(t.shape) for name, t in tensors.items()} for tensors in (wanted, found)]
    if shapes[0] != shapes[1]:
        wrong = sorted(n for n in shapes[0].keys() | shapes[1].keys() if shapes[0].get(n) != shapes[1].get(n))
        details = "; ".join(
            f"{n}: {shapes[1].get(n, 'missing')}, wanted {shapes[0].get(n, 'none')}" for n in wrong[:4]
        )
        raise ModelError(f"the {kind} checkpoint does not fit its config.json: {details}")
    broken = sorted(n for n, t in found.items() if t.is_floating_point() and not t.isfinite().all())
    if broken:
        raise ModelError(
            f"the {kind} checkpoint holds numbers that are not finite (NaN or infinite) in {', '.join(broken[:4])}: "
            "train or download the drafter again"
        )
