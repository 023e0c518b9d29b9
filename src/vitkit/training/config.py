"""What a training run is told. No torch here: the command line reads it to answer --help."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from vitkit.errors import UsageError, named
from vitkit.objectives.settings import (
    SELF_SUPERVISED,
    ContrastiveConfig,
    DistillationConfig,
    MaskingConfig,
    Objective,
)
from vitkit.training.unread import unread


@dataclass(frozen=True)
class OptimizerConfig:
    name: Literal["adamw", "sgd", "lars"] = "adamw"
    """AdamW with decoupled weight decay, SGD with momentum, or LARS (arXiv 1708.03888): SGD whose
    steps are in proportion to each matrix's norm, for large batches."""
    learning_rate: float = 1e-3
    """The highest learning rate, reached after the warm-up."""
    weight_decay: float = 0.1
    """Times the learning rate; not on biases, norms, class token and positions. SGD and LARS add
    it to the gradient, so that momentum multiplies it."""
    layer_decay: float = 1.0
    """Learning rate of each block relative to the next one above it; 1 is the same everywhere."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    momentum: float = 0.9
    """SGD's and LARS's momentum."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0 does not clip."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters, which fine-tuning then trains beside the head in place of all weights."""

    rank: int = 0
    """Rank of the adapters; 0 puts in none."""
    alpha: float | None = None
    """An adapter's product is multiplied by alpha / rank; by default that is 1."""
    dropout: float = 0.0
    """Dropout of what the adapters read."""
    layers: tuple[str, ...] = ("qkv", "out")
    """Names of the dense layers that get adapters: qkv, out, dense1, dense2."""


@dataclass(frozen=True)
class ScheduleConfig:
    kind: Literal["cosine", "linear", "stairs"] = "cosine"
    """How the learning rate falls after the warm-up: to 0 (cosine), to linear_end, or by stairs."""
    warmup_share: float = 0.1
    """Share of the steps in which the learning rate rises linearly from 0."""
    warmup_steps: int | None = None
    """The same as a number of steps; counts before warmup_share."""
    linear_end: float = 1e-5
    """Where the linear decay ends."""
    stairs: tuple[float, ...] = (0.3, 0.6, 0.9)
    """Shares of the steps after each of which the learning rate is divided by 10, with stairs;
    those of BiT's HyperRule above 20,000 images."""


@dataclass(frozen=True)
class AugmentConfig:
    crop_area: tuple[float, float] = (0.05, 1.0)
    """Smallest and largest share of the area that a random crop takes."""
    crop_aspect: Literal["varied", "kept"] = "varied"
    """The crop's aspect: between 3/4 and 4/3, or the image's own; kept with a crop area of 0.64
    0.64 it is BiT's resize to 160 and random crop of 128."""
    flip: bool = True
    """Mirror every second image; wrong where a mirrored image is another class."""
    level: Literal["none", "light1", "light2", "medium1", "medium2", "strong1", "strong2"] = "none"
    """RandAugment and MixUp together, as "How to train your ViT?" (arXiv 2106.10270) names them."""
    randaugment_layers: int | None = None
    """Operations that RandAugment applies one after another; 0 is none. By default the level's."""
    randaugment_magnitude: float | None = None
    """How strong they are, on the authors' scale of 10. By default the level's."""
    mixup: float | None = None
    """Mix pairs of images and their labels by shares from Beta(mixup, mixup); 0 does not. By
    default the level's."""
    cutmix: float = 0.0
    """Put a rectangle of one image into another, its share from Beta(cutmix, cutmix); beside mixup
    a coin decides for each pair."""
    erase: float = 0.0
    """Share of the images in which a random rectangle is filled with noise."""
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """By how much brightness, contrast, saturation and hue vary at most."""
    jitter_share: float = 1.0
    """Share of the images to which the jitter is applied."""
    grayscale: float = 0.0
    """Share of the images that lose their colour."""
    blur: float = 0.0
    """Share of the images that are smoothed by a Gaussian of 0.1 to 2 pixels."""


@dataclass(frozen=True)
class DataConfig:
    """Which images are trained on, and where they are kept."""

    weights: tuple[float, ...] = ()
    """With several DATA, how much of the stream each is; by default by their numbers of images."""
    subset: float | None = None
    """Train on so many images (above 1) or this share, the same of every class; a larger subset
    holds the smaller ones."""
    quarantine: tuple[str, ...] = ()
    """Lists of images to leave out, as `vitkit data check` and `vitkit data dedup` write them."""
    balance: float = 0.0
    """Draw rare classes more often: 0 as they are, 1 every class alike, between by a power."""
    repeats: int = 1
    """Times that an image comes in a batch, augmented anew each time."""
    keep: Literal["auto", "device", "disk", "none"] = "auto"
    """Where decoded images are kept: on the device, in a memory-mapped file, or nowhere; auto: on
    the device where they are small, of one size, and all fit."""
    decode: Literal["cpu", "cuda"] = "cpu"
    """Where image files are decoded; a GPU's decoder differs by a rounding here and there."""
    keep_side: int | None = None
    """With disk, shrink images to this shorter side before they are kept; by default 8/7 of the
    image size, and images that are smaller stay as they are."""


