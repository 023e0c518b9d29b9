"""What fine-tuning by the defaults reaches, beside fixed recipes and timm's defaults.

`python benchmarks/transfer.py --data DIR --base CHECKPOINT [--seeds 3] [--only NAME,...]`
fine-tunes one net on small sets of images: CIFAR-10 with 1,000 and 10,000 labels (scored on its
10,000 test images), scikit-learn's digits (500 to train on, the others scored), and a folder of
100 photographs in four classes (scored in five folds, each trained on the other four). DIR holds
`cifar10/` (parquet) and `imagenet-samples/` (a folder a class). Every recipe trains on the same
images; what is scored decides nothing. timm gets the weights in its own net, the defaults of its
train.py, and as many of its epochs as fit in the time that vitkit's defaults took on the same
images in the same run.

CHECKPOINT is `vitkit pretrain TINY_IMAGENET --epochs 12 --batch-size 128`. Writes
benchmarks/results/transfer.json after every run, and goes on from it with --go-on; `--table FILES`
prints the means of one file or of several.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it

import numpy as np
import torch
from torch import nn

import vitkit
from racing import machine
from vitkit.data.mixing import stratified, subset
from vitkit.data.opening import open_data
from vitkit.data.source import Concatenated, Source, Subset, strata
from vitkit.prediction.model import Model
from vitkit.workflows.finetune import finetune
from vitkit.workflows.task import Task

RESULTS = Path(__file__).with_name("results") / "transfer.json"
SPLIT_SEED, FOLDS, DIGITS = 0, 5, 500

# ImageNet's classes in the four that a folder of 100 photographs can teach.
PHOTOS = {
    "dog": "Border_collie Doberman English_foxhound Gordon_setter Irish_water_spaniel Lhasa "
    "Norwegian_elkhound Scottish_deerhound Sealyham_terrier groenendael keeshond kelpie whippet",
    "other animal": "American_coot ant bald_eagle bullfrog colobus common_newt coyote echidna eel "
    "fiddler_crab flatworm gazelle great_white_shark green_mamba howler_monkey impala "
    "long-horned_beetle mantis mud_turtle sulphur_butterfly toucan tree_frog",
    "place or vehicle": "aircraft_carrier barbershop breakwater castle drilling_platform fireboat "
    "garbage_truck horse_cart missile oxcart prison schooner steel_arch_bridge tractor unicycle "
    "yawl window_shade shoji solar_dish throne",
}  # and all others are objects

# Recipes that do not look at the data: each is one that somebody would take for everything.
ONE_RATE = {"optimizer.layer_decay": 1.0, "optimizer.weight_decay": 0.0, "label_smoothing": 0.0}
SGD = {"optimizer.name": "sgd", **ONE_RATE}
FIXED: dict[str, dict[str, Any]] = {
    "SGD 0.03, 500 steps": {**SGD, "learning_rate": 0.03, "steps": 500},
    "SGD 0.01, 500 steps": {**SGD, "learning_rate": 0.01, "steps": 500},
    "SGD 0.03, 1,500 steps": {**SGD, "learning_rate": 0.03, "steps": 1500},
    "AdamW 0.001, 500 steps": {**ONE_RATE, "learning_rate": 1e-3, "steps": 500},
}


def photos(data: Path) -> list[Task]:
    source = copy.copy(open_data(data / "imagenet-samples").train)
    group = {name: n for n, names in enumerate(PHOTOS.values()) for name in names.split()}
    numbers = np.array([group.get(name, len(PHOTOS)) for name in source.class_names])
    source.labels, source.class_names = numbers[source.labels], [*PHOTOS, "object"]
    order = np.random.default_rng(SPLIT_SEED).permutation(len(source))
    place = np.empty(len(source), dtype=int)
    place[order[np.argsort(source.labels[order], kind="stable")]] = np.arange(len(source))
    folds = place % FOLDS  # class by class in turns
    return [task("photos", source, folds != fold, folds == fold) for fold in range(FOLDS)]


def task(name: str, source: Source, train: np.ndarray, scored: np.ndarray) -> Task:
    parts = (Subset(source, np.flatnonzero(chosen)) for chosen in (train, scored))
    return Task(*parts, name, True)


def cifar(data: Path, labels: int) -> list[Task]:
    train, test = (open_data(data / "cifar10" / f"{n}.parquet").train for n in ("train", "test"))
    return [Task(subset(train, labels, SPLIT_SEED), test, f"CIFAR-10, {labels:,}", True)]


def digits(data: Path) -> list[Task]:
    splits = open_data("digits")
    assert splits.val is not None
    source = Concatenated([splits.train, splits.val])
    train = np.isin(np.arange(len(source)), stratified(strata(source), DIGITS, SPLIT_SEED))
    return [task("digits", source, train, ~train)]


SETS: dict[str, Callable[[Path], list[Task]]] = {
    "photos": photos,
    "digits": digits,
    "cifar10-1000": partial(cifar, labels=1000),
    "cifar10-10000": partial(cifar, labels=10_000),
}


def by_vitkit(one: Task, base: Model, seed: int, fields: dict[str, Any]) -> tuple[float, float]:
    """(share right, seconds of the whole run)."""
    folder = Path(tempfile.mkdtemp())
    once = {"evaluate_every": 10**6, "save_every": 10**6, "save_minutes": 0.0}
    if not one.train.flip_keeps_class:
        fields = fields | {"augment.flip": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = finetune(one, base, out=folder / "run", seed=seed, quiet=True, **once | fields)
    finally:
        shutil.rmtree(folder)
    return run.metrics["top1"], run.seconds


class Images(torch.utils.data.Dataset):
    """What timm's loader reads: PIL images and labels; it sets `transform` itself."""

    transform: Any = None

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        pixels = self.source.image(index).permute(1, 2, 0).numpy()
        return self.transform(Image.fromarray(pixels)), int(self.source.labels[index])


