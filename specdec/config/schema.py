"""Every setting that changes a result, typed. One section a stage, named like the stage.

An unknown key, a wrong type or an impossible value is refused (`specdec.config.files` turns pydantic's findings
into one line each, with the full path of the key). Nothing here is accepted and then ignored.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

Share = Annotated[float, Field(ge=0, le=1)]
SomeShare = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
DType = Literal["float32", "bfloat16", "float16"]

_REMOTE = re.compile(r"(?!file://)[\w+.-]+://|[\w.-]+@[\w.-]+:")
OURS = {  # arguments of an engine with which we would not find the server, or not this base
    "--host": "a server that the stage starts listens on this machine alone",
    "--port": "a server that the stage starts takes SPECDEC_PORT, or any free port",
    "--model": "the server serves the base of `fetch_base`",
    "--speculative-config": "the drafter is that of the stage",
}
OURS_FOR_STATES = OURS | {  # of a vLLM that hands out hidden states
    "--speculative-config": "it is how the states are asked for",
    "--kv-transfer-config": "it is how the states are handed over",
    "--enable-prefix-caching": "states of what a cache holds are not computed",
    "--max-model-len": "it is max_length",
    "--dtype": "it is dtype",
    "--served-model-name": "the server is asked by the base's path",
    "--pipeline-parallel-size": "the states lie on the last stage alone",
    "-pp": "the states lie on the last stage alone",
}
DRAFTER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_TREE = re.compile(r"[1-9]\d*,[1-9]\d*,[1-9]\d*")


class Section(BaseModel):
    """Strict: no unknown key, no silent conversion ("3" is not 3), no change after reading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class CloneData(Section):
    """Where the conversations come from: any git repository, at a pinned revision, or a plain file."""

    url: str = Field(min_length=1, description="git URL, local path, or `embedded` for the installed documentation")
    revision: str | None = Field(min_length=1, description="commit, tag or branch; null for a plain file")
    file: str | None = Field(min_length=1, description="the file inside the repository; null for a plain file")
    max_bad_share: Share = Field(description="above this share of unusable rows the stage fails")

    @field_validator("url")
    @classmethod
    def _no_credentials(cls, url: str) -> str:
        if re.match(r"(git\+)?https?://[^/]*@", url):
            raise PydanticCustomError(
                "secret", "a URL with a name or a password ends up in dvc.lock: leave them to git's credential helper"
            )
        return url

    @model_validator(mode="after")
    def _repository_or_plain_file(self) -> Self:
        if (self.revision is None) != (self.file is None):
            raise ValueError(
                "`revision` and `file` go together: both for a git repository, both null for a plain file"
            )
        if self.revision is None and (self.url == "embedded" or _REMOTE.match(self.url)):
            raise ValueError(
                f"`url` is {self.url}, which needs a `revision` and a `file`: only a plain file has none"
            )
        return self


class EmbeddedBase(Section):
    """The small base that is trained on the spot when `fetch_base.source` is `embedded`."""

    steps: Positive
    seed: int = Field(ge=0)


class FetchBase(Section):
    """The frozen base model: `embedded`, a local folder, or a Hugging Face repository at a pinned revision."""

    source: str = Field(min_length=1)
    revision: str | None = Field(description="commit, tag or branch on the hub; null for a folder or `embedded`")
    embedded: EmbeddedBase | None = None

    @model_validator(mode="after")
    def _embedded_or_not(self) -> Self:
        if (self.source == "embedded") != (self.embedded is not None):
            raise ValueError("the section `embedded` goes with `source: embedded`, and only with it")
        if self.source == "embedded" and self.revision is not None:
            raise ValueError("`revision` must be null with `source: embedded`")
        return self


