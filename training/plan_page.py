"""A plan as it is printed: what is done, how long it takes, how much it needs, and what was assumed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from thinkserve.training.cost import StageCost, outputs_at_once, total
from thinkserve.training.folder import TRAINING_STAGES
from thinkserve.training.memory import Need, Part
from thinkserve.training.model_size import ModelSize
from thinkserve.training.plan import Plan
from thinkserve.training.planned_judge import PlannedJudge
from thinkserve.training.recipe import Arm

_UNKNOWN = "unknown"


def parts_of(plan: Plan) -> Iterator[RenderableType]:
    """The parts of the page, from what is run to what was assumed."""
    yield _heading(plan)
    for arm in plan.recipe.arms:
        yield Text()
        yield _iteration(plan, arm)
    yield Text()
    yield _run(plan)
    yield Text()
    yield _memory(plan.memory)
    yield Text()
    yield _disk(plan)
    yield Text()
    yield Group(Text("assumed", "bold"), *(_item(line) for line in _assumptions(plan)))


def number(value: float) -> str:
    """A count in few characters: 950, 40,000, 2.3 M, 5.1 B."""
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes in few characters: 15.3 GB."""
    if value is None:
        return _UNKNOWN
    if value >= 1e12:
        return f"{value / 1e12:,.1f} TB"
    return f"{value / 1e9:,.1f} GB" if value >= 1e8 else f"{value / 1e6:,.1f} MB"


def hours(value: float | None) -> str:
    """GPU hours in few characters."""
    if value is None:
        return _UNKNOWN
    return "-" if not value else "< 0.1" if value < 0.05 else f"{value:,.1f}"


def _heading(plan: Plan) -> Text:
    recipe = plan.recipe
    arms = {"thought": "TPO", "direct": "the direct baseline", "both": "TPO and the direct baseline"}
    text = Text()
    text.append(recipe.name, "bold")
    text.append(f": {_count(recipe.iterations, 'iteration')} of {arms[recipe.mode]}\n")
    text.append(f"model  {_model(plan.model)}\n")
    text.append(f"judge  {_judge(plan.judge)}")
    if plan.evaluation_judge is not plan.judge:
        text.append(f"\njudge of the evaluation  {_judge(plan.evaluation_judge)}")
    return text


def _judge(judge: PlannedJudge) -> str:
    who = f"the function {judge.recipe.function}" if judge.size is None else _model(judge.size)
    return f"{who} ({judge.recipe.kind})"


def _model(model: ModelSize) -> str:
    if model.parameters is None:
        return f"{model.name}, size unknown: its name does not say it, and its files are not here"
    return f"{model.name}, {number(model.parameters)} parameters by {model.source}"


def _table(title: str, *columns: str, text_columns: int = 1) -> Table:
    """The first columns are text, the others numbers."""
    table = Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), title=title, title_style="bold", title_justify="left"
    )
    for place, name in enumerate(columns):
        is_text = place < text_columns
        table.add_column(
            name,
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=place != text_columns - 1,
            header_style="dim",
        )
    return table


_COLUMNS = ("stage", "what it does", "tokens", "GPU h")


def _iteration(plan: Plan, arm: Arm) -> Table:
    costs = {cost.stage: cost for cost in (*plan.training[arm], plan.evaluation[arm])}
    table = _table(f"{arm} arm, each iteration", *_COLUMNS, text_columns=2)
    for stage in (*TRAINING_STAGES, "evaluate"):
        cost = costs.get(stage, StageCost(stage=stage))
        table.add_row(
            stage, _what(plan, cost), number(_tokens(cost)) if _tokens(cost) else "-", hours(cost.gpu_hours)
        )
    whole = total("dpo", list(costs.values()))
    table.add_row("together", "", number(_tokens(whole)), hours(whole.gpu_hours), style="bold")
    return table


