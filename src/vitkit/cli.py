"""The command line: `vitkit VERB ...`. torch is imported once a verb works, so help is instant."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitkit import __version__, recipes
from vitkit.cli_compare import compare
from vitkit.cli_data import data
from vitkit.cli_evaluate import evaluation_words, show_evaluation
from vitkit.cli_inspect import inspect
from vitkit.cli_recipes import show_recipes
from vitkit.cli_selftrain import selftrain
from vitkit.cli_sweep import check_words, sweep
from vitkit.data.facts import DataFacts
from vitkit.errors import UsageError, VitkitError, named
from vitkit.terminal import print_columns, print_json, printable
from vitkit.training.config import to_json
from vitkit.words import (
    Convert,
    Demo,
    Doctor,
    Evaluate,
    Finetune,
    Models,
    Plan,
    Predict,
    Pretrain,
    parse,
    require,
    rewritten,
    with_length,
    with_recipe,
)

if TYPE_CHECKING:
    from vitkit.workflows.task import Task

MOST_GPUS = 4096  # processes of one machine
LONGEST_ERROR = 2000  # characters; names and shapes in a hostile file have no end
HELP = """vitkit: the Vision Transformer, complete.

  vitkit demo                                the whole story on real images in about a minute
  vitkit models                              every net: parameters, FLOPs, weights
  vitkit recipes [NAME]                      the papers' recipes: settings, costs, results
  vitkit convert IN OUT --to FORMAT          a checkpoint to bundle, npz, timm, hf, torchvision
  vitkit pretrain DATA                       train a net from random weights
  vitkit finetune DATA --from CHECKPOINT     train a checkpoint on other classes
  vitkit selftrain LABELLED UNLABELLED       students of a teacher that labels other images
  vitkit plan --recipe NAME                  memory, time and cost, before anything runs
  vitkit evaluate CHECKPOINT DATA            accuracy, few-shot, k-NN, linear; with -o a report
  vitkit inspect CHECKPOINT [IMAGES...]      what it has learned and looks at: a page
  vitkit predict CHECKPOINT IMAGES...        classes of files and folders, to CSV or JSON
  vitkit compare RUN RUN...                  runs side by side, where they differ, -o PAGE.html
  vitkit data check|stats|dedup|split|index  bad images, duplicates, leaks, splits, an index
  vitkit doctor RUN                          what a run can go on from, what is damaged, what to do

