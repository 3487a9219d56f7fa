"""What tells one checkpoint from another that later lies in the same folder, without reading gigabytes of weights."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

SAMPLE = 1 << 16
_PARTS = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt")


def fingerprint(checkpoint: str) -> str:
    """The fingerprint of a checkpoint folder: names, sizes, first and last 64 KiB of its files; of a Hub name: itself.

    Training moves every weight, so a checkpoint that was trained further has another one; a copy has the same.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return checkpoint
    found = sha256()
    for path in sorted({path for part in _PARTS for path in folder.glob(part) if path.is_file()}):
        size = path.stat().st_size
        found.update(f"{path.name}\0{size}\0".encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            found.update(file.read(SAMPLE))
            if size > SAMPLE:
                file.seek(max(SAMPLE, size - SAMPLE))
                found.update(file.read(SAMPLE))
    return found.hexdigest()
