"""Training images by vitkit and by other loaders, in turns on the same cores.

    python benchmarks/data.py --photos PHOTOS/ --cifar10 train.parquet --json data.json
    python benchmarks/data.py --photos PHOTOS/ --rounds 3 --seconds 4
    python benchmarks/data.py --photos PHOTOS/ --memory 100000

PHOTOS/ is a folder of class folders with JPEGs; they are read again and again, from the page cache.
The first race is decode, random crop to 224 and mirror of them, beside decode and resize alone in
as many threads; the others are CIFAR-10, cropped and mirrored, then with RandAugment and MixUp as
well. Every loader has --workers threads or processes and gives what it hands to a training step:
vitkit uint8, which is normalised on the device, the others float32 and normalised; of timm's loader
the uint8 that its workers give is measured as well, before its prefetcher normalises it.

Each race has a process of its own, in which each loader is kept alive and all take turns; in its
turn a loader first gives up what it had prepared while others were measured. Figures are images a
second, medians over the rounds. A loader that fails or is not installed is named with the reason.
--memory reads so many batches of photos, four images each, and tells how the memory of this process
grew meanwhile.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchcodec.decoders import decode_image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from racing import machine
from vitkit.data.augmentation.augment import Augmenter
from vitkit.data.crops import RandomCrop
from vitkit.data.kept import KeptOnDevice
from vitkit.data.opening import open_data
from vitkit.data.pipeline import TrainingStream
from vitkit.data.source import Source

HALF = (0.5, 0.5, 0.5)
LAYERS, MAGNITUDE, MIXUP = 2, 9, 0.2
NO_PREFETCHER, BEFORE = ", no prefetcher", ", before it normalises"
TIMM = ("", NO_PREFETCHER, BEFORE)
TIMM_MIX = "rand-m9-n2-mstd0.5"
EPOCH = 50_000  # images; a small folder is read so often that no loader comes to its end

Batches = Iterator[Any]
Maker = Callable[[argparse.Namespace], Batches]


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        report_memory(args)
        return
    if args.race:
        print(json.dumps(race(RACES[args.race][1], args)))
        return
    races = [title for title, (needed, _) in RACES.items() if getattr(args, needed)]
    if not races:
        sys.exit("nothing to read; give --photos, --cifar10 or both")
    found: dict[str, Any] = {**machine("cpu", "wall"), "workers": args.workers, "races": {}}
    for title in races:
        command = [sys.executable, *sys.argv, "--race", title]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found["races"][title] = json.loads(lines.splitlines()[-1])
        show(title, found["races"][title])
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def race(rows: dict[str, Maker], args: argparse.Namespace) -> dict[str, Any]:
    running: dict[str, Batches] = {}
    found: dict[str, Any] = {}
    for name, make in rows.items():
        try:
            running[name] = make(args)
            found[name] = {"images_per_second": images_per_second(running[name], 1.0)}
        except Exception as error:  # whatever another library raises
            found[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[-1]}"}
            running.pop(name, None)
    speeds: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(args.rounds):
        for name, batches in running.items():
            speeds[name].append(images_per_second(batches, args.seconds))
    for name, batches in running.items():
        found[name] = {"images_per_second": median(speeds[name]), "rounds": speeds[name]}
        if hasattr(batches, "close"):
            batches.close()
    return found


def images_per_second(batches: Batches, seconds: float) -> float:
    """Over some seconds, after as long a time in which what lay ready is used up."""
    end = perf_counter() + seconds / 4
    while perf_counter() < end:
        next(batches)
    images, begin = 0, perf_counter()
    while (elapsed := perf_counter() - begin) < seconds:
        images += len(next(batches)[0])
    return images / elapsed


def show(title: str, found: dict[str, Any]) -> None:
    ours = max(f["images_per_second"] for n, f in found.items() if n.startswith("vitkit"))
    print(f"\n{title}\n{'':44}{'images/s':>10}{'vitkit /':>10}")
    for name, row in found.items():
        if "failed" in row:
            print(f"{name:44}  {row['failed'][:100]}")
            continue
        row["vitkit_ratio"] = ours / row["images_per_second"]
        print(f"{name:44}{row['images_per_second']:10,.0f}{row['vitkit_ratio']:10.2f}")


def endless(loader: Any) -> Batches:
    while True:
        yield from loader


# Photos


def photos(args: argparse.Namespace) -> list[str]:
    return [str(path) for path in sorted(args.photos.glob("*/*")) if path.is_file()]


def decode_alone(args: argparse.Namespace) -> Batches:
    """The ceiling: whole images decoded and resized in threads, nothing else."""
    files = [Path(path).read_bytes() for path in photos(args)]
    lock, turn = threading.Lock(), iter(range(10**12))

    def one(_: int) -> torch.Tensor:
        with lock:
            number = next(turn)
        return TF.resize(decode_image(files[number % len(files)]), [224, 224], antialias=False)

    with ThreadPoolExecutor(args.workers) as pool:
        while True:
            yield list(pool.map(one, range(args.batch_size))), None


def vitkit_photos(args: argparse.Namespace) -> Batches:
    source = open_data(args.photos).train
    return batches_of(TrainingStream(
        source, RandomCrop((224, 224), (0.08, 1.0)), args.batch_size, 0, args.workers
    ))  # fmt: skip


def batches_of(stream: TrainingStream, augment: Augmenter | None = None) -> Batches:
    batches = stream.batches()
    try:
        for batch in batches:
            images, labels = batch.images, batch.labels
            if augment is not None:
                images, labels = augment(images, labels, batch.positions)
            yield images, labels
    finally:
        batches.close()


class Photos(Dataset):
    """A folder's JPEGs by Pillow or torchcodec, repeated to the length of an epoch."""

    def __init__(self, paths: list[str], transform: Any = None, by: str = "pillow") -> None:
        self.paths, self.transform, self.by = paths, transform, by

    def __len__(self) -> int:
        return EPOCH

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path = self.paths[index % len(self.paths)]
        if self.by == "torchcodec":
            image: Any = decode_image(path)
        else:
            with open(path, "rb") as file:
                image = Image.open(file).convert("RGB")
        return self.transform(image), index % len(self.paths)