DATA is a folder of class folders (or train/ and val/ of them), a list of labels, parquet files, tar
shards, an index, a URL of these, or 'digits': docs/data.md. Images without labels are learned
from as well: `vitkit pretrain IMAGES/ --recipe quickstart-mae`.
`vitkit VERB --help` tells the options of a verb; `vitkit demo` is a good start.
"""


def demo(argv: list[str]) -> Any:
    words = parse(Demo(), "demo", argv)
    from vitkit.training.stopping import Interrupted
    from vitkit.workflows.demo import demo

    try:
        result = demo(words.out, device=words.device, seed=words.seed)
    except Interrupted as stop:
        stop.args = ("stopped; `vitkit demo` starts anew",)
        raise
    print(
        f"\ndigits 5-9, {result['images']} held-out images: {result['accuracy']:.1%} right after "
        f"fine-tuning\n10 shots of each on frozen features: {result['few_shot_accuracy']:.1%} "
        f"pre-trained, {result['few_shot_accuracy_untrained']:.1%} untrained\n"
        f"{result['seconds']:.0f} seconds; look at {result['figure']}\n\n"
        f"Next: vitkit evaluate {result['run']}/pretrain digits --protocol few-shot --l2 10\n"
        f"      vitkit pretrain YOUR_IMAGES/ --minutes 10"
    )
    return words, result


def models(argv: list[str]) -> Any:
    words = parse(Models(), "models", argv)
    return (published if words.published else nets)(words)


def nets(words: Models) -> Any:
    from vitkit.checkpoints.published import published_rows
    from vitkit.models import cost, variants

    if words.image_size is not None and words.image_size < 1:
        raise UsageError(f"--image-size is {words.image_size}; it must be at least 1")
    rows = []
    for name, row in variants.VARIANTS.items():
        side = words.image_size or row.side
        try:
            net = variants.config(name, 1000, side)
        except UsageError:
            continue  # a net that cannot read images of this size
        rows.append({
            "net": name, "image_size": side, "parameters": cost.parameters(net),
            "flops": cost.flops(net), "published": [p["name"] for p in published_rows(name)],
        })  # fmt: skip
    if not rows:
        raise UsageError(f"no net's patch divides an image of {words.image_size} pixels; try 224")
    print_columns(
        ("net", "image", "parameters", "GFLOPs", "published weights"),
        [
            (
                row["net"], f"{row['image_size']}x{row['image_size']}", f"{row['parameters']:,}",
                f"{row['flops'] / 1e9:.2f}",
                ", ".join([*row["published"][:2], *(["..."] if row["published"][2:] else [])]),
            )
            for row in rows
        ],
        right=(2, 3),
    )  # fmt: skip
    print(
        "\n1,000 classes; GFLOPs of one image, 2 for a multiply-add (the paper's tables count 1)."
    )
    print('Next: vitkit models --published, or vitkit pretrain DATA --model "ViT-Ti/16"')
    return words, {"models": rows}


def published(words: Models) -> Any:
    from vitkit.checkpoints.published import published_rows

    if words.image_size is not None:
        raise UsageError("--published lists weights at the size they are for; drop --image-size")
    rows = published_rows()
    print_columns(
        ("name", "net", "image", "top-1", "note"),
        [
            (row["name"], row["model"], "x".join(map(str, row["image_size"])),
             "" if row["accuracy"] is None else f"{row['accuracy']:.2%}", row["note"])
            for row in rows
        ],
        right=(3,),
    )  # fmt: skip
    print("\nImageNet top-1 as the publisher states it; a file is fetched when it is first used.")
    print("--json tells where each file and figure is from.")
    known = next(row["name"] for row in rows if row["accuracy"] is not None)
    print(f"Next: vitkit predict {known} IMAGES/")
    return words, {"published": rows}


def convert(argv: list[str]) -> Any:
    words = parse(Convert(), "convert", argv)
    require(words.checkpoint, "convert", "IN, a checkpoint of any known format")
    require(words.out, "convert", "OUT, where to write")
    from vitkit.workflows.convert import convert

    result = convert(
        words.checkpoint, words.out, words.to, their_constants=words.their_constants,
        revision=words.revision, dry_run=words.dry_run,
    )  # fmt: skip
    keys = result.pop("keys")
    if words.dry_run:
        print_columns(
            ("in the file", "shape", "in vitkit", f"in {result['to']}", "shape"),
            [
                (key.read, shape(key.read_shape), key.name, key.written, shape(key.written_shape))
                for key in keys
            ],
        )
    for kind in ("assumed", "lost"):
        for sentence in result[kind]:
            print(printable(f"{kind}: {sentence}"))
    print(f"{result['model']} from {result['from']}: {len(keys)} tensors in "
          f"{result['seconds']:.1f} seconds")  # fmt: skip
    if words.dry_run:
        print("Next: the same command without --dry-run")
        return words, result | {"keys": [asdict(key) for key in keys]}
    print(f"wrote {result['out']} ({result['to']})")
    print(printable(f"Next: vitkit predict {words.out} IMAGES/"))
    return words, result


def say_assumed(model: Any) -> None:
    """What the checkpoint itself did not say, where results will be seen."""
    for sentence in model.provenance.get("assumed", []) if speaks() else ():
        print(f"assumed: {printable(sentence)}", file=sys.stderr)


def shape(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes)) or "(number)"


def pretrain(argv: list[str]) -> Any:
    asked, argv = with_recipe(argv)
    words = parse(Pretrain(config=recipes.pretraining(asked, DataFacts())), "pretrain", argv)
    require(words.data, "pretrain", "DATA, images as docs/data.md lists them, or 'digits'")
    name, model = words.config.recipe, asked_net(words, argv)
    recipes.pretraining(name, DataFacts(), model, words.any_net)  # refused before data are opened
    from vitkit.workflows import pretrain as workflow
    from vitkit.workflows.task import open_task

    task = open_task(words.data, words.config.data, labelled=False)
    recipe = workflow.recipe_config(task, name, model, words.any_net, words.regularisation)
    words = with_length(parse(Pretrain(config=recipe), "pretrain", argv), argv)
    check_gpus(words)
    if words.gpus and not words.dry_run and alone():
        return several(words, "pretrain", argv, task)
    if words.dry_run:
        return dry_run(
            "pretrain", words, task, workflow.net_config(words.config, task.facts().classes)
        )
    run = workflow.pretrain(
        task, config=words.config, out=words.out, resume=words.resume, device=words.device
    )
    return finished(words, run, f"vitkit finetune OTHER_IMAGES/ --from {run.folder}")


def finetune(argv: list[str]) -> Any:
    shown = recipes.finetuning("quickstart", DataFacts(), recipes.USUAL_NET, (224, 224))
    words = parse(Finetune(config=shown), "finetune", argv)
    require(words.data, "finetune", "DATA, images as docs/data.md lists them, or 'digits'")
    require(words.checkpoint, "finetune", "--from CHECKPOINT, a bundle, a run or a file of weights")
    recipes.of_verb(words.config.recipe, "finetune")
    check_words(words)
    from vitkit.prediction.model import load
    from vitkit.workflows import finetune as workflow
    from vitkit.workflows.task import open_task

    task, model = open_task(words.data, words.config.data, labelled=False), load(words.checkpoint)
    say_assumed(model)
    recipe = workflow.recipe_config(
        task, words.config.recipe, model, words.any_net, words.regularisation
    )
    words = with_length(parse(Finetune(config=recipe), "finetune", argv), argv)
    check_gpus(words)
    if words.gpus and not words.dry_run and alone():
        return several(words, "finetune", argv, task)
    if words.sweep:
        return sweep(words, argv, task, model)
    if words.dry_run:
        return dry_run("finetune", words, task, workflow.net_config(words.config, task, model))
    run = workflow.finetune(
        task, words.checkpoint, config=words.config, out=words.out, resume=words.resume,
        device=words.device,
    )  # fmt: skip
    return finished(words, run, f"vitkit predict {run.folder} IMAGES/ -o predictions.csv")


def asked_net(words: Pretrain | Plan, argv: list[str]) -> str | None:
    """The net that the words name; None leaves it to the recipe."""
    return words.config.model if "--model" in argv else None


def check_gpus(words: Pretrain | Evaluate) -> None:
    if words.gpus is not None and words.gpus < 1:
        raise UsageError(f"--gpus is {words.gpus}; it must be at least 1")
    if words.gpus is not None and words.gpus > MOST_GPUS:
        raise UsageError(f"--gpus is {words.gpus}; it must be at most {MOST_GPUS}")
    if words.gpus is not None and not alone() and os.environ["WORLD_SIZE"] != str(words.gpus):
        raise UsageError("--gpus is for one machine without torchrun; under torchrun leave it out")


def alone() -> bool:
    """Whether no other processes belong to this run, as they do under torchrun."""
    return "RANK" not in os.environ


def several(words: Pretrain, verb: str, argv: list[str], task: Task) -> Any:
    """The same command in `--gpus` processes of this machine; ends with their exit code."""
    from vitkit.training.precision import choose_device
    from vitkit.training.world import World, start
    from vitkit.workflows.run import check_shares

    for rank in range(words.gpus or 1):
        choose_device(words.device, rank)
    check_shares(
        words.config, len(task.train), World(size=words.gpus or 1, local_size=words.gpus or 1)
    )
    raise SystemExit(start(run, [verb, *argv], words.gpus or 1))


def finished(words: Pretrain, run: Any, next_command: str) -> Any:
    from vitkit.reports.classes import print_recalls
    from vitkit.training.log import told

    metrics = run.metrics
    print(f"\n{told(metrics, 2)} on {metrics['images']:,.0f} held-out images, the run's best")
    if "mean_class_recall" in metrics:  # found by a version that looked
        print(f"{metrics['mean_class_recall']:.2%} mean recall of the classes")
    several = "mean_average_precision" in metrics
    print_recalls(run.class_recall, run.class_images, several)
    print(f"{run.steps:,} steps in {run.seconds:.0f} seconds, report {run.folder / 'report.html'}")
    print(printable(f"Next: {next_command}"))
    result = {"run": str(run.folder), "metrics": metrics, "steps": run.steps,
              "seconds": round(run.seconds, 1), "class_recall": run.class_recall,
              "class_images": run.class_images}  # fmt: skip
    return words, result


def dry_run(kind: str, words: Pretrain, task: Task, net: Any) -> Any:
    from vitkit.data.transforms import Preprocessing
    from vitkit.reports.plans import lines, print_memory
    from vitkit.training.precision import choose_device
    from vitkit.training.step import Setup
    from vitkit.training.trained import skeleton
    from vitkit.training.world import World
    from vitkit.workflows.feeding import checked_order, choose_keep
    from vitkit.workflows.plan import plan
    from vitkit.workflows.run import check_labels, check_shares, choose_engine, fixed_steps
    from vitkit.workflows.run import plan as run_plan
    from vitkit.workflows.teaching import check_distillation, teacher_of

    steps, processes = fixed_steps(words.config, len(task.train)), words.gpus or 1
    world = World(size=processes, local_size=processes)
    check_shares(words.config, len(task.train), world)
    check_distillation(words.config)
    place = choose_device(words.device)
    made = skeleton(net, words.config)
    preprocessing = Preprocessing.direct(words.config.image_size)
    teacher = teacher_of(words.config.distillation, task.train.class_names, preprocessing)
    engine = choose_engine(words.config, made, len(task.train), place, world, teacher)
    setup = Setup(words.config, steps or 1, engine, preprocessing, net.classes)
    check_labels(setup, task)
    keep = choose_keep(words.config, task.train, place, world)
    checked_order(task, words.config, replace(engine, keep=keep))
    print(json.dumps(to_json(words.config), indent=2))
    print(run_plan(kind, net, words.config, task, setup))
    found = plan(
        net, words.config, len(task.train), processes=processes, device=words.device,
        data=words.data, teacher=teacher,
    )  # fmt: skip
    print("\n".join(lines(found)[2:]))
    print_memory(found)
    print("Next: the same command without --dry-run")
    return words, {"config": to_json(words.config), "steps": found["steps"], "plan": found}


def plan(argv: list[str]) -> Any:
    asked, argv = with_recipe(argv)
    words = parse(Plan(config=recipes.planning(asked, DataFacts())), "plan", argv)
    verb, recipe = recipes.find(words.config.recipe)
    for name in ("images", "classes", "gpus"):
        value = getattr(words, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; it must be at least 1")
    if words.config.distillation.teacher is not None and not words.data:
        raise UsageError(
            "--distillation.teacher is planned for with DATA, whose classes it must know; give "
            "DATA as well, or leave the teacher out"
        )
    if words.data and (words.images or words.classes):
        raise UsageError("--images and --classes are for a plan without DATA; leave them out")
    from vitkit.data.transforms import Preprocessing
    from vitkit.reports.plans import lines, print_memory
    from vitkit.workflows.plan import plan
    from vitkit.workflows.pretrain import net_config
    from vitkit.workflows.task import open_task
    from vitkit.workflows.teaching import teacher_of

    given = recipe.data or DataFacts()
    facts = replace(
        given, images=words.images or given.images, classes=words.classes or given.classes
    )
    class_names: list[str] = []
    if words.data:
        task = open_task(words.data, words.config.data)
        facts, class_names = task.facts(), task.train.class_names
    elif "--image-size" in argv:
        facts = replace(facts, side=words.config.image_size[0])
    model = asked_net(words, argv)
    config = recipes.planning(words.config.recipe, facts, model, words.any_net)
    words = with_length(parse(Plan(config=config), "plan", argv), argv)
    net = net_config(words.config, facts.classes)
    preprocessing = Preprocessing.direct(words.config.image_size)
    if words.probe and words.accelerator is None:
        print("vitkit: steps are being timed on this machine; --no-probe skips it", file=sys.stderr)
    found = plan(
        net, words.config, facts.images, processes=words.gpus, probe=words.probe,
        named_accelerator=words.accelerator, device=words.device, data=words.data,
        teacher=teacher_of(words.config.distillation, class_names, preprocessing),
    )  # fmt: skip
    print("\n".join(lines(found)))
    print_memory(found)
    how = "" if config.recipe == "quickstart" else f" --recipe {config.recipe}"
    how += " --from CHECKPOINT" if verb == "finetune" else f' --model "{words.config.model}"'
    print(f"Next: vitkit {verb} DATA{how}")
    return words, found


def evaluate(argv: list[str]) -> Any:
    words = evaluation_words(argv)
    check_gpus(words)
    if words.gpus and alone():
        from vitkit.training.precision import choose_device
        from vitkit.training.world import start

        for rank in range(words.gpus):
            choose_device(words.device, rank)
        raise SystemExit(start(run, ["evaluate", *argv], words.gpus))
    from vitkit.prediction.model import load

    model = load(words.checkpoint)
    say_assumed(model)
    return words, show_evaluation(words, model, speaks())


def predict(argv: list[str]) -> Any:
    words = parse(Predict(), "predict", argv)
    require(words.checkpoint, "predict", "CHECKPOINT, a bundle, a run or a file of weights")
    require(words.images, "predict", "IMAGES, files or folders")
    if words.top < 1:
        raise UsageError(f"--top is {words.top}; it must be at least 1")
    from vitkit.prediction.model import load
    from vitkit.reports.predictions import check_table_path, write_predictions
    from vitkit.training.precision import choose_device

    table = None if words.out is None else check_table_path(Path(words.out))
    model = load(words.checkpoint).to(choose_device(words.device))
    say_assumed(model)
    predictions = model.predict(words.images, top=words.top)
    failed = sum(p.error is not None for p in predictions)
    if table is not None:
        write_predictions(table, predictions)
        print(
            f"{len(predictions)} images to {table}"
            + (f", {failed} with an error" if failed else "")
        )
    else:
        for p in predictions:
            top = ", ".join(f"{name} {share:.1%}" for name, share in p.top)
            print(printable(f"{p.image}: {top or f'error: {p.error}'}"))
    if failed == len(predictions):
        raise VitkitError(f"none of the {failed} images could be read; the first: "
                          f"{predictions[0].image}: {predictions[0].error}")  # fmt: skip
    print(printable(f"Next: vitkit evaluate {words.checkpoint} DATA"))
    rows = [
        {"image": p.image, "label": p.label, "probability": p.probability, "error": p.error,
         "top": [{"label": name, "probability": share} for name, share in p.top]}
        for p in predictions
    ]  # fmt: skip
    return words, {"predictions": rows}


def doctor(argv: list[str]) -> Any:
    words = parse(Doctor(), "doctor", argv)
    require(words.run, "doctor", "RUN, a run directory")
    from vitkit.reports.plans import size
    from vitkit.workflows.doctor import advise, look_at

    found = look_at(words.run)
    verdict, advice = advise(found)
    print(printable(f"{found.run}: {found.what}") + "\n")
    print_columns(
        ("", "size", "verified; nothing was changed"),
        [(name, "" if part.bytes is None else size(part.bytes),
          "; ".join(filter(None, (part.problem, part.note))))
         for name, part in found.parts.items()],
        right=(1,),
    )  # fmt: skip
    result = {**asdict(found), "problems": found.problems, "advice": advice or verdict}
    if advice is None:
        print_json(words, result)
        raise VitkitError(verdict)
    print("\n" + printable(verdict))
    if advice:
        print(printable(f"Next: {advice}"))
    return words, result


VERBS: dict[str, Callable[[list[str]], Any]] = {
    "demo": demo,
    "models": models,
    "recipes": show_recipes,
    "convert": convert,
    "pretrain": pretrain,
    "finetune": finetune,
    "selftrain": selftrain,
    "plan": plan,
    "evaluate": evaluate,
    "inspect": inspect,
    "predict": predict,
    "compare": compare,
    "data": data,
    "doctor": doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line -> exit code: 0 done, 1 the work failed, 2 the words were wrong."""
    return run(rewritten(list(sys.argv[1:] if argv is None else argv)))


