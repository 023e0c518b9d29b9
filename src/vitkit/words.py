"""What can be said on the command line: the options of each verb, and how words become them."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Any, Literal

import tyro

from vitkit.errors import UsageError, named
from vitkit.objectives.settings import ContrastiveConfig, MaskingConfig, Objective
from vitkit.recipes import for_objective
from vitkit.training.config import LENGTHS, SHORT_NAMES, TrainConfig, flat, override
from vitkit.workflows.inspect_options import InspectOptions
from vitkit.workflows.protocols.options import ProtocolOptions


def shown(metavar: str, **more: Any) -> Any:
    """An argument whose help shows no default: there is none, or the words tell it."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="", **more)


WITH_CONFIG = ("pretrain", "finetune", "selftrain", "plan")  # verbs that take a config's fields
Device = Annotated[str, tyro.conf.arg(metavar="{auto,cpu,cuda,mps}")]
Text = Annotated[str | None, shown("STR")]
Data = Annotated[tuple[str, ...], tyro.conf.Positional, shown("DATA...")]


SPELLING = (
    tyro.constructors.ConstructorRegistry()
)  # of types that tyro would take several words for


@SPELLING.primitive_rule
def numbers(kind: Any) -> Any:
    """Several whole numbers are one word: 1,5,10."""
    if kind.type != tuple[int, ...]:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar="N,N,...",
        instance_from_str=lambda words: tuple(int(word) for word in words[0].split(",")),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )  # fmt: skip


@dataclass(frozen=True)
class Common:
    json: bool = False
    """End the output with one line of JSON."""
    debug: bool = False
    """Show the whole trace of an error."""


@dataclass(frozen=True)
class Computing(Common):
    device: Device = "auto"
    """Where to compute; auto takes CUDA, else MPS, else the CPU."""


@dataclass(frozen=True)
class Demo(Computing):
    """Pre-train on digits 0-4, look at 5-9 few-shot, fine-tune on them, draw what was learned."""

    out: str = "runs/demo"
    """Where to write; a number is added where it is in use."""
    seed: int = 0
    """All random draws follow from it."""


@dataclass(frozen=True)
class Models(Common):
    """Every net: parameters, GFLOPs of one image, where weights are published."""

    image_size: Annotated[int | None, shown("INT")] = None
    """Side in pixels; by default the one that each net is usually used at."""
    published: bool = False
    """List published weights instead, by the names that every verb takes as a CHECKPOINT."""


@dataclass(frozen=True)
class Recipes(Common):
    """List the recipes, or show one: what it is for, its settings, its cost, what to expect."""

    name: Annotated[str, tyro.conf.Positional, shown("[NAME]")] = ""
    """A recipe; without it all are listed."""
    out: Annotated[str | None, shown("FILE.md", aliases=["-o"])] = None
    """Write a page of all recipes there."""


@dataclass(frozen=True)
class Convert(Common):
    """Write a checkpoint of any known format in another one; docs/checkpoints.md lists them."""

    checkpoint: Annotated[str, tyro.conf.Positional, shown("IN")] = ""
    """A bundle, a run, a file (.npz, .safetensors, .pth, .bin), a folder, or hf:owner/name."""
    out: Annotated[str, tyro.conf.Positional, shown("OUT")] = ""
    """A folder (bundle, timm, hf), or a file (.npz, .safetensors, .pth)."""
    to: Annotated[str | None, shown("{bundle,npz,timm,hf,torchvision}")] = None
    """The format to write; by default npz for OUT in .npz, else a bundle."""
    their_constants: bool = False
    """Accept that the other library computes with other epsilons or another GELU."""
    revision: Text = None
    """Of hf:owner/name, a branch, tag or commit."""
    dry_run: bool = False
    """Print where every tensor goes, and write nothing."""


