"""EAGLE-3 (Li et al., 2025, arXiv:2503.01840), in the layout that vLLM loads as `eagle3`.

Low, middle and high states of the base are fused by `fc`; one decoder layer reads them beside the embedding of the
next token and feeds on its own output in further draft positions, in training too (training-time test). Its own
output layer speaks a draft vocabulary. Fresh weights start from the base: the output layer from the base's rows,
`norm` from the base's final norm; `fc` passes the highest of the states on.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from specdec.config import Eagle3Method
from specdec.drafters.dimensions import default_aux_layers, draft_dimensions, projection
from specdec.drafters.eagle import EagleLayer
from specdec.drafters.head_loss import DraftVocabulary
from specdec.drafters.llama_layer import LONGEST, Dimensions, DraftLayer, RMSNorm, Rotary
from specdec.drafters.unrolled import Unrolled
from specdec.errors import ConfigError, ModelError
from specdec.targets import Target


class Eagle3Layer(DraftLayer):
    """Attention reads [norm(embedding), norm(state)] side by side; the residual is the state."""

    def __init__(self, sizes: Dimensions, norm_before_residual: bool):
        super().__init__(sizes, 2 * sizes.hidden_size)
        self.input_layernorm = RMSNorm(sizes.hidden_size, sizes.rms_norm_eps)
        self.hidden_norm = RMSNorm(sizes.hidden_size, sizes.rms_norm_eps)
        self.norm_before_residual = norm_before_residual

    def enter(self, state: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.hidden_norm(state)
        inputs = torch.cat([self.input_layernorm(embedding), normed], -1)
        return inputs, normed if self.norm_before_residual else state


class Eagle3(Unrolled):
    """`fc`, `layers.0`, `norm`, `lm_head`, with `d2t`, `t2d` for a draft vocabulary and `embed_tokens` for a width
    of its own.

    What was trained elsewhere may have further layers, which are Llama's, an `embed_tokens` of the base's width
    (`own_embed_tokens`), and one norm over all the states that are fused (`input_norm`, of `norm_before_fc`).
    """

    method = "eagle3"
    d2t: Tensor
    t2d: Tensor

    def __init__(self, target: Target, config: dict[str, Any], settings: Eagle3Method | None = None):
        super().__init__(target, config, settings)
        self.target = target
        self._config = config
        self.sizes = Dimensions.from_config(config)
        self.aux_layers = tuple(config["eagle_config"]["eagle_aux_hidden_state_layer_ids"])
        self.norm_output = bool(config["norm_output"])
        width, eps = self.sizes.hidden_size, self.sizes.rms_norm_eps
        states, base_width = len(self.aux_layers), config["target_hidden_size"]
        self.fc_norm = nn.ModuleList(RMSNorm(base_width, eps) for _ in range(states)) if config["fc_norm"] else None
        self.input_norm = RMSNorm(states * base_width, eps) if config["norm_before_fc"] else None
        self.fc = nn.Linear(states * base_width, width, bias=False)
        further = [EagleLayer(self.sizes, first=False) for _ in range(config["num_hidden_layers"] - 1)]
        self.layers = nn.ModuleList([Eagle3Layer(self.sizes, config["norm_before_residual"]), *further])
        self.norm = RMSNorm(width, eps)
        self.lm_head = nn.Linear(width, config["draft_vocab_size"], bias=False)
        own = width != base_width or bool(config.get("own_embed_tokens"))
        self.embed_tokens = nn.Embedding(config["vocab_size"], width) if own else None
        self.rotary = Rotary(self.sizes, min(target.max_positions, LONGEST))
        if config["draft_vocab_size"] < config["vocab_size"]:
            self.register_buffer("d2t", torch.zeros(config["draft_vocab_size"], dtype=torch.long))
            self.register_buffer("t2d", torch.zeros(config["vocab_size"], dtype=torch.bool))
        self.draft_tokens = settings.draft_tokens if settings else 1
        self.unroll_steps = settings.unroll_steps if settings else 1
        self.unroll_decay = settings.unroll_decay if settings else 1.0
        self.loss_kind = settings.loss if settings else "kl"

    @classmethod
    def from_config(cls, target: Target, settings: Eagle3Method, token_counts: Tensor | None = None) -> Self:
        sizes = draft_dimensions(target, settings.dimensions)
        kept = _kept_tokens(target, settings.draft_vocab_size, token_counts)
        drafter = cls(target, _config(target, settings, sizes, kept), settings)
        with torch.no_grad():
            drafter._start(target, kept)
        return drafter.to(target.device)

    def _start(self, target: Target, kept: Tensor | None) -> None:
        """Weights that are the base's from the start."""
        self.start_layers()
        rows = target.output_weight.float().cpu() * target.logit_scale
        rows = rows if kept is None else rows[kept.cpu()]
        if self.embed_tokens is None:
            self.lm_head.weight.copy_(rows)
        else:
            narrow = projection(target.embedding_weight, self.sizes.hidden_size)
            self.embed_tokens.weight.copy_(target.embedding_weight.float().cpu() @ narrow.T)
            self.lm_head.weight.copy_(rows @ narrow.T)
        norm = target.final_norm_weight
        if norm is not None and self.embed_tokens is None:
            self.norm.weight.copy_(norm)
        if kept is not None:
            self.d2t.copy_(kept - torch.arange(len(kept)))
            self.t2d[kept] = True
            self._set_vocabulary()

    def _set_vocabulary(self) -> None:
        to_target = self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)
        self._vocabulary = DraftVocabulary.of(to_target, len(self.t2d))

    def load_state_dict(self, *arguments: Any, **keywords: Any) -> Any:
        """The maps come with the weights: a warm start keeps the vocabulary that its output layer speaks."""
        result = super().load_state_dict(*arguments, **keywords)
        if hasattr(self, "d2t"):
            self._check_vocabulary()
            self._set_vocabulary()
        return result

    @property
    def vocabulary(self) -> DraftVocabulary | None:  # type: ignore[override]
        if not hasattr(self, "d2t"):
            return None
        if self._vocabulary.to_target.device != self.d2t.device:
            self._set_vocabulary()
        return self._vocabulary

    def _check_vocabulary(self) -> None:
        said = self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)
        if not torch.equal(said, self.t2d.nonzero().squeeze(-1)):
            raise ModelError("the EAGLE-3 checkpoint's d2t and t2d name different draft vocabularies")

    def checkpoint_config(self) -> dict[str, Any]:
        return self._config

    @property
    def output_weight(self) -> Tensor:
        return self.lm_head.weight

    def embed(self, token_ids: Tensor) -> Tensor:
        if self.embed_tokens is not None:
            embedded: Tensor = self.embed_tokens(token_ids)
            return embedded
        return embedding(token_ids, self.target.embedding_weight).to(self._dtype)

    def first_states(self, hidden: Tensor, auxiliary: Tensor | None) -> Tensor:
        assert auxiliary is not None
        if self.input_norm is not None:
            auxiliary = self.input_norm(auxiliary)
        if self.fc_norm is not None:
            parts = auxiliary.chunk(len(self.fc_norm), -1)
            auxiliary = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], -1)
        fused: Tensor = self.fc(auxiliary)
        return fused

    def join(self, states: Tensor, embeddings: Tensor) -> Tensor:
        return states

    def finish(self, states: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm(states)
        return normed, normed if self.norm_output else states


def _aux_layers(target: Target, chosen: list[int] | None) -> tuple[int, ...]:
    layers = tuple(chosen) if chosen is not None else default_aux_layers(target.num_layers)
    if not layers or min(layers) < 0 or max(layers) > target.num_layers:
        raise ConfigError(
            f"aux_layers {list(layers)}: {target.name} has layers 1 to {target.num_layers} (0: embeddings)"
        )
    if list(layers) != sorted(set(layers)):
        raise ConfigError(f"aux_layers {list(layers)}: each once, in ascending order (vLLM sorts them)")
    return layers


def _kept_tokens(target: Target, size: int | None, counts: Tensor | None) -> Tensor | None:
    """Ascending ids of the draft vocabulary: what the base answers most, and the tokens that end an answer."""
    if size is None or size == target.vocab_size:
        return None
    if size > target.vocab_size:
        raise ConfigError(f"draft_vocab_size is {size}, and {target.name} has {target.vocab_size} tokens")
    if counts is None:
        raise ConfigError(
            "draft_vocab_size needs the counts of answer tokens: train it on data, or pass token_counts"
        )
    counts = counts.cpu().clone()
    counts[[i for i in target.stop_ids if i < target.vocab_size]] += int(counts.sum()) + 1
    order = torch.sort(counts, descending=True, stable=True).indices
    return order[:size].sort().values


def _config(target: Target, settings: Eagle3Method, sizes: Dimensions, kept: Tensor | None) -> dict[str, Any]:
    layers = list(_aux_layers(target, settings.aux_layers))
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        **sizes.as_config(),
        "num_hidden_layers": 1,
        "vocab_size": target.vocab_size,
        "draft_vocab_size": target.vocab_size if kept is None else len(kept),
        "target_hidden_size": target.hidden_size,
        "norm_before_residual": settings.norm_before_residual,
        "norm_before_fc": False,
        "fc_norm": settings.fc_norm,
        "norm_output": settings.norm_output,
        "eagle_aux_hidden_state_layer_ids": layers,
        "num_aux_hidden_states": len(layers),
        "eagle_config": {"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": layers},
        "tie_word_embeddings": False,
    }