@dataclass(frozen=True)
class EngineConfig:
    """How the machine is used. "auto" is settled by a look at it, printed and recorded."""

    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the net's blocks by torch.compile; auto: where the run is long enough to gain."""
    checkpointing: Literal["auto", "none", "selective", "full"] = "auto"
    """Compute activations again in the backward pass instead of keeping them: all but the outputs
    of matrix products (selective), or a whole block's (full); auto: the least that fits."""
    sharding: Literal["auto", "ddp", "fsdp", "hybrid"] = "auto"
    """With several processes: each holds the whole net (ddp), a part of it (fsdp), or a part
    within groups of shard_over processes (hybrid); auto: ddp where it fits, else fsdp."""
    shard_over: int | None = None
    """Processes that share one copy of the weights with hybrid; by default those of a machine."""
    patience: float = 600.0
    """Seconds without a step after which a run that hangs ends, showing where; 0 waits forever."""


@dataclass(frozen=True)
class GuardConfig:
    """What happens to a run whose numbers go wrong."""

    skipped_steps: int = 10
    """A step whose gradient is not finite changes nothing; more than this many end the run."""
    spike_factor: float = 3.0
    """A loss this many times the highest of the 100 before it (and above the first 20) takes the
    run back to its newest state, and past the batches since; 0 never does."""
    rewinds: int = 3
    """Times that a loss spike may take the run back; the next one ends it."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes; it is written to the run's config.json."""

    recipe: str = "custom"
    """The recipe that this config came from; `vitkit recipes` lists them."""
    model: str = "ViT-B/16"
    """The net by its name; `vitkit models` lists them."""
    image_size: tuple[int, int] = (224, 224)
    """Height and width in pixels, written 384x256; one number is a square."""
    pooling: Literal["token", "mean", "map", "patch-mean", "token+mean"] = "token"
    """What a ViT's head reads: the class token, the mean of the patches, attention pooling, ..."""
    positions: Literal["1d", "2d", "relative", "sincos2d", "none"] = "1d"
    """A ViT's position embeddings: learned ones, relative ones, fixed sines and cosines, none."""
    hidden_head: bool = False
    """Put a hidden tanh layer before the head, as the paper does for pre-training."""
    linear_probe: bool = False
    """Fine-tuning starts from a head that was fitted to the frozen features first (linear probe,
    then fine-tuning: arXiv 2202.10054), rather than from zeros."""
    head_norm: bool = False
    """Standardise what the head reads by a batch norm without weights, as MAE's linear probe does;
    a bundle's head has it folded in, and is a plain one."""
    dropout: float = 0.0
    """Dropout after every dense layer but q, k, v."""
    stochastic_depth: float = 0.0
    """Share of the images for which the last block's branches are left out in training; it grows
    linearly from 0 at the first block."""
    freeze: tuple[str, ...] = ()
    """Names of weights that are not trained, with * and ?; a later name with ! before it is trained
    again. '*' '!head.*' trains the head alone."""
    head_bias: float = 0.0
    """First bias of the head; the authors take -10 with the sigmoid loss on 21,843 classes."""
    steps: int | None = None
    """Length of the run in steps. Of steps, minutes and epochs one counts."""
    minutes: float | None = None
    """Length as a time for the whole training; a short probe turns it into steps."""
    epochs: float | None = None
    """Length as passes over the training images."""
    batch_size: int = 128
    """Images in one step."""
    accumulation: int = 1
    """Parts in which a batch is worked through, to need less memory."""
    seed: int = 0
    """Weights, order, augmentation and dropout follow from it."""
    objective: Objective = "supervised"
    """What is learned: the labels, patches that are hidden (masked-patches, mae), or which views
    are of one image (simclr). The last three read no label and give a net without a head."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Cross-entropy over the classes, or one for each class."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    loss_balance: float = 0.0
    """Weight the loss of each class by its number of images to the power of minus this; 0 is none,
    1 makes classes count alike."""
    polyak: float = 0.0
    """Decay of the Polyak average of the weights, which is then evaluated; 0 keeps none."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the machine has fast bf16, fp32 elsewhere."""
    evaluation_resize: Literal["direct", "crop"] = "direct"
    """Images to evaluate on: resized straight to the image size, or (crop) their middle after a
    resize of the shorter side to 8/7 of it. Fine-tuning keeps the checkpoint's way."""
    threads: int | None = None
    """Threads that load images, by default one a core, at most 16; they change no result."""
    evaluate_every: int | None = None
    """Steps between evaluations on the held-out images; by default four in a run, twenty with
    early_stopping."""
    early_stopping: int = 0
    """End the run after so many evaluations in a row without a better one; 0 never does."""
    save_every: int | None = None
    """Steps between resumable states; by default with each evaluation."""
    save_minutes: float = 10.0
    """A resumable state is saved at least this often as well; 0 goes by steps alone."""
    log_every: int | None = None
    """Steps between lines of metrics.jsonl; by default about a second."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        values = flat(self)
        for name, value in values.items():
            check(name, value)
        for name, reader in unread(values).items():
            if values[name] != usual(name):
                raise UsageError(
                    f"{name} is {values[name]}, but {reader} alone reads it; leave it out, or set "
                    f"it to {usual(name)} where the recipe says otherwise"
                )
        if self.accumulation > self.batch_size:
            raise UsageError(
                f"accumulation is {self.accumulation}, more than the batch size {self.batch_size}"
            )
        if self.linear_probe and self.head_bias:
            raise UsageError("linear_probe fits the head's bias as well; leave out head_bias")
        if self.linear_probe and self.head_norm:
            raise UsageError("linear_probe fits a head without a norm; leave out head_norm")
        if self.loss_balance and self.data.balance:
            raise UsageError(
                "loss_balance and data.balance both make rare classes count more; give one"
            )
        if self.loss_balance and self.data.weights:
            raise UsageError(
                "loss_balance goes by the numbers of images, and data.weights draws others; give "
                "one"
            )
        if self.objective == "simclr":
            self.check_views()
        if self.loss_balance and self.distillation.teacher is not None:
            raise UsageError(
                "loss_balance weights the loss against labels, and a teacher's answers are learned "
                "beside them; give data.balance in its place, or no teacher"
            )
        if self.distillation.teacher is not None and self.loss == "sigmoid":
            raise UsageError(
                "the loss is sigmoid, but a teacher's answers are learned by a softmax over "
                "classes that exclude each other; give --loss softmax, or no teacher"
            )

    @property
    def self_supervised(self) -> bool:
        """Whether no label is read."""
        return self.objective in SELF_SUPERVISED

    def check_views(self) -> None:
        """UsageError where batches are not pairs of views that are all compared."""
        if self.accumulation > 1:
            raise UsageError(
                "simclr compares all images of a batch with each other, which cannot come in "
                f"{self.accumulation} parts; leave out --accumulation, or give a smaller "
                "--batch-size"
            )
        if self.data.repeats != 2 or self.batch_size < 4 or self.batch_size % 2:
            raise UsageError(
                "simclr compares two views of each image with those of other images: it needs "
                f"--data.repeats 2 and an even --batch-size of at least 4 views, not "
                f"{self.data.repeats} and {self.batch_size}"
            )


CHOICES = {
    "optimizer.name": ("adamw", "sgd", "lars"),
    "schedule.kind": ("cosine", "linear", "stairs"),
    "augment.crop_aspect": ("varied", "kept"),
    "augment.level": ("none", "light1", "light2", "medium1", "medium2", "strong1", "strong2"),
    "data.decode": ("cpu", "cuda"),
    "data.keep": ("auto", "device", "disk", "none"),
    "pooling": ("token", "mean", "map", "patch-mean", "token+mean"),
    "positions": ("1d", "2d", "relative", "sincos2d", "none"),
    "objective": ("supervised", *SELF_SUPERVISED),
    "masking.target": ("mean-colour", "colours", "pixels"),
    "distillation.targets": ("hard", "soft"),
    "loss": ("softmax", "sigmoid"),
    "precision": ("auto", "fp32", "bf16"),
    "evaluation_resize": ("direct", "crop"),
    "engine.compile": ("auto", "on", "off"),
    "engine.checkpointing": ("auto", "none", "selective", "full"),
    "engine.sharding": ("auto", "ddp", "fsdp", "hybrid"),
}

BELOW_ONE = 0.9999999
# Name: (least, most, whether both may be reached). None as a value is always allowed.
RANGES = {
    **dict.fromkeys(("steps", "batch_size", "accumulation", "evaluate_every", "save_every",
                     "log_every", "engine.shard_over", "data.repeats", "data.keep_side",
                     "masking.decoder_depth", "masking.decoder_heads",
                     "contrastive.hidden_width", "contrastive.width"),
                    (1, math.inf, True)),
    **dict.fromkeys(("threads", "seed", "schedule.warmup_steps", "guard.skipped_steps",
                     "guard.rewinds", "augment.randaugment_layers", "lora.rank", "early_stopping"),
                    (0, 2**31, True)),
    **dict.fromkeys(("minutes", "epochs", "optimizer.learning_rate", "data.weights",
                     "data.subset", "lora.alpha", "distillation.temperature"),
                    (0, math.inf, False)),
    **dict.fromkeys(("optimizer.weight_decay", "optimizer.clip_norm", "schedule.linear_end",
                     "save_minutes", "guard.spike_factor", "engine.patience"), (0, 1e9, True)),
    **dict.fromkeys(("dropout", "stochastic_depth", "label_smoothing", "polyak",
                     "schedule.warmup_share", "schedule.stairs", "optimizer.momentum",
                     "optimizer.betas", "lora.dropout"), (0, BELOW_ONE, True)),
    **dict.fromkeys(("augment.mixup", "augment.cutmix", "augment.jitter",
                     "augment.randaugment_magnitude"), (0, 100, True)),
    **dict.fromkeys(("augment.erase", "augment.jitter_share", "augment.grayscale", "augment.blur",
                     "data.balance", "loss_balance", "distillation.share"), (0, 1, True)),
    "masking.rate": (0, 1, False),
    "masking.decoder_width": (8, math.inf, True),  # sines and cosines of two coordinates
    "contrastive.temperature": (1e-3, 100, True),  # e to 1 / 0.0001 is no number
    "augment.crop_area": (1e-6, 1, True),
    "optimizer.layer_decay": (1e-6, 1, True),
    "image_size": (1, 2**15, True),
    "head_bias": (-1e9, 1e9, True),
}  # fmt: skip


def check(name: str, value: Any) -> None:
    """UsageError where a field's value cannot be."""
    if name in CHOICES:
        named(name, value, CHOICES[name])
    if name not in RANGES or value is None:
        return
    least, most, reached = RANGES[name]
    values = value if isinstance(value, tuple | list) else (value,)
    for one in values:
        inside = least <= one <= most if reached else least < one < most
        if not inside:
            bounds = f"between {least:g} and {most:g}"
            if not reached:
                above = ", finite" if most == math.inf else f" and below {most:g}"
                bounds = f"above {least:g}{above}"
            if most == BELOW_ONE:
                bounds = f"at least {least:g} and below 1"
            if reached and most == math.inf:
                bounds = f"at least {least:g}"
            raise UsageError(f"{name} is {value}; it must be {bounds}")
    if name == "augment.crop_area" and value[0] > value[1]:
        raise UsageError(f"{name} is {value}; the smaller share comes first")