@dataclass(frozen=True)
class Pretrain(Computing):
    """Train a net from random weights by a recipe: `vitkit recipes`. Its defaults follow the data;
    shown are quickstart's for 50,000 images of 224 pixels."""

    data: Data = ()
    """Folders, lists of labels, parquet files, tar shards, URLs, 'digits': docs/data.md."""
    out: Text = None
    """The run directory; by default runs/pretrain. A number is added where it is in use."""
    resume: Text = None
    """auto: go on from the newest state of --out; or a run directory."""
    gpus: Annotated[int | None, shown("N")] = None
    """Share the run among N processes of this machine, a GPU each (with --device cpu, cores).
    Several machines: docs/scale.md."""
    dry_run: bool = False
    """Print the resolved config and the plan, and stop."""
    any_net: bool = False
    """Take a recipe for a net that it was not written for."""
    regularisation: Annotated[str | None, shown("{none,light,medium,strong}")] = None
    """Weight decay, label smoothing, dropout, stochastic depth and MixUp together, put over the
    recipe's: docs/transfer.md. quickstart goes by the data."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class Finetune(Pretrain):
    """Train a checkpoint on other classes, at another resolution if wanted, by a recipe: `vitkit
    recipes`. Shown are quickstart's defaults for 50,000 images and ViT-B/16."""

    out: Text = None
    """The run directory; by default runs/finetune, with --sweep runs/sweep. A number is added where
    it is in use."""
    checkpoint: Annotated[str, shown("CHECKPOINT", name="from")] = ""
    """A bundle, a run, or any other checkpoint: docs/checkpoints.md."""
    sweep: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], shown("FIELD=VALUE,VALUE")] = ()
    """Train with each value, choose on a dev split of the training images, train on all with the
    best. Several --sweep are a grid; `--sweep recipe` takes the recipe's own: docs/transfer.md."""
    dev_share: Annotated[float | None, shown("SHARE")] = None
    """With --sweep: share of the training images to choose by; by default the recipe's, or 0.1."""
    seeds: Annotated[int | None, shown("N")] = None
    """With --sweep: train the best with N seeds, --seed and those after it; by default 1."""


@dataclass(frozen=True)
class StudentConfig(TrainConfig):
    """A config whose help leaves out what is not for teachers and students."""

    recipe: tyro.conf.Suppress[str] = ""
    objective: tyro.conf.Suppress[Objective] = "supervised"
    masking: tyro.conf.Suppress[MaskingConfig] = field(default_factory=MaskingConfig)
    contrastive: tyro.conf.Suppress[ContrastiveConfig] = field(default_factory=ContrastiveConfig)


@dataclass(frozen=True)
class SelfTrain(Computing):
    """Train a teacher on labelled images, let it label others, train a student on both, and go on
    with the student as teacher (Noisy Student). They have a recipe of their own:
    docs/selftraining.md. Shown are its defaults for 50,000 images of 224 pixels."""

    labelled: Annotated[str, tyro.conf.Positional, shown("LABELLED")] = ""
    """Labelled images, one word of DATA: docs/data.md."""
    unlabelled: Annotated[tuple[str, ...], tyro.conf.Positional, shown("UNLABELLED...")] = ()
    """DATA, or folders of images without class folders; labels, if there are any, are not read."""
    out: Text = None
    """Where to write; by default runs/selftrain. A number is added where it is in use."""
    resume: Text = None
    """auto: go on with the one in --out; or a self-training's folder."""
    dry_run: bool = False
    """Print the config and the plan of the teacher and the first student, and stop."""
    rounds: int = 3
    """Students, one after another, each taught by the one before."""
    teacher: Text = None
    """A checkpoint of the same classes; without it a teacher is trained first, as round 0."""
    student: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], shown("NET")] = ()
    """The net of the first student; several --student are those of the rounds, the last also of
    further ones. By default the teacher's."""
    pseudo: Literal["soft", "hard"] = "soft"
    """What a student learns of an unlabelled image: its teacher's probabilities, or their class."""
    threshold: float = 0.3
    """Images are learned of which the teacher is more certain than that, 0 to 1."""
    per_class: Annotated[str, tyro.conf.arg(metavar="N|auto|all")] = "auto"
    """Images of each class: the most certain of those with more, repeated up to 10 times where
    there are fewer; auto: as many in all as passed the threshold; all: those that passed."""
    config: Annotated[StudentConfig, tyro.conf.arg(name="")] = field(default_factory=StudentConfig)


