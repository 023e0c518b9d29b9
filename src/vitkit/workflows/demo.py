"""`vitkit demo`: the paper's story on real images in about a minute, without a download."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from vitkit.data.opening import digits
from vitkit.data.source import Source, Splits, only_classes
from vitkit.inspection.embeddings import position_similarity
from vitkit.models.variants import build
from vitkit.models.vit import VisionTransformer
from vitkit.models.vit_config import ViTConfig
from vitkit.prediction.model import Model, load
from vitkit.reports.demo import draw_demo
from vitkit.workflows.evaluate import evaluate
from vitkit.workflows.finetune import finetune
from vitkit.workflows.pretrain import pretrain
from vitkit.workflows.run_folder import run_folder

FIRST, SECOND = [str(n) for n in range(5)], [str(n) for n in range(5, 10)]
HIGHER = 12  # pixels; the digits are 8x8
# A class token, a high learning rate and no smoothing keep features that other classes can use.
PRETRAIN: dict[str, Any] = {
    "steps": 1500,
    "pooling": "token",
    "learning_rate": 3e-3,
    "regularisation": "light",
    "label_smoothing": 0.0,
    "augment.crop_area": (0.5, 1.0),
    "threads": 0,  # for images as small as these a thread costs more than it gives
}
FINETUNE: dict[str, Any] = {
    "steps": 600,
    "image_size": HIGHER,
    "optimizer.name": "sgd",
    "optimizer.layer_decay": 1.0,
    "optimizer.weight_decay": 0.0,
    "label_smoothing": 0.0,
    "learning_rate": 0.1,
    "augment.crop_area": (0.8, 1.0),
    "threads": 0,
}
L2 = 10.0  # big_vision's 1024 is for features ten times as wide
SHOWN = 20  # predictions in the figure


def demo(
    out: str | Path = "runs/demo", *, device: str = "auto", seed: int = 0, quiet: bool = False
) -> dict[str, Any]:
    """Pre-train on digits 0-4, look at 5-9 few-shot, fine-tune on 5-9 at a higher resolution.

    Returns accuracy and few-shot accuracies (shares, on held-out images), seconds, the run
    directory and the figure's path.
    """
    began = time.perf_counter()
    folder = run_folder(Path(out), None)
    old, new = some_digits(FIRST), some_digits(SECOND)

    first = pretrain(
        old, out=folder / "pretrain", seed=seed, device=device, quiet=quiet, **PRETRAIN
    )
    trained = first.model
    torch.manual_seed(seed)
    as_trained = trained.net.config
    assert isinstance(as_trained, ViTConfig)
    net = build(
        trained.provenance["model"], len(FIRST), as_trained.image_size, pooling=as_trained.pooling
    )
    untrained = Model(net, FIRST, trained.preprocessing)
    few_shot, few_shot_untrained = (
        evaluate(model, new, "few-shot", l2=L2, device=device)["metrics"]
        for model in (trained, untrained)
    )
    second = finetune(
        new, first.folder, out=folder / "finetune", seed=seed, device=device, quiet=quiet,
        **FINETUNE,
    )  # fmt: skip
    model = load(second.folder / "last")  # best/ was chosen by the images scored here
    result = evaluate(model, new, device=device)

    assert new.val is not None
    figure = folder / "demo.png"
    net = model.net
    assert isinstance(net, VisionTransformer)
    assert net.position_embedding is not None
    draw_demo(
        figure, first.folder, second.folder,
        {shots: (few_shot[shots], few_shot_untrained[shots]) for shots in few_shot},
        position_similarity(net.position_embedding.cpu(), net.config.prefix), net.config.grid,
        some_predictions(model, new.val),
    )  # fmt: skip
    return {
        "accuracy": result["metrics"]["top1"],
        "few_shot_accuracy": few_shot["10shot"],
        "few_shot_accuracy_untrained": few_shot_untrained["10shot"],
        "seconds": round(time.perf_counter() - began, 1),
        "run": str(folder),
        "figure": str(figure),
        "images": result["images"],
    }


def some_digits(names: list[str]) -> Splits:
    splits = digits()
    assert splits.val is not None
    title = f"digits {names[0]}-{names[-1]}"
    return Splits(title, only_classes(splits.train, names), only_classes(splits.val, names))


def some_predictions(model: Model, source: Source):
    """Images with their true class and prediction: mistakes first, then evenly chosen ones."""
    images = [source.image(index).permute(1, 2, 0).numpy() for index in range(len(source))]
    truths = [source.class_names[label] for label in source.labels]
    rows = list(zip(images, truths, model.predict(images), strict=True))
    wrong = [row for row in rows if row[2].label != row[1]][: SHOWN // 2]
    right = [row for row in rows if row[2].label == row[1]]
    spread = right[:: max(1, len(right) // (SHOWN - len(wrong)))]
    return (wrong + spread)[:SHOWN]
