"""What `vitkit recipes` shows: each recipe's words, settings and cost; docs/recipes.md."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitkit.files import write_whole
from vitkit.objectives.settings import DistillationConfig
from vitkit.recipes import FINETUNE, PRETRAIN, USUAL_NET, find, planning
from vitkit.recipes.recipe import Recipe
from vitkit.training.config import TrainConfig, flat
from vitkit.training.unread import unread
from vitkit.workflows.plan import length, seconds_on
from vitkit.workflows.pretrain import net_config

HEAD = (
    "Written by `vitkit recipes -o docs/recipes.md`; `vitkit recipes NAME` shows one. A recipe is "
    "a function in `src/vitkit/recipes/`; any setting is overridden by its name "
    "(`--optimizer.weight-decay 0.03`). Costs are those of `vitkit plan --recipe NAME "
    "--accelerator TPUv3`: exaFLOPs as the paper's Table 6 counts them, days of a TPUv3 core at an "
    "assumed 40 % of its peak. Expected results are what the named source states; a result is "
    "measured only where it says so."
)
CHIP = "TPUv3"  # a core of it: the paper counts its days
# Groups and fields that say how a machine is used, not what is computed.
ASIDE = ("data.", "guard.", "engine.", "threads", "precision", "evaluate_every", "save_", "log_",
         "recipe", "seed", "accumulation")  # fmt: skip
NOTHING = (
    None,
    False,
    0,
    "none",
    (),
    (0.0, 0.0, 0.0, 0.0),
)  # a default that is one of these is unsaid


def every(name: str | None = None) -> Iterator[tuple[str, str, Recipe]]:
    """(verb, name, recipe) of all recipes, or of those with this name."""
    for verb, recipes in (("pretrain", PRETRAIN), ("finetune", FINETUNE)):
        for known, recipe in recipes.items():
            if name in (None, known):
                yield verb, known, recipe


def described(verb: str, name: str, recipe: Recipe) -> dict[str, Any]:
    """Everything of a recipe as plain values; settings and costs where it knows its data."""
    text = inspect.getdoc(recipe.make) or ""
    config = None if recipe.data is None else planning(name, recipe.data)
    return {
        "recipe": name, "verb": verb, "for": text.partition("\n")[0], "nets": list(recipe.nets),
        "text": text, "family": inspect.getdoc(inspect.getmodule(recipe.make)) or "",
        "settings": None if config is None else settings(config),
        "length": None if config is None else length_of(config),
        "choice": choice(recipe), "dev_share": recipe.dev_share,
        "costs": [] if config is None else [
            cost(name, net) for net in recipe.nets or (USUAL_NET,)
        ],
    }  # fmt: skip


def cost(name: str, net: str) -> dict[str, Any]:
    """exaFLOPs and TPUv3-core-days of a recipe with a net, on the data it was written for.

    As `vitkit plan --recipe NAME --accelerator TPUv3` has them; the share of the peak is assumed
    (vitkit.training.accelerators).
    """
    data = find(name)[1].data
    assert data is not None
    config = planning(name, data, net, any_net=True)
    shape = net_config(config, data.classes)
    seconds = seconds_on(CHIP, shape, config, "bf16", 1)
    found = length(shape, config, data.images, seconds, 1)
    return {"net": net, "exaflops": found["exaflops"], "core_days": found["device_days"]}


def choice(recipe: Recipe) -> str:
    """What its authors choose among, in words; "" where they choose nothing."""
    if not recipe.learning_rates:
        return ""
    rates = ", ".join(map(spelt, recipe.learning_rates))
    more = ", ".join(map(spelt, recipe.further_rates))
    by = "" if recipe.dev_share is None else f", by {recipe.dev_share:.0%} of the training images"
    return f"Learning rates: {rates}{f', of ResNets and hybrids {more} too' if more else ''}{by}."


def length_of(config: TrainConfig) -> str:
    return f"{config.steps:,} steps" if config.steps else f"{config.epochs:g} epochs"


def settings(config: TrainConfig) -> dict[str, Any]:
    """The fields that decide what is computed, by dotted name; those that say nothing left out."""
    by_adam = config.optimizer.name == "adamw"
    unused = {"optimizer.momentum"} if by_adam else {"optimizer.betas"}
    schedule = config.schedule
    unused |= {"schedule.linear_end"} if schedule.kind != "linear" else set()
    unused |= {"schedule.stairs"} if schedule.kind != "stairs" else set()
    unused |= {"schedule.warmup_share"} if schedule.warmup_steps is not None else set()
    unused |= {"optimizer.layer_decay"} if config.optimizer.layer_decay == 1 else set()
    unused |= {"lora.layers"} if not config.lora.rank else set()
    unused |= set() if config.self_supervised else {"objective"}
    values, usual = flat(config), flat(TrainConfig())
    unused |= unread(values).keys()
    aside = ASIDE
    if config.distillation == DistillationConfig():
        aside += ("distillation.",)
    return {
        name: value
        for name, value in values.items()
        if not name.startswith(aside)
        and name not in unused
        and not (value == usual[name] and value in NOTHING)
    }


def in_lines(values: dict[str, Any], width: int = 96) -> str:
    """Settings as text of lines at most so wide, a value not broken from its name."""
    hard = "\u00a0"  # stands for a space that is no place to break
    items = [f"{name}{hard}{spelt(value).replace(' ', hard)}" for name, value in values.items()]
    return textwrap.fill(", ".join(items), width, break_on_hyphens=False).replace(hard, " ")


def spelt(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(spelt, value)) if isinstance(value, tuple) else str(value)


def write_page(path: Path) -> None:
    """The page of all recipes, docs/recipes.md."""
    write_whole(path, page())


def page() -> str:
    """All recipes as Markdown."""
    rows = [described(*known) for known in every()]
    lines = [
        "# Recipes",
        "",
        textwrap.fill(HEAD, 100, break_on_hyphens=False),
        "",
        "| recipe | verb | what for | length |",
        "| --- | --- | --- | --- |",
        *(
            f"| [{row['recipe']}](#{anchor(row)}) | {row['verb']} | {row['for']} | "
            f"{row['length'] or 'as you say'} |"
            for row in rows
        ),
    ]
    family = None
    for row in rows:
        if row["family"] != family:
            family = row["family"]
            title, _, rest = family.partition("\n")
            lines += ["", f"## {title.rstrip('.')}", *([rest.rstrip()] if rest.strip() else [])]
        lines += ["", f"### {row['verb']}: {row['recipe']}", "", row["text"]]
        lines += ["", row["choice"]] if row["choice"] else []
        if row["settings"]:
            lines += ["", f"Settings with {row['settings']['model']}:", ""]
            lines += [textwrap.indent(in_lines(row["settings"]), "    ")]
    return "\n".join(lines) + "\n"


def anchor(row: dict[str, Any]) -> str:
    """What Markdown makes of the heading."""
    return f"{row['verb']}-{row['recipe']}"
