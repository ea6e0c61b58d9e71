"""One door to any Hugging Face base model: its identity, its hidden states, its logits, its cache."""

from specdec.targets.identity import Identity, identify
from specdec.targets.target import Target, TargetOutput, load_tokenizer

__all__ = ["Identity", "Target", "TargetOutput", "identify", "load_tokenizer"]
