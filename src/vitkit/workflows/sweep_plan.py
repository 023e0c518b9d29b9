"""What a sweep will take: its runs planned one by one, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitkit.prediction.model import Model
from vitkit.training.config import TrainConfig, flat
from vitkit.training.grid import Candidate
from vitkit.workflows.finetune import net_config
from vitkit.workflows.plan import length, plan
from vitkit.workflows.sweep import checked
from vitkit.workflows.task import Task

# What a step does not become slower or faster by.
OF_NO_COST = {
    "recipe", "steps", "minutes", "epochs", "seed", "label_smoothing", "head_bias",
    "optimizer.learning_rate", "optimizer.weight_decay", "optimizer.betas", "optimizer.momentum",
    "optimizer.clip_norm", "schedule.kind", "schedule.warmup_share", "schedule.warmup_steps",
    "schedule.linear_end", "schedule.stairs", "loss_balance", "optimizer.layer_decay",
}  # fmt: skip


def plan_sweep(
    task: Task,
    candidates: Sequence[Candidate],
    model: Model,
    dev_share: float,
    seeds: int,
    *,
    processes: int = 1,
    device: str = "auto",
) -> dict[str, Any]:
    """Steps, images, exaFLOPs and seconds: {"dev", "trials": [...], "finals", "total"}.

    "finals" are those of all seeds, if the longest candidate is the best. Steps are timed once for
    all candidates that cost alike. UsageError and DataError as the sweep itself would raise them.
    """
    trial = checked(task, candidates, model, dev_share, seeds, device)
    timed: dict[str, dict[str, Any]] = {}

    def row(label: str, config: TrainConfig, images: int) -> dict[str, Any]:
        net = net_config(config, task, model)
        kind = repr({name: v for name, v in flat(config).items() if name not in OF_NO_COST})
        if kind not in timed:
            timed[kind] = plan(net, config, images, processes=processes, device=device)
        seconds = timed[kind]["seconds_per_step"]
        return {"label": label, **length(net, config, images, seconds, processes)}

    trials = [row(label, config, len(trial.train)) for label, config in candidates]
    on_all = [row(label, config, len(task.train)) for label, config in candidates]
    longest = max(on_all, key=lambda one: (one["seconds"] or 0, one["exaflops"]))
    return {
        "dev": {"share": dev_share, "images": len(trial.val), "train_images": len(trial.train)},
        "trials": trials, "finals": summed([longest] * seeds),
        "total": summed([*trials, *([longest] * seeds)]), "seeds": seeds,
    }  # fmt: skip


def summed(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All of them together; what is not known of one is not known of all."""

    def of_all(name: str) -> Any:
        values = [row[name] for row in rows]
        return None if None in values else sum(values)

    return {name: of_all(name) for name in ("steps", "images_seen", "exaflops", "seconds")}
