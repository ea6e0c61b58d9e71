"""From conversations to a Hugging Face checkpoint."""

import dataclasses
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from specdec import io
from specdec.targets.embedded.batches import encode
from specdec.targets.embedded.chat import BOS_ID, EOS_ID, PAD_ID, Chat, read_chats, split
from specdec.targets.embedded.loop import Progress, train
from specdec.targets.embedded.model import held_out_loss, new_model
from specdec.targets.embedded.optimizers import new_optimizers
from specdec.targets.embedded.settings import EmbeddedSettings
from specdec.targets.embedded.tokenizer import train_tokenizer
from specdec.targets.embedded.training import Training


def build_base(
    conversations: Path, out: Path, settings: EmbeddedSettings, work: Path, progress: Progress
) -> dict[str, float]:
    """Train tokenizer and model on ``conversations`` (JSONL) and write a Hugging Face checkpoint to ``out``.

    Checkpoints go to ``work``; a build that was killed resumes there. Returns the smoothed training loss and
    the held-out loss of the answers (nats a token), tokens trained on, and seconds of training. Raises
    DataError where the data cannot be used.
    """
    chats, unseen = split(read_chats(conversations), settings.held_out)
    mark = _fingerprint(conversations, settings)
    tokenizer = _tokenizer(chats, settings, work / f"tokenizer-{mark[:16]}", progress)
    model = new_model(settings)
    t = Training(model, new_optimizers(model, settings), mark)
    train(t, encode(tokenizer, chats, settings), settings, work / "checkpoint.safetensors", progress)
    answers = encode(tokenizer, unseen, dataclasses.replace(settings, loss_on_prompts=False))
    held_out = held_out_loss(model, answers, settings.batch_tokens)
    _write(model, tokenizer, out)
    progress(f"base written to {out}: held-out loss {held_out:.3f}")
    return {"loss": t.loss, "held_out_loss": held_out, "tokens": float(t.tokens), "seconds": t.seconds}


def _fingerprint(conversations: Path, settings: EmbeddedSettings) -> str:
    """What a checkpoint belongs to: the data, the settings, this package's code, this torch."""
    code = [io.sha256_file(file) for file in sorted(Path(__file__).parent.glob("*.py"))]
    data = io.sha256_file(conversations)
    return io.sha256_json([data, dataclasses.asdict(settings), code, torch.__version__])


def _tokenizer(
    chats: list[Chat], settings: EmbeddedSettings, folder: Path, progress: Progress
) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``, trained where there is none yet."""
    if not folder.exists():
        progress(f"training a tokenizer of {settings.vocab_size} tokens on {len(chats)} conversations")
        texts = (m["content"] for chat in chats for m in chat)
        trained = train_tokenizer(texts, settings.vocab_size, settings.max_positions)
        with io.replacing_dir(folder) as aside:
            trained.save_pretrained(aside)
    return AutoTokenizer.from_pretrained(folder)


def _write(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """The complete checkpoint, whole or not at all."""
    model.generation_config = GenerationConfig(pad_token_id=PAD_ID, bos_token_id=BOS_ID, eos_token_id=EOS_ID)
    with io.replacing_dir(out) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        for file in aside.iterdir():
            file.chmod(0o644)  # safetensors' own 0600 would hide the weights from a server of another user
