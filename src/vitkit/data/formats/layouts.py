"""What to say about a folder that cannot be read as data: what it holds, what was expected, and
the shortest way from one to the other."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from vitkit.data.checks import DataError, some
from vitkit.data.formats.folders import followed, has_image_suffix, scanned

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
OTHER_IMAGES = (".heic", ".heif", ".jp2", ".svg", ".dcm", ".nii", ".exr", ".psd", ".npy", ".cr2")
MOST_LINES = 8  # of a tree
LOOKED_AT = 1000  # entries of one folder


class LayoutError(DataError):
    """There is no image whose label is known."""


def wrong_layout(folder: Path, is_split: bool = False) -> LayoutError:
    """The error for a folder, or for one of its split folders, without images that have labels.

    Its first line is the whole error in short; then come the tree found, the trees that can be
    read, and the fix.
    """
    entries = listed(folder)
    title = folder.name or str(folder)
    whole = [
        f"{title}/train/cat/1.jpg, {title}/val/cat/3.jpg",
        f"{title}/train.parquet with the columns image and label",
        f"{title}/train-000.tar with 1.jpg and 1.cls",
    ]
    expected = [
        f"{title}/cat/1.jpg, {title}/dog/2.jpg",
        f"{title}/labels.csv with the columns file_name and label, beside the images",
        *([] if is_split else whole),
    ]
    lines = [
        f"{folder}: found {some(entries) or 'an empty folder'}; expected class folders with images "
        f"in them, as {title}/cat/1.jpg, or images that a list gives labels to",
        "found:",
        *(f"  {line}" for line in tree(folder)),
        "expected one of:",
        *(f"  {line}" for line in expected),
        f"fix: {fix(folder, entries)}",
    ]
    return LayoutError("\n".join(lines))


def listed(folder: str | Path) -> list[str]:
    """The names in a folder, with a slash after those of folders."""
    return sorted(entry.name + "/" * followed(entry.is_dir) for entry in scanned(folder))


def tree(folder: Path) -> list[str]:
    """Two levels of a folder in a few lines; files of a kind are counted."""
    lines = [f"{folder.name or folder}/"]
    entries = listed(folder)
    inner = [name for name in entries if name.endswith("/")]
    for name in inner[: MOST_LINES - 3]:
        lines.append(f"  {name} ({contents(listed(folder / name)) or 'empty'})")
    if len(inner) > MOST_LINES - 3:
        lines.append(f"  and {len(inner) - MOST_LINES + 3} more folders")
    files = [name for name in entries if not name.endswith("/")]
    return [*lines, f"  {contents(files)}"] if files else lines


def contents(names: Sequence[str]) -> str:
    """ "1.jpg and 8 more .jpg, notes.txt, 3 folders" """
    kinds: dict[str, list[str]] = {}
    for name in names[:LOOKED_AT]:
        kind = "/" if name.endswith("/") else os.path.splitext(name)[1]
        kinds.setdefault(kind, []).append(name)
    parts = []
    for kind, group in kinds.items():
        more = f" and {len(group) - 1} more {kind if kind != '/' else 'folders'}"
        parts.append(group[0] + (more.rstrip() if len(group) > 1 else ""))
    cut = f", {len(names) - LOOKED_AT} further entries" if len(names) > LOOKED_AT else ""
    return some(parts, 4) + cut


def fix(folder: Path, entries: Sequence[str]) -> str:
    """One step that makes a folder readable, by what lies in it."""
    inner = [
        f"{name}{below}"
        for name in entries[:50]
        if name.endswith("/")
        for below in listed(folder / name)[:LOOKED_AT]
    ]
    everything = [*entries, *inner]
    if archives := ending_in(everything, ARCHIVES):
        return unpacking(folder, archives)
    if videos := ending_in(everything, VIDEOS):
        first = quote(str(folder / videos[0]))
        return (
            "a video holds no single images; take them out into a folder for each class: "
            f"mkdir -p frames/cat && ffmpeg -i {first} -vf fps=1 frames/cat/%06d.jpg"
        )
    images = [name for name in everything if has_image_suffix(name)]
    if images:
        without = f"vitkit pretrain {quote(str(folder))} --recipe quickstart-mae"
        return f"{sorting(folder, images)}; or learn without labels: {without}"
    if others := ending_in(everything, OTHER_IMAGES):
        kind = os.path.splitext(others[0])[1]
        return f"{len(others)} files are {kind}, which is not read; convert them to .png or .jpg"
    if not everything:
        return f"put images into class folders: {folder / 'cat' / '1.jpg'}"
    if any(name.endswith((".parquet", ".arrow", ".csv", ".json", ".jsonl")) for name in inner):
        return f"give one of its folders as DATA: {folder / inner[0].split('/')[0]}"
    return f"give the folder that holds the images, or put them into {folder / 'cat'} and so on"


def ending_in(names: Sequence[str], suffixes: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.lower().endswith(suffixes)]


def unpacking(folder: Path, archives: Sequence[str]) -> str:
    first = folder / archives[0]
    if first.suffix.lower() == ".tar":
        return (
            "give the .tar files themselves as DATA if they hold images and labels side by side "
            f"({quote(str(folder))}/*.tar), else unpack them: tar xf {quote(str(first))} -C "
            f"{quote(str(folder))}"
        )
    command = "tar xf" if ".tar" in first.name.lower() or first.suffix == ".tgz" else "unzip"
    command = {".7z": "7z x", ".rar": "unrar x"}.get(first.suffix.lower(), command)
    place = f" -{'d' if command == 'unzip' else 'C'} {quote(str(folder))}"
    place = place if command in ("unzip", "tar xf") else ""
    many = "each of the archives" if len(archives) > 1 else "the archive"
    return f"unpack {many}: {command} {quote(str(first))}{place}"


def sorting(folder: Path, images: Sequence[str]) -> str:
    """How images without labels come by them."""
    starts = {re.split(r"[._\-\s\d]", name.split("/")[-1])[0] for name in images}
    if 2 <= len(starts) <= len(images) // 2 and all(starts):  # cat.1.jpg, dog.1.jpg
        below = os.path.dirname(images[0])
        place = quote(str(folder / below) if below else str(folder))
        return (
            f"sort the images by the words that their names begin with: cd {place} && for c in "
            f"{' '.join(quote(start) for start in sorted(starts)[:10])}; do mkdir -p $c && "
            "mv $c[._-]* $c/; done"
        )
    first = quote(str(folder / images[0]))
    place = quote(str(folder / "cat"))
    return (
        "move the images of each class into a folder of its name: "
        f"mkdir -p {place} && mv {first} {place}/; or write a labels.csv with the columns "
        "file_name and label"
    )
