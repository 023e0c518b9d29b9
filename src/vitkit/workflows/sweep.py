"""A sweep: hyper-parameters chosen on a dev split, then trained on all images (appendix B.1.1)."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitkit import recipes
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError, VitkitError
from vitkit.files import write_whole
from vitkit.models.variants import name_of
from vitkit.prediction.model import Model, load
from vitkit.recipes.regularisation import regularised
from vitkit.training.config import HARMLESS, TrainConfig, flat, override, to_json
from vitkit.training.grid import Candidate, grid
from vitkit.training.log import headline
from vitkit.training.precision import choose_device
from vitkit.training.step import Diverged, Setup
from vitkit.training.trained import skeleton
from vitkit.training.world import from_environment, from_main, joined
from vitkit.workflows.dev_split import dev_split, write_split
from vitkit.workflows.feeding import checked_order, choose_keep
from vitkit.workflows.finetune import (
    architecture,
    finetune_on,
    net_config,
    opened,
    parent_of,
    recipe_config,
)
from vitkit.workflows.run import (
    check_labels,
    check_shares,
    choose_engine,
    fixed_steps,
)
from vitkit.workflows.run_folder import (
    SWEEP_RECORD as RECORD,
)
from vitkit.workflows.run_folder import (
    check_resumed,
    check_writable,
    flat_json,
    git_commit,
    lock,
    recorded_folder,
    unlock,
)
from vitkit.workflows.task import Task, data_config, open_task, refuse_with_config
from vitkit.workflows.teaching import check_distillation, origins, teacher_of

DEV_SHARE = 0.1  # where the recipe's authors say none
WEIGHTS = ("checkpoints", "best", "last")  # of a trial, which go when its result is recorded


@dataclass(frozen=True)
class Sweep:
    """A finished sweep; `record` is what its sweep.json holds (docs/transfer.md, "Sweeps")."""

    folder: Path
    record: dict[str, Any]

    @property
    def trials(self) -> list[dict[str, Any]]:
        """One for each candidate, with "label", "fields", "score" on the dev split, "seconds"."""
        return self.record["trials"]

    @property
    def choice(self) -> str:
        """The label of the candidate that did best on the dev split."""
        return self.record["choice"]

    @property
    def finals(self) -> list[dict[str, Any]]:
        """One for each seed, with "seed", "score" on the held-out images, "seconds"."""
        return self.record["finals"]

    @property
    def final(self) -> Path:
        """The run directory of the chosen candidate with the first seed."""
        return self.folder / self.finals[0]["folder"]

    @property
    def model(self) -> Model:
        """That run's last net, whose score is reported."""
        return load(self.final / "last")


def sweep(
    data: Any,
    checkpoint: str | Path | Model,
    recipe: str = "quickstart",
    *,
    over: Mapping[str, Sequence[Any]] | None = None,
    config: TrainConfig | None = None,
    dev_share: float | None = None,
    seeds: int = 1,
    out: str | Path | None = None,
    resume: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    any_net: bool = False,
    regularisation: str | None = None,
    **fields: Any,
) -> Sweep:
    """Fine-tune a checkpoint on DATA with each candidate, choose, and train with the choice.

    `over` has the values of each field, `{"learning_rate": (0.003, 0.01)}`, of which every
    combination is a candidate; without it they are the recipe's own. A share `dev_share` of the
    training images, by default the recipe's, is held apart; each candidate trains on the others and
    is scored on these. The best then trains on all of them with `seeds` seeds, and is evaluated on
    the held-out images, which have no part in the choice. Scores are those of the last evaluation
    of a run. The other arguments are those of `finetune`. With `resume` finished runs are not run
    again. Raises UsageError before anything trains for words that cannot be, also as `finetune`.
    """
    model, name = opened(checkpoint)
    refuse_with_config(config, recipe, regularisation, any_net)
    task = open_task(data, data_config(config, fields))
    if over is None:
        if config is not None:
            raise UsageError("config is given, but not `over`: a recipe's candidates are its own")
        own = recipe_candidates(task, recipe, model, any_net, regularisation)
        candidates = [(label, override(candidate, fields)) for label, candidate in own]
    else:
        base = override(
            config or recipe_config(task, recipe, model, any_net, regularisation), fields
        )
        candidates = grid(base, over, fields)
    share = usual_share(recipe) if dev_share is None else dev_share
    return sweep_on(
        task, candidates, model, name, dev_share=share, seeds=seeds, out=out, resume=resume,
        device=device, quiet=quiet,
    )  # fmt: skip


