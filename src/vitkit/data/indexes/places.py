"""Where an index says that its data lies, and whether that may be on the network."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitkit.data.cache import cache_folder
from vitkit.data.checks import DataError, digest
from vitkit.data.tars.shards import without_secrets
from vitkit.files import write_whole

INFO = "index.json"


def kept_place(out: Path, place: str | Path) -> dict[str, str]:
    """How a path on disk is kept in an index: as it is, and as it is seen from the index."""
    full = os.path.abspath(place)
    return {"path": full, "from_here": os.path.relpath(full, os.path.abspath(out.parent))}


def found_place(path: Path, kept: dict[str, str], beside: str | None = None) -> str:
    """The place that an index keeps: data and index may have been moved together, or only one."""
    if "url" in kept:
        check_trust(path, kept["url"], beside)
        return kept["url"]
    if beside is not None:
        host, place = re.fullmatch(r"(\w+://[^/]*)(.*)", beside).groups()  # pyright: ignore
        return host + posixpath.normpath(posixpath.join(place or "/", kept["from_here"]))
    for place in (path.absolute().parent / kept["from_here"], Path(kept["path"])):
        if place.exists():
            return os.path.normpath(place)
    raise DataError(
        f"{path}: its data, {kept['path']}, is not there; bring it back or build the index again"
    )


def trust(path: Path) -> None:
    """Remember that this index was made here: it may lead to places on the network."""
    write_whole(made_here(path), "")


def made_here(path: Path) -> Path:
    return cache_folder() / "made" / digest([(path / INFO).read_bytes()])


def check_trust(path: Path, url: str, beside: str | None = None) -> None:
    """DataError unless the user named the server of this URL, now or when the index was made."""
    named = beside is not None and beside.split("/")[:3] == url.split("/")[:3]
    if not named and not made_here(path).exists():
        raise DataError(
            f"{path}: leads to {without_secrets(url)}, but was not made on this machine; put it "
            "there and give its URL, or build it again"
        )


def kept_words(out: Path, words: Any) -> list[dict[str, str]]:
    listed = words if isinstance(words, list | tuple) else [words]
    return [
        kept_place(out, Path(word).expanduser())
        if Path(word).expanduser().exists()
        else {"word": without_secrets(str(word))}
        for word in listed
    ]


def found_words(path: Path, kept: Sequence[dict[str, str]]) -> list[str]:
    for entry in kept:
        if ":" in entry.get("word", ""):  # a URL, or a name on a hub
            check_trust(path, entry["word"])
    return [entry["word"] if "word" in entry else found_place(path, entry) for entry in kept]