def run(words: list[str]) -> int:
    """The same for words that are rewritten already, as one of several processes gets them."""
    if not speaks():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (to the end of the process)
    # OpenMP's threads spin while they wait, which makes a step many times slower as soon as
    # another process wants a core (docs/performance.md). It reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.showwarning = show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files and classes may be no UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(HELP, end="")
            return 0
        if words[0] == "--version":
            print(f"vitkit {__version__}")
            return 0
        parsed, result = VERBS[named("verb", words[0], VERBS)](words[1:])
        print_json(parsed, result)
        return 0
    except KeyboardInterrupt:
        return complain("stopped by Ctrl-C", 130)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except VitkitError as error:
        return complain(error, error.exit_code, "--debug" in words)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return complain(f"{place}{error.strerror or error}", 1, "--debug" in words)
    except Exception as error:
        text = f"unexpected {type(error).__name__}: {error}; --debug shows the trace"
        return complain(text, 1, "--debug" in words)


def show_warning(message: Any, category: Any, filename: str, *_: Any, **__: Any) -> None:
    """A warning of vitkit's own is a sentence for people; others' are kept as they are."""
    own = filename.startswith(str(Path(__file__).parent)) and issubclass(category, UserWarning)
    text = printable(str(message)) if own else f"{filename}: {category.__name__}: {message}"
    if speaks():
        with contextlib.suppress(OSError):
            print(f"vitkit: note: {text}" if own else text, file=sys.stderr, flush=True)


def speaks() -> bool:
    """Whether this is the only process of a run, or the one of several that speaks."""
    return os.environ.get("RANK", "0") == "0"


def complain(error: object, code: int, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    if not speaks() and getattr(error, "everywhere", False):
        return code
    from vitkit.data.checks import DataError

    # Only what is wrong with a layout is told in several lines; names may have a break in them.
    lines = str(error).split("\n") if isinstance(error, DataError) else [str(error)]
    text = "\n".join(map(printable, lines))
    text = text if speaks() else f"process {os.environ['RANK']}: {text}"
    text = text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]} ..."
    with contextlib.suppress(OSError):  # the reader may have gone
        print(f"vitkit: {text}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
