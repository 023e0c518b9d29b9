"""Which weights of a net are trained: all, some by name, or low-rank adapters (LoRA).

What is not trained has `requires_grad` False, which is all that the optimizer, the Polyak average,
the plan of memory and DDP go by. Names are those of the plain net, as bundles have them; only
states of a run hold a net and its adapters apart, and `merged` makes a plain net's weights of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from vitkit.errors import UsageError, named
from vitkit.models.nets import NetConfig, NothingDrawn, make_meta
from vitkit.objectives.learner import Trained
from vitkit.training.config import LoraConfig, TrainConfig
from vitkit.training.head_norm import folded, norm_head
from vitkit.training.learners import learner_of

HEADS = ("head", "head_distillation")  # modules of a net that read its features
# An adapted layer's own weights are in `base_layer`, its adapter in the matrices A and B.
BASE, DOWN, UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


def choose_trained(
    net: nn.Module, freeze: tuple[str, ...], lora: LoraConfig, head_norm: bool = False
) -> None:
    """Put adapters and the head's norm into a net, and freeze what is not to be trained.

    With adapters they and the head alone are trained, but for what `freeze` says. UsageError for a
    pattern or a layer that the net does not have, and where nothing could be learned.
    """
    patterns = list(freeze)
    check_patterns(net, freeze)
    if head_norm:
        norm_head(net)
    if lora.rank:
        put_adapters(net, lora)
        patterns = ["*", "!*.lora_[AB].*", *(f"!{head}.*" for head in HEADS), *patterns]
    elif lora != LoraConfig():
        raise UsageError(
            "lora.alpha, dropout and layers are of adapters, which there are none of; give "
            "--lora.rank as well, or leave them out"
        )
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(is_trained(plain(name), patterns))
    check_learns(net, lora)


def is_trained(name: str, patterns: list[str]) -> bool:
    """What the last pattern that matches says; a weight that none matches is trained."""
    trained = True
    for pattern in patterns:
        if fnmatchcase(name, pattern.removeprefix("!")):
            trained = pattern.startswith("!")
    return trained


def check_patterns(net: nn.Module, freeze: tuple[str, ...]) -> None:
    names = [name for name, _ in net.named_parameters()]
    for pattern in freeze:
        wanted = pattern.removeprefix("!")
        if not any(fnmatchcase(name, wanted) for name in names):
            raise UsageError(
                f"freeze names {pattern!r}, which matches no weight of the net; the nearest are "
                f"{', '.join(nearest(wanted, names))}"
            )


def nearest(pattern: str, names: list[str]) -> list[str]:
    """Three names that begin as the pattern does, as far as any does."""
    beginnings = (pattern[:end] for end in range(len(pattern), -1, -1))
    found = ([name for name in names if name.startswith(one)] for one in beginnings)
    return next(filter(None, found))[:3]


def check_learns(net: nn.Module, lora: LoraConfig) -> None:
    trained = trained_weights(net)
    if not trained:
        raise UsageError("freeze leaves no weight to train; give fewer names, or '!head.*' last")
    for name in HEADS:
        head = getattr(net, name, None)
        if isinstance(head, nn.Linear) and not head.weight.requires_grad:
            raise UsageError(
                f"freeze names the {name}, which starts anew, so that nothing would be learned; "
                f"add '!{name}.*' last"
            )
    if lora.rank and not any(name.endswith(UP) for name in trained):
        raise UsageError(
            "freeze names all adapters; leave --lora.rank out, or give fewer names to freeze"
        )


def put_adapters(net: nn.Module, lora: LoraConfig) -> None:
    """LoRA (arXiv 2106.09685) by peft: x W + alpha / rank x A B, where B is zero at first."""
    layers = {
        name.rsplit(".")[-1]
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[0] not in HEADS
    }
    if not layers:
        raise UsageError(
            f"lora.rank is {lora.rank}, but a net of kind {type(net).__name__} has no dense layers "
            "to adapt; leave it out, and freeze some of its weights by --freeze"
        )
    for layer in lora.layers:
        named("dense layer (lora.layers)", layer, sorted(layers))
    if not lora.layers:
        raise UsageError("lora.layers is empty; name the dense layers to adapt, or leave it out")
    try:
        import peft
    except ImportError as error:
        raise UsageError(
            f"lora.rank is {lora.rank}, and adapters need the library peft: pip install "
            "'vitkit[lora]'"
        ) from error
    inside = "|".join(lora.layers)
    heads = "|".join(HEADS)
    wanted = peft.LoraConfig(
        r=lora.rank, lora_alpha=scale_of(lora) * lora.rank, lora_dropout=lora.dropout,  # type: ignore[arg-type]
        target_modules=rf"(?!(?:{heads})(?:\.|$))(?:.*\.)?(?:{inside})",
    )  # fmt: skip
    check_rank(net, lora)
    meta = next(net.parameters()).is_meta
    peft.inject_adapter_in_model(wanted, net, low_cpu_mem_usage=meta)
    for module in net.modules():
        if hasattr(module, "lora_A"):  # autocast sees to the precision: no copy in float32
            module.cast_input_dtype_enabled = False  # type: ignore[assignment]


def check_rank(net: nn.Module, lora: LoraConfig) -> None:
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Linear) and name.rsplit(".")[-1] in lora.layers:
            most = min(layer.weight.shape)
            if lora.rank > most and name.split(".")[0] not in HEADS:
                raise UsageError(
                    f"lora.rank is {lora.rank}, but {name} has rank {most} itself; give less, or "
                    "train it whole"
                )


def scale_of(lora: LoraConfig) -> float:
    """By what an adapter's product is multiplied."""
    return 1.0 if lora.alpha is None else lora.alpha / lora.rank


def plain(name: str) -> str:
    """The name of a weight in the net without adapters."""
    return name.replace(BASE, ".")


@torch.no_grad()
def merged(weights: Mapping[str, Tensor], lora: LoraConfig) -> dict[str, Tensor]:
    """The state_dict of the plain net that computes what one with adapters, or a norm before its
    head, does."""
    found = {plain(name): t for name, t in weights.items() if not name.endswith((DOWN, UP))}
    for name, up in weights.items():
        if name.endswith(UP):
            layer = name.removesuffix(UP)
            change = up.float() @ weights[layer + DOWN].float()
            weight = found[f"{layer}.weight"]
            found[f"{layer}.weight"] = (weight + scale_of(lora) * change).to(weight.dtype)
    return folded(found)


def trained_weights(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def skeleton(net: NetConfig, config: TrainConfig) -> Trained:
    """What is trained, without memory."""
    made = make_meta(net)
    choose_trained(made, tuple(config.freeze), config.lora, config.head_norm)
    with torch.device("meta"), NothingDrawn():
        return learner_of(made, config)


def counts(net: NetConfig, config: TrainConfig) -> tuple[int, int]:
    """(all weights of the net with its adapters, those of them that are trained), as numbers."""
    made = skeleton(net, config)
    both = (made.parameters(), trained_weights(made).values())
    return tuple(sum(p.numel() for p in some) for some in both)  # type: ignore[return-value]


def batch_norms(net: nn.Module) -> list[Any]:
    """Those that are trained, if only by what they see: that of the head has no weights.

    A frozen one computes by its running statistics, and keeps them.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [n for n in norms if not n.affine or any(p.requires_grad for p in n.parameters())]


def set_to_train(net: nn.Module) -> None:
    """`net.train()`, but for frozen batch norms."""
    net.train()
    learning = {id(norm) for norm in batch_norms(net)}
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and id(module) not in learning:
            module.eval()
