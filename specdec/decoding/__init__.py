"""Generation with and without a drafter: the same loop, the same output, fewer passes of the base."""

from specdec.decoding.generate import GREEDY, Generation, Step, generate, steps
from specdec.decoding.stop import Stop
from specdec.decoding.verify import Typical

__all__ = ["GREEDY", "Generation", "Step", "Stop", "Typical", "generate", "steps"]
