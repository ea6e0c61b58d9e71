"""EAGLE (Li et al., 2024, arXiv:2401.15077), in the layout that vLLM loads as `eagle`.

`fc` joins the embedding of the next token with the base's state after the final norm; decoder layers, the first
one without an input norm, regress the base's next state, from which the base's own output layer says the token. With
several unroll steps the drafter learns on its own states as it will draft (Zhang et al., 2024, HASS,
arXiv:2408.15766). EAGLE-2 is this checkpoint with a dynamic tree at decoding.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, smooth_l1_loss

from specdec.config import EagleMethod
from specdec.drafters.dimensions import draft_dimensions
from specdec.drafters.interface import Features
from specdec.drafters.llama_layer import LONGEST, Dimensions, DraftLayer, RMSNorm, Rotary
from specdec.drafters.unrolled import Unrolled
from specdec.targets import Target


class EagleLayer(DraftLayer):
    """Llama's layer; the first of an EAGLE module has no input norm."""

    def __init__(self, sizes: Dimensions, first: bool):
        super().__init__(sizes, sizes.hidden_size)
        self.input_layernorm = None if first else RMSNorm(sizes.hidden_size, sizes.rms_norm_eps)

    def enter(self, state: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        return (state if self.input_layernorm is None else self.input_layernorm(state)), state


class Eagle(Unrolled):
    """`fc` and `layers.{i}`; embedding and output layer are the base's.

    What was trained elsewhere may have a bias in `fc` (`eagle_fc_bias`) and an embedding (`own_embed_tokens`).
    """

    method = "eagle"

    def __init__(self, target: Target, config: dict[str, Any], settings: EagleMethod | None = None):
        super().__init__(target, config, settings)
        self.target = target
        self._config = config
        self.sizes = Dimensions.from_config(config)
        width = self.sizes.hidden_size
        self.fc = nn.Linear(2 * width, width, bias=bool(config.get("eagle_fc_bias")))
        own = bool(config.get("own_embed_tokens"))
        self.embed_tokens = nn.Embedding(config["vocab_size"], width) if own else None
        self.layers = nn.ModuleList(EagleLayer(self.sizes, i == 0) for i in range(config["num_hidden_layers"]))
        self.rotary = Rotary(self.sizes, min(target.max_positions, LONGEST))
        self.logit_scale = target.logit_scale
        self.draft_tokens = settings.draft_tokens if settings else 1
        self.unroll_steps = settings.unroll_steps if settings else 1
        self.unroll_decay = settings.unroll_decay if settings else 1.0
        self.loss_kind = settings.loss if settings else "kl"
        self._feature_weight = settings.feature_weight if settings else 0.0
        self._token_weight = settings.token_weight if settings else 1.0
        self._noise = settings.input_noise if settings else 0.0

    @classmethod
    def from_config(cls, target: Target, settings: EagleMethod, token_counts: Tensor | None = None) -> Self:
        sizes = draft_dimensions(target, settings.dimensions)
        drafter = cls(target, _config(target, settings.num_layers, sizes), settings)
        with torch.no_grad():
            drafter._start()
        return drafter.to(target.device)

    def _start(self) -> None:
        """The base's state passes through, so that what is learnt is the way from it to the next one."""
        self.start_layers()
        width = self.sizes.hidden_size
        self.fc.weight[:, width:].add_(torch.eye(width))

    def checkpoint_config(self) -> dict[str, Any]:
        return self._config

    @property
    def output_weight(self) -> Tensor:
        return self.target.output_weight

    def embed(self, token_ids: Tensor) -> Tensor:
        weight = self.target.embedding_weight if self.embed_tokens is None else self.embed_tokens.weight
        return embedding(token_ids, weight).to(self._dtype)

    def first_states(self, hidden: Tensor, auxiliary: Tensor | None) -> Tensor:
        if self.training and self._noise and torch.is_grad_enabled():
            hidden = hidden + torch.empty_like(hidden).uniform_(-self._noise, self._noise)
        return hidden

    def join(self, states: Tensor, embeddings: Tensor) -> Tensor:
        joined: Tensor = self.fc(torch.cat([embeddings, states], -1))
        return joined

    def finish(self, states: Tensor) -> tuple[Tensor, Tensor]:
        return states, states

    def head_weight(self) -> float:
        return self._token_weight

    def feature_loss(self, states: list[Tensor], rows: list[Tensor], features: Features) -> Tensor | None:
        """Smooth L1 distance of each output from the base's own next state, weighed as the tokens are."""
        if not self._feature_weight:
            return None
        hidden = features.hidden.flatten(0, 1).float()
        total = torch.zeros((), device=hidden.device)
        for k, (state, row) in enumerate(zip(states, rows, strict=True)):
            count = len(row) if features.counts is None else features.counts[k]
            distance = smooth_l1_loss(state.float(), hidden[row + 1 + k], reduction="sum") / hidden.shape[-1]
            total = total + self.unroll_decay**k * distance / max(1, int(count))
        return self._feature_weight * total


def _config(target: Target, num_layers: int, sizes: Dimensions) -> dict[str, Any]:
    scale = {} if target.logit_scale == 1.0 else {"logit_scale": target.logit_scale}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **sizes.as_config(),
        **scale,
        "num_hidden_layers": num_layers,
        "vocab_size": target.vocab_size,
        "tie_word_embeddings": False,
    }
