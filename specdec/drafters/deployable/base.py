"""What a checkpoint is held against: the base that it drafts for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from specdec.targets import Target


@dataclass(frozen=True)
class BaseFacts:
    """What a drafter must fit. name: for people. identity: hashes as in `Identity`; None: not known.

    logit_scale: the factor on the logits. embedding: gives the input embedding [V, H], or None where it is not at
    hand; asked only for a drafter that holds one of that shape.
    """

    name: str
    hidden_size: int
    vocab_size: int
    num_layers: int
    logit_scale: float = 1.0
    identity: Mapping[str, str] | None = None
    embedding: Callable[[], Tensor | None] = lambda: None

    @classmethod
    def of(cls, target: Target) -> "BaseFacts":
        return cls(
            name=target.name,
            hidden_size=target.hidden_size,
            vocab_size=target.vocab_size,
            num_layers=target.num_layers,
            logit_scale=target.logit_scale,
            identity=target.identity.as_dict(),
            embedding=lambda: target.embedding_weight,
        )
