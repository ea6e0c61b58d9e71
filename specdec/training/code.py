"""What beside settings and data decides a drafter's weights: checkpoints of other code are not gone on from."""

from pathlib import Path

import torch
import transformers

from specdec.io import sha256_file

PACKAGE = Path(__file__).resolve().parents[1]


def deciding_code() -> list[str]:
    """Versions, and hashes of the modules that a training runs through."""
    files = [f for part in ("drafters", "training", "targets") for f in sorted((PACKAGE / part).glob("*.py"))]
    files += [PACKAGE / "data" / "packing.py", *sorted((PACKAGE / "serving").rglob("*states*.py"))]
    hashes = [sha256_file(f) for f in files]
    return [torch.__version__, transformers.__version__, *hashes]
