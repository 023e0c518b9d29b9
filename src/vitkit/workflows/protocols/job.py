"""What a protocol works with: the net, the images, and what the net makes of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitkit.data.changed import Changed
from vitkit.data.checks import digest
from vitkit.data.opening import open_data
from vitkit.data.pipeline import evaluation_batches
from vitkit.data.source import Source, Splits, Subset
from vitkit.errors import VitkitError
from vitkit.evaluation.shifts import as_it_is
from vitkit.models.nets import Net, feature_width
from vitkit.prediction import feature_cache
from vitkit.prediction.model import Model
from vitkit.training.world import World, of_all, together, total
from vitkit.workflows.progress import told
from vitkit.workflows.protocols.options import ProtocolOptions

BATCH = 256


@dataclass(frozen=True)
class Job:
    model: Model  # on its device
    data: Any  # DATA as it was given, or its splits
    train: Splits | None = None  # where to take shots or neighbours from; None: DATA's own
    options: ProtocolOptions = field(default_factory=ProtocolOptions)
    world: World = field(default_factory=World)  # every process sees all results
    threads: int = 2
    cache: bool = True  # whether to keep features and logits, and to take those that are kept

    @property
    def splits(self) -> Splits:
        return open_data(self.data)  # which is opened already, but for vtab

    @property
    def folder(self) -> Path | None:
        """DATA where it is one folder."""
        words = [self.data] if isinstance(self.data, str | Path) else self.data
        if isinstance(words, list | tuple) and len(words) == 1 and Path(words[0]).is_dir():
            return Path(words[0])
        return None

    @property
    def name(self) -> str:
        """What DATA is called."""
        if isinstance(self.data, Splits):
            return self.data.name
        if self.folder is None and isinstance(self.data, list | tuple):
            return ", ".join(map(str, self.data))
        return str(self.folder or self.data)

    @property
    def scored(self) -> Source:
        """The images to score: to test on where there are some, else to validate on, else all."""
        return self.splits.test or self.splits.val or self.splits.train

    @property
    def split(self) -> str:
        """Which of DATA's images `scored` are."""
        if not isinstance(self.data, Splits):
            return "tasks"
        return "test" if self.splits.test else "validation" if self.splits.val else "all"

    def of_ready(self) -> Job:
        """The same, for pictures that are ready for the net: they are neither cropped nor, where
        they have the net's size, resized."""
        model, preprocessing = self.model, as_it_is(self.model.preprocessing)
        reading = Model(model.net, model.class_names, preprocessing, model.provenance)
        return replace(self, model=reading)

    def features(self, source: Source) -> tuple[Tensor, Tensor]:
        """(N, D) float32 that the head reads, and labels (N,) or (N, K); every image once.

        DataError for a bad image. In a run of several processes all call it, and all get all.
        """
        return self.seen(source, "features"), labels_of(source)

    def logits(self, source: Source) -> tuple[Tensor, Tensor]:
        """(N, K) float32 and labels (N,) or (N, K) of the data's numbering; as `features`."""
        return self.seen(source, "logits"), labels_of(source)

    def seen(self, source: Source, what: str) -> Tensor:
        """What the net makes of every image, in order: kept, or computed now and kept.

        VitkitError where it is not numbers, of which no protocol can tell anything.
        """
        if not len(source):
            raise VitkitError("no images to evaluate")
        if not self.cache or isinstance(source, Changed):  # of which there may be very many
            return finite(self.computed(source, what), what)
        of_images = together(source.fingerprint)
        key = digest([what, self.net_fingerprint, of_images])[:32]
        kept = feature_cache.find(key, len(source), width_of(self.model.net, what))
        if all(of_all(kept is not None)):  # machines have caches of their own
            assert kept is not None
            return finite(torch.from_numpy(kept), what)
        values = finite(self.computed(source, what), what)
        if self.world.main:
            feature_cache.keep(key, values.numpy())
        return values

    def computed(self, source: Source, what: str) -> Tensor:
        """The same, computed: each process takes whole batches, which hold the same images however
        many processes there are, so that the values have the same bits."""
        function = self.model.net.features if what == "features" else self.model.net
        mine = np.arange(len(source))
        mine = mine[mine // BATCH % self.world.size == self.world.rank]
        share = source if self.world.size == 1 else Subset(source, mine)

        def own() -> Tensor | None:
            batches = evaluation_batches(share, self.model.preprocessing, BATCH, self.threads)
            batches = told(batches, len(share), what, quiet=not self.world.main)
            parts = [self.model.run(function, batch.images) for batch in batches]
            return torch.cat(parts) if parts else None

        values = together(own)
        if self.world.size == 1:
            return values
        widths = of_all(0 if values is None else values.shape[1])
        whole = torch.zeros(len(source), max(widths))
        if values is not None:
            whole[torch.from_numpy(mine)] = values
        return total(whole)

    @cached_property
    def net_fingerprint(self) -> str:
        """A hash that changes with all that decides what the net makes of an image."""
        device = next(self.model.net.parameters()).device
        parts: list[str | bytes | memoryview] = [
            repr(self.model.net.config), repr(self.model.preprocessing), version("vitkit"),
            torch.__version__, device.type, torch.get_float32_matmul_precision(),
            str((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)),
        ]  # fmt: skip
        for name, tensor in self.model.net.state_dict().items():
            values = tensor.detach().cpu().contiguous()
            parts += [f"{name} {values.dtype} {tuple(values.shape)}"]
            parts += [memoryview(values.view(-1).view(torch.uint8).numpy())]
        return digest(parts)


def finite(values: Tensor, what: str) -> Tensor:
    """The same (N, D); VitkitError where some are not finite."""
    bad = int((~torch.isfinite(values)).any(1).sum())
    if bad:
        raise VitkitError(
            f"the {what} of {bad:,} of {len(values):,} images are not finite; the net's weights "
            "are damaged, or its training diverged"
        )
    return values


def width_of(net: Net, what: str) -> int:
    """How many features or logits an image has; a net without a head gives its features."""
    if what == "logits" and net.config.classes:
        return net.config.classes
    return feature_width(net)


def labels_of(source: Source) -> Tensor:
    """(N,) int64, or of images with several labels (N, K) float32 of zeros and ones."""
    if source.multi_label:
        return torch.from_numpy(source.labels.toarray().astype(np.float32))
    return torch.from_numpy(np.array(source.labels, dtype=np.int64))
