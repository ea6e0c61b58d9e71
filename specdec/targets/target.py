"""A frozen base model behind the few operations that drafting, verifying and training need.

Any Hugging Face causal language model with an output layer. Logits are taken from hidden states by the model's
own head (bias, scaling and soft-capping included); loading proves on a few tokens that this equals the model's
own forward, so an architecture whose head does something else is refused instead of being served wrongly.
"""

import inspect
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import Cache

from specdec.errors import ConfigError, ModelError
from specdec.targets.fixed_cache import FixedCache, compiled
from specdec.targets.growing_cache import GrowingCache
from specdec.targets.identity import Identity, identify, identity_of
from specdec.targets.loading import files_of, first_line, load_model, load_tokenizer
from specdec.targets.packed import pack

# Names of the factor by which families multiply (or divide) their logits, and of the cap they squeeze them into.
_SCALES = {"logit_scale": lambda x: x, "logits_scaling": lambda x: 1 / x}
_CAPS = ("final_logit_softcapping",)
# Windows that families cut by themselves, by the number of rows in the cache: masks of trees do not reach them.
_OWN_WINDOWS = ("window_size", "keep_window_size", "attention_chunk_size")
_LONGEST_CHECK = 1000  # the longest such window that is looked behind when a base is loaded
# One pass of a model at a time, whatever the threads: torch's hooks do not bear being set during another's pass.
_PASSES: WeakKeyDictionary[torch.nn.Module, threading.Lock] = WeakKeyDictionary()


@dataclass(frozen=True)
class TargetOutput:
    """hidden[B, T, H]: after the final norm. auxiliary[B, T, A*H]: outputs of the layers asked for, or None."""

    hidden: Tensor
    auxiliary: Tensor | None = None


