"""`load` any supported checkpoint; `Model` turns files, bytes and pictures into predictions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitkit.checkpoints.bundle import WEIGHTS, Bundle, is_bundle, read_bundle, write_bundle
from vitkit.checkpoints.containers import FOLDER_FILES, TORCH_SUFFIXES
from vitkit.checkpoints.convert import read_with_keys
from vitkit.checkpoints.hub import fetch, is_remote
from vitkit.checkpoints.problems import CheckpointError
from vitkit.checkpoints.published import PUBLISHED, row_of
from vitkit.data.decode import ImageError, decode, decode_by_pillow
from vitkit.data.formats.folders import images_in
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError, VitkitError
from vitkit.models.nets import Net

Picture = str | Path | bytes | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class Prediction:
    """What the net says of one image."""

    image: str  # its path, or its place in what was given
    top: tuple[tuple[str, float], ...] = ()  # (class name, probability), the likeliest first
    error: str | None = None  # why there is no prediction

    @property
    def label(self) -> str | None:
        """The likeliest class."""
        return self.top[0][0] if self.top else None

    @property
    def probability(self) -> float | None:
        return self.top[0][1] if self.top else None


class Model:
    """A net in eval mode with what it needs to be used."""

    def __init__(
        self,
        net: Net,
        class_names: Sequence[str],
        preprocessing: Preprocessing,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        if len(class_names) != net.config.classes:
            raise CheckpointError(
                f"{len(class_names)} class names given for a net of {net.config.classes} classes"
            )
        if preprocessing.image_size != net.config.image_size:
            made, read = ("x".join(map(str, size)) for size in (
                preprocessing.image_size, net.config.image_size))  # fmt: skip
            raise CheckpointError(
                f"the preprocessing makes images of {made} pixels (height x width), but the net "
                f"reads {read}; give a preprocessing of that size"
            )
        self.net = net.eval()
        self.class_names = list(class_names)
        self.preprocessing = preprocessing
        self.provenance = provenance or {}

    def predict(
        self, images: Picture | Iterable[Picture], top: int = 5, batch_size: int = 32
    ) -> list[Prediction]:
        """Predictions in order, one for each image, with the `top` likeliest classes.

        `images` is a path, a folder (every image in it, at any depth), encoded bytes, a PIL image,
        a uint8 array (H, W), (H, W, 3) or (N, H, W, 3), or several of these. An image that cannot
        be read gives a Prediction with its `error`; a path that does not exist is a VitkitError.
        """
        at_least_one("top", top)
        if not self.class_names:
            raise UsageError(
                "this net has no head, so it predicts no classes; use its features, or fine-tune it"
            )
        predictions = []
        for group in grouped(self.prepared(images), batch_size):
            tensors = [tensor for _, tensor in group if isinstance(tensor, Tensor)]
            logits = iter(self.run(self.net, torch.stack(tensors)) if tensors else ())
            for name, tensor in group:
                if isinstance(tensor, ImageError):
                    predictions.append(Prediction(name, error=str(tensor)))
                    continue
                shares, order = self.shares(next(logits)).topk(min(top, len(self.class_names)))
                ranked = zip(order.tolist(), shares.tolist(), strict=True)
                predictions.append(
                    Prediction(name, tuple((self.class_names[i], share) for i, share in ranked))
                )
        return predictions

    def shares(self, logits: Tensor) -> Tensor:
        """Logits (K,) -> probabilities (K,): of one class among all, or where the net was trained
        on images of several labels of each class by itself."""
        several = self.provenance.get("multi_label") is True
        return logits.sigmoid() if several else logits.softmax(-1)

    def features(self, images: Picture | Iterable[Picture], batch_size: int = 32) -> np.ndarray:
        """(N, D) float32: what the final linear layer reads. Raises ImageError for a bad image."""
        rows = []
        for group in grouped(self.prepared(images), batch_size):
            for name, tensor in group:
                if isinstance(tensor, ImageError):
                    raise ImageError(f"{name}: {tensor}")
            tensors = torch.stack([tensor for _, tensor in group if isinstance(tensor, Tensor)])
            rows.append(self.run(self.net.features, tensors).numpy())
        return np.concatenate(rows)

    def save(self, path: str | Path) -> None:
        """Write a bundle."""
        write_bundle(path, Bundle(self.net, self.class_names, self.preprocessing, self.provenance))

    def to(self, device: torch.device | str) -> Model:
        """Move the net to a device; predictions come back to the CPU."""
        self.net.to(device)
        return self

    @torch.inference_mode()
    def run(self, function, images: Tensor) -> Tensor:
        device = next(self.net.parameters()).device
        return function(images.to(device)).float().cpu()

    def prepared(
        self, images: Picture | Iterable[Picture]
    ) -> Iterator[tuple[str, Tensor | ImageError]]:
        """(name, tensor (3, H, W)) for each image, or (name, what is wrong with it)."""
        found = False
        for name, picture in pictures(images):
            found = True
            try:
                yield name, self.preprocessing(to_pixels(picture))
            except ImageError as error:
                yield name, error
            except OSError as error:
                yield name, ImageError(f"cannot be read: {error.strerror or error}")
        if not found:
            raise VitkitError("no images given; expected files, folders with images, or pictures")


def load(
    path: str | Path,
    *,
    revision: str | None = None,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
) -> Model:
    """A Model from any checkpoint that docs/checkpoints.md lists, its architecture inferred.

    `path` is a bundle, a run directory (its best net), a file (.npz, .safetensors, .pth, .bin), a
    folder of timm's or Hugging Face's layout, "hf:owner/name" (at `revision`), or the name of
    published weights (`vitkit models --published`); only the last two use the network.
    `preprocessing` and `class_names` replace what the checkpoint says or lacks. Raises
    CheckpointError where it is damaged or not one of these.
    """
    known = published_preprocessing(path)
    place = checkpoint_at(path, revision)
    bundle = read_bundle(place) if is_bundle(place) else read_with_keys(place, known).bundle
    return Model(
        bundle.net,
        bundle.class_names if class_names is None else class_names,
        bundle.preprocessing if preprocessing is None else preprocessing,
        bundle.provenance,
    )


def published_preprocessing(checkpoint: str | Path) -> Preprocessing | None:
    """That of published weights by name that have no JSON beside them to say it."""
    row = row_of(str(checkpoint)) if is_remote(str(checkpoint)) else None  # no folder of that name
    return row.preprocessing if row is not None and row.where.startswith("https://") else None


def checkpoint_at(checkpoint: str | Path, revision: str | None = None) -> Path:
    """The file or folder that a checkpoint's name means: of a run its best net; fetched if remote.

    Raises CheckpointError where there is nothing.
    """
    path = Path(checkpoint).expanduser()
    if is_remote(str(checkpoint)):
        path = fetch(str(checkpoint), revision)
    elif revision is not None:
        raise UsageError(f"revision {revision!r} is for hf:owner/name, and {path} is not that")
    if not path.exists():
        files = ", ".join((".npz", ".safetensors", *TORCH_SUFFIXES))
        near = get_close_matches(str(checkpoint).lower(), PUBLISHED, n=3, cutoff=0.7)
        meant = f"; did you mean the published {' or '.join(near)}?" if near else ""
        raise CheckpointError(
            f"{path}: no such checkpoint; expected a bundle, a run, a file ({files}), "
            f"hf:owner/name or published weights (vitkit models --published){meant}"
        )
    if path.name == WEIGHTS and is_bundle(path.parent):
        return path.parent
    bundle = next((f for f in (path, path / "best", path / "last") if is_bundle(f)), None)
    if bundle is None and path.is_dir() and not any((path / n).exists() for n in FOLDER_FILES):
        raise CheckpointError(
            f"{path}: neither a bundle (config.json, model.safetensors) nor a run with best/, nor "
            "a folder with weights of timm's or Hugging Face's layout"
        )
    return bundle or path


def pictures(images: Picture | Iterable[Picture]) -> Iterator[tuple[str, Picture]]:
    """Each single image with a name; folders are opened, and stacks of arrays taken apart."""
    single = isinstance(images, str | Path | bytes | Image.Image)
    if isinstance(images, np.ndarray | Tensor):
        single = images.ndim < 4
    given: Iterable[Picture] = [images] if single else images  # type: ignore[assignment]
    if isinstance(given, Collection):  # the last path too, before hours of work on the others
        for picture in given:
            if isinstance(picture, str | Path):
                existing(picture)
    for number, picture in enumerate(given):
        if not isinstance(picture, str | Path):
            yield f"image {number}", picture
            continue
        path = existing(picture)
        if path.is_dir():
            yield from ((str(file), file) for file in images_in(path))
        else:
            yield str(path), path


def existing(picture: str | Path) -> Path:
    path = Path(picture).expanduser()
    if not path.exists():
        raise VitkitError(f"{path}: no such image or folder")
    return path


def to_pixels(picture: Picture) -> Tensor:
    """One image of any kind -> uint8 (3, H, W). Raises ImageError."""
    if isinstance(picture, str | Path):
        return decode(Path(picture).read_bytes())
    if isinstance(picture, bytes):
        return decode(picture)
    if isinstance(picture, Image.Image):
        if 0 in picture.size:
            raise ImageError(f"a picture of {picture.width}x{picture.height} pixels")
        try:
            return decode_by_pillow(picture)
        except Exception as error:  # Pillow decodes only now, and raises many kinds
            raise ImageError(f"cannot be decoded: {error}") from error
    array = np.asarray(picture)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ImageError(f"{array.dtype} array of shape {array.shape}; expected uint8 (H, W, 3)")
    return torch.from_numpy(array.transpose(2, 0, 1).copy())


def at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"{name} is {value}; it must be 1 or more")


def grouped(items: Iterable, batch_size: int) -> Iterator[list]:
    at_least_one("batch_size", batch_size)
    iterator = iter(items)
    while group := list(islice(iterator, batch_size)):
        yield group
