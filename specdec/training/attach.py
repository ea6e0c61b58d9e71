"""A drafter on one's own model, trained by one's own `transformers.Trainer`.

model = specdec.attach(base, "medusa", {"num_heads": 2})
Trainer(model=model, train_dataset=...).train()     # rows: input_ids, labels (-100: not an answer)
model.save_pretrained("my-drafter")                 # what vLLM loads
model = specdec.Attached.from_pretrained("my-drafter", base)
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specdec.config import METHOD_SECTIONS, validated
from specdec.config.defaults import METHOD_DEFAULTS
from specdec.drafters import Drafter, Features, load_drafter, new_drafter
from specdec.errors import ConfigError
from specdec.targets import Target


class Attached(nn.Module):
    """The drafter as the module that a Trainer trains and saves; the base goes along frozen, outside the weights."""

    def __init__(self, drafter: Drafter):
        super().__init__()
        self.drafter = drafter

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, attention_mask: Tensor | None = None) -> Any:
        """input_ids[B, T] -> {"loss"}.

        labels[B, T]: the token itself where the base answered it, -100 elsewhere; None: all are answers.
        attention_mask[B, T]: 0 on padding. One conversation a row.
        """
        attended = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        positions = (attended.cumsum(1) - 1).clamp(min=0)
        answers = attended.bool() if labels is None else (labels != -100) & attended.bool()
        target = self.drafter.target
        with torch.no_grad():
            read = target.forward(input_ids, positions=positions, layers=self.drafter.aux_layers)
        documents = torch.where(attended.bool(), 0, -1)
        features = Features(input_ids, answers, documents, positions, read.hidden, read.auxiliary)
        result = self.drafter(features)
        return {"loss": result.loss}

    def save_pretrained(self, folder: Path | str, provenance: dict[str, Any] | None = None) -> None:
        """Writes the drafter's checkpoint, as vLLM loads it."""
        self.drafter.save_pretrained(folder, provenance)

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, model: Any, tokenizer: Any = None, force: bool = False
    ) -> "Attached":
        """A saved drafter on its base again. Raises ModelError for another base, unless `force`."""
        target = Target.from_model(model, tokenizer)
        return cls(load_drafter(folder, target, force, trainable=True))

    def _apply(self, fn: Any, recurse: bool = True) -> "Attached":
        self.drafter.target.model._apply(fn)  # .to() takes the base along
        super()._apply(fn, recurse)
        return self


def attach(
    model: Any,
    method: str,
    config: dict[str, Any] | None = None,
    tokenizer: Any = None,
    token_counts: Tensor | None = None,
) -> Attached:
    """A fresh drafter for a transformers model, which it freezes.

    method: medusa, eagle or eagle3. config: settings that differ from `METHOD_DEFAULTS` (docs/drafters.md).
    tokenizer: the model's own; None takes the one beside its weights. token_counts[V]: for `draft_vocab_size`.
    Raises ConfigError for settings that do not exist or do not go together, ModelError for a model without an output
    layer.
    """
    if method not in METHOD_DEFAULTS:
        raise ConfigError(f"method {method!r}: choose one of {', '.join(METHOD_DEFAULTS)}")
    settings = validated(METHOD_SECTIONS[method], {**METHOD_DEFAULTS[method], **(config or {})}, "config")
    target = Target.from_model(model, tokenizer)
    return Attached(new_drafter(target, settings, token_counts))
