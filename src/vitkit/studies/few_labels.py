"""Few labels: what learning from images without labels is worth, beside scratch and supervision.

The paper (section 4.6, appendix B.1.2) pre-trains ViT-B/16 by masked patches and finds it 2 points
above training from scratch and 4 below supervised pre-training on ImageNet. Here a small ViT learns
CIFAR-10 with 1 % and 10 % of its labels, after each way of pre-training on all its images.

    python -m vitkit.studies.few_labels cifar10/train.parquet cifar10/test.parquet --runs runs/few

Every pre-training sees as many images, every net is then fine-tuned for as many steps, and scored
once, by its last weights, on the test images. What begins with random weights is trained by one
rate for all layers (tried on one seed: better than fine-tuning's). Three seeds draw the labelled
images, the order and the augmentation of fine-tuning; a pre-training is done once. "supervised"
reads all labels, and is what the others can hope for; "scratch, as long" (--as-long) trains on the
labelled images alone for the steps of pre-training and fine-tuning together. What RUNS holds
already is not trained again. Writes few-labels.json, .png, .svg and .md into OUT.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it

import numpy as np

from vitkit.data.mixing import subset
from vitkit.data.opening import held_out, open_data
from vitkit.data.source import Source, Splits
from vitkit.files import write_whole
from vitkit.models.nets import make
from vitkit.plain import Curve
from vitkit.prediction.model import Model, load
from vitkit.reports.drawing import Drawing
from vitkit.reports.figures import curve
from vitkit.reports.training import evaluations, read_metrics
from vitkit.training.config import override
from vitkit.training.cost import exaflops_of
from vitkit.workflows.evaluate import evaluate
from vitkit.workflows.finetune import finetune
from vitkit.workflows.pretrain import net_config, preprocessing, pretrain, recipe_config
from vitkit.workflows.selftrain import selftrain
from vitkit.workflows.task import Task

SHARES = (0.01, 0.1)
SEEDS = (0, 1, 2)
EVALUATIONS = 20  # of a pre-training: its curve
TEACHER = "BiT-R14x1"
CERTAIN = 0.3  # confidence of a pseudo-label, the usual one
ONCE = {"evaluate_every": 10**6, "save_every": 10**6, "save_minutes": 0.0}
# By which fields training from nothing differs from fine-tuning: one rate for all layers.
FROM_NOTHING = {"optimizer.layer_decay": 1.0, "learning_rate": 1e-3}

# Pre-trainings: what the study calls them, recipe, fields.
PRETRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "supervised": ("quickstart", {}),
    "masked, mean colour": ("quickstart-masked-patches", {}),
    "masked, 4x4 colours": ("quickstart-masked-patches", {"masking.target": "colours"}),
    "masked, pixels": ("quickstart-masked-patches", {"masking.target": "pixels"}),
    "masked, mean colour, 15 %": ("quickstart-masked-patches", {"masking.rate": 0.15}),
    "MAE": ("quickstart-mae", {}),
    "SimCLR": ("quickstart-simclr", {}),
}
TUNED = ("supervised", "masked, mean colour", "MAE", "SimCLR")  # the others are ranked by few-shot


@dataclass(frozen=True)
class Study:
    """The images, and how long is trained."""

    train: Source  # all but those held out
    held: Source  # of the training images: what pre-trainings are watched by
    test: Source
    runs: Path
    steps: int  # of a pre-training, of 64 images each
    tuning_steps: int
    as_long: bool  # whether nets are also trained from nothing for as many steps in all

    @property
    def task(self) -> Task:
        """What is pre-trained on, and watched by."""
        return Task(self.train, self.held, "CIFAR-10", True)

    def labelled(self, share: float, seed: int) -> Source:
        return subset(self.train, share, seed)


def pretrained(study: Study, name: str) -> Path:
    """The run of a pre-training."""
    folder = study.runs / file_name(name)
    if (folder / "last").exists():
        return folder
    recipe, fields = PRETRAININGS[name]
    steps = study.steps
    pretrain(
        study.task, recipe, out=folder, steps=steps, save_every=10**6, resume="auto",
        evaluate_every=max(1, steps // EVALUATIONS), **fields,
    )  # fmt: skip
    return folder


def tuned(study: Study, name: str, base: Model, share: float, seed: int,
          **fields: Any) -> tuple[float, Path]:  # fmt: skip
    """Accuracy (0 to 1) on the test images after fine-tuning, and the run."""
    folder = study.runs / file_name(f"{name} {share:g} seed {seed}")
    if not (folder / "last").exists():
        task = Task(study.labelled(share, seed), study.test, f"CIFAR-10, {share:.0%}", True)
        given = {"seed": seed, "steps": study.tuning_steps, "batch_size": 64, **ONCE, **fields}
        finetune(task, base, out=folder, resume="auto", **given)
    return evaluations(read_metrics(folder))[-1]["top1"], folder


def untrained(study: Study, seed: int) -> Model:
    """The net of the pre-trainings, with random weights."""
    import torch

    config = recipe_config(study.task, "quickstart")
    torch.manual_seed(seed)
    net = make(net_config(config, len(study.train.class_names)))
    return Model(net, list(study.train.class_names), preprocessing(config), {})


def from_scratch(study: Study, share: float, seed: int) -> tuple[float, Path]:
    return tuned(study, "scratch", untrained(study, seed), share, seed, **FROM_NOTHING)


def distilled(study: Study, share: float, seed: int) -> float:
    """From a ResNet that learned the same labelled images for as many steps."""
    task = Task(study.labelled(share, seed), study.held, f"CIFAR-10, {share:.0%}", True)
    teacher = study.runs / file_name(f"teacher {share:g} seed {seed}")
    steps = {"steps": study.tuning_steps, "batch_size": 64, "seed": seed}
    if not (teacher / "last").exists():
        pretrain(task, model=TEACHER, out=teacher, resume="auto", **steps, **ONCE)
    fields = {**FROM_NOTHING, "distillation.teacher": str(teacher / "last")}
    return tuned(study, "distilled", untrained(study, seed), share, seed, **fields)[0]


def noisy_student(study: Study, share: float, seed: int) -> float:
    """Two rounds from the net trained from scratch, each of a third of a pre-training's steps, the
    last student fine-tuned as all others."""
    teacher = from_scratch(study, share, seed)[1] / "last"
    folder = study.runs / file_name(f"selftrain {share:g} seed {seed}")
    splits = Splits("CIFAR-10", study.labelled(share, seed), study.held)
    found = selftrain(
        splits, study.train, teacher=teacher, rounds=2, threshold=CERTAIN, out=folder,
        resume="auto", steps=study.steps // 3, seed=seed, batch_size=64, **ONCE,
    )  # fmt: skip
    return tuned(study, "noisy student", found.model, share, seed)[0]


def few_shot(study: Study, net: Model) -> dict[str, float]:
    """Accuracy on the test images of least squares on 10 training images of each class, three draws
    of them; the penalty is chosen by others."""
    some = subset(study.train, min(2000, len(study.train)), 0)
    found = evaluate(
        net, study.test, "few-shot", train=some, shots=(10,), sweep_l2=True, cache=False
    )
    return found["metrics"]


def curve_of(run: Path) -> dict[str, list[float]]:
    """Few-shot accuracy on the held-out images over the steps of a pre-training."""
    rows = [row for row in evaluations(read_metrics(run)) if "few_shot" in row]
    return {"steps": [r["step"] for r in rows], "few_shot": [r["few_shot"] for r in rows]}


def as_long(study: Study, share: float, seed: int) -> float:
    """From random weights on the labelled images alone, as long as the others in all."""
    steps, base = study.steps + study.tuning_steps, untrained(study, seed)
    return tuned(study, "scratch, as long", base, share, seed, **FROM_NOTHING, steps=steps)[0]


def measured(study: Study, found: dict[str, Any], note: Callable[[str, Any], None]) -> None:
    """Everything that is not found yet, one after another; `note` keeps each finding."""
    none = "pretraining/none"
    if none not in found:
        note(none, {"few_shot_test": few_shot(study, untrained(study, 0))["10shot"]})
    for name in PRETRAININGS:
        if f"pretraining/{name}" in found:
            continue
        folder = pretrained(study, name)
        note(f"pretraining/{name}", {
            "few_shot_test": few_shot(study, load(folder / "last"))["10shot"],
            "curve": curve_of(folder), "teraflops": teraflops(study, name),
        })  # fmt: skip
    methods: dict[str, Callable[[float, int], float]] = {
        "scratch": lambda share, seed: from_scratch(study, share, seed)[0],
        **{name: lambda share, seed, name=name: after(study, name, share, seed) for name in TUNED},
        "distilled": lambda share, seed: distilled(study, share, seed),
        "noisy student": lambda share, seed: noisy_student(study, share, seed),
    }
    if study.as_long:
        methods["scratch, as long"] = lambda share, seed: as_long(study, share, seed)
    for seed, name, method in [(seed, *pair) for seed in SEEDS for pair in methods.items()]:
        for share in SHARES:
            if f"{name}/{share:g}/{seed}" not in found:
                note(f"{name}/{share:g}/{seed}", method(share, seed))


def after(study: Study, name: str, share: float, seed: int) -> float:
    """Fine-tuned after a pre-training."""
    return tuned(study, name, load(pretrained(study, name) / "last"), share, seed)[0]


def teraflops(study: Study, name: str) -> float:
    """10^12 FLOPs of a pre-training, three forward passes an image."""
    recipe, fields = PRETRAININGS[name]
    config = override(recipe_config(study.task, recipe), fields)
    net = net_config(config, len(study.train.class_names))
    return 1e6 * exaflops_of(net, config, study.steps * config.batch_size)


def file_name(name: str) -> str:
    return name.lower().replace(" %", "").replace(",", "").replace(" ", "-")


def summary(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each method: mean and sample deviation over the seeds at each share of labels."""
    names = [name.rsplit("/", 2)[0] for name in found if not name.startswith("pretraining/")]
    rows = []
    for name in dict.fromkeys(names):
        row: dict[str, Any] = {"method": name}
        for share in SHARES:
            values = [found[f"{name}/{share:g}/{seed}"] for seed in SEEDS
                      if f"{name}/{share:g}/{seed}" in found]  # fmt: skip
            row[f"{share:g}"] = {"mean": mean(values), "values": values} if values else None
            if len(values) > 1:
                row[f"{share:g}"]["deviation"] = stdev(values)
        rows.append(row)
    return rows