@dataclass(frozen=True)
class Plan(Computing):
    """Tell what a training run will take: memory by part, time, cost, disk."""

    data: Data = ()
    """As for pretrain: docs/data.md; without it the data that the recipe was written for."""
    images: Annotated[int | None, shown("INT")] = None
    """Images to train on, where no DATA is given; by default the recipe's, of quickstart 50,000."""
    classes: Annotated[int | None, shown("INT")] = None
    """Classes, where no DATA is given; by default the recipe's, of quickstart 1,000."""
    gpus: int = 1
    """Processes, a device each."""
    accelerator: Text = None
    """Plan for one by name (H100, A100-80, RTX-4090, ...) instead of for this machine."""
    probe: bool = True
    """Take steps for some seconds to tell the time; --no-probe does not."""
    any_net: bool = False
    """Take a recipe for a net that it was not written for."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class Evaluate(Computing):
    """Evaluate a checkpoint on DATA's test images, else those to validate on, else all."""

    checkpoint: Annotated[str, tyro.conf.Positional, shown("CHECKPOINT")] = ""
    """A bundle, a run, or any other checkpoint: docs/checkpoints.md."""
    data: Data = ()
    """Folders, lists of labels, parquet files, tar shards, URLs, 'digits': docs/data.md."""
    protocol: Literal[
        "top-k", "few-shot", "knn", "linear", "real", "corruptions", "translations", "vtab"
    ] = "top-k"
    """top-k: accuracy of the net's own head; few-shot: least squares on a few images of each class;
    knn: the vote of the nearest training images; linear: logistic regression; real: by ImageNet's
    ReaL labels; corruptions: of noisy, blurred and other bad pictures; translations: of pictures
    moved by a few pixels; vtab: the 19 tasks of VTAB-1k in the folder DATA."""
    train: tuple[str, ...] = ()
    """Where few-shot, knn and linear learn from; by default DATA's training images."""
    out: Annotated[str | None, shown("PAGE.html", aliases=["-o"])] = None
    """Write a report there, or a folder with report.html; what was found lies beside it."""
    figures: Annotated[str | None, shown("DIR")] = None
    """Write every figure of the report there as well, as PNG and SVG."""
    cache: bool = True
    """Keep features and logits, and take those that are kept; --no-cache computes them anew."""
    gpus: Annotated[int | None, shown("N")] = None
    """Share the work among N processes of this machine, a GPU each (with --device cpu, cores)."""
    options: Annotated[ProtocolOptions, tyro.conf.arg(name="")] = field(
        default_factory=ProtocolOptions
    )


@dataclass(frozen=True)
class Inspect(Computing):
    """Open a net: its filters and positions, and what it looks at in images. Writes report.html,
    with all numbers beside it as report.json and report.npz."""

    checkpoint: Annotated[str, tyro.conf.Positional, shown("CHECKPOINT")] = ""
    """A bundle, a run, or any other checkpoint: docs/checkpoints.md."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional, shown("[IMAGES...]")] = ()
    """Files and folders to look into."""
    data: tuple[str, ...] = ()
    """DATA whose images attention distances are means over, and whose training images are searched
    for the nearest neighbours of IMAGES: docs/data.md."""
    out: Annotated[str, tyro.conf.arg(metavar="DIR|FILE.html", aliases=["-o"])] = "runs/inspect"
    """Where to write; a number is added to a folder that is in use."""
    figures: Annotated[str | None, shown("DIR")] = None
    """Write every figure there as well, as PNG and SVG."""
    options: Annotated[InspectOptions, tyro.conf.arg(name="")] = field(
        default_factory=InspectOptions
    )


@dataclass(frozen=True)
class Compare(Common):
    """Runs and saved evaluations side by side: metrics, curves, what differs in their configs,
    speed, memory, whether they are of the same data."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, shown("RUN RUN...")] = ()
    """Run directories, or the NAME.json that vitkit evaluate -o wrote."""
    out: Annotated[str | None, shown("FILE.html", aliases=["-o"])] = None
    """Write a page with the curves as well."""


