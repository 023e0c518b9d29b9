"""All that changes while a run trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitkit.training.parallel import gathered, reshard
from vitkit.training.trained import trained_weights

REMEMBERED = 100  # losses, to tell what is usual


@dataclass
class TrainState:
    """All that changes while a run trains. The random draws are functions of (seed, position).

    Weights, optimizer and average may be sharded over the run's processes; the rest is the same in
    all of them.
    """

    net: nn.Module
    forward: nn.Module  # what computes logits: the net, or a wrapper that exchanges gradients
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor] | None  # the Polyak average of what is trained
    parts: int = 1  # in which a batch is worked through
    step: int = 0  # steps done
    position: int = 0  # number in the stream of the batch that comes next
    evaluated_at: int = 0  # the step of the newest evaluation
    best: dict[str, Any] = field(default_factory=dict)  # the evaluation with the best headline
    without_better: int = 0  # evaluations in a row since that one
    rewinds: int = 0  # times that a loss spike took the run back
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))  # the newest
    first_loss: float = 0.0  # the highest of the first ones, which an untrained net had
    logged_bytes: int = 0  # of metrics.jsonl

    def __post_init__(self) -> None:
        device = next(self.net.parameters()).device
        self.skipped = torch.zeros((), device=device)  # steps whose gradient was not finite
        self.hold = torch.zeros((), device=device)  # 1 where this step must change nothing

    def note(self, norm: Tensor, limit: int) -> None:
        """Decide, on the device, whether a step with a gradient of this norm changes anything.

        After more than `limit` gradients that were not finite none does.
        """
        bad = (~torch.isfinite(norm)).float()
        gone = (self.skipped > limit).float()
        self.skipped = self.skipped + bad * (1 - gone)
        self.hold = torch.maximum(bad, gone)

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """After a step: average = decay average + (1 - decay) weights; the weights at the first.

        Not after a step that changes nothing.
        """
        if self.average is None:
            return
        weights = [parameter.detach() for parameter in trained_weights(self.net).values()]
        share: Any = 1.0 if self.step == 0 else 1 - decay
        if self.hold.device.type == "cuda":  # which is not waited for
            share = share * (1 - self.hold)
        elif self.hold:
            return
        for kept, weight in zip(self.average.values(), weights, strict=True):
            kept.lerp_(weight, share)

    @contextmanager
    @torch.no_grad()
    def averaged(self) -> Iterator[nn.Module]:
        """The net that is evaluated: with the average, where there is one, in place of weights."""
        self.exchange()
        try:
            yield self.net
        finally:
            reshard(self.net)
            self.exchange()

    @torch.no_grad()
    def exchange(self) -> None:
        weights = trained_weights(self.net)
        for name, average in (self.average or {}).items():
            kept = weights[name].detach().clone()
            weights[name].copy_(average)
            average.copy_(kept)

    def evaluated(self) -> dict[str, Tensor]:
        """The state_dict of the net that is evaluated and saved as a bundle, whole, on the CPU.

        Adapters are still apart (trained.merged).
        All processes must ask for it; only the main one gets it, the others an empty one.
        """
        return gathered({**self.net.state_dict(), **(self.average or {})})

    def progress(self) -> dict[str, Any]:
        """All of it but the tensors of net, average and optimizer; waits for the device."""
        return {
            "step": self.step, "position": self.position, "parts": self.parts,
            "evaluated_at": self.evaluated_at, "best": self.best,
            "without_better": self.without_better, "skipped": int(self.skipped),
            "rewinds": self.rewinds, "losses": list(self.losses), "first_loss": self.first_loss,
            "logged_bytes": self.logged_bytes,
        }  # fmt: skip

    def restore(self, progress: dict[str, Any]) -> None:
        """The reverse of `progress`; memory that did not suffice then does not suffice now."""
        self.step, self.position = progress["step"], progress["position"]
        self.parts = max(progress["parts"], self.parts)
        self.evaluated_at, self.best = progress["evaluated_at"], progress["best"]
        self.without_better = progress.get("without_better", 0)
        self.skipped = torch.full_like(self.skipped, progress["skipped"])
        self.hold = torch.zeros_like(self.hold)
        self.rewinds = progress["rewinds"]
        self.losses = deque(progress["losses"], maxlen=REMEMBERED)
        self.first_loss = progress["first_loss"]
        self.logged_bytes = progress["logged_bytes"]