def page(record: dict[str, Any]) -> str:
    """The table and the ranking as Markdown."""
    found = record["found"]
    scratch = next(row for row in summary(found) if row["method"] == "scratch")
    lines = [
        "| before fine-tuning | " + " | ".join(f"{share:.0%} of the labels | beside scratch"
                                               for share in SHARES) + " |",
        "| --- | " + " | ".join(["--- | ---"] * len(SHARES)) + " |",
    ]  # fmt: skip
    for row in summary(found):
        cells = []
        for share in SHARES:
            cell, base = row[f"{share:g}"], scratch[f"{share:g}"]
            spread = f" ± {100 * cell['deviation']:.1f}" if "deviation" in cell else ""
            cells += [f"{cell['mean']:.1%}{spread}", f"{100 * (cell['mean'] - base['mean']):+.1f}"]
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    scored = {name.partition("/")[2]: one for name, one in found.items()
              if name.startswith("pretraining/")}  # fmt: skip
    best_first = sorted(scored.items(), key=lambda pair: -pair[1]["few_shot_test"])
    lines += [
        "",
        f"Means and sample deviations over {len(SEEDS)} seeds of fine-tuning, and points beside "
        "scratch.",
        "",
        "| pre-training | least squares on 10 images a class | teraFLOPs |",
        "| --- | --- | --- |",
        *(f"| {name} | {one['few_shot_test']:.1%} | {one.get('teraflops', 0):.0f} |"
          for name, one in best_first),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def drawing(record: dict[str, Any]) -> Drawing:
    """Few-shot accuracy over the steps of each pre-training without labels."""
    found = {
        name.partition("/")[2]: one["curve"]
        for name, one in record["found"].items()
        if one_of_curve(one)
    }
    lines = {name: np.array(one["few_shot"]) for name, one in found.items()}
    steps = np.array(next(iter(found.values()))["steps"])
    title = "Least squares on 10 images of each class"
    told = Curve(title, "step of pre-training", "accuracy", steps, lines, share=True)
    return curve("few-labels", told)


def one_of_curve(finding: Any) -> bool:
    return isinstance(finding, dict) and bool(finding.get("curve", {}).get("steps"))


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words.add_argument("train")
    words.add_argument("test")
    words.add_argument("--runs", type=Path, default=Path("runs/few-labels"))
    words.add_argument("--out", type=Path, help="by default RUNS")
    words.add_argument("--steps", type=int, default=3000)
    words.add_argument("--tuning-steps", type=int, default=500)
    words.add_argument("--as-long", action="store_true", help="with the row 'scratch, as long'")
    asked = words.parse_args()
    splits = held_out(open_data(asked.train).train, "CIFAR-10", at_most=2000)
    assert splits.val is not None
    test = open_data(asked.test).train
    study = Study(
        splits.train, splits.val, test, asked.runs, asked.steps, asked.tuning_steps, asked.as_long
    )
    out = asked.out or asked.runs
    out.mkdir(parents=True, exist_ok=True)
    file = out / "few-labels.json"
    settings = {"steps": asked.steps, "tuning_steps": asked.tuning_steps}
    record: dict[str, Any] = {**settings, "found": {}}
    if file.exists():
        record = json.loads(file.read_text())
        if {name: record[name] for name in settings} != settings:
            words.error(f"{file}: is of other steps; give the same, or another --runs")

    def note(name: str, value: Any) -> None:
        record["found"][name] = value
        write_whole(file, json.dumps(record, indent=1) + "\n")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measured(study, record["found"], note)
    write_whole(out / "few-labels.md", page(record))
    drawing(record).save(out)


if __name__ == "__main__":
    main()
