"""The settings of a run, each with its default, range and description. Independent of hivemind.

The run file and its comments are generated from these fields. All peers of a run need the same values, except those in
[network], which are the coordinator's.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator, model_validator

from ttt.bundle import HUB_ID
from ttt.bundle.spec import checked_config
from ttt.config import DalleConfig
from ttt.errors import BundleError, InvalidInput
from ttt.tokenizer import check_prompt

NAME = r"[a-z0-9][a-z0-9-]{0,62}"
MOST_BATCHES = 2
"""Upper bound, in global batches, on the samples a peer may report per step: the whole batch plus overshoot."""
Compression = Literal["8-bit", "blockwise-8-bit", "16-bit", "none"]


def check_host(host: str) -> str:
    """Return the address to listen on; raise InvalidInput if it is not an IPv4 address."""
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        raise InvalidInput(
            "must be an IPv4 address, such as 0.0.0.0 (all addresses of this machine) or 127.0.0.1"
        ) from None
    return host


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunSection(_Section):
    """Name of the run."""

    name: str = Field(
        default="my-run",
        pattern=f"^{NAME}$",
        description="Must be unique within the network; lower-case letters, digits and hyphens.",
    )
    title: str = Field(default="", max_length=200, description="Shown to contributors; empty: the name.")
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="Seed of the initial weights, which the coordinator creates."
    )


class ModelSection(_Section):
    """The model to train."""

    bundle: str = Field(
        default="demo",
        min_length=1,
        max_length=500,
        description='"demo", a bundle folder or a Hub id (owner/name); provides the VQGAN, tokenizer, CLIP and '
        "configuration.",
    )
    from_bundle: bool = Field(
        default=False, description="Start from the bundle's transformer; false: from random weights."
    )
    dalle: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of DalleConfig that differ from the bundle's, for example { dim = 256, depth = 17 }.",
    )

    @model_validator(mode="after")
    def _fits(self) -> ModelSection:
        known = set(DalleConfig.__dataclass_fields__)
        if wrong := sorted(set(self.dalle) - known):
            raise ValueError(f"dalle has no field {', '.join(wrong)}; known: {', '.join(sorted(known))}")
        if self.from_bundle and self.dalle:
            raise ValueError("dalle changes the transformer, so from_bundle must be false")
        return self


class DataSection(_Section):
    """The training data, which each peer reads itself."""

    source: str = Field(
        default="scenes",
        min_length=1,
        max_length=1000,
        description='"scenes" (generated on the fly), a folder or URL of shards, or a Hub data set (owner/name).',
    )


class OptimizerSection(_Section):
    """How averaged gradients update the parameters."""

    name: Literal["lamb8bit", "lamb", "adamw"] = Field(
        default="lamb8bit", description="lamb8bit (8-bit state, as in 2021), lamb or adamw."
    )
    learning_rate: float = Field(default=2.5e-3, gt=0, le=1, description="Peak learning rate.")
    warmup_steps: int = Field(default=3125, ge=0, description="Steps over which the learning rate rises to its peak.")
    total_steps: int = Field(
        default=31_250, ge=1, description="Last step of the run, at which the learning rate reaches 0."
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the running mean of the gradients.")
    beta2: float = Field(default=0.96, ge=0, lt=1, description="Decay of the running mean of their squares.")
    weight_decay: float = Field(
        default=0.045, ge=0, le=1, description="Applied to all parameters except norms and biases."
    )
    max_grad_norm: float = Field(default=4.0, gt=0, description="Gradients are clipped to this global norm.")
    bias_correction: bool = Field(
        default=False,
        description="Correct the bias of LAMB's state in the first steps. The 2021 run did not; short runs need it.",
    )

    @property
    def eight_bit(self) -> bool:
        """True if the optimizer stores its state in one byte per number instead of four."""
        return self.name == "lamb8bit"

    @model_validator(mode="after")
    def _ordered(self) -> OptimizerSection:
        if self.warmup_steps >= self.total_steps:
            raise ValueError("warmup_steps must be less than total_steps")
        return self


class BatchSection(_Section):
    """How many samples make one optimizer step."""

    global_batch: int = Field(
        default=4096,
        ge=1,
        le=1 << 24,
        description="Samples per step, of all peers together. Choose it so that a step lasts at least three times "
        "matchmaking_time: in shorter steps, peers spend most of their time finding each other.",
    )


class AveragingSection(_Section):
    """How peers exchange gradients and parameters."""

    gradients: Compression = Field(
        default="8-bit",
        description="Compression of gradients with at least 65,536 elements; smaller tensors are sent in 16 bits. "
        "8-bit, blockwise-8-bit, 16-bit or none.",
    )
    state: Compression = Field(
        default="16-bit",
        description="The same for parameters. With 8-bit, peers' parameters differ by about 1 % of their standard "
        "deviation.",
    )
    power_sgd_rank: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Send gradients as factors of this rank (PowerSGD); 0: off.",
    )
    state_every: int = Field(
        default=5, ge=1, le=10_000, description="Steps between two rounds that average the parameters themselves."
    )
    delayed: bool = Field(
        default=False,
        description="Continue to compute while gradients are averaged, and apply them one step late.",
    )
    group_size: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="Peers that average together; a full group starts at once. At least 2, or 0: all peers.",
    )
    matchmaking_time: float = Field(
        default=15.0, gt=0.1, le=600, description="Time limit for forming a group, in seconds."
    )
    request_timeout: float = Field(
        default=5.0, gt=0, le=600, description="Seconds to wait for the answer of one peer; less than matchmaking_time."
    )
    chunk_timeout: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="Seconds without data after which a peer counts as lost; longer than a micro-batch takes.",
    )
    averaging_timeout: float = Field(
        default=120.0,
        gt=0,
        le=7200,
        description="Seconds after which a round is abandoned: the longest that one peer can delay the others.",
    )
    progress_lifetime: float = Field(
        default=45.0, gt=1, le=3600, description="Seconds after its last report during which a peer still counts."
    )

    @field_validator("group_size")
    @classmethod
    def _a_group(cls, size: int) -> int:
        if size == 1:
            raise ValueError("must be at least 2, because one peer cannot average alone, or 0 for all")
        return size

    @model_validator(mode="after")
    def _ordered(self) -> AveragingSection:
        if self.request_timeout >= self.matchmaking_time:
            raise ValueError("request_timeout must be less than matchmaking_time, or peers wait for each other")
        if self.chunk_timeout >= self.averaging_timeout:
            raise ValueError("chunk_timeout must be less than averaging_timeout")
        if self.matchmaking_time >= self.averaging_timeout:
            raise ValueError("matchmaking_time must be less than averaging_timeout")
        return self


class NetworkSection(_Section):
    """Where the coordinator listens."""

    host: str = Field(
        default="0.0.0.0", min_length=1, max_length=100, description="IPv4 address on which the coordinator listens."
    )
    port: int = Field(
        default=8080,
        ge=1,
        le=65_535,
        description="TCP port of the coordinator. Peers in Spaces reach only 80, 443 and 8080.",
    )
    announce: list[str] = Field(
        default_factory=list,
        max_length=16,
        description='Addresses at which peers can reach it, such as "/ip4/203.0.113.5/tcp/8080" or '
        '"/dns4/example.org/tcp/8080"; empty: the addresses of its machine.',
    )

    @field_validator("host")
    @classmethod
    def _listens(cls, host: str) -> str:
        return check_host(host)


class CheckpointSection(_Section):
    """When the coordinator saves the run, and which checkpoints it keeps."""

    every_seconds: float = Field(
        default=600.0, ge=1, description="Seconds between checkpoints: the most training that can be lost."
    )
    keep_last: int = Field(default=3, ge=1, le=10_000, description="Number of newest checkpoints to keep.")
    keep_hourly: int = Field(
        default=24, ge=0, le=10_000, description="Also keep the last checkpoint of each hour, for this many hours."
    )
    keep_daily: int = Field(
        default=30, ge=0, le=10_000, description="Also keep the last checkpoint of each day, for this many days."
    )
    hub_repo: str = Field(
        default="", max_length=200, description="Hub model (owner/name) to upload to; empty: none. Needs HF_TOKEN."
    )
    hub_every_seconds: float = Field(default=3600.0, ge=10, description="Seconds between uploads.")

    @field_validator("hub_repo")
    @classmethod
    def _a_hub_id(cls, repo: str) -> str:
        if repo and not HUB_ID.fullmatch(repo):
            raise ValueError("must be owner/name, such as anna/cats, or empty")
        return repo


class MetricsSection(_Section):
    """What peers report to the coordinator."""

    every_seconds: float = Field(default=20.0, ge=1, le=3600, description="Seconds between two reports of a peer.")


class SampleImagesSection(_Section):
    """Images of fixed prompts, which the coordinator generates at each checkpoint to show how the model learns."""

    prompts: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(
        default=[
            "a red circle above a blue square",
            "a small green star on a white background",
            "a big orange heart",
            "a purple ring to the left of a yellow diamond",
        ],
        max_length=16,
        description="Generated with the same seed each time, so that the images differ by the weights alone.",
    )
    candidates: int = Field(
        default=4,
        ge=0,
        le=128,
        description="Images generated for each prompt, of which the one that CLIP ranks first is kept. 0: none.",
    )
    keep: int = Field(
        default=60,
        ge=2,
        le=1000,
        description="Maximum number of checkpoints whose sample images are kept, spread evenly over the run.",
    )

    @field_validator("prompts")
    @classmethod
    def _readable(cls, prompts: list[str]) -> list[str]:
        return [check_prompt(prompt) for prompt in prompts]


class JoinSection(_Section):
    """Who may join."""

    mode: Literal["open"] = Field(
        default="open", description="open: anyone who has this file. There is no other mode yet."
    )


class RunSettings(_Section):
    """All settings of a run, by section of the run file."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    optimizer: OptimizerSection = OptimizerSection()
    batch: BatchSection = BatchSection()
    averaging: AveragingSection = AveragingSection()
    network: NetworkSection = NetworkSection()
    checkpoints: CheckpointSection = CheckpointSection()
    metrics: MetricsSection = MetricsSection()
    sample_images: SampleImagesSection = Field(
        default=SampleImagesSection(), validation_alias=AliasChoices("sample_images", "pictures")
    )
    """Run files up to November 2026 call this section [pictures]."""
    join: JoinSection = JoinSection()


def dalle_config(settings: RunSettings, of_bundle: DalleConfig) -> DalleConfig:
    """Return the bundle's transformer configuration with the run's changes. Raises InvalidInput if they do not fit."""
    try:
        config = checked_config(DalleConfig, {**of_bundle.to_dict(), **settings.model.dalle}, "[model] dalle")
    except BundleError as error:
        raise InvalidInput(str(error)) from None
    for field in ("image_fmap_size", "num_image_tokens", "num_text_tokens"):
        if getattr(config, field) != getattr(of_bundle, field):
            raise InvalidInput(
                f"[model] dalle.{field} must be {getattr(of_bundle, field)}, because the VQGAN and tokenizer of the "
                f"bundle {settings.model.bundle!r} require it; got {getattr(config, field)}"
            )
    return config
