"""Which fields of a config nothing reads, as another one is: they are refused, and not shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What is of labels or heads, which learning without labels has none of.
OF_LABELS = (
    "loss", "label_smoothing", "loss_balance", "head_bias", "hidden_head", "linear_probe",
    "head_norm", "data.balance", "distillation.teacher", "lora.rank", "freeze",
)  # fmt: skip
OBJECTIVES = {  # that read a field
    **dict.fromkeys(OF_LABELS, ("supervised",)),
    "masking.rate": ("masked-patches", "mae"),
    "masking.target": ("masked-patches",),
    **dict.fromkeys(("masking.normalised", "masking.decoder_width", "masking.decoder_depth",
                     "masking.decoder_heads"), ("mae",)),
    **dict.fromkeys(("contrastive.temperature", "contrastive.hidden_width", "contrastive.width"),
                    ("simclr",)),
}  # fmt: skip


def unread(values: Mapping[str, Any]) -> dict[str, str]:
    """Every field by its dotted name -> those that are not read, and what would read each."""
    found = {
        name: f"the objective {' or '.join(objectives)}"
        for name, objectives in OBJECTIVES.items()
        if values["objective"] not in objectives
    }
    if values["distillation.targets"] == "hard":
        found["distillation.temperature"] = "distillation.targets soft"
    if not any(values["augment.jitter"]):
        found["augment.jitter_share"] = "augment.jitter"
    return found
