"""The settings of the embedded base."""

from dataclasses import dataclass

from specdec.errors import ConfigError
from specdec.targets.embedded.chat import SPECIAL_TOKENS


@dataclass(frozen=True)
class EmbeddedSettings:
    """Sizes and schedule. The defaults take about three minutes on two cores."""

    vocab_size: int = 2048
    hidden_size: int = 192
    num_layers: int = 3
    num_heads: int = 6
    num_kv_heads: int = 2
    intermediate_size: int = 512
    max_positions: int = 1024
    tie_embeddings: bool = True
    steps: int = 1100
    batch_tokens: int = 2048  # per step, padding included
    max_tokens: int = 320  # of one conversation; a longer one is cut
    learning_rate: float = 0.02  # of the hidden matrices (Muon)
    adam_learning_rate: float = 0.004  # of embeddings and norms (AdamW)
    warmup: float = 0.02  # shares of all steps
    decay: float = 0.5
    loss_on_prompts: bool = True
    held_out: float = 0.03  # share of the conversations
    checkpoint_seconds: float = 15.0
    progress_seconds: float = 4.0
    seed: int = 17

    def __post_init__(self) -> None:
        """Raises ConfigError for sizes of which no model can be made."""
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ConfigError("embedded base: hidden_size must divide by num_heads, and that by num_kv_heads")
        if self.vocab_size < 256 + len(SPECIAL_TOKENS):
            raise ConfigError(f"embedded base: vocab_size must be {256 + len(SPECIAL_TOKENS)} or more")
        if min(self.steps, self.batch_tokens, self.num_layers) < 1 or self.max_positions < self.max_tokens:
            raise ConfigError(
                "embedded base: steps, batch_tokens, num_layers must be positive, max_positions >= max_tokens"
            )
