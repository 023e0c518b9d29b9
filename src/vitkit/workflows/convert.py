"""Conversion of a checkpoint from any format to any that can represent it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from vitkit.checkpoints.bundle import Bundle, is_bundle, read_bundle, write_bundle
from vitkit.checkpoints.convert import (
    WEIGHT_FILES,
    Writing,
    read_with_keys,
    refuse_unwritten,
    write_foreign,
)
from vitkit.checkpoints.formats import WRITTEN
from vitkit.checkpoints.problems import CheckpointError
from vitkit.checkpoints.tables import Piece
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError, named
from vitkit.models.variants import name_of
from vitkit.prediction.model import checkpoint_at, published_preprocessing


@dataclass(frozen=True)
class KeyRow:
    """One tensor on its way: names and shapes in the file read, in vitkit, in the file written."""

    read: str
    read_shape: tuple[int, ...]
    name: str
    written: str
    written_shape: tuple[int, ...]


def convert(
    checkpoint: str | Path,
    out: str | Path,
    to: str | None = None,
    *,
    their_constants: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Read any checkpoint that `vitkit.load` takes and write it to `out` in another format.

    `to` is "bundle", "npz", "timm", "hf" or "torchvision"; by default "npz" where `out` ends in
    .npz, else "bundle". `their_constants` accepts that the other library computes with other
    epsilons or another GELU. A dry run writes nothing. The result has "model", "from", "to", "out",
    "assumed" (what the checkpoint did not say), "lost" (what the file does not hold), "seconds" and
    "keys", a KeyRow for each tensor. Raises CheckpointError where the checkpoint cannot be read or
    the format cannot represent the net; nothing is written then.
    """
    out = Path(out).expanduser()
    to = named("format", to or ("npz" if out.suffix == ".npz" else "bundle"), WRITTEN)
    began = time.perf_counter()
    known = published_preprocessing(checkpoint)
    bundle, pieces, form = read(checkpoint_at(checkpoint, revision), known)
    if to == "bundle":
        writing = write_own(bundle, out, dry_run)
    else:
        writing = write_foreign(bundle, out, to, dry_run=dry_run, their_constants=their_constants)
    return {
        "model": name_of(bundle.net.config),
        "from": form,
        "to": to,
        "out": str(out),
        "assumed": bundle.provenance.get("assumed", []),
        "lost": writing.lost,
        "keys": joined(pieces, writing.pieces),
        "seconds": round(time.perf_counter() - began, 2),
    }


def write_own(bundle: Bundle, out: Path, dry_run: bool) -> Writing:
    """A bundle, where there is nothing yet."""
    refuse_unwritten(out)
    if out.suffix in (".npz", *WEIGHT_FILES):
        raise UsageError(f"{out}: a bundle is a folder; say --to npz, timm, hf or torchvision")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: is there already; choose another path, or move it away")
    if not dry_run:
        write_bundle(out, bundle)
    return Writing(own_pieces(bundle), [])


def read(path: Path, known: Preprocessing | None) -> tuple[Bundle, list[Piece], str]:
    if is_bundle(path):
        bundle = read_bundle(path)
        return bundle, own_pieces(bundle), "a vitkit bundle"
    reading = read_with_keys(path, known)
    return reading.bundle, reading.pieces, reading.form.title


def own_pieces(bundle: Bundle) -> list[Piece]:
    return [Piece(name, tuple(t.shape), name) for name, t in bundle.net.state_dict().items()]


def joined(read: list[Piece], written: list[Piece]) -> list[KeyRow]:
    """Where each tensor of the one file goes in the other; one may become several, or be new."""
    by_name: dict[str, list[Piece]] = {}
    for piece in read:
        by_name.setdefault(piece.ours, []).append(piece)
    targets: dict[str, list[Piece]] = {}
    for piece in written:
        targets.setdefault(piece.ours, []).append(piece)
    rows = []
    for ours, parts in targets.items():
        sources = by_name.get(ours, [Piece("", (), ours)])
        alike = len(sources) == len(parts)  # q, k and v in both: each goes into its own
        pairs = zip(sources, parts, strict=True) if alike else product(sources, parts)
        rows += [KeyRow(*source, part.theirs, part.shape) for source, part in pairs]
    return rows
