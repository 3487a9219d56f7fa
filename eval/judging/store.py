"""The file of a judge's judgments about a model: appended to a line a judgment, read whole when a run begins."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from thinkserve.errors import UsageError
from thinkserve.eval.judgment import Judgment, to_json
from thinkserve.eval.records import RecordLog


class JudgmentStore:
    """The judgments in a file; written by one process at a time.

    Raises:
        UsageError: a line is no judgment; names file, line and field. A last line that was cut short is none at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = RecordLog(path)
        self._latest: dict[str, Judgment] = {}
        self.verdicts = 0
        """Keys with a verdict."""
        try:
            for judgment in _read(path):
                self._keep(judgment)
        except UsageError:
            self.close()
            raise

    def find(self, key: str) -> Judgment | None:
        """The judgment with this key if it has a verdict; one without is asked for again."""
        found = self._latest.get(key)
        return None if found is None or found.verdict is None else found

    @property
    def failed(self) -> int:
        """Keys that were asked for without getting a verdict."""
        return len(self._latest) - self.verdicts

    def append(self, judgment: Judgment) -> None:
        """Keep a judgment for good."""
        self._log.append(to_json(judgment))
        self._keep(judgment)

    def _keep(self, judgment: Judgment) -> None:
        had = self.find(judgment.key) is not None
        if not had or judgment.verdict is not None:
            self._latest[judgment.key] = judgment
            self.verdicts += judgment.verdict is not None and not had

    def close(self) -> None:
        """Close the file."""
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(path: Path) -> list[Judgment]:
    decode = msgspec.json.Decoder(Judgment).decode
    judgments = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line.strip():
            try:
                judgments.append(decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                raise UsageError(f"{path}:{number}: {exc}") from exc
    return judgments