def given_by(way: str, loader: Any) -> Batches:
    """The batches of timm's loader, or those of its workers before the prefetcher has them."""
    return endless(loader.loader if way == BEFORE else loader)


def timm_photos(way: str) -> Maker:
    def make(args: argparse.Namespace) -> Batches:
        from timm.data import create_loader

        return given_by(way, create_loader(
            Photos(photos(args)), (3, 224, 224), args.batch_size, is_training=True,
            color_jitter=0.0, interpolation="bilinear", mean=HALF, std=HALF,
            num_workers=args.workers, device=torch.device("cpu"),
            use_prefetcher=way != NO_PREFETCHER,
        ))  # fmt: skip

    return make


def torchvision_photos(by: str) -> Maker:
    def make(args: argparse.Namespace) -> Batches:
        transform = v2.Compose([
            *([v2.ToImage()] if by == "torchcodec" else []),
            v2.RandomResizedCrop(224, antialias=by == "pillow"), v2.RandomHorizontalFlip(),
            v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(HALF, HALF),
        ])  # fmt: skip
        return loader(Photos(photos(args), transform, by), args)

    return make


def loader(dataset: Any, args: argparse.Namespace, **more: Any) -> Batches:
    shuffle = not isinstance(dataset, IterableDataset)
    return endless(
        DataLoader(
            dataset, args.batch_size, shuffle=shuffle, drop_last=True, num_workers=args.workers,
            persistent_workers=True, **more,
        )
    )  # fmt: skip


def datasets_photos(args: argparse.Namespace) -> Batches:
    import datasets

    paths = photos(args)
    data = datasets.Dataset.from_dict({"image": [paths[i % len(paths)] for i in range(EPOCH)],
                                       "label": list(range(EPOCH))})  # fmt: skip
    data = data.cast_column("image", datasets.Image(mode="RGB"))
    return loader(with_transform(data, pillow_crop(224)), args)


def pillow_crop(side: int) -> v2.Transform:
    return v2.Compose([
        v2.RandomResizedCrop(side, antialias=True), v2.RandomHorizontalFlip(), v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(HALF, HALF),
    ])  # fmt: skip


def with_transform(data: Any, transform: Any, image: str = "image") -> Any:
    """A Hugging Face data set that gives (image, label)."""

    class Pairs(Dataset):
        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            row = data[index]
            return transform(row[image].convert("RGB")), row["label"]

    return Pairs()


