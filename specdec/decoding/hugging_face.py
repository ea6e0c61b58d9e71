"""A drafter in transformers' own `generate`: `model.generate(**inputs, custom_generate=custom_generate(drafter))`.

What `generate` was asked for is kept (greedy or sampling with temperature, top_k, top_p; maximum lengths; end tokens;
stopping criteria), or refused by name. transformers hands neither `streamer`, `tokenizer` nor `assistant_model` on
to a custom method: stream with `streamer=` here, and stop at strings with a `StopStringCriteria` among
`stopping_criteria`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import (
    LogitsProcessorList,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specdec.decoding.generate import steps
from specdec.decoding.stop import Stop
from specdec.drafters import Drafter, Sampling, Shape
from specdec.errors import ConfigError

_SAMPLERS = {TemperatureLogitsWarper: "temperature", TopKLogitsWarper: "top_k", TopPLogitsWarper: "top_p"}
# What `generate` hands on by itself: none of it changes the tokens.
_OWN = {
    "attention_mask",
    "position_ids",
    "cache",
    "past_key_values",
    "use_cache",
    "cache_position",
    "logits_to_keep",
}


def custom_generate(
    drafter: Drafter, tree: Shape | None = None, sample_drafts: bool | None = None, streamer: Any = None
) -> Callable[..., Tensor]:
    """The `custom_generate` of `model.generate`, for one sequence. tree, sample_drafts: see `steps`.

    drafter: loaded for this very model (`Target.from_model(model)`). Randomness is torch's own, as in `generate`.
    The callable raises ConfigError for what a drafter cannot keep to: several sequences, beams, padding, further
    logits processors, outputs other than the token ids.
    """

    def decode(
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor:
        _check(drafter, model, input_ids, generation_config, model_kwargs)
        sampling = _sampling(logits_processor, bool(generation_config.do_sample))
        prompt = input_ids[0].tolist()
        limit = generation_config.max_length - len(prompt)
        stop = Stop(_end_tokens(generation_config))
        found = input_ids
        if streamer is not None:
            streamer.put(input_ids.cpu())
        for step in steps(
            drafter.target, drafter, prompt, limit, sampling, tree=tree, sample_drafts=sample_drafts, stop=stop
        ):
            said, done = _until(stopping_criteria, found, step.token_ids)
            found = torch.cat([found, input_ids.new_tensor([said])], 1)
            if streamer is not None:
                for token in said:
                    streamer.put(torch.tensor([token]))
            if done:
                break
        if streamer is not None:
            streamer.end()
        return found

    return decode


def _check(
    drafter: Drafter, model: Any, input_ids: Tensor, config: GenerationConfig, model_kwargs: dict[str, Any]
) -> None:
    if drafter.target.model is not model:
        raise ConfigError("custom_generate: the drafter was loaded for another model: use Target.from_model(model)")
    refused = {
        "num_beams": 1,
        "return_dict_in_generate": False,
        "output_scores": False,
        "prompt_lookup_num_tokens": None,
    }
    for name, plain in refused.items():
        if (value := getattr(config, name, None)) not in (None, plain):
            raise ConfigError(f"custom_generate cannot keep to {name}={value}: leave it out")
    if input_ids.shape[0] != 1:
        raise ConfigError(f"custom_generate takes one sequence, and got {input_ids.shape[0]}: call it for each")
    for name in ("cache", "past_key_values"):
        given = model_kwargs.get(name)
        if given is not None and given.get_seq_length():
            raise ConfigError("custom_generate begins with an empty cache: leave out the one that holds something")
    mask = model_kwargs.get("attention_mask")
    if mask is not None and not bool((mask == 1).all()):
        raise ConfigError("custom_generate takes no padding: give one sequence without any")
    places = model_kwargs.get("position_ids")
    if places is not None and places.flatten().tolist() != list(range(input_ids.shape[1])):
        raise ConfigError("custom_generate counts positions from 0: leave position_ids out")
    for name, value in model_kwargs.items():
        if name not in _OWN and value is not None:
            raise ConfigError(f"custom_generate cannot keep to {name}: leave it out")


def _sampling(processors: LogitsProcessorList, sampled: bool) -> Sampling:
    found: dict[str, Any] = {"temperature": 1.0} if sampled else {}
    for processor in processors:
        name = _SAMPLERS.get(type(processor))
        if name is None or not sampled:
            raise ConfigError(
                f"custom_generate cannot keep to the logits processor {type(processor).__name__}: leave out the "
                "setting of `generate` that it comes from"
            )
        if getattr(processor, "min_tokens_to_keep", 1) != 1:
            raise ConfigError(f"custom_generate cannot keep to min_tokens_to_keep of {name}: leave it out")
        found[name] = getattr(processor, name)
    kinds = [type(processor) for processor in processors]
    if kinds != [kind for kind in _SAMPLERS if kind in kinds]:
        raise ConfigError("custom_generate takes one each of temperature, top_k and top_p, in this order")
    return Sampling(**found)


def _end_tokens(config: GenerationConfig) -> frozenset[int]:
    ends = config.eos_token_id
    return frozenset([ends] if isinstance(ends, int) else ends or ())


def _until(criteria: StoppingCriteriaList, before: Tensor, tokens: list[int]) -> tuple[list[int], bool]:
    """What of `tokens` is said until the first criterion holds, and whether one does."""
    whole = torch.cat([before, before.new_tensor([tokens])], 1)
    for count in range(1, len(tokens) + 1):
        if bool(criteria(whole[:, : before.shape[1] + count], None).all()):
            return tokens[:count], True
    return tokens, False