def _what(plan: Plan, cost: StageCost) -> str:
    recipe, prompts, dpo = plan.recipe, plan.recipe.prompts, plan.recipe.dpo
    judge = plan.evaluation_judge if cost.stage == "evaluate" else plan.judge
    called = {"pairwise": "comparisons", "pointwise": "grades"}.get(judge.recipe.kind, "scores")
    judged = f"{cost.judge_calls:,} {called}"
    match cost.stage:
        case "sample":
            return f"{prompts.per_iteration:,} instructions x {recipe.sample.k} = {cost.outputs:,} outputs"
        case "split":
            return "thought and response of each output"
        case "score":
            return judged
        case "pairs":
            rho = recipe.pairs.rho
            return f"best against worst, rho {rho if isinstance(rho, str) else f'{rho:g}'}"
        case "dpo":
            adapters = " of adapters" if dpo.lora else ""
            epochs = _count(dpo.epochs, "epoch")
            return f"{prompts.per_iteration:,} pairs x {epochs}, {cost.steps:,} steps{adapters}"
        case "validate":
            return f"{prompts.validation:,} instructions x {_count(dpo.epochs + 1, 'model')}, {judged}"
        case "checkpoint":
            return "the best epoch"
        case _:
            return f"{prompts.evaluation:,} instructions, greedy and sampled, {judged}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _tokens(cost: StageCost) -> float:
    return cost.read_tokens + cost.written_tokens + cost.trained_tokens


def _run(plan: Plan) -> Table:
    whole, evaluated = plan.total, plan.recipe.iterations + 1
    table = _table("the whole run", "", "count")
    rows = [
        ("outputs sampled", number(whole.outputs)),
        ("judge calls", number(whole.judge_calls)),
        ("tokens read (prompts, judge)", number(whole.read_tokens)),
        ("tokens written", number(whole.written_tokens)),
        ("tokens trained on", number(whole.trained_tokens)),
        ("optimizer steps", number(whole.steps)),
        (f"GPU hours ({plan.speed.device})", hours(whole.gpu_hours)),
    ]
    if plan.baseline is not None:
        rows.insert(0, ("the start model's direct responses, once", number(plan.baseline.outputs)))
    rows.insert(0, ("models measured in each arm, the start model first", number(evaluated)))
    for row in rows:
        table.add_row(*row)
    return table


def _memory(needs: Iterable[Need]) -> Table:
    table = _table("memory of one device", "stage", "what", "size", text_columns=2)
    for need in needs:
        for part in need.parts:
            table.add_row(need.name, _part(part), size(part.size))
        missing = "" if need.complete else " and what is unknown"
        table.add_row("", f"together{missing}", size(need.known or None), style="bold")
    return table


def _disk(plan: Plan) -> Table:
    table = _table("disk at most", "what", "size")
    for part in plan.disk:
        table.add_row(_part(part), size(part.size))
    table.add_row("together", size(plan.disk_bytes), style="bold")
    return table


def _part(part: Part) -> str:
    return f"{part.name} ({part.how})" if part.how else part.name


def _item(text: str) -> Table:
    """A line of a list, its further lines below the first one's text."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row("-", Text(text))
    return table


def _assumptions(plan: Plan) -> Iterator[str]:
    lengths, speed, recipe = plan.lengths, plan.speed, plan.recipe
    yield (
        "counts are upper bounds: all outputs are readable and different, and every instruction gives a pair; all "
        "iterations are alike"
    )
    arms = []
    if "thought" in recipe.arms:
        arms.append(
            f"thought prompt {lengths.thought_prompt:.0f}, thought {lengths.thought:.0f}, "
            f"response {lengths.response:.0f}"
        )
    if "direct" in recipe.arms or plan.baseline is not None:
        arms.append(f"direct response {lengths.direct_response:.0f}")
    yield f"tokens: instruction {lengths.instruction:.0f}, {', '.join(arms)} ({lengths.source})"
    yield (
        f"an {speed.device} with {speed.peak / 1e12:,.0f} TFLOP/s in bf16, used to {100 * speed.reading:.0f} % when "
        f"reading, {100 * speed.writing:.0f} % when sampling and {100 * speed.training:.0f} % when training; other "
        "devices by their TFLOP/s"
    )
    if plan.model.parameters is not None:
        rate = speed.tokens_written(plan.model.parameters, outputs_at_once(recipe, recipe.sample.k))
        yield f"so one {speed.device} samples {rate:,.0f} tokens a second; loading models is not counted"
    if plan.model.shape is None:
        yield "the memory that is unknown depends on the model's config.json, which is not here yet"
    for judge in dict.fromkeys((plan.judge, plan.evaluation_judge)):
        if judge.is_llm:
            yield (
                f"the {judge.recipe.kind} judge's prompt has {judge.prompt:.0f} tokens, its judgment {judge.judgment:.0f} "
                "(a guess); its GPUs are other ones: their hours are counted here, their memory is not"
            )
    if not recipe.dpo.bf16:
        yield "the recipe trains in single precision, as on a CPU: GPU hours say little about it"