class PromptFile(Section):
    """A file of prompts beside the dataset. Its hash makes DVC see that it changed."""

    path: str = Field(min_length=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class PreparePrompts(Section):
    """Which conversations become prompts, and how they are split (by a hash, so that a row never moves)."""

    validation_share: SomeShare
    test_share: SomeShare
    max_train: Positive | None = Field(description="at most this many training prompts; null for all")
    max_validation: Positive | None
    max_test: Positive | None
    max_turns: Positive = Field(description="user turns kept of one conversation")
    max_prompt_tokens: Positive = Field(description="longer prompts (by the base's tokenizer) are left out")
    near_duplicate: Share = Field(gt=0, description="share of common word n-grams from which two prompts are one")
    further_prompts: list[PromptFile] = Field(description="beside the dataset: prompts as they come in now")
    evaluation_files: list[PromptFile] = Field(description="measured by evaluate; training must not see them")

    @field_validator("further_prompts", "evaluation_files")
    @classmethod
    def _each_file_once(cls, files: list[PromptFile]) -> list[PromptFile]:
        if len({file.path for file in files}) < len(files):
            raise ValueError("a path stands twice")
        return files

    @model_validator(mode="after")
    def _shares_leave_training(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share must be below 1, or nothing is left for training")
        return self


class Temperature(Section):
    """One temperature, and the share of the answers that are sampled at it. 0 is greedy."""

    temperature: float = Field(ge=0, le=2)
    share: float = Field(gt=0, le=1)


class Sampling(Section):
    """How the base answers. All of it is sent with every request."""

    samples: Positive = Field(description="answers to one prompt")
    temperatures: list[Temperature] = Field(min_length=1, description="a mix; the shares add up to 1")
    top_p: float = Field(gt=0, le=1)
    top_k: int = Field(ge=0, description="0: the whole vocabulary")
    min_p: float = Field(ge=0, lt=1)
    max_tokens: Positive = Field(description="of one answer, or of one piece of it with `cut_off: continue`")
    cut_off: Literal["keep", "drop", "continue"] = Field(description="what becomes of answers that max_tokens cut")

    @model_validator(mode="after")
    def _shares_add_up(self) -> Self:
        total = sum(part.share for part in self.temperatures)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares of temperatures add up to {total:g}, and must to 1")
        values = [part.temperature for part in self.temperatures]
        if len(set(values)) < len(values):
            raise ValueError("a temperature stands twice in temperatures")
        return self

    @model_validator(mode="after")
    def _greedy_has_no_choice(self) -> Self:
        greedy = self.greedy_share
        if greedy == 1 and (self.top_p, self.top_k, self.min_p) != (1, 0, 0):
            raise ValueError("at temperature 0 alone top_p, top_k and min_p have no effect: set 1.0, 0 and 0.0")
        if greedy * self.samples > 1 + 1e-9:
            raise ValueError(
                f"{self.samples} samples of which {greedy:g} are greedy would repeat the greedy answer: lower the "
                "share of temperature 0, or the samples"
            )
        return self

    @property
    def greedy_share(self) -> float:
        """The share of temperature 0."""
        return sum(part.share for part in self.temperatures if part.temperature == 0)


def no_key(arguments: list[str]) -> list[str]:
    if any(a.split("=")[0].replace("_", "-") in ("--api-key", "--hf-token") for a in arguments):
        raise PydanticCustomError("secret", "a key here ends up in dvc.lock: the server gets one by itself")
    return arguments


def what_we_set(arguments: list[str], ours: dict[str, str] = OURS) -> list[str]:
    """vLLM takes `--speculative_config` and `--speculative-config.method`, too."""
    for argument in arguments:
        name = argument.split("=")[0].split(".")[0].replace("_", "-")
        if name in ours:
            raise ValueError(f"{name} cannot stand here: {ours[name]}")
    return arguments


def what_we_set_for_states(arguments: list[str]) -> list[str]:
    return what_we_set(arguments, OURS_FOR_STATES)


class Synthesize(Section):
    """The base answers the prompts, served by an engine over HTTP."""

    engine: Literal["auto", "transformers", "vllm"] = Field(description="auto: vllm where it is installed")
    engine_args: list[str] = Field(description="further command line arguments of the engine")
    dtype: DType
    max_model_len: Positive
    sampling: Sampling
    max_failed_share: Share = Field(description="above this share of failed rows the stage fails")

    @model_validator(mode="after")
    def _one_temperature_in_transformers(self) -> Self:
        if self.engine == "transformers" and len(self.sampling.temperatures) > 1:
            raise ValueError(
                "sampling.temperatures: `transformers serve` samples all requests at the first one's temperature: "
                "give one temperature, or set engine to vllm"
            )
        return self

    _no_key = field_validator("engine_args")(no_key)
    _what_we_set = field_validator("engine_args")(what_we_set)


class TrainingSettings(Section):
    """One training run of one drafter. Everything is stated: a default that changed would re-run nothing."""

    epochs: float = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup_share: Share
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    max_length: Positive = Field(description="tokens in one packed row; longer conversations are cut at it")
    rows_per_step: Positive = Field(description="packed rows in one optimizer step, over all passes and processes")
    rows_per_pass: Positive = Field(description="packed rows that one process takes at once")
    save_steps: Positive = Field(description="steps between checkpoints; each one is validated")
    keep_checkpoints: Positive = Field(description="the last ones, beside the best one")
    early_stopping: Positive | None = Field(description="validations without a better one, then it ends; null: never")
    warm_start: str | None = Field(description="trained drafter to go on from: a folder, or models:/NAME@ALIAS")
    features: Literal["online", "cached", "vllm"] = Field(
        description="run the base in every step; or once, onto the disk: here, or in vLLM"
    )
    vllm_args: list[str] = Field(default_factory=list, description="further command line arguments of that vLLM")
    cache_dtype: Literal["float32", "bfloat16", "float8_e4m3fn"] = Field(description="of cached features")
    cache_limit_gb: float = Field(gt=0, description="cached features may not be larger")
    gradient_checkpointing: bool = Field(description="recompute draft positions in the backward pass: less memory")
    shard_base: bool = Field(description="spread the base's layers over the processes (FSDP)")
    dtype: DType = Field(description="of the frozen base; drafters train in float32 weights")
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _a_sharded_base_runs_in_step(self) -> Self:
        if self.shard_base and self.features != "online":
            raise ValueError(
                "shard_base: processes write cached features each at its own pace: set features to online"
            )
        return self

    @model_validator(mode="after")
    def _arguments_have_a_vllm(self) -> Self:
        if self.vllm_args and self.features != "vllm":
            raise ValueError(
                f"vllm_args have no effect with features {self.features}: set it to vllm, or leave them out"
            )
        return self

    _no_key = field_validator("vllm_args")(no_key)
    _what_we_set = field_validator("vllm_args")(what_we_set_for_states)

    @field_validator("warm_start")
    @classmethod
    def _no_output_of_this_pipeline(cls, folder: str | None) -> str | None:
        if folder and Path(folder).parts[:2] == ("models", "drafters"):
            raise ValueError(
                "a drafter under models/drafters is an output, which DVC removes: copy it elsewhere first"
            )
        return folder


Loss = Literal["cross_entropy", "kl", "overlap", "hybrid"]
Decay = Annotated[float, Field(gt=0, le=1)]


class MedusaMethod(Section):
    """Medusa heads (Cai et al., 2024, arXiv:2401.10774)."""

    method: Literal["medusa"]
    num_heads: Positive
    num_layers: Positive
    shared_output_layer: bool = Field(description="one output layer for all heads")
    loss: Loss
    head_decay: Decay = Field(description="weight of head k in the loss is head_decay^k")


class DimensionSettings(Section):
    """Sizes of a draft layer; null follows the base."""

    hidden_size: Positive | None = None
    intermediate_size: Positive | None = None
    num_attention_heads: Positive | None = None
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None
    rope_theta: float | None = Field(default=None, gt=0)
    max_position_embeddings: Positive | None = None


class EagleMethod(Section):
    """EAGLE (Li et al., 2024, arXiv:2401.15077); several unroll steps as in HASS (arXiv:2408.15766)."""

    method: Literal["eagle"]
    draft_tokens: Positive = Field(description="chain drafted a step, in validation and when served")
    num_layers: Positive
    unroll_steps: Positive = Field(description="draft positions trained; 1 is the original")
    unroll_decay: Decay = Field(description="weight of draft position k in the loss is unroll_decay^k")
    loss: Loss
    token_weight: float = Field(gt=0, description="weight of `loss`")
    feature_weight: float = Field(ge=0, description="weight of the distance from the base's next state")
    input_noise: float = Field(ge=0, description="uniform noise of this size on the base's states")
    dimensions: DimensionSettings

    @field_validator("dimensions")
    @classmethod
    def _width_of_the_base(cls, dimensions: DimensionSettings) -> DimensionSettings:
        if dimensions.hidden_size is not None:
            raise ValueError("hidden_size must be null: EAGLE speaks through the base's own output layer")
        return dimensions


class Eagle3Method(Section):
    """EAGLE-3 (Li et al., 2025, arXiv:2503.01840) and the options of 3.1."""

    method: Literal["eagle3"]
    draft_tokens: Positive = Field(description="chain drafted a step, in validation and when served")
    aux_layers: list[int] | None = Field(description="layers of the base to read; null: low, middle, high")
    unroll_steps: Positive = Field(description="draft positions trained (training-time test)")
    unroll_decay: Decay = Field(description="weight of draft position k in the loss is unroll_decay^k")
    draft_vocab_size: Positive | None = Field(description="most frequent answer tokens; null for all")
    loss: Loss
    norm_before_residual: bool = Field(description="the residual is the normed state")
    fc_norm: bool = Field(description="a norm on each of the base's states (3.1)")
    norm_output: bool = Field(description="the next draft position reads the normed state (3.1)")
    dimensions: DimensionSettings


class MedusaSettings(MedusaMethod):
    """A section of `drafters` with `method: medusa`."""

    training: TrainingSettings

    @model_validator(mode="after")
    def _nothing_to_recompute(self) -> Self:
        if self.training.gradient_checkpointing:
            raise ValueError("training.gradient_checkpointing must be false: Medusa heads have nothing to recompute")
        return self


class EagleSettings(EagleMethod):
    """A section of `drafters` with `method: eagle`."""

    training: TrainingSettings


class Eagle3Settings(Eagle3Method):
    """A section of `drafters` with `method: eagle3`."""

    training: TrainingSettings


# A new method adds its settings to both, told apart by `method`.
METHOD_SECTIONS: dict[str, type[MedusaMethod] | type[EagleMethod] | type[Eagle3Method]] = {
    "medusa": MedusaMethod,
    "eagle": EagleMethod,
    "eagle3": Eagle3Method,
}
DRAFTER_SECTIONS: dict[str, type[Section]] = {
    "medusa": MedusaSettings,
    "eagle": EagleSettings,
    "eagle3": Eagle3Settings,
}
DrafterSettings = Annotated[MedusaSettings | EagleSettings | Eagle3Settings, Field(discriminator="method")]


class CertificateSettings(Section):
    """The losslessness certificate that is made with every evaluation."""

    prompts: Positive = Field(description="of the held-out ones")
    max_new_tokens: int = Field(ge=3)
    sampled_tokens: Positive = Field(description="for each way of drafting")
    deployment: DType | None = Field(description="data type in which greedy answers are compared too; null: none")


class Evaluate(Section):
    """What is measured on the held-out prompts."""

    max_new_tokens: Positive
    dtype: DType
    temperatures: list[Annotated[float, Field(ge=0, le=2)]] = Field(description="0 (greedy) is always measured")
    draft_lengths: list[Positive] = Field(description="chains beside the drafter's own draft_tokens")
    trees: list[str] = Field(description="dynamic draft trees, each as DEPTH,WIDTH,NODES")
    static_nodes: list[Positive] = Field(description="static draft trees of so many nodes, searched on validation")
    ways_prompts: Positive | None = Field(description="held-out prompts for these; null: all of them")
    file_prompts: Positive | None = Field(
        description="of each category of each of prepare_prompts.evaluation_files; null: all"
    )
    certificate: CertificateSettings
    repeats: Positive = Field(description="timed passes over the prompts, base and drafter interleaved")
    bootstrap_samples: Annotated[int, Field(ge=100)]
    confidence: float = Field(gt=0.5, lt=1)
    seed: int = Field(ge=0)

    @field_validator("trees")
    @classmethod
    def _trees_are_trees(cls, trees: list[str]) -> list[str]:
        for tree in trees:
            if not _TREE.fullmatch(tree):
                raise ValueError(f"{tree!r} is no tree: write DEPTH,WIDTH,NODES, as 5,4,20")
        return trees


class Benchmark(Section):
    """The drafter inside a real vLLM, beside the base without one."""

    engine: Literal["auto", "vllm", "none"] = Field(description="auto: where vLLM is installed; none: never")
    engine_args: list[str] = Field(description="further command line arguments of vLLM")
    dtype: DType = Field(description="of base and drafter there, and of our own decoding beside it")
    max_model_len: Positive
    prompts: Positive | None = Field(description="of the held-out ones; null: all of them")
    max_new_tokens: Positive
    concurrencies: list[Positive] = Field(min_length=1, description="requests in flight at once")
    draft_lengths: list[Positive] = Field(description="chains beside the drafter's own draft_tokens")
    repeats: Positive = Field(description="timed passes over the prompts, with and without the drafter in turns")

    _no_key = field_validator("engine_args")(no_key)
    _what_we_set = field_validator("engine_args")(what_we_set)

    @field_validator("concurrencies", "draft_lengths")
    @classmethod
    def _each_once(cls, values: list[int]) -> list[int]:
        if len(set(values)) < len(values):
            raise ValueError("a number stands twice")
        return values

    @model_validator(mode="after")
    def _answers_fit(self) -> Self:
        if self.max_new_tokens >= self.max_model_len:
            raise ValueError(
                f"max_new_tokens is {self.max_new_tokens}: it must be below max_model_len, with the prompt"
            )
        return self


class Register(Section):
    """The registry and its gates: a version that misses one is registered, and not promoted."""

    model_name: str | None = Field(description="registered model; null for `specdec-<base>`")
    bundle_base: bool = Field(description="put the base's files into the registered model")
    min_acceptance_length: float = Field(ge=1, description="lower end of the interval must reach it")
    min_speedup: float = Field(ge=0, description="lower end of the interval must reach it")
    max_engine_difference: float = Field(ge=0, description="of acceptance lengths, vLLM's from our own decoding's")
    served_requests: Positive | None = Field(description="requests at once where it is served; null: not asked")
    min_served_speedup: float = Field(ge=0, description="in vLLM at that load; lower end of the interval")
    require_engine: bool = Field(description="what no vLLM has loaded is not promoted")
    promote: Literal["automatic", "approval"] = Field(description="approval: a person decides what passes every gate")


class Params(Section):
    """`params.yaml`, whole."""

    clone_data: CloneData
    fetch_base: FetchBase
    prepare_prompts: PreparePrompts
    synthesize: Synthesize
    drafters: dict[str, DrafterSettings] = Field(min_length=1)
    evaluate: Evaluate
    benchmark: Benchmark
    register_: Register = Field(alias="register")

    @model_validator(mode="after")
    def _drafters_have_file_names(self) -> Self:
        for name in self.drafters:
            if not DRAFTER_NAME.fullmatch(name):
                raise ValueError(f"drafters.{name}: a name is small letters, digits, `-` and `_`")
        return self

    @model_validator(mode="after")
    def _the_served_load_is_measured(self) -> Self:
        served = self.register_.served_requests
        if served is not None and served not in self.benchmark.concurrencies:
            raise ValueError(f"register.served_requests is {served}, which benchmark.concurrencies does not measure")
        return self

    @model_validator(mode="after")
    def _answers_fit_the_context(self) -> Self:
        needed = self.prepare_prompts.max_prompt_tokens + self.synthesize.sampling.max_tokens
        if needed > self.synthesize.max_model_len:
            raise ValueError(
                f"synthesize.max_model_len is {self.synthesize.max_model_len}, below "
                f"prepare_prompts.max_prompt_tokens + synthesize.sampling.max_tokens = {needed}"
            )
        return self
