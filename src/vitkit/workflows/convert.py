"""Conversion of a checkpoint from any format to any that can represent it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vitkit.checkpoints.bundle import Bundle, is_bundle, read_bundle, write_bundle
from vitkit.checkpoints.convert import read_with_keys, write_foreign
from vitkit.checkpoints.formats import WRITTEN
from vitkit.checkpoints.tables import Piece
from vitkit.errors import UsageError, named
from vitkit.models.nets import make_meta
from vitkit.models.variants import name_of
from vitkit.models.vit_config import ViTConfig
from vitkit.prediction.model import checkpoint_at


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
    to: str = "bundle",
    *,
    gelu: Literal["tanh", "erf"] | None = None,
    revision: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Read any checkpoint that `vitkit.load` takes and write it to `out` in another format.

    `to` is "bundle", "npz", "timm", "hf" or "torchvision". `gelu` computes with another GELU from
    now on, for libraries that have only that one. A dry run writes nothing. The result has
    "model", "format", "assumed" (what the checkpoint did not say), "seconds" and "keys", a KeyRow
    for each tensor. Raises CheckpointError where the checkpoint cannot be read or the format cannot
    represent the net; nothing is written then.
    """
    named("format", to, WRITTEN)
    began = time.perf_counter()
    bundle, pieces, form = read(checkpoint_at(checkpoint, revision))
    if gelu is not None:
        bundle = with_gelu(bundle, gelu)
    if to == "bundle":
        written = own_pieces(bundle)
        if not dry_run:
            write_bundle(out, bundle)
    else:
        written = write_foreign(bundle, out, to, dry_run)
    return {
        "model": name_of(bundle.net.config),
        "from": form,
        "to": to,
        "out": str(out),
        "assumed": bundle.provenance.get("assumed", []),
        "keys": joined(pieces, written),
        "seconds": round(time.perf_counter() - began, 2),
    }


def read(path: Path) -> tuple[Bundle, list[Piece], str]:
    if is_bundle(path):
        bundle = read_bundle(path)
        return bundle, own_pieces(bundle), "a vitkit bundle"
    reading = read_with_keys(path)
    return reading.bundle, reading.pieces, reading.form.title


def own_pieces(bundle: Bundle) -> list[Piece]:
    return [Piece(name, tuple(t.shape), name) for name, t in bundle.net.state_dict().items()]


def joined(read: list[Piece], written: list[Piece]) -> list[KeyRow]:
    """Where each tensor of the one file goes in the other; one may become several, or be new."""
    by_name: dict[str, list[Piece]] = {}
    for piece in read:
        by_name.setdefault(piece.ours, []).append(piece)
    rows = []
    for target in written:
        for source in by_name.get(target.ours, [Piece("", (), target.ours)]):
            rows.append(KeyRow(*source, target.theirs, target.shape))
    return rows


def with_gelu(bundle: Bundle, gelu: Literal["tanh", "erf"]) -> Bundle:
    """The same weights in a net with another GELU."""
    config = bundle.net.config
    if not isinstance(config, ViTConfig):
        raise UsageError(f"a net of kind {type(config).__name__} has no GELU to choose")
    net = make_meta(replace(config, gelu=gelu))
    net.load_state_dict(bundle.net.state_dict(), assign=True)
    return replace(bundle, net=net.requires_grad_(True).eval())