def webdataset_photos(args: argparse.Namespace) -> Batches:
    import webdataset

    with tempfile.TemporaryDirectory() as folder:
        urls = written_shards(Path(folder), photos(args), args.workers)
        data = (
            webdataset.WebDataset(urls, shardshuffle=False, repeat=True).shuffle(200)
            .decode("pilrgb").to_tuple("jpg", "cls").map_tuple(pillow_crop(224), int)
        )  # fmt: skip
        yield from loader(data, args)


def written_shards(folder: Path, paths: list[str], number_of: int) -> list[str]:
    for shard in range(number_of):
        with tarfile.open(folder / f"{shard:03}.tar", "w") as tar:
            for number in range(shard, len(paths) * 20, number_of):
                data = Path(paths[number % len(paths)]).read_bytes()
                for name, content in ((f"{number:06}.jpg", data), (f"{number:06}.cls", b"0")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return [str(path) for path in sorted(folder.glob("*.tar"))]


def dali_photos(args: argparse.Namespace) -> Batches:
    # Not a dependency: measured where it is installed, else its row names what lacks.
    from nvidia.dali import fn, pipeline_def, types  # type: ignore[import-not-found]
    from nvidia.dali.plugin.pytorch import DALIGenericIterator  # type: ignore[import-not-found]

    @pipeline_def
    def crops() -> Any:
        data, labels = fn.readers.file(files=photos(args), random_shuffle=True)
        images = fn.decoders.image_random_crop(data, device="cpu", random_area=(0.08, 1.0))
        images = fn.resize(images, resize_x=224, resize_y=224)
        images = fn.crop_mirror_normalize(
            images, dtype=types.FLOAT, mirror=fn.random.coin_flip(), mean=[127.5] * 3,
            std=[127.5] * 3, output_layout="CHW",
        )  # fmt: skip
        return images, labels

    pipe = crops(batch_size=args.batch_size, num_threads=args.workers, device_id=None)
    for (batch,) in endless(DALIGenericIterator([pipe], ["images", "labels"])):
        yield batch["images"], batch["labels"]


PHOTO_ROWS: dict[str, Maker] = {
    "decode and resize alone": decode_alone,
    "vitkit": vitkit_photos,
    **{f"timm create_loader{way}": timm_photos(way) for way in TIMM},
    "torchvision v2 + DataLoader, Pillow": torchvision_photos("pillow"),
    "torchvision v2 + DataLoader, torchcodec": torchvision_photos("torchcodec"),
    "Hugging Face datasets": datasets_photos,
    "webdataset": webdataset_photos,
    "DALI on the CPU": dali_photos,
}


# CIFAR-10


def cifar10(args: argparse.Namespace) -> Source:
    return open_data(args.cifar10).train


def vitkit_cifar(kept: bool, augment: bool) -> Maker:
    def make(args: argparse.Namespace) -> Batches:
        source = cifar10(args)
        keep = KeptOnDevice((32, 32), torch.device("cpu")) if kept else None
        crop = RandomCrop((32, 32), (0.08, 1.0))
        stream = TrainingStream(source, crop, args.small_batch_size, 0, args.workers, kept=keep)
        more = Augmenter(0, 10, LAYERS, MAGNITUDE, MIXUP) if augment else None
        return batches_of(stream, more)

    return make


class InMemory(Dataset):
    """CIFAR-10 as Pillow images in memory: what torchvision.datasets.CIFAR10 gives."""

    def __init__(self, source: Source, transform: Any = None) -> None:
        self.images = [source.image(i).permute(1, 2, 0).numpy() for i in range(len(source))]
        self.labels, self.transform = np.asarray(source.labels), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def timm_cifar(way: str, augment: bool) -> Maker:
    def make(args: argparse.Namespace) -> Batches:
        from timm.data import FastCollateMixup, Mixup, create_loader

        mixes = {"mixup_alpha": MIXUP, "label_smoothing": 0.0, "num_classes": 10}
        collate = FastCollateMixup(**mixes) if augment and way != NO_PREFETCHER else None
        batches = given_by(way, create_loader(
            InMemory(cifar10(args)), (3, 32, 32), args.small_batch_size, is_training=True,
            color_jitter=0.0, auto_augment=TIMM_MIX if augment else None,
            interpolation="bilinear", mean=HALF, std=HALF, num_workers=args.workers,
            device=torch.device("cpu"), use_prefetcher=way != NO_PREFETCHER, collate_fn=collate,
        ))  # fmt: skip
        if not augment or way != NO_PREFETCHER:
            return batches
        mixup = Mixup(**mixes)
        return (mixup(images, labels) for images, labels in batches)

    return make


def torchvision_cifar(augment: bool) -> Maker:
    def make(args: argparse.Namespace) -> Batches:
        bilinear = InterpolationMode.BILINEAR
        transform = v2.Compose([
            v2.RandomResizedCrop(32, interpolation=bilinear, antialias=True),
            v2.RandomHorizontalFlip(),
            *([v2.RandAugment(LAYERS, MAGNITUDE)] if augment else []),
            v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(HALF, HALF),
        ])  # fmt: skip
        batches = loader(InMemory(cifar10(args), transform), small(args))
        if not augment:
            return batches
        mixup = v2.MixUp(alpha=MIXUP, num_classes=10)
        return (mixup(images, labels) for images, labels in batches)

    return make


def small(args: argparse.Namespace) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(args), "batch_size": args.small_batch_size})


