"""The pocket models as package data; `thinkserve.training.pocket` made them.

`CHECKPOINT` is the folder of the pocket model, which is served where no other is named, and `SEED_CHECKPOINT` that of the
seed from which it was trained.
"""

from importlib.resources import files
from pathlib import Path

CHECKPOINT = Path(str(files(__name__))) / "checkpoint"
SEED_CHECKPOINT = Path(str(files(__name__))) / "seed"

BY_NAME = {"pocket": CHECKPOINT, "pocket-seed": SEED_CHECKPOINT}

__all__ = ["BY_NAME", "CHECKPOINT", "SEED_CHECKPOINT"]
