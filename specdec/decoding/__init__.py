"""Generation with and without a drafter: the same loop, the same output, fewer passes of the base."""

from specdec.decoding.generate import Generation, Step, generate, steps

__all__ = ["Generation", "Step", "generate", "steps"]