def timm_net(base: Model, classes: int) -> nn.Module:
    """timm's net with the weights of the base, and timm's own fresh head."""
    from safetensors.torch import load_file
    from timm.models.vision_transformer import VisionTransformer

    net = base.net.config
    with tempfile.TemporaryDirectory() as folder:
        base.save(Path(folder) / "base")
        vitkit.convert(Path(folder) / "base", Path(folder) / "timm", "timm")
        weights = load_file(Path(folder) / "timm" / "model.safetensors")
    tokens = net.pooling == "token"
    peer = VisionTransformer(
        img_size=net.image_size, patch_size=net.patch, embed_dim=net.width, depth=net.depth,
        num_heads=net.heads, mlp_ratio=net.mlp_width / net.width, num_classes=classes,
        class_token=tokens, global_pool="token" if tokens else "avg", fc_norm=False,
        act_layer=partial(nn.GELU, approximate="tanh" if net.gelu == "tanh" else "none"),
    )  # fmt: skip
    body = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    missing, unexpected = peer.load_state_dict(body, strict=False)
    assert not unexpected and set(missing) <= {"head.weight", "head.bias"}, (missing, unexpected)
    return peer


def by_timm(one: Task, base: Model, seed: int, seconds: float) -> tuple[float, float]:
    """The defaults of timm's train.py (August 2026), for as many epochs as the seconds allow."""
    from timm.data import create_loader
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    torch.manual_seed(seed)
    net = timm_net(base, len(one.train.class_names))
    kept = base.preprocessing
    batch = min(128, len(one.train))
    shared = {"input_size": (3, *kept.image_size), "use_prefetcher": False, "mean": kept.mean,
              "std": kept.std, "num_workers": 2, "batch_size": batch}  # fmt: skip
    train = create_loader(
        Images(one.train), is_training=True, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), hflip=0.5,
        color_jitter=0.4, interpolation="random", persistent_workers=True, **shared,
    )  # fmt: skip
    scored = create_loader(
        Images(one.val), is_training=False, crop_pct=1.0, crop_mode="squash",
        interpolation="bilinear", persistent_workers=False, **shared,
    )  # fmt: skip
    rate = 0.1 * batch / 256
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.1)

    def epoch(optimizer: Any) -> None:
        net.train()
        for images, labels in train:
            optimizer.zero_grad()
            smoothed(net(images), labels).backward()
            optimizer.step()

    began = time.perf_counter()
    for _ in train:  # workers start; not counted
        break
    weights = copy.deepcopy(net.state_dict())
    began = time.perf_counter()
    epoch(create_optimizer_v2(net, opt="sgd", lr=0.0, weight_decay=0.0, momentum=0.9))
    each = time.perf_counter() - began
    net.load_state_dict(weights)
    epochs = max(1, round(seconds / each))
    optimizer = create_optimizer_v2(net, opt="sgd", lr=rate, weight_decay=2e-5, momentum=0.9)
    scheduler, epochs = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=epochs, warmup_lr=1e-5,
        warmup_epochs=min(5, epochs // 2), min_lr=0.0,
    )  # fmt: skip
    began = time.perf_counter()
    for number in range(epochs):
        scheduler.step(number)
        epoch(optimizer)
    taken = time.perf_counter() - began
    net.eval()
    with torch.inference_mode():
        right = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in scored)
    return right / len(one.val), taken


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words.add_argument("--data", type=Path)
    words.add_argument("--base")
    words.add_argument("--seeds", type=int, default=3)
    words.add_argument("--first-seed", type=int, default=0)
    words.add_argument("--only", default="", help="names of sets, with commas between")
    words.add_argument("--recipes", nargs="+", help="names of recipes")
    words.add_argument("--json", type=Path, default=RESULTS)
    words.add_argument("--go-on", action="store_true", help="keep the runs that the file has")
    words.add_argument("--table", type=Path, nargs="+", help="print that of files, and run nothing")
    args = words.parse_args()
    if args.table:
        files = [json.loads(path.read_text(encoding="utf-8")) for path in args.table]
        summary([run for file in files for run in file["runs"]])
        return
    if args.data is None or args.base is None:
        words.error("--data and --base are needed")
    base = vitkit.load(args.base)
    recipes = {"vitkit's defaults": {}, **FIXED, "timm's defaults": None}
    chosen = args.recipes or list(recipes)
    sets = args.only.split(",") if args.only else list(SETS)
    found: dict[str, Any] = {"runs": []}
    if args.go_on and args.json.exists():
        found = json.loads(args.json.read_text(encoding="utf-8"))
    found |= {"machine": machine("cpu", "wall"), "base": base.provenance}
    done = {(r["set"], r["recipe"], r["seed"]) for r in found["runs"]}
    for seed in range(
        args.first_seed, args.first_seed + args.seeds
    ):  # in turns: what else the machine does falls on all
        for name in sets:
            tasks = SETS[name](args.data)
            for recipe in chosen:
                if (name, recipe, seed) in done:
                    continue
                run = scored(name, tasks, recipe, recipes[recipe], base, seed, found)
                found["runs"].append(run)
                args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    summary(found["runs"])