@dataclass(frozen=True)
class Predict(Computing):
    """Predict the classes of images."""

    checkpoint: Annotated[str, tyro.conf.Positional, shown("CHECKPOINT")] = ""
    """A bundle, a run, or any other checkpoint: docs/checkpoints.md."""
    images: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        shown("IMAGES..."),
    ] = ()
    """Files and folders."""
    out: Annotated[str | None, shown("STR", aliases=["-o"])] = None
    """Write a table: out.csv, out.json or out.parquet. Without it, print one."""
    top: int = 5
    """How many of the likeliest classes to give."""


@dataclass(frozen=True)
class Doctor(Common):
    """Look at a run directory, hashes and all: what it can be resumed from, what is damaged, what
    to do. Nothing is changed."""

    run: Annotated[str, tyro.conf.Positional, shown("RUN")] = ""
    """A run directory, as pretrain and finetune write it."""


@dataclass(frozen=True)
class DataCheck(Common):
    """Read and decode every image: what cannot be used, is odd, is there twice, which classes are
    empty. Writes check.json and quarantine.txt."""

    data: Data = ()
    """As every verb takes it: docs/data.md."""
    out: Annotated[str, tyro.conf.arg(metavar="DIR", aliases=["-o"])] = "runs/data-check"
    """Where to write; a number is added where it is in use."""
    threads: Annotated[int | None, shown("INT")] = None
    """That read and decode; by default one for each core."""
    strict: bool = False
    """Exit with 1 where an image cannot be used or is under two labels, or a class is empty."""


@dataclass(frozen=True)
class DataDedup(Computing):
    """Find near-duplicates: encoded, resized, cropped, mirrored or lit anew; within splits and
    across them. Writes duplicates.csv, groups.json, quarantine.txt, clean.index and pairs.png."""

    data: Data = ()
    """As every verb takes it: docs/data.md."""
    against: tuple[str, ...] = ()
    """Other DATA, one word each, whose images are to have no duplicate in DATA and are all kept."""
    checkpoint: Annotated[str, shown("CHECKPOINT", name="from")] = ""
    """Compare by this net's features as well."""
    threshold: float = 0.8
    """Similarity of looks from which two images are near-duplicates, up to 1."""
    features_threshold: float = 0.95
    """Cosine of features from which they are, with --from."""
    out: Annotated[str, tyro.conf.arg(metavar="DIR", aliases=["-o"])] = "runs/data-dedup"
    """Where to write; a number is added where it is in use."""
    threads: Annotated[int | None, shown("INT")] = None
    """That read and decode; by default one for each core."""


@dataclass(frozen=True)
class DataStats(Common):
    """Mean and standard deviation of the channels, sizes, formats, classes."""

    data: Data = ()
    """As every verb takes it: docs/data.md."""
    out: Annotated[str | None, shown("DIR", aliases=["-o"])] = None
    """Write stats.json and classes.png, a sheet of a few images a class, there."""
    threads: Annotated[int | None, shown("INT")] = None
    """That read and decode; by default one for each core."""


@dataclass(frozen=True)
class DataSplit(Common):
    """Split all images of DATA anew, classes alike and no two near-duplicates apart; writes an
    index."""

    data: Data = ()
    """As every verb takes it: docs/data.md."""
    out: Annotated[str, shown("NAME.index", aliases=["-o"])] = ""
    """The index to write, which is DATA itself."""
    val: float = 0.1
    """Share to validate on."""
    test: float = 0.1
    """Share to test on."""
    seed: int = 0
    """The split follows from it."""
    groups: Annotated[str | None, shown("FILE")] = None
    """The groups.json of `vitkit data dedup`; without it near-duplicates are looked for."""
    threads: Annotated[int | None, shown("INT")] = None
    """That read and decode; by default one for each core."""


