"""Training a drafter on a frozen base: features, the Hugging Face Trainer around it, what is measured meanwhile."""

from specdec.training.train import TrainingResult, train, warm_start

__all__ = ["TrainingResult", "train", "warm_start"]
