"""A small base model, made on the user's own CPU in minutes: the target of the embedded default.

    from specdec.targets.embedded import EmbeddedSettings, build_base
    build_base(Path("train.jsonl"), Path("models/base"), EmbeddedSettings(), Path("work"), print)

It is a Llama-architecture causal model over a byte-level BPE tokenizer of its own, both trained from scratch
on conversations in their chat template, so that it answers chat prompts and ends its turns. Everything is
float32 and seeded; a build that was killed resumes from its last checkpoint and ends with the same bytes,
given the same number of threads.
"""

from specdec.targets.embedded.build import build_base
from specdec.targets.embedded.settings import EmbeddedSettings

__all__ = ["EmbeddedSettings", "build_base"]