@dataclass(frozen=True)
class DataIndex(Common):
    """Write down where every image of DATA is and what its label is, to open at once."""

    data: Data = ()
    """As every verb takes it: docs/data.md."""
    out: Annotated[str, shown("NAME.index", aliases=["-o"])] = ""
    """The index to write, which is DATA itself."""
    hash: bool = False
    """Keep the SHA-256 of tar shards, against which shards fetched from afar are checked."""


def rewritten(argv: list[str]) -> list[str]:
    """Short names to dotted ones, `--name=value` to two words, 384 and 384x256 to two sides."""
    short: dict[str, str] = {
        f"--{name.replace('_', '-')}": f"--{dotted.replace('_', '-')}"
        for name, dotted in SHORT_NAMES.items()
    }
    words: list[str] = []
    for word in argv:
        option, equals, value = word.partition("=")
        words += [option, value] if word.startswith("--") and equals else [word]
    words = [short.get(word, word) for word in words]
    if "--image-size" in words and words[0] in WITH_CONFIG:
        place = words.index("--image-size") + 1
        height, _, width = (words[place] if place < len(words) else "").partition("x")
        words[place : place + 1] = [height, width or height]
    return words


def parse(default: Any, verb: str, argv: list[str]) -> Any:
    """The words of a verb into its dataclass; UsageError of one sentence where they do not fit."""
    output, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            return tyro.cli(
                type(default), prog=f"vitkit {verb}", args=argv, default=default, registry=SPELLING,
            )  # fmt: skip
    except SystemExit as stop:
        if stop.code == 0:  # --help
            print(output.getvalue(), end="")
            raise
    options = re.findall(r"(?<!\S)--[a-z][a-z0-9.-]*", help_of(default, verb))
    for word in argv:
        if word.startswith("--") and word not in options:
            known = list(dict.fromkeys(options))
            named(f"option of {verb}", word, known)
    lines = [line.strip() for line in errors.getvalue().splitlines()[1:]]
    text = " ".join(line for line in lines if line and set(line) != {"-"})
    sentence = re.split(r"Argument helptext|For full helptext", text)[0].strip().rstrip(".")
    raise UsageError(f"{sentence}; see vitkit {verb} --help")


def help_of(default: Any, verb: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        tyro.cli(
            type(default), prog=f"vitkit {verb}", args=["--help"], default=default,
            registry=SPELLING,
        )  # fmt: skip
    return output.getvalue()


def require(value: object, verb: str, what: str) -> None:
    if not value:
        raise UsageError(f"vitkit {verb} needs {what}; see vitkit {verb} --help")


def with_length(words: Any, argv: list[str]) -> Any:
    """A length that was given takes the place of the recipe's."""
    given = {n: getattr(words.config, n) for n in LENGTHS if f"--{n}" in argv}
    return replace(words, config=override(words.config, given))


def with_recipe(argv: list[str]) -> tuple[str, list[str]]:
    """The recipe that words of pretrain or plan mean, and the words with its name: --objective X
    beside quickstart is quickstart-X."""
    said = dict(pairwise(argv))
    recipe = said.get("--recipe", "quickstart")
    meant = for_objective(recipe, said.get("--objective"))
    return meant, argv if meant == recipe else [*argv, "--recipe", meant]


def given_in(argv: list[str]) -> set[str]:
    """The fields of a config that the words set, `--augment.no-flip` among them."""
    options = {word[2:].replace("no-", "", 1) if "no-" in word else word[2:]
               for word in argv if word.startswith("--")}  # fmt: skip
    return {name for name in flat(TrainConfig()) if name.replace("_", "-") in options}