SHORT_NAMES = {  # the commonest have short names
    "learning_rate": "optimizer.learning_rate",
    "compile": "engine.compile",
    "checkpointing": "engine.checkpointing",
    "patience": "engine.patience",
    "sharding": "engine.sharding",
    "shard_over": "engine.shard_over",
}

LENGTHS = ("steps", "minutes", "epochs")  # one of them decides how long a run is

# Fields that may differ when a run is resumed: they decide speed, memory, what is written and when
# a run gives up, not what a sound one computes.
HARMLESS = {
    "threads", "save_every", "save_minutes", "log_every", "accumulation", "engine.checkpointing",
    "engine.sharding", "engine.shard_over", "engine.patience", "guard.skipped_steps",
    "guard.spike_factor", "guard.rewinds",
}  # fmt: skip


def override(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """The config with some fields changed, nested ones by dotted name; UsageError if unknown.

    A length given in `values` takes the place of the config's own.
    """
    given = [name for name in LENGTHS if values.get(name) is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} are given; give one length")
    if given:
        config = replace(config, **dict.fromkeys(LENGTHS))
    changes: dict[str, Any] = {}
    known = flat(config)
    for name, value in values.items():
        dotted = SHORT_NAMES.get(name, name).replace("-", "_")
        *groups, last = named("field", dotted, known).split(".")
        if dotted == "image_size" and isinstance(value, int):
            value = (value, value)
        inner = changes
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return changed(config, changes)


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """The config with all changes at once, by groups: they are checked together."""
    whole = {
        name: changed(getattr(config, name), value) if isinstance(value, Mapping) else value
        for name, value in changes.items()
    }
    return replace(config, **whole)


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every field of a config by its dotted name."""
    values: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            values.update(flat(value, f"{prefix}{item.name}."))
        else:
            values[prefix + item.name] = value
    return values


def usual(name: str) -> Any:
    """A field's default, by its dotted name."""
    group, _, last = name.rpartition(".")
    groups = {item.name: item.default_factory for item in fields(TrainConfig)}
    return getattr(groups[group] if group else TrainConfig, last)


def to_json(config: TrainConfig) -> dict[str, Any]:
    return asdict(config)
