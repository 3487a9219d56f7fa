"""What `thinkserve eval` does with all its options, between scripted models and scripted judges on the loopback."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.eval.scripted_judge import Action, Asked, Say, ScriptedJudge, fair, scripted_judge
from tests.eval.scripted_model import JSON, Said, ScriptedModel, instruction_of
from thinkserve.cli_eval import _default_out
from thinkserve.errors import UsageError
from thinkserve.eval.config import Keys, RunConfig, key_from, read_key_file
from thinkserve.eval.topics import TOPICS
from thinkserve.evaluate import evaluate

SECRET = "the recipe is hidden here"


def rows(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"i{n}", "instruction": f"Do {n}", "category": "ab"[n % 2], **more} for n in range(count)]


def written(path: Path, records: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def given(path: Path, responses: Sequence[str]) -> str:
    """The SPEC of a file of answers."""
    found = [
        {"id": f"i{n}", "model": path.stem, "response": response} for n, response in enumerate(responses)
    ]
    return f"answers:{written(path, found)}"


def answer(body: JSON) -> Said:
    return Said(f"{body['model']} answers {instruction_of(body)}")


async def run(
    folder: Path,
    judge: ScriptedJudge | None = None,
    *,
    name: str = "judge",
    out: str = "out",
    **more: Any,
) -> dict[str, Any]:
    """A run in this process; its scores."""
    spec = () if judge is None else (f"{judge.url}#{name}",)
    config = RunConfig(**{"bench": str(folder / "bench.jsonl"), "judges": spec, "out": folder / out, **more})
    await evaluate(config, Console(file=StringIO()))
    return json.loads((folder / out / "scores.json").read_bytes())  # type: ignore[no-any-return]


def everything(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.fixture
def referenced(tmp_path: Path) -> Path:
    """A folder with a bench of 12 instructions and their references."""
    written(tmp_path / "bench.jsonl", rows(12, reference="a plain answer", generator="plain"))
    return tmp_path


WHOLE = [f"<think>{SECRET}</think>answer {n}" for n in range(11)] + [f"<think>{SECRET}"]


async def test_answers_with_thoughts_in_them_are_refused_before_anything_is_written(referenced: Path) -> None:
    spec = given(referenced / "whole.jsonl", ["fine"] * 7 + WHOLE[7:])
    async with scripted_judge(fair) as judge:
        with pytest.raises(
            UsageError, match=r"whole\.jsonl: the answer to instruction i7 has .*<think>.*--thought-format"
        ):
            await run(referenced, judge, models=(spec,))
        with pytest.raises(UsageError, match=r"whole\.jsonl: the answer to instruction i7 has"):
            await run(
                referenced, judge, models=(given(referenced / "x.jsonl", ["fine"] * 12),), baseline=spec
            )
        assert judge.requests == []
    assert not (referenced / "out").exists()


async def test_a_thought_format_cuts_thoughts_out_of_answers_that_were_given(referenced: Path) -> None:
    """11 of the 12 are judged in two games each; the thought without an end loses, and no thought is kept anywhere."""
    async with scripted_judge(fair) as judge:
        spec = given(referenced / "whole.jsonl", WHOLE)
        scores = await run(referenced, judge, models=(spec,), thought_format="think-tags")
        assert len(judge.requests) == 22
        assert not any(SECRET in asked.text or "think>" in asked.text for asked in judge.requests)
    assert scores["models"]["whole"]["forfeits"] == 1
    assert SECRET not in everything(referenced / "out")
    lengths = [json.loads(line) for line in (referenced / "out/lengths/whole.jsonl").read_text().splitlines()]
    assert {length["thought_characters"] for length in lengths} == {len(SECRET)}


async def test_a_file_of_responses_is_left_alone_by_a_format_that_is_meant_for_a_server(
    referenced: Path,
) -> None:
    async with (
        scripted_judge(fair) as judge,
        ScriptedModel(lambda body: Said(f"<think>{SECRET}</think>served")) as model,
    ):
        specs = (f"{model.url}#served", given(referenced / "file.jsonl", ["plain"] * 12))
        scores = await run(referenced, judge, models=specs, thought_format="think-tags")
    assert {name: group["forfeits"] for name, group in scores["models"].items()} == {"served": 0, "file": 0}


async def test_thoughts_in_the_references_of_a_file_are_refused_and_cut_too(tmp_path: Path) -> None:
    written(tmp_path / "bench.jsonl", rows(4, reference=WHOLE[0]))
    spec = given(tmp_path / "m.jsonl", ["mine"] * 4)
    async with scripted_judge(fair) as judge:
        with pytest.raises(UsageError, match=r"bench\.jsonl: the answer to instruction i0 has the marker"):
            await run(tmp_path, judge, models=(spec,))
        await run(tmp_path, judge, models=(spec,), thought_format="think-tags")
        assert len(judge.requests) == 8 and not any(SECRET in asked.text for asked in judge.requests)


async def test_a_file_of_answers_that_changed_is_judged_again_where_it_changed(referenced: Path) -> None:
    async with scripted_judge(fair) as judge:
        await run(referenced, judge, models=(given(referenced / "m.jsonl", ["old"] * 12),))
        before = len(judge.requests)
        await run(referenced, judge, models=(given(referenced / "m.jsonl", ["old"] * 10 + ["new"] * 2),))
        assert len(judge.requests) - before == 4
    assert (referenced / "out/answers/m.jsonl").read_text().count('"new"') == 2


async def test_a_line_that_was_edited_in_the_folder_is_judged_again_and_nothing_is_asked_again(
    referenced: Path,
) -> None:
    async with scripted_judge(fair) as judge, ScriptedModel(answer) as model:
        await run(referenced, judge, models=(f"{model.url}#m",))
        path = referenced / "out/answers/m.jsonl"
        path.write_text(path.read_text().replace("answers Do 7", "answers otherwise"))
        judged, answered = len(judge.requests), len(model.bodies)
        await run(referenced, judge, models=(f"{model.url}#m",))
        assert (len(judge.requests) - judged, len(model.bodies) - answered) == (2, 0)
        await run(
            referenced, judge, models=(f"{model.url}#m",), max_tokens=9
        )  # another budget: asked anew, same text
        assert len(model.bodies) - answered == 12


async def test_answers_that_are_missing_or_double_are_told_before_anything_is_written(
    referenced: Path,
) -> None:
    async with scripted_judge(fair) as judge:
        with pytest.raises(
            UsageError, match=r"few\.jsonl: 3 of 12 instructions have no answer, the first is i9"
        ):
            await run(referenced, judge, models=(given(referenced / "few.jsonl", ["a"] * 9),))
        lines = [{"id": "i0", "model": "m", "response": text} for text in ("one", "two")]
        written(referenced / "double.jsonl", lines)
        with pytest.raises(UsageError, match=r"double\.jsonl:2: field 'id' is 'i0' a second time"):
            await run(referenced, judge, models=(f"answers:{referenced}/double.jsonl",))
    assert not (referenced / "out").exists()


@pytest.mark.parametrize(
    ("more", "calls"),
    [
        # 12 instructions in two games against the references, and 12 topics
        ({"topics": True, "models": 1}, 36),
        # thought and direct mode against the references, and against each other
        ({"mode": "both", "models": 1}, 72),
        # the baseline's answers are still to come
        ({"baseline": True, "models": 2}, 48),
    ],
)
async def test_all_that_a_judge_will_cost_is_asked_about_before_anybody_is_asked_anything(
    referenced: Path, more: dict[str, Any], calls: int
) -> None:
    async with scripted_judge(fair) as judge, ScriptedModel(answer) as model:
        asked = {**more, "models": tuple(f"{model.url}#m{n}" for n in range(more["models"]))}
        if "baseline" in asked:
            asked["baseline"] = f"{model.url}#base"
        with pytest.raises(UsageError, match=rf"judging takes {calls} calls, .* add --yes"):
            await run(referenced, judge, name="gpt-4.1", cost_limit=0.001, **asked)
        assert (judge.requests, model.bodies) == ([], [])
        scores = await run(referenced, judge, name="gpt-4.1", cost_limit=0.001, yes=True, **asked)
    assert all(group["n"] == 12 for group in scores["models"].values())


async def test_sorting_the_instructions_of_categories_is_paid_for_only_with_consent(tmp_path: Path) -> None:
    written(tmp_path / "categories/instructions.jsonl", rows(30))
    asked: dict[str, Any] = {"bench": "categories", "data": tmp_path, "cost_limit": 0.0001}
    async with scripted_judge(fair) as judge, ScriptedModel(answer) as model:
        models = (f"{model.url}#a", f"{model.url}#b")
        with pytest.raises(UsageError, match=r"judging takes 60 calls"):  # 30 topics, and one game each
            await run(tmp_path, judge, name="gpt-4.1", models=models, **asked)
        with pytest.raises(UsageError, match="categories has no baseline of its own"):
            await run(tmp_path, judge, models=models[:1], **asked)
        assert judge.requests == []


def sorting(asked: Asked) -> Action:
    """Sorts by the last digit into two topics, finds none for `Do 3`, and prefers whatever `a` says."""
    if TOPICS[-1] in asked.text:
        number = re.search(r"Do (\d+)", asked.text)
        assert number is not None
        return Say("hard to say" if number[1] == "3" else f"[[{1 + int(number[1]) % 2}]]")
    return Say("[[A]]" if asked.text.index("a answers") < asked.text.index("b answers") else "[[B]]")


async def test_two_models_head_to_head_are_compared_by_topic(tmp_path: Path) -> None:
    """`a` always wins: a difference of 100 points overall and in both topics, Holm-corrected for two."""
    written(tmp_path / "categories/instructions.jsonl", rows(60))
    async with scripted_judge(sorting) as judge, ScriptedModel(answer) as model:
        models = (f"{model.url}#a", f"{model.url}#b")
        scores = await run(tmp_path, judge, bench="categories", data=tmp_path, models=models)
        before = len(judge.requests)
        await run(tmp_path, judge, bench="categories", data=tmp_path, models=models)
        assert len(judge.requests) - before == 2  # the one without a topic, asked twice
    (comparison,) = scores["comparisons"]
    assert (comparison["a"], comparison["b"]) == ("a", "b")
    assert comparison["overall"]["n"] == 59 and comparison["overall"]["difference"] == pytest.approx(100)
    topics = comparison["categories"]["topic"]
    assert {name: found["n"] for name, found in topics.items()} == {TOPICS[0]: 30, TOPICS[1]: 29}
    assert all(found["p_holm"] <= 2 * found["p"] + 1e-9 for found in topics.values())
    assert comparison["head_to_head"]["win_rate"] == pytest.approx(100)


async def test_thought_against_direct_is_compared_with_its_cost_where_nobody_else_is_the_baseline(
    tmp_path: Path,
) -> None:
    def thinking(body: JSON) -> Said:
        direct = body.get("reasoning_effort") == "none"
        return Said(
            f"{'b' if direct else 'a'} answers {instruction_of(body)}",
            completion_tokens=30,
            reasoning_tokens=0 if direct else 20,
        )

    written(tmp_path / "bench.jsonl", rows(12))
    async with scripted_judge(sorting) as judge, ScriptedModel(thinking) as model:
        scores = await run(tmp_path, judge, models=(f"{model.url}#m",), mode="both")
    (comparison,) = scores["comparisons"]
    assert (comparison["a"], comparison["b"]) == ("m", "m-direct")
    assert comparison["overall"]["difference"] == pytest.approx(100)
    assert [comparison["cost"][name]["thought_tokens"] for name in ("m", "m-direct")] == [20, 0]


async def test_topics_that_the_file_has_are_not_asked_for(tmp_path: Path) -> None:
    some = rows(6, reference="a plain answer")
    written(tmp_path / "bench.jsonl", [{**row, "topic": "my own"} for row in some[:4]] + some[4:])

    def topic(asked: Asked) -> Action:
        return Say("[[1]]") if TOPICS[-1] in asked.text else fair(asked)

    async with scripted_judge(topic) as judge:
        spec = given(tmp_path / "m.jsonl", ["mine"] * 6)
        scores = await run(tmp_path, judge, models=(spec,), topics=True)
        assert len(judge.requests) == 12 + 2
    topics = scores["models"]["m"]["categories"]["topic"]
    assert {name: group["n"] for name, group in topics.items()} == {"my own": 4, TOPICS[0]: 2}


async def test_a_model_that_has_the_name_of_another_ones_direct_mode_gets_another(referenced: Path) -> None:
    async with scripted_judge(fair) as judge, ScriptedModel(answer) as model:
        specs = (f"{model.url}#m", f"{model.url}#m-direct")
        scores = await run(referenced, judge, models=specs, mode="both")
        assert len(model.bodies) == 4 * 12
    assert len(scores["models"]) == 4


async def test_a_checkpoint_that_cannot_answer_directly_is_refused_before_it_is_served(
    referenced: Path,
) -> None:
    async with scripted_judge(fair) as judge:
        with pytest.raises(UsageError, match=r"--mode direct and both: in the thought format 'tpo-specific'"):
            await run(referenced, judge, models=("pocket",), mode="both", thought_format="tpo-specific")
    assert not (referenced / "out").exists()


async def test_a_limit_is_of_the_categories_that_are_asked(tmp_path: Path) -> None:
    async with ScriptedModel(answer) as model:
        asked: dict[str, Any] = {"models": (f"{model.url}#m",), "limit": 20, "categories": ("add",)}
        scores = await run(tmp_path, bench="pocket", **asked)
    group = scores["models"]["m"]
    assert (group["n"], list(group["categories"]["category"])) == (20, ["add"])


async def test_a_folder_that_is_no_runs_is_left_alone(referenced: Path) -> None:
    spec = given(referenced / "m.jsonl", ["mine"] * 12)
    written(referenced / "mine/scores.json", ["precious"])
    (referenced / "file").write_text("precious")
    async with scripted_judge(fair) as judge:
        with pytest.raises(UsageError, match=r"mine has scores\.json in it and is no run's folder"):
            await run(referenced, judge, models=(spec,), out="mine")
        for out in ("file", "file/below"):
            with pytest.raises(UsageError, match=rf"--out .*{out}: cannot be written to"):
                await run(referenced, judge, models=(spec,), out=out)
        assert judge.requests == []
    assert "precious" in (referenced / "mine/scores.json").read_text() + (referenced / "file").read_text()


async def test_each_server_gets_its_own_key_and_no_file_has_one(referenced: Path) -> None:
    async with scripted_judge(fair) as judge, scripted_judge(fair) as second, ScriptedModel(answer) as model:
        keys = Keys(judge="sk-judge", model="sk-model", openai="sk-openai", by_url={second.url: "sk-second"})
        specs = (f"{judge.url}#one", f"{second.url}#two")
        await run(referenced, models=(model.url,), judges=specs, keys=keys)
        sent = [
            {headers.get("Authorization") for headers in found}
            for found in (
                model.headers,
                [a.headers for a in judge.requests],
                [a.headers for a in second.requests],
            )
        ]
    assert sent == [{"Bearer sk-model"}, {"Bearer sk-judge"}, {"Bearer sk-second"}]
    assert "sk-" not in everything(referenced / "out")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00k\x00", "sk-\u00fc".encode(), b"sk-\x01"])
def test_what_is_no_key_is_refused_without_being_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content + b"\n")
    with pytest.raises(UsageError, match=r"keys:1: the key has characters that no API key has") as error:
        read_key_file(path)
    assert "sk-" not in str(error.value)
    with pytest.raises(UsageError, match="^OPENAI_API_KEY: the key in it"):
        key_from({"OPENAI_API_KEY": "sk-\u00fc"}, "OPENAI_API_KEY")


def test_a_key_is_read_without_the_line_end_or_the_byte_order_mark_around_it(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"\xef\xbb\xbfsk-1\r\n")
    assert read_key_file(path) == {"": "sk-1"}
    assert key_from({"KEY": "sk-1\n"}, "KEY") == "sk-1"
    assert key_from({"KEY": ""}, "KEY") is key_from({}, "KEY") is None


@pytest.mark.parametrize(
    ("bench", "model", "name"),
    [
        ("arena-hard", "answers:/a/llama3.1-8b-instruct.jsonl.gz", "arena-hard-llama3.1-8b-instruct"),
        ("/x/my bench.jsonl.gz", "http://h:8000/v1", "my-bench-h-8000"),
        ("arena-hard-v0.1", "./ckpt/", "arena-hard-v0.1-ckpt"),
        ("a.csv", "https://h/v1#org/m", "a-m"),
    ],
)
def test_a_run_without_out_is_named_after_bench_and_model(bench: str, model: str, name: str) -> None:
    assert re.sub(r"-\d{8}-\d{6}$", "", str(_default_out(bench, model))) == f"runs/{name}"
