"""Foreign checkpoints -> a net: a key table applied strictly, the architecture inferred."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import torch

from vitkit.checkpoints.bundle import Bundle, CheckpointError, net_from_state
from vitkit.checkpoints.keymaps import NPZ, NPZ_OLDER_NAMES, NPZ_PREFIXES, Layout
from vitkit.data.transforms import Preprocessing
from vitkit.models.vit import ViTConfig

Arrays = dict[str, np.ndarray]
BFLOAT16 = np.dtype("V2")  # how numpy stores JAX's: two bytes of no type
DEFLATE_AT_BEST = 1032  # bytes that one byte can become (zlib.net/zlib_tech.html)


def read_npz(path: str | Path) -> Bundle:
    """The authors' ViT checkpoints (.npz; original, AugReg; old and new Flax key names).

    Class names and preprocessing are not in them: ImageNet's names are used for 1,000 classes,
    numbers otherwise, and the authors' direct resize. Raises CheckpointError.
    """
    arrays = load_arrays(Path(path))
    config = infer_config(arrays, str(path))
    state = {}
    used = set()
    for row in NPZ:
        for block in range(config.depth) if "{i}" in row.ours else (0,):
            theirs = [name.format(i=block) for name in row.theirs]
            used.update(theirs)
            if not all(name in arrays for name in theirs):
                continue  # net_from_state names what is missing
            if len({arrays[name].shape for name in theirs}) > 1:
                raise CheckpointError(f"{path}: {', '.join(theirs)} are not of one shape")
            parts = [
                torch.from_numpy(to_ours(arrays[name], row.layout, name, path)) for name in theirs
            ]
            state[row.ours.format(i=block)] = torch.cat(parts) if len(parts) > 1 else parts[0]
    unused = sorted(set(arrays) - used)
    if unused:
        raise CheckpointError(
            f"{path}: holds {', '.join(unused[:3])}{' ...' if len(unused) > 3 else ''}, which a "
            "Vision Transformer does not have; it is a checkpoint of another architecture"
        )
    net = net_from_state(config, state, str(path))
    provenance = {"source": str(path), "format": "npz"}
    return Bundle(
        net, default_names(config.classes), Preprocessing.direct(config.image_size), provenance
    )


def load_arrays(path: Path) -> Arrays:
    """All arrays of an .npz under today's names; pickled objects are refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = path.stat().st_size
            arrays = {
                info.filename.removesuffix(".npy"): load_array(archive, info, size)
                for info in archive.infolist()
            }
    # On hostile bytes zipfile, zlib, numpy and the Python parser that it reads headers with raise
    # a dozen kinds: NotImplementedError, zlib.error, TokenError, MemoryError, RecursionError, ...
    except Exception as error:
        what = str(error) or type(error).__name__
        raise CheckpointError(f"{path}: truncated, damaged or not an .npz file: {what}") from error
    for prefix in NPZ_PREFIXES:
        if any(name.startswith(prefix) for name in arrays):
            arrays = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    # Old files have LayerNorm_0 and _2 in a block, new ones _0 and _1: the marks never mix.
    for old, new in NPZ_OLDER_NAMES:
        arrays = {name.replace(old, new): array for name, array in arrays.items()}
    return arrays


def load_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, archive_size: int) -> np.ndarray:
    """One member; the sizes that it claims are checked before memory is taken for them."""
    growth = DEFLATE_AT_BEST if info.compress_type == zipfile.ZIP_DEFLATED else 1
    if info.file_size > growth * archive_size:
        raise ValueError(f"{info.filename} cannot be {info.file_size} bytes in this file")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        # Versions 2 and 3 differ only in how they encode the names of a struct's fields.
        first = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds pickled objects, which are never loaded")
        expected, found = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
        if expected != found:
            raise ValueError(f"{info.filename} has {found} bytes of data instead of {expected}")
        member.seek(0)
        return np.lib.format.read_array(member, allow_pickle=False)


def infer_config(arrays: Arrays, source: str) -> ViTConfig:
    """The architecture from the shapes alone."""
    query = "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"
    mlp = "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel"
    positions = "Transformer/posembed_input/pos_embedding"
    needed = {"embedding/kernel": 4, query: 3, mlp: 2, positions: 3, "head/kernel": 2}
    for name, dimensions in needed.items():
        if name not in arrays or arrays[name].ndim != dimensions:
            found = ", ".join(sorted(arrays)[:3]) or "nothing"
            raise CheckpointError(
                f"{source}: has no usable {name}, so it is not a Vision Transformer of the "
                f"authors' code (it holds {found} ...)"
            )
    patch, _, _, width = arrays["embedding/kernel"].shape
    prefix = 1 if "cls" in arrays else 0
    patches = arrays[positions].shape[1] - prefix
    side = math.isqrt(max(0, patches))
    if patches < 1 or side * side != patches:
        raise CheckpointError(
            f"{source}: {patches + prefix} position embeddings are not a square grid"
            + (" and a class token" if prefix else "")
        )
    blocks = {name.split("/")[1] for name in arrays if name.startswith("Transformer/encoderblock_")}
    try:
        return ViTConfig(
            patch=patch,
            width=width,
            depth=len(blocks),
            heads=arrays[query].shape[1],
            mlp_width=arrays[mlp].shape[1],
            classes=arrays["head/kernel"].shape[1],
            image_size=(side * patch, side * patch),
            pooling="token" if prefix else "mean",
            hidden_head="pre_logits/kernel" in arrays,
        )
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error


def to_ours(array: np.ndarray, layout: Layout, name: str, path: str | Path) -> np.ndarray:
    """Their array in our layout: float32, outputs first."""
    expected = {"conv": 4, "dense": 2, "heads-in": 3, "heads-out": 3, "flat": 2, "same": array.ndim}
    if array.ndim != expected[layout]:
        raise CheckpointError(
            f"{path}: {name} has shape {array.shape}, not {expected[layout]} axes"
        )
    if array.dtype != BFLOAT16 and (array.dtype.kind != "f" or array.itemsize > 8):
        raise CheckpointError(f"{path}: {name} holds {array.dtype}, not floating-point numbers")
    if array.dtype == BFLOAT16:
        array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if layout == "conv":
        array = array.transpose(3, 2, 0, 1)
    elif layout == "dense":
        array = array.T
    elif layout == "heads-in":
        array = array.reshape(array.shape[0], math.prod(array.shape[1:])).T
    elif layout == "heads-out":
        array = array.reshape(math.prod(array.shape[:2]), array.shape[2]).T
    elif layout == "flat":
        array = array.reshape(-1)
    return np.ascontiguousarray(array, dtype=np.float32)


def default_names(classes: int) -> list[str]:
    """ImageNet-1k's names for 1,000 classes, else numbers."""
    if classes == 1000:
        from torchvision.models import ViT_B_16_Weights

        return list(ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"])
    return [str(label) for label in range(classes)]
