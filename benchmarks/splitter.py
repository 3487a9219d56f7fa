"""What cutting costs: CPU time a delta against the length of the thought, beside vLLM's `granite` parser.

    python benchmarks/splitter.py           # prints the table
    python benchmarks/splitter.py --gate    # and exits 1 where a gate is missed

A delta is one token of about four characters. Measured are the last 200 deltas of the thought (`time.process_time`,
the least of several repeats): there a parser whose work grows with what came before is at its slowest, and
vLLM's parser need not be run over the whole thought, which takes it seconds. Both are given the same deltas.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice

from thinkserve.thoughts import ThoughtSplitter, get_format

LENGTHS = (500, 2_000, 8_000)  # thought tokens
FORMATS = ("tpo-generic", "tpo-specific", "think-tags")
MEASURED = 200  # deltas
GATE_MICROSECONDS = 2.0
GATE_GROWTH = 1.2

# A thought as models write it: a line end every dozen tokens, a quotation, code with angle brackets, near misses.
TEXT = (
    "The user asks for the sum , so I should first check what 17 + 25 is .\n"
    "It is 42 , since 17 + 20 is 37 and 5 more make it 42 .\n"
    '- I was told to write my answer after "Here is my response:" and will .\n'
    "- if a < b then b > a , which List<int> has nothing to do with .\n"
    "Here is my draft : the sum is forty-two , and here is why .\n\n"
)

Measure = Callable[[list[str]], float]


def tokens(count: int) -> list[str]:
    words = [word + " " for word in TEXT.replace("\n", " \n ").split(" ")]
    return list(islice(cycle(word if word != "\n " else "\n" for word in words if word != " "), count))


def splitter_seconds(name: str) -> Measure:
    """CPU seconds for the last deltas of a thought cut by the format `name`."""
    opening = get_format(name).opening

    def measure(deltas: list[str]) -> float:
        splitter = ThoughtSplitter(name)
        for delta in [*opening, "\n", *deltas[:-MEASURED]]:
            splitter.feed(delta)
        feed, last = splitter.feed, deltas[-MEASURED:]
        begin = time.process_time()
        for delta in last:
            feed(delta)
        return time.process_time() - begin

    return measure


def granite_seconds() -> Measure | None:
    """The same for vLLM's parser, as its server drives it; None where vLLM is not installed."""
    try:
        from vllm.reasoning.granite_reasoning_parser import GraniteReasoningParser
    except ImportError:
        return None
    parser = GraniteReasoningParser(object())

    def measure(deltas: list[str]) -> float:
        head = "Here is my thought process:\n" + "".join(deltas[:-MEASURED])
        steps = list(_grow(head, deltas[-MEASURED:]))
        begin = time.process_time()
        for previous, current, delta in steps:
            # It reads no token ids.
            parser.extract_reasoning_streaming(previous, current, delta, [], [], [])
        return time.process_time() - begin

    return measure


def _grow(text: str, deltas: list[str]) -> Iterator[tuple[str, str, str]]:
    for delta in deltas:
        yield text, text + delta, delta
        text += delta


def microseconds(measure: Measure, repeats: int) -> list[float]:
    """The least cost for every length; the lengths take turns, so that a busy machine slows all of them."""
    costs = {length: float("inf") for length in LENGTHS}
    for _ in range(repeats):
        for length in LENGTHS:
            costs[length] = min(costs[length], measure(tokens(length)) / MEASURED * 1e6)
    return list(costs.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gate", action="store_true", help="exit 1 where a gate is missed")
    parser.add_argument("--repeats", type=int, default=25, help="repeats; the least counts (default: 25)")
    options = parser.parse_args()

    print("CPU microseconds a delta at the end of a thought of N tokens")
    print(f"{'':24}" + "".join(f"{length:>10,}" for length in LENGTHS) + f"{'growth':>10}  gates")
    missed = False
    for name in FORMATS:
        costs = microseconds(splitter_seconds(name), options.repeats)
        kept = max(costs) <= GATE_MICROSECONDS and costs[-1] <= GATE_GROWTH * costs[0]
        missed = missed or not kept
        print_row(f"thinkserve {name}", costs, "kept" if kept else "MISSED")
    granite = granite_seconds()
    if granite is None:
        print("vLLM's granite parser: vLLM is not installed")
    else:
        print_row("vLLM granite", microseconds(granite, 3), "")
    print(
        f"Gates: at most {GATE_MICROSECONDS} us a delta, and at 8,000 tokens at most {GATE_GROWTH}x that at 500"
    )
    return int(options.gate and missed)


def print_row(label: str, costs: list[float], verdict: str) -> None:
    print(
        f"{label:24}"
        + "".join(f"{cost:>10.2f}" for cost in costs)
        + f"{costs[-1] / costs[0]:>9.2f}x  {verdict}"
    )


if __name__ == "__main__":
    sys.exit(main())