def recipe_candidates(
    task: Task,
    recipe: str,
    model: Model,
    any_net: bool = False,
    regularisation: str | None = None,
) -> list[Candidate]:
    """What a recipe's authors chose among; UsageError where they name nothing."""
    net = model.net.config
    found = recipes.candidates(recipe, task.facts(), name_of(net), net.image_size, any_net)
    if len(found) < 2:
        raise UsageError(
            f"the recipe {recipe} has no candidates to choose among; say them, as in --sweep "
            "optimizer.learning-rate=0.003,0.01"
        )
    own = [(label, replace(config, **architecture(config, net))) for label, config in found]
    if regularisation is None:
        return own
    return [(label, regularised(config, regularisation)) for label, config in own]


def usual_share(recipe: str) -> float:
    """The share of the training images that a recipe's authors held apart."""
    return recipes.of_verb(recipe, "finetune").dev_share or DEV_SHARE


def sweep_on(
    task: Task,
    candidates: Sequence[Candidate],
    model: Model,
    name: str,
    *,
    dev_share: float,
    seeds: int = 1,
    out: str | Path | None = None,
    resume: str | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> Sweep:
    """A sweep with all decided: the task, the candidates, the model that records call `name`."""
    trial = checked(task, candidates, model, dev_share, seeds, device)
    world = from_environment()
    with joined(choose_device(device, world.local_rank if world.size > 1 else None)):
        asked = asked_for(task, trial, candidates, parent_of(model, name), dev_share)
        folder, record = from_main(lambda: open_sweep(Path(out or "runs/sweep"), resume, asked))
        try:
            from_main(lambda: write_split(folder, task, trial, dev_share))
            runs = Runs(folder, record, model, name, device, quiet or not world.main)
            runs.say(f"{opening(task, asked['dev'], candidates, seeds)}\nsweep {folder}")
            for row, (label, config) in zip(record["trials"], candidates, strict=True):
                runs.trial(row, trial, config, label)
            best = chosen(record["trials"])
            record["choice"] = record["trials"][best]["label"]
            from_main(lambda: write(folder, record))
            runs.finals(task, candidates[best][1], seeds)
        finally:
            unlock(folder)
    return Sweep(folder, record)


def checked(
    task: Task,
    candidates: Sequence[Candidate],
    model: Model,
    dev_share: float,
    seeds: int,
    device: str,
) -> Task:
    """The task of the trials; UsageError or DataError for whatever would end a run later on."""
    if seeds < 1:
        raise UsageError(f"--seeds is {seeds}; it must be at least 1")
    if len(candidates) < 2:
        raise UsageError("a sweep over one candidate chooses nothing; give more, or no --sweep")
    for place, (label, config) in enumerate(candidates):
        twin = next((other for other, same in candidates[:place] if same == config), None)
        if twin is not None:
            raise UsageError(f"{twin} and {label} are the same config; leave out what sets both")
    trial = dev_split(task, dev_share)
    for label, config in candidates:
        try:
            check_run(trial, config, model, device)
        except UsageError as error:
            raise UsageError(f"{label}: {error}") from error
    return trial


def check_run(task: Task, config: TrainConfig, model: Model, device: str) -> None:
    """UsageError or DataError where a run of this config could not begin."""
    if config.early_stopping:
        raise UsageError(
            f"early_stopping is {config.early_stopping}, but in a sweep the final run would be "
            "stopped by the images that measure it; leave it out, and sweep over --steps instead"
        )
    net, world = net_config(config, task, model), from_environment()
    fixed_steps(config, len(task.train))
    check_shares(config, len(task.train), world)
    check_distillation(config)
    place = choose_device(device, world.local_rank if world.size > 1 else None)
    kept = Preprocessing.direct(config.image_size)
    teacher = teacher_of(config.distillation, task.train.class_names, kept)
    engine = choose_engine(config, skeleton(net, config), len(task.train), place, world, teacher)
    setup = Setup(config, 1, engine, kept, net.classes)
    check_labels(setup, task)
    keep = choose_keep(config, task.train, place, world)
    checked_order(task, config, replace(engine, keep=keep))


def asked_for(
    task: Task,
    trial: Task,
    candidates: Sequence[Candidate],
    parent: dict[str, Any],
    dev_share: float,
) -> dict[str, Any]:
    """What a sweep is: all that decides its result but the seeds. It is the start of its record."""
    common, *others = [flat(config) for _, config in candidates]
    varied = [name for name in common if any(other[name] != common[name] for other in others)]
    content = {
        "kind": "sweep",
        "data": task.record(),
        "dev": {
            "share": dev_share, "images": len(trial.val), "train_images": len(trial.train),
            "fingerprint": trial.held_out_fingerprint,
        },
        "from": parent,
        "config": to_json(candidates[0][1]),
        "trials": [
            {
                "label": label, "folder": f"trials/{folder_name(number, label)}",
                "fields": {name: flat(config)[name] for name in varied},
            }
            for number, (label, config) in enumerate(candidates, 1)
        ],
    }  # fmt: skip
    return json.loads(json.dumps(content))  # as it will be read


def folder_name(number: int, label: str) -> str:
    """A folder of a candidate's own: "2-learning-rate-0.003"."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._") else "-" for c in label)
    words = [word for word in plain.split("-") if word]
    return "-".join([str(number), *words])[:100]


def open_sweep(out: Path, resume: str | None, asked: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Find or make a sweep's folder, which stays locked -> the folder, the record as it is now.

    UsageError where the sweep there was started with other words.
    """
    folder = recorded_folder(out, resume, RECORD, "sweep")
    check_writable(folder)
    lock(folder, wait=resume is not None)
    try:
        if not (folder / RECORD).exists():
            record = {**asked, "choice": None, "finals": [], "result": None,
                      "git_commit": git_commit(), "command": sys.argv}  # fmt: skip
            write(folder, record)
            return folder, record
        record = read_record(folder)
        check_same(folder, record, asked)
    except BaseException:
        unlock(folder)
        raise
    return folder, record


def read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        check_record(record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: is damaged ({error}); copy it from a backup, or start a new sweep without "
            "--resume"
        ) from error
    return record


def check_record(record: dict[str, Any]) -> None:
    """ValueError, KeyError or TypeError for what no sweep has written."""
    rows = [*record["trials"], *record["finals"]]
    needed = [(record, ("data", "dev", "from", "config"))]
    needed += [(row, ("folder", "label", "fields")) for row in record["trials"]]
    needed += [(row, ("folder", "seed")) for row in record["finals"]]
    needed += [(row, ("steps", "metrics") if "problem" not in row else ("score",))
               for row in rows if "score" in row]  # fmt: skip
    for part, names in needed:
        missing = [name for name in names if name not in part]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
    for row in rows:
        if "metrics" in row and row["score"] != headline(row["metrics"])[1]:
            raise ValueError(f"the score of {row['folder']} is not the one of its metrics")


def check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """UsageError where a sweep that goes on would be another one."""

    def facts(of: dict[str, Any]) -> dict[str, Any]:
        data = of["data"]
        return {
            "the checkpoint": of["from"],
            "the data": (data["fingerprint"], data["read_by"]),
            "the held-out data": data["held_out_fingerprint"],
            "the dev split": of["dev"],
            "the candidates": [(row["label"], row["fields"]) for row in of["trials"]],
            "the config": {name: value for name, value in flat_json(of["config"]).items()
                           if name not in HARMLESS},
        }  # fmt: skip

    old, new = facts(before), facts(now)
    different = [name for name in old if old[name] != new[name]]
    if "the config" in different:
        one, other = old["the config"], new["the config"]
        changed = [f"{name} ({one.get(name)} -> {value})" for name, value in other.items()
                   if one.get(name) != value]  # fmt: skip
        different[different.index("the config")] = "; ".join(changed)
    if different:
        raise UsageError(
            f"{folder}: the sweep was started with other words, which differ in "
            f"{'; '.join(different)}; give the same words again, or start a new sweep without "
            "--resume"
        )


@dataclass(frozen=True)
class Runs:
    """The runs of a sweep, one after another, each with a row of the record."""

    folder: Path
    record: dict[str, Any]
    model: Model
    name: str  # of the checkpoint
    device: str
    quiet: bool

    def trial(self, row: dict[str, Any], task: Task, config: TrainConfig, label: str) -> None:
        """Train a candidate on the dev split's others and score it; what it learned is removed."""
        number = self.record["trials"].index(row) + 1
        said = f"trial {number} of {len(self.record['trials'])}: {label}"
        if not self.holds(row, task, config):
            try:
                self.train(row, task, config, said)
            except Diverged as error:
                self.note(row, {"score": None, "problem": str(error)})
                self.say(f"{label}: {error}")
        else:
            self.say(f"{said}: done before")
        for weights in WEIGHTS:
            from_main(lambda name=weights: remove(self.folder / row["folder"] / name))

    def finals(self, task: Task, config: TrainConfig, seeds: int) -> None:
        """Train the chosen candidate with each seed, and sum up."""
        rows = {row["seed"]: row for row in self.record["finals"]}
        wanted = range(config.seed, config.seed + seeds)
        beyond = sorted(set(rows) - set(wanted))
        if beyond:
            raise UsageError(
                f"{self.folder}: has a final run with seed {beyond[-1]} already; give --seeds "
                f"{beyond[-1] - config.seed + 1} or more"
            )
        self.record["finals"] = [
            rows.get(seed, {"seed": seed, "folder": f"final/seed-{seed}"}) for seed in wanted
        ]
        for number, row in enumerate(self.record["finals"], 1):
            seeded = replace(config, seed=row["seed"])
            said = f"final run {number} of {seeds}: {self.record['choice']}, seed {row['seed']}"
            if self.holds(row, task, seeded):
                self.say(f"{said}: done before")
            else:
                self.train(row, task, seeded, said)
        self.record["result"] = result([row["metrics"] for row in self.record["finals"]])
        from_main(lambda: write(self.folder, self.record))

    def holds(self, row: dict[str, Any], task: Task, config: TrainConfig) -> bool:
        """Whether a run has ended, as its row and its folder say alike; UsageError if not alike."""
        return from_main(lambda: is_done(self.folder, row, task, config, self.parent))

    @property
    def parent(self) -> dict[str, Any]:
        return parent_of(self.model, self.name)

    def train(self, row: dict[str, Any], task: Task, config: TrainConfig, said: str) -> None:
        """Begin a run or go on with it, and put what came of it into its row."""
        run = finetune_on(
            task, config, self.model, self.name, out=self.folder / row["folder"], resume="auto",
            device=self.device, quiet=self.quiet, opening=said,
        )  # fmt: skip
        metrics = from_main(lambda: last_evaluation(run.folder, run.steps))
        found = {
            "score": headline(metrics)[1], "metrics": metrics, "steps": run.steps,
            "seconds": round(run.seconds, 1),
        }  # fmt: skip
        self.note(row, found)

    def note(self, row: dict[str, Any], found: dict[str, Any]) -> None:
        row.update(found)
        from_main(lambda: write(self.folder, self.record))

    def say(self, text: str) -> None:
        if not self.quiet:
            with suppress(OSError):  # nobody need listen
                print(text, file=sys.stderr, flush=True)


def opening(task: Task, dev: dict[str, Any], candidates: Sequence[Candidate], seeds: int) -> str:
    """The lines that say what is going to happen; `dev` is that of the record."""
    config = candidates[0][1]
    length = f"{config.minutes:g} minutes for each run; " if config.minutes is not None else ""
    with_seeds = f" with {seeds} seeds" if seeds > 1 else ""
    return (
        f"sweep over {len(candidates)} candidates for {config.model} on {task.name}: trained on "
        f"{dev['train_images']:,} images, scored on {dev['images']:,} others\n"
        f"{length}the best trains on all {len(task.train):,} images{with_seeds}, measured on "
        f"{len(task.val):,} held-out images"
    )


def is_done(
    folder: Path, row: dict[str, Any], task: Task, config: TrainConfig, parent: dict[str, Any]
) -> bool:
    """Whether a row has a result, and the run's own folder has the same one."""
    run = folder / row["folder"]
    if "score" not in row or not (run / "config.json").exists():
        return False
    kept = Preprocessing.direct(config.image_size)
    teacher = teacher_of(config.distillation, task.train.class_names, kept)
    come_from = origins(parent, config.distillation, teacher)
    check_resumed(run, "finetune", config, task, come_from)
    if "problem" not in row and last_evaluation(run, row["steps"]) != row["metrics"]:
        raise UsageError(
            f"{run / 'metrics.jsonl'}: its last evaluation is not the one in {folder / RECORD}; "
            "copy both from a backup, or start a new sweep without --resume"
        )
    return True


def last_evaluation(run: Path, steps: int) -> dict[str, float]:
    """The metrics of the net that a run ended with, from its metrics.jsonl."""
    path = run / "metrics.jsonl"
    with suppress(OSError, ValueError, KeyError, TypeError):
        for line in reversed(path.read_text(encoding="utf-8").splitlines()):
            found = json.loads(line)
            if found.pop("kind") == "evaluation" and found.pop("step") == steps:
                return found
    raise VitkitError(
        f"{path}: has no evaluation at step {steps:,}; remove {run}, and run the sweep again with "
        "--resume auto"
    )


def chosen(trials: Sequence[dict[str, Any]]) -> int:
    """The place of the best score, of equal ones the first."""
    scores = [-math.inf if row["score"] is None else row["score"] for row in trials]
    if max(scores) == -math.inf:
        raise VitkitError(
            f"no candidate could be trained to the end; the first: {trials[0].get('problem')}"
        )
    return scores.index(max(scores))


def result(metrics: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Mean and sample deviation over the seeds; of one seed no deviation is claimed."""
    scores = [headline(one)[1] for one in metrics]
    return {
        "metric": headline(metrics[0])[0], "mean": statistics.fmean(scores),
        "deviation": statistics.stdev(scores) if len(scores) > 1 else None, "seeds": len(scores),
    }  # fmt: skip


def write(folder: Path, record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    # Of names that are no UTF-8 \udce9 is right JSON.
    write_whole(folder / RECORD, text.encode(errors="backslashreplace"))


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
