"""vitkit: the Vision Transformer, complete. Names are imported when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitkit.models.positions import resize_positions as resize_positions
    from vitkit.models.variants import build as build
    from vitkit.prediction.model import load as load
    from vitkit.workflows.convert import convert as convert
    from vitkit.workflows.demo import demo as demo
    from vitkit.workflows.evaluate import evaluate as evaluate
    from vitkit.workflows.finetune import finetune as finetune
    from vitkit.workflows.inspect import inspect as inspect
    from vitkit.workflows.pretrain import pretrain as pretrain
    from vitkit.workflows.selftrain import selftrain as selftrain
    from vitkit.workflows.sweep import sweep as sweep

FACE = {
    "build": "vitkit.models.variants",
    "convert": "vitkit.workflows.convert",
    "resize_positions": "vitkit.models.positions",
    "load": "vitkit.prediction.model",
    "pretrain": "vitkit.workflows.pretrain",
    "finetune": "vitkit.workflows.finetune",
    "selftrain": "vitkit.workflows.selftrain",
    "sweep": "vitkit.workflows.sweep",
    "evaluate": "vitkit.workflows.evaluate",
    "inspect": "vitkit.workflows.inspect",
    "demo": "vitkit.workflows.demo",
}
PACKAGES = ("evaluation", "inspection", "recipes", "training")

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "build",
    "convert",
    "demo",
    "evaluate",
    "finetune",
    "inspect",
    "load",
    "pretrain",
    "resize_positions",
    "selftrain",
    "sweep",
]


def __getattr__(name: str):
    if name in FACE:
        return getattr(import_module(FACE[name]), name)
    if name in PACKAGES:
        return import_module(f"vitkit.{name}")
    raise AttributeError(f"module 'vitkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *PACKAGES])
