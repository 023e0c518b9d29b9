"""`vitkit finetune DATA --from CHECKPOINT --sweep ...`: hyper-parameters chosen on a dev split."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitkit.errors import UsageError
from vitkit.terminal import print_columns, printable
from vitkit.training.config import TrainConfig, to_json
from vitkit.training.grid import Candidate, grid, values_in
from vitkit.words import Finetune, given_in, parse, with_length

if TYPE_CHECKING:
    from vitkit.prediction.model import Model
    from vitkit.workflows.sweep import Sweep
    from vitkit.workflows.task import Task

OWN = "recipe"  # --sweep recipe: the recipe's own candidates


def check_words(words: Finetune) -> None:
    """UsageError for what can be seen to be wrong before data and checkpoint are opened."""
    for name in ("dev_share", "seeds"):
        if getattr(words, name) is not None and not words.sweep:
            raise UsageError(f"--{name.replace('_', '-')} is for a sweep; add --sweep, or drop it")
    if OWN in words.sweep and len(words.sweep) > 1:
        raise UsageError("--sweep recipe takes the recipe's own candidates; drop the other --sweep")
    if OWN not in words.sweep:
        values_in(words.sweep)


def sweep(words: Finetune, argv: list[str], task: Task, model: Model) -> Any:
    from vitkit.workflows.sweep import sweep_on, usual_share

    candidates = candidates_of(words, argv, task, model)
    share = words.dev_share if words.dev_share is not None else usual_share(words.config.recipe)
    seeds = 1 if words.seeds is None else words.seeds
    if words.dry_run:
        return dry_run(words, task, model, candidates, share, seeds)
    found = sweep_on(
        task, candidates, model, words.checkpoint, dev_share=share, seeds=seeds, out=words.out,
        resume=words.resume, device=words.device,
    )  # fmt: skip
    print_sweep(found)
    net = found.final / "last"  # whose score was told; best/ is the best of several evaluations
    print(printable(f"Next: vitkit predict {net} IMAGES/ -o predictions.csv"))
    return words, {"sweep": str(found.folder), "final": str(found.final), **found.record}


def candidates_of(words: Finetune, argv: list[str], task: Task, model: Model) -> list[Candidate]:
    """The points of the grid, or the recipe's own with the words put over each of them."""
    from vitkit.workflows.sweep import recipe_candidates

    if words.sweep == (OWN,):
        own = recipe_candidates(
            task, words.config.recipe, model, words.any_net, words.regularisation
        )
        # The words name the recipe; a rival that is one of the candidates keeps its own name.
        return [(label, replace(told(config, argv), recipe=config.recipe)) for label, config in own]
    return grid(words.config, values_in(words.sweep), given_in(argv))


def told(config: TrainConfig, argv: list[str]) -> TrainConfig:
    """A config with the words put over it."""
    return with_length(parse(Finetune(config=config), "finetune", argv), argv).config


def dry_run(
    words: Finetune, task: Task, model: Model, candidates: list[Candidate], share: float, seeds: int
) -> Any:
    """What a sweep would take, a row for each candidate."""
    from vitkit.reports.plans import clock
    from vitkit.workflows.sweep import opening
    from vitkit.workflows.sweep_plan import plan_sweep

    found = plan_sweep(
        task, candidates, model, share, seeds, processes=words.gpus or 1, device=words.device
    )
    print("\n".join(map(printable, opening(task, found["dev"], candidates, seeds).split("\n"))))
    print()

    def line(title: str, row: dict[str, Any]) -> tuple[str, ...]:
        time = "" if row["seconds"] is None else clock(row["seconds"])
        return title, f"{row['steps']:,}", f"{row['images_seen']:,}", f"{row['exaflops']:.2g}", time

    print_columns(
        ("", "steps", "images seen", "exaFLOPs", "time"),
        [
            *(line(row["label"], row) for row in found["trials"]),
            line(f"the best on all images, {seeds} seed(s), at most", found["finals"]),
            line("in all, at most", found["total"]),
        ],
        right=(1, 2, 3, 4),
    )  # fmt: skip
    print("evaluation, and images that load more slowly, come on top")
    print("Next: the same command without --dry-run")
    points = [{"label": label, "config": to_json(config)} for label, config in candidates]
    return words, {"candidates": points, "plan": found}


def print_sweep(found: Sweep) -> None:
    """A row for each candidate, the chosen one marked, and for each seed; then the mean."""
    from vitkit.training.log import headline

    metric = found.record["result"]["metric"]
    images = found.record["dev"]["images"]
    print_columns(
        ("candidate", f"{metric} of {images:,} dev images", "seconds", ""),
        [
            (row["label"], share(row["score"]), f"{row.get('seconds', 0):,.0f}",
             "chosen" if row["label"] == found.choice else row.get("problem", "").split(":")[0])
            for row in found.trials
        ],
        right=(1, 2),
    )  # fmt: skip
    metrics = [row["metrics"] for row in found.finals]
    print()
    print_columns(
        ("trained on all images", f"{metric} of {metrics[0]['images']:,} held-out images",
         "seconds"),
        [
            (f"seed {row['seed']}", share(headline(row["metrics"])[1]), f"{row['seconds']:,.0f}")
            for row in found.finals
        ],
        right=(1, 2),
    )  # fmt: skip
    result = found.record["result"]
    value = f"{result['mean']:.2%}"
    if result["deviation"] is not None:
        value += (
            f" ± {100 * result['deviation']:.2f} over {result['seeds']} seeds (sample deviation)"
        )
    print(f"\n{printable(found.choice)}: {metric} {value}")


def share(score: float | None) -> str:
    return "none" if score is None else f"{score:.2%}"
