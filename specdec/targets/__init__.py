"""One door to any Hugging Face base model: its identity, its hidden states, its logits, its cache."""

from specdec.targets.fixed_cache import FixedCache, compiled
from specdec.targets.identity import Identity, identify
from specdec.targets.loading import load_tokenizer
from specdec.targets.target import Target, TargetOutput

__all__ = ["FixedCache", "Identity", "Target", "TargetOutput", "compiled", "identify", "load_tokenizer"]