def datasets_cifar(args: argparse.Namespace) -> Batches:
    import datasets

    data = datasets.Dataset.from_parquet(str(args.cifar10[0]))
    names = {"img": "img", "image": "image"}
    image = next(name for name in names if name in data.column_names)
    return loader(with_transform(data, pillow_crop(32), image), small(args))


CIFAR_ROWS: dict[str, Maker] = {
    "vitkit, decoded images kept": vitkit_cifar(kept=True, augment=False),
    "vitkit, decoded each time": vitkit_cifar(kept=False, augment=False),
    **{f"timm create_loader{way}": timm_cifar(way, augment=False) for way in TIMM},
    "torchvision v2 + DataLoader": torchvision_cifar(augment=False),
    "Hugging Face datasets": datasets_cifar,
}
AUGMENT_ROWS: dict[str, Maker] = {
    "vitkit, decoded images kept": vitkit_cifar(kept=True, augment=True),
    **{f"timm create_loader{way}": timm_cifar(way, augment=True) for way in TIMM},
    "torchvision v2 + DataLoader": torchvision_cifar(augment=True),
}


RACES = {
    "photos": ("photos", PHOTO_ROWS),
    "cifar10": ("cifar10", CIFAR_ROWS),
    "cifar10-augmented": ("cifar10", AUGMENT_ROWS),
}


# Memory


def report_memory(args: argparse.Namespace) -> None:
    """Memory of this process while it reads many batches; the first hundredth warms it up."""
    source = open_data(args.photos).train
    crop = RandomCrop((224, 224), (0.08, 1.0))
    stream = TrainingStream(source, crop, 4, 0, args.workers)
    seen, batches = [], stream.batches()
    for number in range(args.memory):
        next(batches)
        if (number + 1) % max(1, args.memory // 100) == 0:
            seen.append(resident())
    batches.close()
    grown = (max(seen) - seen[0]) / 2**20
    print(f"{args.memory:,} batches: {seen[0] / 2**20:,.0f} MiB after {args.memory // 100:,}, "
          f"{seen[-1] / 2**20:,.0f} at the end, grown by {grown:,.1f} at most")  # fmt: skip
    if args.json:
        found = {**machine("cpu", "wall"), "batches": args.memory, "resident_bytes": seen}
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("--photos", type=Path, help="a folder of class folders with JPEGs")
    words.add_argument("--cifar10", type=Path, nargs="+", help="parquet files, 32x32 pixels")
    words.add_argument("--workers", type=int, default=2, help="threads or processes of a loader")
    words.add_argument("--threads", type=int, default=2, help="threads torch computes with")
    words.add_argument("--batch-size", type=int, default=64, help="of photos")
    words.add_argument("--small-batch-size", type=int, default=512, help="of CIFAR-10")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--seconds", type=float, default=4.0, help="of a turn")
    words.add_argument("--memory", type=int, help="batches to read, to see the memory grow")
    words.add_argument("--race", choices=RACES, help="only this one, in this process")
    words.add_argument("--json", type=Path, help="write the figures there")
    return words


if __name__ == "__main__":
    main()
