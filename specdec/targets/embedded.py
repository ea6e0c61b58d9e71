"""A small base model, made on the user's own CPU in minutes: the target of the embedded default.

    from specdec.targets.embedded import EmbeddedSettings, build_base
    build_base(Path("train.jsonl"), Path("models/base"), EmbeddedSettings(), Path("work"), print)

It is a Llama-architecture causal model over a byte-level BPE tokenizer of its own, both trained from scratch
on conversations in their chat template, so that it answers chat prompts and ends its turns. Everything is
float32 and seeded; a build that was killed resumes from its last checkpoint and ends with the same bytes,
given the same number of threads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from specdec import io
from specdec.errors import ConfigError, DataError

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = (PAD, BOS, EOS, *(f"<|{role}|>" for role in ROLES))  # their ids are 0, 1, 2, ...
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role: ' + m['role']) }}{% endif %}"
    "{{ '<|' + m['role'] + '|>' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
IGNORED = -100  # a label that carries no loss

Progress = Callable[[str], None]
Message = dict[str, str]


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


@dataclass(frozen=True)
class Sample:
    """One conversation as token ids and labels, both of the same length."""

    ids: list[int]
    labels: list[int]


# ------------------------------------------------------------------------------------------- tokenizer


def messages_of(row: dict[str, Any]) -> list[Message]:
    """Chat messages of a row in the Daring-Anteater schema. Raises DataError where the schema is another."""
    try:
        system = [{"role": "system", "content": row["system"]}] if row["system"] else []
        chat = system + [{"role": t["from"].lower(), "content": t["value"]} for t in row["conversations"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"a conversation does not follow the schema: {error}") from error
    if wrong := [m for m in chat if m["role"] not in ROLES or not isinstance(m["content"], str)]:
        raise DataError(f"a turn must be a text of User or Assistant, found {wrong[0]!r:.80}")
    return chat


def train_tokenizer(texts: Iterator[str], vocab_size: int, max_positions: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any Unicode text survives encoding and decoding."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
    )


def encode(
    tokenizer: PreTrainedTokenizerBase, chats: list[list[Message]], settings: EmbeddedSettings
) -> list[Sample]:
    """Chats as the template renders them, cut to ``max_tokens``.

    The loss is on every token, or without ``loss_on_prompts`` on what the assistant says and its EOS.
    """
    texts = [m["content"] for chat in chats for m in chat]
    pieces = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    samples = [_sample(chat, pieces, settings.loss_on_prompts) for chat in chats]
    limit = settings.max_tokens
    return [Sample(s.ids[:limit], s.labels[:limit]) for s in samples]


def _sample(chat: list[Message], pieces: Iterator[list[int]], all_tokens: bool) -> Sample:
    bos, eos = SPECIAL_TOKENS.index(BOS), SPECIAL_TOKENS.index(EOS)
    ids, labels = [bos], [IGNORED]
    for message in chat:
        said = [*next(pieces), eos]
        role = SPECIAL_TOKENS.index(f"<|{message['role']}|>")
        learnt = all_tokens or message["role"] == "assistant"
        ids += [role, *said]
        labels += [role if all_tokens else IGNORED, *(said if learnt else [IGNORED] * len(said))]
    return Sample(ids, labels)


# ------------------------------------------------------------------------------------------------ data


def split(rows: list[dict[str, Any]], held_out: float) -> tuple[list[list[Message]], list[list[Message]]]:
    """Chats to train on and chats held out, by a hash of their content."""
    train: list[list[Message]] = []
    rest: list[list[Message]] = []
    for row in rows:
        chat = messages_of(row)
        digest = hashlib.sha256(json.dumps(chat).encode()).digest()
        share = int.from_bytes(digest[:4], "big") / 2**32
        (rest if share < held_out else train).append(chat)
    if not train:
        raise DataError("no conversation is left to train on")
    return train, rest or train[:1]


def batches(samples: list[Sample], budget: int, seed: int) -> Iterator[list[Sample]]:
    """Batches without end, of at most ``budget`` tokens with padding: shuffled each epoch, alike in length.

    A window of shuffled samples is sorted by length and cut, so little is padded and the order stays random.
    """
    epoch = 0
    while True:
        rng = random.Random(f"{seed}.{epoch}")
        order = rng.sample(samples, len(samples))
        cut = [b for i in range(0, len(order), 1024) for b in _cut(order[i : i + 1024], budget)]
        rng.shuffle(cut)
        yield from cut
        epoch += 1


def _cut(window: list[Sample], budget: int) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    for sample in sorted(window, key=lambda s: len(s.ids)):
        if batch and (len(batch) + 1) * len(sample.ids) > budget:
            yield batch
            batch = []
        batch.append(sample)
    yield batch


def collate(batch: list[Sample]) -> tuple[Tensor, Tensor]:
    """ids[B, T] and labels[B, T], padded on the right: causal attention needs no further mask."""
    width = max(len(s.ids) for s in batch)
    pad = SPECIAL_TOKENS.index(PAD)
    ids = [s.ids + [pad] * (width - len(s.ids)) for s in batch]
    labels = [s.labels + [IGNORED] * (width - len(s.labels)) for s in batch]
    return torch.tensor(ids), torch.tensor(labels)


# ----------------------------------------------------------------------------------------------- model


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
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        bos_token_id=SPECIAL_TOKENS.index(BOS),
        eos_token_id=SPECIAL_TOKENS.index(EOS),
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
    results = [loss_sum(model, batch) for batch in _cut(samples, budget)]
    model.train()
    return float(sum(loss.item() for loss, _ in results)) / max(1, sum(n for _, n in results))


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for matrices (https://kellerjordan.github.io/posts/muon).

    torch's own computes in bfloat16, which most CPUs only emulate; this one stays in float32.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
                parameter.add_(orthogonal(update), alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest orthogonal matrix: five Newton-Schulz steps bring every singular value near 1."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        b = torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.addmm(x, b, x, beta=3.4445)
    return x.T if tall else x


def optimizers(model: LlamaForCausalLM, settings: EmbeddedSettings) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices; AdamW for embeddings and norms, for which Muon is not meant."""
    hidden = [p for p in model.model.layers.parameters() if p.ndim == 2]
    known = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in known]
    return [
        Muon(hidden, lr=settings.learning_rate),
        torch.optim.AdamW(rest, lr=settings.adam_learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(step: int, settings: EmbeddedSettings) -> float:
    """Factor of the learning rates at ``step`` (from 0): warm-up, plateau, straight fall to zero."""
    warm = max(1.0, settings.warmup * settings.steps)
    left = (settings.steps - step) / max(1.0, settings.decay * settings.steps)
    return min(1.0, (step + 1) / warm, left)


# ----------------------------------------------------------------------------------------- checkpoints


@dataclass
class Training:
    """A model on its way, with all that a later process needs to go on exactly here."""

    model: LlamaForCausalLM
    optimizers: list[torch.optim.Optimizer]
    mark: str  # what the checkpoint belongs to
    step: int = 0
    tokens: int = 0
    loss: float = float("nan")  # smoothed
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Write everything to one safetensors file, which is whole at any moment."""
        names = ("mark", "step", "tokens", "loss", "seconds")
        facts = {name: str(getattr(self, name)) for name in names}
        with io.replacing(path) as aside:
            save_file({k: v.contiguous() for k, v in self._tensors().items()}, aside, metadata=facts)

    def _tensors(self) -> dict[str, Tensor]:
        found = {f"model.{k}": v.detach() for k, v in self.model.named_parameters()}
        for i, optimizer in enumerate(self.optimizers):
            for j, state in optimizer.state_dict()["state"].items():
                found |= {f"optimizer.{i}.{j}.{k}": v for k, v in state.items()}
        return found

    def load(self, path: Path) -> bool:
        """Go on where ``path`` was saved; False where it is missing or of other data, settings or code."""
        if not path.is_file():
            return False
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            if facts.get("mark") != self.mark:
                return False
            names = list(file.keys())
            self._restore({name: file.get_tensor(name) for name in names})
        self.step, self.tokens = int(facts["step"]), int(facts["tokens"])
        self.loss, self.seconds = float(facts["loss"]), float(facts["seconds"])
        return True

    def _restore(self, stored: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(stored[f"model.{name}"])
        for i, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for key in (k for k in stored if k.startswith(f"optimizer.{i}.")):
                j, name = key.split(".")[2:]
                state.setdefault(int(j), {})[name] = stored[key]
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def fingerprint(conversations: Path, settings: EmbeddedSettings) -> str:
    """What a checkpoint belongs to: the data, the settings, this code, this torch."""
    parts = [io.sha256_file(conversations), dataclasses.asdict(settings), io.sha256_file(Path(__file__))]
    return io.sha256_json([*parts, torch.__version__])


# -------------------------------------------------------------------------------------------- building


def build_base(
    conversations: Path, out: Path, settings: EmbeddedSettings, work: Path, progress: Progress
) -> dict[str, float]:
    """Train tokenizer and model on ``conversations`` (JSONL) and write a Hugging Face checkpoint to ``out``.

    Checkpoints go to ``work``; a build that was killed resumes there. Returns the smoothed training loss and
    the held-out loss of the answers (nats a token), tokens trained on, and seconds of training. Raises
    DataError where the data cannot be used.
    """
    mark = fingerprint(conversations, settings)
    train, rest = split(_read(conversations), settings.held_out)
    tokenizer = _tokenizer(train, settings, work / f"tokenizer-{mark[:16]}", progress)
    training = Training(new_model(settings), [], mark)
    training.optimizers = optimizers(training.model, settings)
    _train(training, encode(tokenizer, train, settings), settings, work / "checkpoint.safetensors", progress)
    unseen = encode(tokenizer, rest, dataclasses.replace(settings, loss_on_prompts=False))
    held_out = held_out_loss(training.model, unseen, settings.batch_tokens)
    _write(training.model, tokenizer, out)
    progress(f"base written to {out}: held-out loss {held_out:.3f}")
    return {
        "loss": training.loss,
        "held_out_loss": held_out,
        "tokens": float(training.tokens),
        "seconds": training.seconds,
    }


def _read(conversations: Path) -> list[dict[str, Any]]:
    try:
        return list(io.read_jsonl(conversations))
    except (OSError, ValueError) as error:
        raise DataError(f"{conversations} is no readable JSONL: {error}") from error


def _tokenizer(
    chats: list[list[Message]], settings: EmbeddedSettings, folder: Path, progress: Progress
) -> PreTrainedTokenizerBase:
    if not folder.exists():
        progress(f"training a tokenizer of {settings.vocab_size} tokens on {len(chats)} conversations")
        texts = (m["content"] for chat in chats for m in chat)
        trained = train_tokenizer(texts, settings.vocab_size, settings.max_positions)
        with io.replacing_dir(folder) as aside:
            trained.save_pretrained(aside)
    return AutoTokenizer.from_pretrained(folder)


def _train(
    t: Training, samples: list[Sample], settings: EmbeddedSettings, path: Path, progress: Progress
) -> None:
    """All steps that are left; a checkpoint and a line of progress now and then."""
    rates = [optimizer.param_groups[0]["lr"] for optimizer in t.optimizers]
    if t.load(path):
        progress(f"resuming at step {t.step}/{settings.steps}")
    data = itertools.islice(batches(samples, settings.batch_tokens, settings.seed), t.step, settings.steps)
    clock = saved = said = time.monotonic()
    before = t.tokens, t.seconds
    for batch in data:
        for optimizer, rate in zip(t.optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * schedule(t.step, settings)
        _step(t, batch)
        now = time.monotonic()
        t.seconds, clock = t.seconds + now - clock, now
        last = t.step == settings.steps
        if last or now - said > settings.progress_seconds:
            said = now
            progress(_line(t, settings, (t.tokens - before[0]) / (t.seconds - before[1])))
        if last or now - saved > settings.checkpoint_seconds:
            saved = now
            t.save(path)


def _step(t: Training, batch: list[Sample]) -> None:
    total, count = loss_sum(t.model, batch)
    (total / count).backward()
    for optimizer in t.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    mean = total.item() / count
    t.loss = mean if t.step == 0 else 0.95 * t.loss + 0.05 * mean
    t.step += 1
    t.tokens += count


def _line(t: Training, settings: EmbeddedSettings, speed: float) -> str:
    left = (settings.steps - t.step) * t.tokens / t.step / speed
    return f"step {t.step}/{settings.steps}, loss {t.loss:.3f}, {speed:.0f} tokens/s, {left:.0f} s left"


def _write(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """The complete checkpoint, whole or not at all."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(tokenizer, name) for name in names})
    with io.replacing_dir(out) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        for file in aside.iterdir():
            file.chmod(0o644)  # safetensors' own 0600 would hide the weights from a server of another user
