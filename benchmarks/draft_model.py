"""A small draft model for a base, to be set beside its drafters: a Llama trained on the base's own answers.

    python -m benchmarks.draft_model [--base models/base] [--data data/synthetic/train.jsonl] --output DIR
                                     [--layers 1] [--hidden 128] [--steps 600] [--rows 8]

Cross-entropy on whole conversations, AdamW, a cosine down to 0. The tokenizer is the base's.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

from specdec.io import read_jsonl
from specdec.targets import load_tokenizer

HEAD_SIZE = 32
IGNORED = -100


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    tokenizer = load_tokenizer(options.base)
    rows = [ids for row in read_jsonl(options.data) for ids in conversations(row)]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=options.hidden,
            intermediate_size=3 * options.hidden,
            num_hidden_layers=options.layers,
            num_attention_heads=options.hidden // HEAD_SIZE,
            max_position_embeddings=2048,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    chance = random.Random(0)
    for _ in track(range(options.steps), f"{len(rows)} conversations"):
        some = [torch.tensor(ids[: options.max_length]) for ids in chance.sample(rows, options.rows)]
        labels = pad_sequence(some, batch_first=True, padding_value=IGNORED)
        loss = model(labels.clamp(min=0), attention_mask=(labels != IGNORED).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    size = sum(weight.numel() for weight in model.parameters())
    print(f"{options.output}: {size:,} weights, loss {loss.item():.3f} on its last {options.rows} conversations")


def conversations(row: dict[str, Any]) -> list[list[int]]:
    """Token ids of each regenerated turn, with what stood before it."""
    return [segment["prompt_token_ids"] + segment["token_ids"] for segment in row["segments"]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("models/base"))
    parser.add_argument("--data", type=Path, default=Path("data/synthetic/train.jsonl"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=128, help=f"a multiple of {HEAD_SIZE}")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rows", type=int, default=8, help="conversations in a step")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
