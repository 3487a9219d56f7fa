"""Drawing tokens: every parameter against numbers that can be worked out by hand."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

torch = pytest.importorskip("torch")

from thinkserve.engines.transformers_server.sampling import (
    Sampler,
    SamplingParams,
    SamplingRow,
    logprobs,
)


@dataclass
class Row:
    params: SamplingParams
    prompt_ids: list[int] = field(default_factory=list)
    output_ids: list[int] = field(default_factory=list)
    min_tokens: int = 0
    eos_ids: frozenset[int] = frozenset()
    random: random.Random = field(default_factory=lambda: random.Random(7))


def draw(rows: list[SamplingRow], probabilities: list[float]) -> list[int]:
    logits = torch.tensor(probabilities).log().expand(len(rows), -1).clone()
    tokens: list[int] = Sampler(rows, len(probabilities), torch.device("cpu")).sample(logits).tolist()
    return tokens


def frequencies(params: SamplingParams, probabilities: list[float], draws: int = 4000) -> dict[int, float]:
    """Shares of the tokens drawn by many rows that differ only in their generator."""
    rows: list[SamplingRow] = [Row(params, random=random.Random(index)) for index in range(draws)]
    counts = Counter(draw(rows, probabilities))
    return {token: count / draws for token, count in counts.items()}


def test_draws_follow_the_probabilities() -> None:
    shares = frequencies(SamplingParams(), [0.5, 0.3, 0.2, 0.0])
    assert shares == pytest.approx({0: 0.5, 1: 0.3, 2: 0.2}, abs=0.03)


def test_temperature_sharpens_and_flattens() -> None:
    """At temperature 1/2 probabilities are squared: .36 : .16 = .69 : .31."""
    shares = frequencies(SamplingParams(temperature=0.5), [0.6, 0.4])
    assert shares[0] == pytest.approx(0.36 / 0.52, abs=0.03)


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(top_k=1)])
def test_zero_temperature_and_one_candidate_take_the_likeliest(params: SamplingParams) -> None:
    assert frequencies(params, [0.3, 0.4, 0.3], draws=50) == {1: 1.0}


def test_top_k_leaves_the_best() -> None:
    shares = frequencies(SamplingParams(top_k=2), [0.4, 0.1, 0.2, 0.3])
    assert shares == pytest.approx({0: 4 / 7, 3: 3 / 7}, abs=0.03)


def test_top_p_leaves_the_smallest_set_that_reaches_it() -> None:
    shares = frequencies(SamplingParams(top_p=0.6), [0.1, 0.4, 0.3, 0.2])
    assert shares == pytest.approx({1: 4 / 7, 2: 3 / 7}, abs=0.03)


def test_top_p_is_a_share_of_what_top_k_left() -> None:
    """Of {.4, .3} the first has .57: enough for top_p .5, though it is only .4 of all."""
    assert frequencies(SamplingParams(top_k=2, top_p=0.5), [0.1, 0.4, 0.3, 0.2], draws=50) == {1: 1.0}


def test_top_p_beyond_the_first_candidates_still_sees_the_whole_vocabulary() -> None:
    """5,000 equal tokens: half of the mass is 2,500 of them, more than are looked at first."""
    rows: list[SamplingRow] = [
        Row(SamplingParams(top_p=0.5, seed=index), random=random.Random(index)) for index in range(300)
    ]
    weights = [1 / 5000 + 1e-9 * index for index in range(5000)]
    drawn = draw(rows, weights)
    assert min(drawn) >= 2400
    assert min(drawn) < 3500


def test_min_p_is_relative_to_the_likeliest() -> None:
    shares = frequencies(SamplingParams(min_p=0.5), [0.5, 0.3, 0.2])
    assert shares == pytest.approx({0: 5 / 8, 1: 3 / 8}, abs=0.03)


def test_penalties_see_the_output_and_the_repetition_penalty_also_the_prompt() -> None:
    """Logits 2, 2, 1.9: token 0 is in the output twice, token 1 only in the prompt."""

    def best(params: SamplingParams) -> int:
        row: SamplingRow = Row(params, prompt_ids=[1], output_ids=[0, 0])
        logits = torch.tensor([[2.0, 2.0, 1.9]])
        token: int = Sampler([row], 3, torch.device("cpu")).sample(logits).item()
        return token

    assert best(SamplingParams(temperature=0, presence_penalty=0.5)) == 1
    assert best(SamplingParams(temperature=0, frequency_penalty=0.5)) == 1
    assert best(SamplingParams(temperature=0, repetition_penalty=1.5)) == 2
    assert best(SamplingParams(temperature=0, frequency_penalty=-0.5)) == 0


def test_penalties_count_what_is_drawn() -> None:
    sampler = Sampler([Row(SamplingParams(temperature=0, presence_penalty=1.0))], 2, torch.device("cpu"))
    logits = torch.tensor([[1.0, 0.5]])
    assert [sampler.sample(logits).item() for _ in range(2)] == [0, 1]
    assert logits.tolist() == [[1.0, 0.5]]


def test_end_of_sequence_is_not_drawn_before_min_tokens() -> None:
    row = Row(SamplingParams(temperature=0), min_tokens=1, eos_ids=frozenset([0, 999]))
    sampler = Sampler([row], 2, torch.device("cpu"))
    logits = torch.tensor([[1.0, 0.5]])
    assert sampler.sample(logits).item() == 1
    row.output_ids.append(1)
    assert sampler.sample(logits).item() == 0


def test_a_seeded_row_draws_the_same_beside_any_others() -> None:
    probabilities = [0.1] * 10
    params = SamplingParams(seed=3)

    def seeded() -> Row:
        return Row(params, random=params.generator(0))

    alone = [draw([row], probabilities)[0] for row in [seeded()] for _ in range(20)]
    row = seeded()
    others = [SamplingParams(top_k=3), SamplingParams(temperature=0), SamplingParams(top_p=0.3, min_p=0.1)]
    beside = [draw([*map(Row, others[: step % 4]), row], probabilities)[-1] for step in range(20)]
    assert alone == beside
    assert len(set(alone)) > 3


def test_choices_of_one_seed_differ() -> None:
    params = SamplingParams(seed=1)
    assert params.generator(0).random() != params.generator(1).random()
    assert params.generator(0).random() == params.generator(0).random()


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log() + 5
    [(drawn, best)] = logprobs(logits, torch.tensor([2]), 2)
    assert drawn == pytest.approx(math.log(0.2))
    assert [token for token, _ in best] == [0, 1]
    assert [score for _, score in best] == pytest.approx([math.log(0.5), math.log(0.3)])
