"""The pocket model as package data: `CHECKPOINT` is the folder to serve; `thinkserve.training.pocket` made it."""

from importlib.resources import files
from pathlib import Path

CHECKPOINT = Path(str(files(__name__))) / "checkpoint"

__all__ = ["CHECKPOINT"]