def scored(
    name: str, tasks: list[Task], recipe: str, fields: dict[str, Any] | None, base: Model,
    seed: int, found: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    shares, seconds = [], []
    for number, one in enumerate(tasks):
        if fields is None:
            ours = [
                r["seconds"][number]
                for r in found["runs"]
                if (r["set"], r["recipe"], r["seed"]) == (name, "vitkit's defaults", seed)
            ]
            share, taken = by_timm(one, base, seed, ours[0])
        else:
            share, taken = by_vitkit(one, base, seed, fields)
        shares.append(share)
        seconds.append(taken)
    top1 = float(np.average(shares, weights=[len(one.val) for one in tasks]))
    print(f"{name:14} {recipe:34} seed {seed}  {top1:7.2%}  {sum(seconds):5.0f} s", flush=True)
    return {"set": name, "recipe": recipe, "seed": seed, "top1": top1, "seconds": seconds}


def summary(runs: list[dict[str, Any]]) -> None:
    """A table: means over the seeds, a row a recipe."""
    sets = list(dict.fromkeys(run["set"] for run in runs))
    print(f"\n{'':34}" + "".join(f"{name:>15}" for name in [*sets, "mean"]))
    for recipe in dict.fromkeys(run["recipe"] for run in runs):
        means = []
        for name in sets:
            of_both = [r["top1"] for r in runs if (r["set"], r["recipe"]) == (name, recipe)]
            means.append(mean(of_both or [math.nan]))
        print(f"{recipe:34}" + "".join(f"{value:15.2%}" for value in [*means, mean(means)]))


if __name__ == "__main__":
    main()
