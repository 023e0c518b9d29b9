"""DATA that is a URL: an index, tar shards, parquet files, or folders of images afar."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from vitkit.data.cache import cache_folder
from vitkit.data.checks import DataError, digest, some
from vitkit.data.formats.folders import IMAGE_SUFFIXES, SPLITS
from vitkit.data.indexes.index import open_index, read_info
from vitkit.data.indexes.places import INFO
from vitkit.data.remote import reading as remote
from vitkit.data.remote.cache import kept_on_disk
from vitkit.data.remote.locks import locked
from vitkit.data.source import Source, Splits, splits_of
from vitkit.data.tars.opening import is_tar, open_tars
from vitkit.data.tars.shards import without_secrets
from vitkit.files import whole_folder

COLUMNS = {"files": (), "tar": ("offsets", "sizes"), "rows": ("rows",)}


class RemoteFolder(Source):
    """Images below class folders afar, fetched one by one."""

    def __init__(self, url: str, sizes: dict[str, int], class_names: Sequence[str]) -> None:
        self.url, self.paths, self.sizes = url.rstrip("/"), list(sizes), list(sizes.values())
        self.class_names = list(class_names)
        number = {name: place for place, name in enumerate(class_names)}
        self.labels = np.array([number[path.split("/")[0]] for path in self.paths], np.int32)

    def encoded(self, index: int) -> bytes:
        place, size = f"{self.url}/{self.paths[index]}", self.sizes[index]
        try:
            return remote.read_range(place, 0, size) if size >= 0 else remote.read_whole(place)
        except FileNotFoundError as error:
            raise DataError(f"{self.name(index)}: is not there any more") from error

    def key(self, index: int) -> str:
        return self.paths[index]

    def name(self, index: int) -> str:
        return without_secrets(f"{self.url}/{self.paths[index]}")

    def fingerprint(self) -> str:
        return self.content

    @cached_property
    def content(self) -> str:
        """A hash of names and sizes: reading all images from afar only for this is too dear."""
        return digest([*self.class_names, *self.paths, *map(str, self.sizes)])


def open_remote(url: str) -> Splits:
    """The splits that a URL names. Raises DataError."""
    if "*" in url:
        found = remote.matching(url)
        if not found or not all(is_table(one) for one in found):
            raise DataError(
                f"{without_secrets(url)}: matches {some(found) or 'no files'}; expected .parquet "
                "or .tar files"
            )
        return open_tables(url, found)
    if is_table(url):
        return open_tables(url, [url])
    if url.rstrip("/").endswith(".index"):
        return open_remote_index(url.rstrip("/"))
    try:
        sizes = remote.files_below(url)
    except FileNotFoundError:
        sizes = {}
    return open_listing(url.rstrip("/"), sizes)


def open_listing(url: str, sizes: dict[str, int]) -> Splits:
    """What a folder afar holds, by the files in it."""
    shown = without_secrets(url)
    if INFO in sizes and "keys.npy" in sizes:
        return open_remote_index(url)
    top = [path for path in sizes if path.count("/") == 0 or path.split("/")[0].lower() in SPLITS]
    tars = [f"{url}/{path}" for path in top if is_tar(path)]
    if tars:
        return open_tars(tars)
    tables = [path for path in sizes if is_table(path)]
    if tables:
        return split_tables(url, tables)
    groups = image_groups({path: size for path, size in sizes.items() if is_image(path)})
    if not any(found for _, found in groups.values()):
        raise DataError(
            f"{shown}: found {some(list(sizes)) or 'nothing'}; expected class folders with images, "
            "tar shards, parquet files or an index below this URL"
        )
    sources = {
        split: RemoteFolder(f"{url}/{folder}", found, sorted({p.split("/")[0] for p in found}))
        for split, (folder, found) in groups.items()
    }
    return splits_of(shown, sources)


def image_groups(images: dict[str, int]) -> dict[str, tuple[str, dict[str, int]]]:
    """(folder, images below it) by split; all are one where not every folder is a split."""
    folders = {path.split("/")[0] for path in images}
    if not all(folder.lower() in SPLITS for folder in folders) or any(
        path.count("/") < 2 for path in images
    ):
        return {"train": ("", {path: size for path, size in images.items() if "/" in path})}
    return {
        SPLITS[folder.lower()]: (
            folder,
            {p.partition("/")[2]: n for p, n in images.items() if p.split("/")[0] == folder},
        )
        for folder in sorted(folders)
    }


def split_tables(url: str, tables: Sequence[str]) -> Splits:
    """Parquet files by what their names, or their folders', begin with."""
    groups: dict[str, list[str]] = {}
    for path in tables:
        pure = PurePosixPath(path)
        start = pure.name.lower().split("-")[0].split(".")[0]
        split = SPLITS.get(start) or SPLITS.get(pure.parent.name.lower()) or "train"
        groups.setdefault(split, []).append(f"{url}/{path}")
    sources = {split: open_tables(url, urls).train for split, urls in groups.items()}
    return splits_of(without_secrets(url), sources)


def open_tables(url: str, urls: Sequence[str]) -> Splits:
    """Parquet files, each fetched whole: their rows lie anywhere in them."""
    from vitkit.data.opening import open_data

    splits = open_data([fetched(one) for one in urls])
    return Splits(without_secrets(url), splits.train, splits.val, splits.test)


def fetched(url: str) -> Path:
    """The path of a file from afar, which stays as long as this process. DataError."""
    return kept_on_disk(remote.remote_shards([url])[0])


def is_table(path: str) -> bool:
    return path.split("?")[0].endswith(".parquet")


def is_image(path: str) -> bool:
    pure = PurePosixPath(path)
    hidden = any(part.startswith(".") for part in pure.parts)
    return pure.suffix.lower() in IMAGE_SUFFIXES and not hidden


def open_remote_index(url: str) -> Splits:
    """An index afar: its columns are fetched once, its data as it is read."""
    shown = without_secrets(url)
    try:
        info = remote.read_whole(f"{url}/{INFO}")
    except FileNotFoundError as error:
        raise DataError(f"{shown}: no index, {INFO} is not there") from error
    name = digest([shown, info])[:32]
    path = cache_folder() / "indexes" / f"{name}.index"
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            with whole_folder(path) as fresh:
                (fresh / INFO).write_bytes(info)
                fetch_columns(url, fresh)
    splits = open_index(path, beside=shown.rpartition("/")[0])
    return Splits(shown, splits.train, splits.val, splits.test)


def fetch_columns(url: str, folder: Path) -> None:
    info = read_info(folder)
    names = ["keys", "keys-starts", "labels", *COLUMNS.get(str(info.get("kind")), ())]
    names += ["label-starts"] * bool(info.get("multi_label"))
    names += ["paths", "paths-starts"] * bool(info.get("paths"))
    for shard in remote.remote_shards([f"{url}/{name}.npy" for name in names]):
        with (folder / shard.place.rpartition("/")[2]).open("wb") as file:
            for offset in range(0, shard.size, remote.RANGE):
                size = min(remote.RANGE, shard.size - offset)
                file.write(remote.read_range(shard.place, offset, size))
