"""The stage as a program, for a test that kills it: judges COUNT pairs at URL into FILE, four games at once.

python -m tests.eval.judge_until_killed URL FILE COUNT
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.eval.two_games import TwoGames, pairs
from thinkserve.eval.judging.client import ChatClient
from thinkserve.eval.judging.judge import ApiJudge
from thinkserve.eval.judging.stage import Judged, judge_matches
from thinkserve.eval.judging.store import JudgmentStore

CONCURRENCY = 4


async def judge(url: str, path: Path, count: int) -> Judged:
    """One run to its end."""
    protocol = TwoGames()
    async with ChatClient(url, "m", concurrency=CONCURRENCY, back_off=0.01) as client:
        with JudgmentStore(path) as store:
            return await judge_matches("bench", pairs(count), ApiJudge(client, protocol), protocol, store)


if __name__ == "__main__":
    asyncio.run(judge(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