class Target:
    """The base: `forward` gives hidden states, `logits` turns them into logits, `new_cache` holds a context."""

    def __init__(self, model: Any, tokenizer: Any, identity: Identity, name: str):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.identity = identity
        self.name = name
        self._body = model.base_model
        # transformers 5.24 calls it `cache`, earlier ones `past_key_values`.
        parameters = inspect.signature(self._body.forward).parameters
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"
        self._head = model.get_output_embeddings()
        if self._head is None:
            raise ModelError(f"{name} has no output layer: a drafter needs a causal language model")
        if not torch.cuda.is_available():
            # Under a mask transformers repeats keys and values for every query head, but where this is set: with it
            # kernels read them as they are. (On a GPU no fast kernel could.)
            os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")
        text = model.config.get_text_config()
        self.text_config = text
        self._trees_checked = False
        self._compiled: Any = None
        self._listening: dict[tuple[int, ...], dict[int, Tensor]] = {}  # of compiled passes, by their layers
        self.decoder_layers = _decoder_layers(self._body, text.num_hidden_layers, name)
        self.hidden_size: int = text.hidden_size
        self.num_layers: int = text.num_hidden_layers
        self.vocab_size: int = self._head.weight.shape[0]
        # Behind a window of its own that is too long to be looked at here, a base is not known to be right.
        unseen = [size for size in self._own_windows.values() if size > _LONGEST_CHECK]
        self.max_positions = min([_max_positions(text), *unseen])
        self.stop_ids = _stop_ids(model, tokenizer)
        self._scale = logit_scale(text)
        self._cap = next((getattr(text, n) for n in _CAPS if getattr(text, n, None)), None)

    @classmethod
    def from_pretrained(cls, folder: Path | str, dtype: str = "float32", device: str | None = None) -> "Target":
        """Loads a checkpoint folder (safetensors only, no remote code) and proves the door on a few tokens.

        dtype: `float32`, `bfloat16` or `float16`. device: None takes the GPU where there is one.
        Raises ModelError when the folder is no model, or one whose logits this door cannot reproduce.
        """
        folder = Path(folder)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        identity = identify(folder)
        model = load_model(folder, getattr(torch, dtype))
        target = cls(model.to(device), load_tokenizer(folder), identity, folder.name)
        target.check_logits()
        target.check_cache()
        return target

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any = None) -> "Target":
        """A model that is already loaded; it is frozen. tokenizer: None takes the one beside its weights.

        Raises ModelError, as `from_pretrained` does, and where neither a folder nor a tokenizer is known.
        """
        name = getattr(model.config, "_name_or_path", "") or ""
        folder = files_of(name)
        if folder is None and tokenizer is None:
            raise ModelError(f"{name or 'the model'} is no folder with a model's files: pass its tokenizer too")
        if folder is None:
            target = cls(model, tokenizer, identity_of(model, tokenizer), name or type(model).__name__)
        else:
            target = cls(model, tokenizer or load_tokenizer(folder), identify(folder), Path(name).name)
        target.check_logits()
        target.check_cache()
        return target

    @property
    def device(self) -> torch.device:
        return self._head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._head.weight.dtype

    @property
    def output_weight(self) -> Tensor:
        """[V, H]: the output layer's weight; drafter heads start from it."""
        return self._head.weight

    @property
    def embedding_weight(self) -> Tensor:
        """[V, H]: the input embedding's weight, without the factor that some families put on top (as vLLM has it)."""
        return self.model.get_input_embeddings().weight

    @property
    def logit_scale(self) -> float:
        """The factor between `hidden @ output_weight.T` and the logits."""
        return self._scale

    @property
    def final_norm_weight(self) -> Tensor | None:
        """[H]: what an RMSNorm behind the last layer multiplies with; None where the norm is another one."""
        norm = next((getattr(self._body, n) for n in ("norm", "final_layernorm") if hasattr(self._body, n)), None)
        weight = getattr(norm, "weight", None)
        if weight is None or not type(norm).__name__.endswith("RMSNorm") or "Gemma" in type(norm).__name__:
            return None
        return weight if weight.shape == (self.hidden_size,) else None

    def new_cache(self) -> GrowingCache:
        """An empty cache, which keeps whole layers: sliding windows can be rolled back too.

        Who asks for one decodes: see `lay_out`.
        """
        self.lay_out()
        return GrowingCache()

    def lay_out(self) -> None:
        """On a CPU, the weights are laid out for passes over a few tokens (`packed.py`): again where they changed."""
        with self._passes:
            pack(self.model)

    @property
    def _passes(self) -> threading.Lock:
        return _PASSES.setdefault(self.model, threading.Lock())

    def fixed_cache(self, length: int, step: int) -> FixedCache:
        """An empty cache for contexts of `length` tokens, read `step` tokens at once: see FixedCache.

        Raises ModelError where the base does not keep to a mask (`check_trees`), which such a cache needs.
        """
        self.check_trees()
        return FixedCache(self.num_layers, length + step, step, self.device)

    def compile(self) -> None:
        """From now on, passes over a FixedCache's `step` tokens are compiled (on a GPU: captured as CUDA graphs)."""
        self._compiled = compiled(self._fixed, self.device)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        layers: tuple[int, ...] = (),
    ) -> TargetOutput:
        """One pass over token_ids[B, T] behind what `cache` holds (and which it then holds too).

        positions[B, T]: restart at 0 for every document of a packed row (no cache then): documents do not see
        each other. layers: i is the output of decoder layer i-1, before the final norm (0: the embeddings).
        """
        if isinstance(cache, FixedCache):
            count = token_ids.shape[1]
            sees = torch.ones(count, count, dtype=torch.bool, device=token_ids.device).tril()
            return self.forward_tree(token_ids, sees, cache, layers)
        return self._forward(token_ids, positions, cache, layers, None)

    def forward_tree(
        self, token_ids: Tensor, sees: Tensor, cache: Cache, layers: tuple[int, ...] = ()
    ) -> TargetOutput:
        """One pass over a tree of token_ids[1, N] behind what `cache` holds (and which it then holds too).

        sees[N, N]: row i marks node i and every node above it; all see the cache. See `check_trees`.
        """
        if isinstance(cache, FixedCache):
            return self._step(token_ids, sees, cache, layers)
        context, count = cache.get_seq_length(), len(sees)
        positions = context + sees.sum(1) - 1
        places = torch.cat([torch.arange(context, device=sees.device), positions])  # of the keys
        visible = torch.cat([sees.new_ones(count, context), sees], 1)
        return self._forward(token_ids, positions[None], cache, layers, self._masks(visible, places, positions))

    def _masks(self, visible: Tensor, places: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """visible[N, T]: which keys each of N rows may see; places[T], positions[N]: where they stand in the text."""
        masks = {}
        for kind in self._layer_kinds:
            seen = visible
            if kind == "sliding_attention":
                seen = visible & (places > positions[:, None] - self.text_config.sliding_window)
            lowest = torch.finfo(self.dtype).min
            masks[kind] = torch.zeros(1, 1, *seen.shape, dtype=self.dtype, device=seen.device)
            masks[kind].masked_fill_(~seen, lowest)
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _step(self, token_ids: Tensor, sees: Tensor, cache: FixedCache, layers: tuple[int, ...]) -> TargetOutput:
        """A pass over a cache of fixed size, filled up to its `step` with rows that see themselves alone."""
        count = token_ids.shape[1]
        size = max(count, cache.step)
        if cache.held + size > cache.length:
            raise ConfigError(
                f"a cache for {cache.length - cache.step} positions holds {cache.held} already: make a longer one"
            )
        rows = token_ids.new_zeros(1, size)
        rows[:, :count] = token_ids
        seen = torch.eye(size, dtype=torch.bool, device=sees.device)
        seen[:count, :count] |= sees
        with self._passes:
            if self._compiled and size == cache.step:
                if layers not in self._listening:  # for good: what is compiled has the hooks in it
                    self._listening[layers] = _Listening(self.decoder_layers, layers, any_thread=True).__enter__()
                heard = self._listening[layers]
                heard.clear()  # as when it was compiled, or it would be compiled again
                hidden, auxiliary = self._compiled(rows, seen, cache, layers, heard)
                hidden, auxiliary = hidden.clone(), None if auxiliary is None else auxiliary.clone()
            else:
                with _Listening(self.decoder_layers, layers) as heard:
                    hidden, auxiliary = self._fixed(rows, seen, cache, layers, heard)
        cache.advance(count)
        return TargetOutput(hidden[:, :count], None if auxiliary is None else auxiliary[:, :count])

    def _fixed(
        self, token_ids: Tensor, sees: Tensor, cache: FixedCache, layers: tuple[int, ...], heard: dict[int, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """(hidden, auxiliary) behind token_ids[1, N]; every shape is the same whatever the cache holds."""
        own = torch.arange(cache.length, device=sees.device) - cache.end  # which of the N rows a key is, if any
        positions = cache.end + sees.sum(1) - 1
        mine = own.clamp(0, len(sees) - 1)
        visible = (own < 0) | ((own < len(sees)) & sees[:, mine])
        places = torch.where(own < 0, cache.end + own, positions[mine])
        hidden = self._read(token_ids, positions[None], cache, self._masks(visible, places, positions))
        auxiliary = torch.cat([heard[i] for i in layers], -1) if layers else None
        return hidden, auxiliary

    def _forward(
        self,
        token_ids: Tensor,
        positions: Tensor | None,
        cache: Cache | None,
        layers: tuple[int, ...],
        mask: Tensor | dict[str, Tensor] | None,
    ) -> TargetOutput:
        with self._passes, _Listening(self.decoder_layers, layers) as heard:
            hidden = self._read(token_ids, positions, cache, mask)
        auxiliary = torch.cat([heard[i] for i in layers], -1) if layers else None
        return TargetOutput(hidden, auxiliary)

    def _read(
        self,
        token_ids: Tensor,
        positions: Tensor | None,
        cache: Cache | None,
        mask: Tensor | dict[str, Tensor] | None,
    ) -> Tensor:
        output = self._body(
            input_ids=token_ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=cache is not None,
            **{self._cache_argument: cache},
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    @property
    def _layer_kinds(self) -> list[str]:
        """The kinds of attention of the layers, each once."""
        one = "full_attention" if getattr(self.text_config, "sliding_window", None) is None else "sliding_attention"
        return sorted(set(getattr(self.text_config, "layer_types", None) or [one]))

    @staticmethod
    def keep(cache: Cache, start: int, places: Tensor) -> None:
        """Of what the cache holds from `start` on, only the rows at start + places[n] stay, in that order."""
        stop = start + len(places)
        for layer in cache.layers:
            for rows in (layer.keys, layer.values):
                rows[:, :, start:stop] = rows[:, :, start + places]
        Target.crop(cache, stop)

    @staticmethod
    def crop(cache: Cache, length: int) -> None:
        """Forgets what the cache holds behind `length`."""
        behind = cache.get_seq_length() - length
        if behind:
            cache.crop(-behind)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden[..., H] -> logits[..., V] in float32."""
        logits = self._head(hidden).float()
        if self._scale != 1.0:
            logits = logits * self._scale
        if self._cap is not None:
            logits = torch.tanh(logits / self._cap) * self._cap
        return logits

    @torch.inference_mode()
    def check_trees(self) -> None:
        """Raises ModelError unless `forward_tree` says of each path what `forward` says of it alone; asked once."""
        if self._trees_checked:
            return
        if self._own_windows:
            raise ModelError(
                f"{self.name} ({self.model.config.model_type}) cuts a window by itself "
                f"({', '.join(self._own_windows)}), not by a mask: draft trees cannot be verified"
            )
        unknown = set(self._layer_kinds) - {"full_attention", "sliding_attention"}
        if unknown:
            raise ModelError(
                f"{self.name} has layers of {', '.join(sorted(unknown))}: draft trees cannot be verified"
            )
        ids = torch.arange(6, device=self.device) % self.vocab_size
        sees = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool, device=self.device)
        cache = self.new_cache()
        try:
            self.forward(ids[None, :3], cache=cache)
            tree = self.forward_tree(ids[None, 3:], sees, cache).hidden[0]
        except Exception as error:  # an architecture that takes no such mask raises what it likes
            if _lacks_memory(error):
                raise
            raise ModelError(
                f"{self.name} ({self.model.config.model_type}) takes no mask of a draft tree "
                f"({first_line(error)}): draft chains"
            ) from None
        paths = [self.forward(ids[None, [0, 1, 2, 3, last]]).hidden[0] for last in (4, 5)]
        wanted = torch.stack([paths[0][3], paths[0][4], paths[1][4]])
        if not self._near(tree, wanted):
            raise ModelError(
                f"{self.name} ({self.model.config.model_type}) does not keep to the mask of a draft tree (its states "
                f"differ by {(tree - wanted).abs().max().item():.3g}): draft chains"
            )
        self._trees_checked = True

    @torch.inference_mode()
    def check_cache(self) -> None:
        """Raises ModelError unless passes behind a cache that was cut back say what one pass says."""
        windows = (size for size in self._own_windows.values() if size <= _LONGEST_CHECK)
        count = min(self.max_positions, 12 + max(windows, default=0))
        start, block, ones = count // 2, max(1, count // 4), max(count // 2 + 1, count - 3)
        ids = torch.arange(count, device=self.device)[None] % self.vocab_size
        wanted = self.forward(ids).hidden[0]
        try:
            cache = GrowingCache()
            read = [self.forward(ids[:, :start], cache=cache).hidden[0]]
            self.forward(ids[:, :block], cache=cache)
            self.crop(cache, start)
            read.append(self.forward(ids[:, start:ones], cache=cache).hidden[0])
            read += [self.forward(ids[:, i : i + 1], cache=cache).hidden[0] for i in range(ones, count)]
        except Exception as error:  # an architecture with another kind of cache raises what it likes
            if _lacks_memory(error):
                raise
            raise ModelError(
                f"{self.name} ({self.model.config.model_type}) cannot take back what it has read "
                f"({first_line(error)}), so drafts cannot be verified: choose a base of attention layers"
            ) from None
        if not self._near(torch.cat(read), wanted):
            raise ModelError(
                f"{self.name} ({self.model.config.model_type}) says something else behind its cache than in one "
                "pass, so drafts cannot be verified: choose a base of attention layers"
            )

    def _near(self, found: Tensor, wanted: Tensor) -> bool:
        """But for rounding, in the base's data type."""
        tolerance = 1e-4 if self.dtype is torch.float32 else 5e-2
        return torch.allclose(found, wanted, rtol=tolerance, atol=tolerance * wanted.abs().max().item())

    @property
    def _own_windows(self) -> dict[str, int]:
        sizes = {name: getattr(self.text_config, name, None) for name in _OWN_WINDOWS}
        return {name: size for name, size in sizes.items() if isinstance(size, int) and size > 0}

    @torch.inference_mode()
    def check_logits(self) -> None:
        """Raises ModelError unless `logits(forward(x).hidden)` equals the model's own logits."""
        ids = torch.arange(min(5, self.vocab_size), device=self.device)[None]
        with self._passes:
            own = self.model(ids, use_cache=False).logits.float()
        ours = self.logits(self.forward(ids).hidden)
        tolerance = 1e-4 if self.dtype is torch.float32 else 2e-2
        if not torch.allclose(own, ours, rtol=tolerance, atol=tolerance * own.abs().max().item()):
            worst = (own - ours).abs().max().item()
            raise ModelError(
                f"{self.name} ({self.model.config.model_type}): its logits are not those of its output layer "
                f"(they differ by {worst:.3g}), so this architecture is not supported"
            )


class _Listening:
    """Keeps the outputs of some decoder layers of one pass, as a mapping from index to [B, T, H].

    any_thread: hears every pass; else those of the thread that made it, for the model may be used by others too.
    """

    def __init__(self, modules: torch.nn.ModuleList, layers: tuple[int, ...], any_thread: bool = False):
        self._modules, self._wanted = modules, layers
        self._thread = None if any_thread else threading.get_ident()
        self._heard: dict[int, Tensor] = {}

    def __enter__(self) -> dict[int, Tensor]:
        self._hooks: list[Any] = []
        try:
            for i in self._wanted:
                self._hooks.append(self._hook(i))
        except BaseException:  # an interrupt comes where it likes
            self.__exit__()
            raise
        return self._heard

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, i: int) -> Any:
        # Of a hook that another thread removes at this moment, torch has forgotten that it takes keywords.
        def keep(_module: Any, inputs: Any, keywords: Any = None, output: Any = None) -> None:
            if self._thread is not None and self._thread != threading.get_ident():
                return
            value = (inputs[0] if inputs else keywords["hidden_states"]) if i == 0 else output
            self._heard[i] = value[0] if isinstance(value, tuple) else value

        if i == 0:
            return self._modules[0].register_forward_pre_hook(keep, with_kwargs=True)
        return self._modules[i - 1].register_forward_hook(keep, with_kwargs=True)


def _lacks_memory(error: Exception) -> bool:
    """torch says so of a GPU by its type, of a CPU by its words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def logit_scale(text: Any) -> float:
    """The factor between `hidden @ output_weight.T` and the logits, by a base's configuration of its text part."""
    return next((f(getattr(text, n)) for n, f in _SCALES.items() if getattr(text, n, None)), 1.0)


def _decoder_layers(body: Any, count: int, name: str) -> torch.nn.ModuleList:
    """The base's decoder layers: the one list of `count` modules right below it. Raises ModelError."""
    lists = [m for m in body.children() if isinstance(m, torch.nn.ModuleList) and len(m) == count]
    if len(lists) != 1:
        raise ModelError(f"{name} ({body.config.model_type}): its {count} decoder layers were not found")
    return lists[0]


def _max_positions(text: Any) -> int:
    """How many positions the base takes. LongRoPE turns to other angles behind its original length, those of earlier
    positions included: a cache, and a packed row, is right up to there only.
    """
    rope = getattr(text, "rope_parameters", None) or {}
    sets = [rope, *(found for found in rope.values() if isinstance(found, dict))]  # one set a kind of layer
    ends = [found["original_max_position_embeddings"] for found in sets if found.get("rope_type") == "longrope"]
    return min([getattr(text, "max_position_embeddings", None) or 2**31 - 1, *ends])


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """All tokens that end an answer: the generation config may list several."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
