"""Generation with and without a drafter: the same loop, the same output, fewer passes of the base."""

from specdec.decoding.generate import GREEDY, Generation, Step, generate, steps
from specdec.decoding.hugging_face import custom_generate
from specdec.decoding.stop import Stop
from specdec.decoding.verify import Typical

__all__ = ["GREEDY", "Generation", "Step", "Stop", "Typical", "custom_generate", "generate", "steps"]
