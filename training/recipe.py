"""What a training run is asked, key by key, with each default and where it comes from.

Sources: "paper" is Wu et al., arXiv 2410.10630; "draft" an earlier text of it by the same authors; "IRPO" is Pang et al.,
arXiv 2404.19733; "TRL" the default of that library. What none of them states is "chosen by us", with the reason.
`recipe_file.py` reads recipes from YAML; `docs/training.md` has this page as a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Arm = Literal["thought", "direct"]
Mode = Literal["thought", "direct", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsRecipe:
    """Which instructions are trained on, validated on and measured on."""

    source: str = "openbmb/UltraFeedback"
    """A JSONL, JSON or parquet file, a dataset on the Hub, or `pocket`. The paper's is UltraFeedback."""
    revision: str | None = None
    """Of a Hub dataset: a commit, tag or branch. The commit that was read is written into the report of prompts."""
    split: str = "train"
    """Of a Hub dataset."""
    field: str = "instruction"
    """The field with the instruction. A list of chat messages there counts by its first user message."""
    category_field: str | None = None
    """The field with a category, for breakdowns; None: there are none."""
    evaluation_source: str | None = None
    """Instructions to measure on: a file, `pocket`, or a Hub dataset as NAME@REVISION:SPLIT (where the name says none,
    `revision` and `split` hold); None: some of `source` are kept for that."""
    per_iteration: int = 5000
    """New instructions for each iteration, used in no other. Paper: 5000."""
    validation: int = 1500
    """Instructions by which the best epoch is chosen. Draft: 1500."""
    evaluation: int = 500
    """Instructions on which each iteration is measured. Chosen by us: a standard error of about 2 points."""
    longest: int = 8000
    """Instructions with more characters are left out. Chosen by us."""
    decontaminate: tuple[str, ...] = ("alpaca-eval", "arena-hard", "arena-hard-v0.1")
    """Benches whose instructions must not be trained on; those that match are left out and counted. Their files come
    from the folder THINKSERVE_EVAL_DATA, or are fetched. Ignored for `pocket`."""
    near_duplicates: float = 0.8
    """Share of common word 5-grams (Jaccard) from which two instructions count as the same. Chosen by us."""
    bad_lines: Literal["refuse", "skip"] = "refuse"
    """What to do with lines of the file that cannot be read: end with their place, or leave them out and count them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRecipe:
    """How outputs are sampled for training."""

    engine: str = "auto"
    """`vllm` (a process of its own), `transformers` (in the stage's process), `auto` (vLLM where it is installed), or
    the URL of a vLLM, which must be started anew with each model that is sampled from, the epochs among them."""
    engine_args: tuple[str, ...] = ()
    """More arguments for vLLM."""
    k: int = 8
    """Outputs for each instruction. Paper: 8."""
    temperature: float = 0.8
    """Paper: 0.8."""
    top_p: float = 0.95
    """Paper: 0.95."""
    max_tokens: int = 4096
    """Of thought and response together. Not stated in the paper; chosen by us."""
    concurrency: int = 256
    """Requests at once to a server, or outputs at once in a batch. Chosen by us."""
    retry_broken: int = 0
    """How often an output without a readable response is sampled again. Draft: it helped with the specific prompt;
    chosen by us: not, since such outputs also teach what to avoid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRecipe:
    """Who scores responses. Judges get the instruction and the response, never a thought."""

    kind: Literal["reward-model", "pairwise", "pointwise", "function"] = "reward-model"
    """`reward-model`: a sequence classifier. `pairwise`: an LLM that compares all pairs in both orders
    (Self-Taught Evaluator). `pointwise`: an LLM that gives a grade. `function`: Python."""
    model: str | None = "RLHFlow/ArmoRM-Llama3-8B-v0.1"
    """A reward model: its folder or name on the Hub. An LLM: `URL#model` (its key is in THINKSERVE_JUDGE_API_KEY).
    Paper: ArmoRM, and the Self-Taught Evaluator."""
    revision: str | None = None
    """Of a reward model on the Hub."""
    function: str | None = None
    """`module:function`, called with (instruction: str, response: Response), returning a number; higher is better."""
    batch_tokens: int = 16384
    """Reward model: tokens in a batch, padding included. Chosen by us: fits an 8B model in bf16 on 80 GB."""
    max_length: int = 4096
    """Reward model: longer conversations are cut at the response's end, and counted. Chosen by us."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of a reward model."""
    devices: int | None = None
    """GPUs of a reward model, each with a copy of it; None: all; without a GPU it runs on the CPU."""
    trust_remote_code: bool = False
    """Whether a reward model may run code from its own repository (ArmoRM wants that)."""
    template: str | None = None
    """An LLM's prompt, a file; None: the built-in one. A pairwise template has {instruction}, {response_a} and
    {response_b}, a pointwise one {instruction} and {response}."""
    temperature: float = 0.0
    """Of an LLM. Not stated in the paper; chosen by us."""
    max_tokens: int = 2048
    """Of an LLM's judgment. Chosen by us."""
    concurrency: int = 64
    """Calls at once. Chosen by us."""
    prior: float = 0.1
    """Pairwise: the Bradley-Terry fit adds so many wins of each response over every other, so that an undefeated one
    stays finite. Chosen by us; the draft has none, and its likelihood has no maximum then."""
    scale: tuple[float, float] = (1.0, 10.0)
    """Pointwise: lowest and highest grade. Chosen by us."""
    max_unscored: float = 0.1
    """A stage that scores ends with an error if more responses than this share got no score (NaN counts as none)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsRecipe:
    """How a chosen and a rejected output are picked from the K of an instruction."""

    rho: float | Literal["auto"] = "auto"
    """Weight of length: the score becomes N(score) - rho * N(length of the response), N over the K outputs. `auto`
    takes the smallest of `rho_steps` at which chosen responses are not longer than rejected ones on average (draft's
    rule). Paper: usually within 0 and 0.5."""
    rho_steps: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    """What `auto` tries. Range from the paper, steps chosen by us; if none does, the last is taken, with a warning."""
    length: Literal["characters", "tokens"] = "characters"
    """Of the response. The draft counts the answer part; its unit is not stated, Meta-Rewarding's is characters."""
    broken: Literal["reject", "fill", "drop"] = "reject"
    """Outputs without a readable response: `reject` prefers one as the rejected side, up to `max_broken`; `fill`
    takes one only where all readable ones tie; `drop` never. Paper: included as rejected samples."""
    max_broken: float = 0.1
    """Highest share of pairs with such a rejected side. Draft: "typically no more than 10 %"; the cap is ours."""
    min_spread: float = 0.0
    """The highest and the lowest score of an instruction (before length control) must differ by more than this.
    Chosen by us."""
    min_chosen_score: float | None = None
    """Only outputs with at least this score may be chosen; None: any. Chosen by us."""
    ties: Literal["random", "shortest", "first"] = "random"
    """Which of several equally good outputs is taken. Chosen by us: a seeded draw prefers no style."""
    duplicates: Literal["merge", "keep"] = "merge"
    """Equal outputs of one instruction count once (`merge`) or as often as they came. Chosen by us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRecipe:
    """Low-rank adapters in place of full fine-tuning; merged into the weights of the checkpoint."""

    r: int = 64
    """The adapters' rank. Chosen by us."""
    alpha: int = 128
    """What they add is scaled by alpha / r. Chosen by us: twice r."""
    dropout: float = 0.0
    """Of their inputs. PEFT."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which modules get adapters: `all-linear`, or a list of their names. Chosen by us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DpoRecipe:
    """How TRL's DPOTrainer is run. Neither the paper nor its draft states anything here but the epochs."""

    beta: float = 0.1
    """TRL, and the nearest relatives (IRPO, RLMT)."""
    loss: Literal["sigmoid", "ipo", "hinge", "robust", "apo_zero", "sigmoid_norm"] = "sigmoid"
    """TRL's loss_type. Paper: DPO, which is `sigmoid`."""
    nll_weight: float = 0.0
    """Weight of the mean negative log-likelihood of chosen outputs beside it; 1 is IRPO. Paper: no difference seen. TRL's
    mean is over the tokens of the `device_batch` pairs on a device, so with fewer at once short outputs weigh more."""
    epochs: int = 10
    """Paper: 10, the best by validation."""
    learning_rate: float = 5e-7
    """Chosen by us, between RLMT (3e-7) and IRPO (7e-7), for models of 8B; tiny ones want 1e-4 and more."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """RLMT."""
    warmup_share: float = 0.05
    """Of all steps. RLMT."""
    batch: int = 128
    """Pairs in an optimizer step, over all devices. RLMT."""
    device_batch: int = 1
    """Pairs on a device at once; the rest is accumulated. Chosen by us."""
    max_length: int = 4096
    """Tokens of prompt and output; pairs with a longer side are left out and counted, never cut. RLMT."""
    weight_decay: float = 0.0
    """TRL."""
    max_grad_norm: float = 1.0
    """TRL."""
    bf16: bool = True
    """Autocast to bfloat16. TRL."""
    gradient_checkpointing: bool = True
    """TRL."""
    optimizer: str = "adamw_torch"
    """TRL's `optim`."""
    lora: LoraRecipe | None = None
    """None: all weights are trained, as in the paper."""
    accelerate_config: str | None = None
    """A file of `accelerate config`, for FSDP or DeepSpeed; None: one process a GPU, as many as there are."""
    processes: int | None = None
    """Processes of `accelerate launch`; None: one a GPU, or one on the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateRecipe:
    """How the best epoch is chosen: by the mean judge score of the responses to held-out instructions."""

    temperature: float = 0.0
    """Of the outputs on which epochs are compared. Not stated in the paper; chosen by us: no noise of sampling."""
    max_broken: float = 0.1
    """An epoch with a larger share of outputs without a readable response is not chosen, if another one is below."""
    max_tokens: int | None = None
    """None: that of `sample`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRecipe:
    """How each iteration's model is measured, on instructions that nothing was chosen by."""

    metric: Literal["accuracy", "win_rate"] = "win_rate"
    """`accuracy`: the share of responses with at least `right_score`, for judges that know what is right. `win_rate`:
    how often the judge prefers them to the direct response of the start model, ties counting half."""
    right_score: float = 1.0
    """For `accuracy`."""
    temperature: float = 1.0
    """Of the sampled outputs; greedy ones are measured as well."""
    top_p: float = 1.0
    """Of the sampled outputs."""
    max_tokens: int | None = None
    """None: that of `sample`."""
    judge: JudgeRecipe | None = None
    """Who judges here; None: who scores samples. Another judge shows whether training has only fooled the first one."""
    examples: int = 20
    """Instructions whose thoughts the report shows over the iterations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeRecipe:
    """How a machine is used; changes no result but through the order of float sums."""

    parallel_arms: bool = False
    """Run the thought and the direct arm side by side. For CPUs, with `threads: 1`; on GPUs they take turns."""
    threads: int | None = None
    """CPU threads of each process; None: torch's choice. Two processes with two each on two cores are ten times
    slower than with one each."""
    keep_epochs: bool = False
    """Keep the weights of all epochs; else only the best is kept once it is chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A training run."""

    name: str
    """In reports and model cards."""
    model: str = "meta-llama/Meta-Llama-3-8B-Instruct"
    """The start model: a folder, a name on the Hub, or `pocket-seed`. Paper: Llama-3-8B-Instruct."""
    revision: str | None = None
    """Of a model on the Hub."""
    chat_template: str | None = None
    """A Jinja file, for a tokenizer that has no chat template."""
    thought_format: str | None = None
    """A built-in thought format or a file; None: as the checkpoint names it. Paper: the specific prompt was best."""
    mode: Mode = "thought"
    """`thought`: TPO. `direct`: the paper's baseline, the same without thoughts. `both`: both, compared."""
    iterations: int = 4
    """Paper: 4."""
    seed: int = 0
    """Of prompts, sampling, ties and training."""
    prompts: PromptsRecipe = field(default_factory=PromptsRecipe)
    sample: SampleRecipe = field(default_factory=SampleRecipe)
    judge: JudgeRecipe = field(default_factory=JudgeRecipe)
    pairs: PairsRecipe = field(default_factory=PairsRecipe)
    dpo: DpoRecipe = field(default_factory=DpoRecipe)
    validate: ValidateRecipe = field(default_factory=ValidateRecipe)
    evaluate: EvaluateRecipe = field(default_factory=EvaluateRecipe)
    compute: ComputeRecipe = field(default_factory=ComputeRecipe)
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Anything; it goes into reports as it is."""

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms that are run, the thought arm first."""
        return ("thought", "direct") if self.mode == "both" else (self.mode,)
