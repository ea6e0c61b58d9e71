"""The model and its loss."""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from specdec.targets.embedded.batches import IGNORED, Sample, collate, cut
from specdec.targets.embedded.chat import BOS_ID, EOS_ID, PAD_ID
from specdec.targets.embedded.settings import EmbeddedSettings


def new_model(settings: EmbeddedSettings) -> LlamaForCausalLM:
    """The untrained model, the same for the same settings."""
    config = LlamaConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_kv_heads,
        head_dim=settings.hidden_size // settings.num_heads,
        intermediate_size=settings.intermediate_size,
        max_position_embeddings=settings.max_positions,
        tie_word_embeddings=settings.tie_embeddings,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        dtype="float32",
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config).float()


def loss_sum(model: LlamaForCausalLM, batch: list[Sample]) -> tuple[Tensor, int]:
    """Summed cross-entropy of the next token, and over how many tokens."""
    ids, labels = collate(batch)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    kept = targets != IGNORED
    logits = model.lm_head(hidden[kept])
    return nn.functional.cross_entropy(logits, targets[kept], reduction="sum"), int(kept.sum())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, samples: list[Sample], budget: int) -> float:
    """Mean loss a token over all of ``samples``."""
    model.eval()
    results = [loss_sum(model, batch) for batch in cut(samples, budget)]
    model.train()
    return float(sum(loss.item() for loss, _ in results)) / max(1, sum(n for _, n in results))
