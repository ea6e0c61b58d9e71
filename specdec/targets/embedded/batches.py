"""Chats as token ids with labels, and batches of them."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from specdec.targets.embedded.chat import BOS_ID, EOS_ID, PAD_ID, SPECIAL_TOKENS, Chat
from specdec.targets.embedded.settings import EmbeddedSettings

IGNORED = -100  # a label that carries no loss
WINDOW = 1024  # samples that are sorted by length together


@dataclass(frozen=True)
class Sample:
    """One conversation as token ids and labels, both of the same length."""

    ids: list[int]
    labels: list[int]


def encode(tokenizer: PreTrainedTokenizerBase, chats: list[Chat], settings: EmbeddedSettings) -> list[Sample]:
    """Chats as the template renders them, cut to ``max_tokens``.

    The loss is on every token, or without ``loss_on_prompts`` on what the assistant says and its EOS.
    """
    texts = [m["content"] for chat in chats for m in chat]
    pieces = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    samples = [_sample(chat, pieces, settings.loss_on_prompts) for chat in chats]
    limit = settings.max_tokens
    return [Sample(s.ids[:limit], s.labels[:limit]) for s in samples]


def _sample(chat: Chat, pieces: Iterator[list[int]], all_tokens: bool) -> Sample:
    ids, labels = [BOS_ID], [IGNORED]
    for message in chat:
        said = [*next(pieces), EOS_ID]
        role = SPECIAL_TOKENS.index(f"<|{message['role']}|>")
        learnt = all_tokens or message["role"] == "assistant"
        ids += [role, *said]
        labels += [role if all_tokens else IGNORED, *(said if learnt else [IGNORED] * len(said))]
    return Sample(ids, labels)


def batches(samples: list[Sample], budget: int, seed: int) -> Iterator[list[Sample]]:
    """Batches without end, of at most ``budget`` tokens with padding: shuffled each epoch, alike in length.

    A window of shuffled samples is sorted by length and cut, so little is padded and the order stays random.
    """
    epoch = 0
    while True:
        rng = random.Random(f"{seed}.{epoch}")
        order = rng.sample(samples, len(samples))
        found = [b for i in range(0, len(order), WINDOW) for b in cut(order[i : i + WINDOW], budget)]
        rng.shuffle(found)
        yield from found
        epoch += 1


def cut(samples: list[Sample], budget: int) -> Iterator[list[Sample]]:
    """All samples, sorted by length, in batches of at most ``budget`` tokens with padding."""
    batch: list[Sample] = []
    for sample in sorted(samples, key=lambda s: len(s.ids)):
        if batch and (len(batch) + 1) * len(sample.ids) > budget:
            yield batch
            batch = []
        batch.append(sample)
    yield batch


def collate(batch: list[Sample]) -> tuple[Tensor, Tensor]:
    """ids[B, T] and labels[B, T], padded on the right: causal attention needs no further mask."""
    width = max(len(s.ids) for s in batch)
    ids = [s.ids + [PAD_ID] * (width - len(s.ids)) for s in batch]
    labels = [s.labels + [IGNORED] * (width - len(s.labels)) for s in batch]
    return torch.tensor(ids), torch.tensor(labels)
