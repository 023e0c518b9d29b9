"""A task in a local folder -> its images to fit on, to choose by, and to test on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vitkit.data.checks import DataError
from vitkit.data.source import Source
from vitkit.data.vtab import arrays, files, records, scenes
from vitkit.data.vtab.pools import Pools, chosen, drawn, parted
from vitkit.data.vtab.tasks import CHOOSE, FIT, TASKS

LIST = "train800.txt"  # the mark of a copy of the benchmark with the published lists
PUBLISHED, OWN = "published list", "own draw (seed 0)"
READERS: dict[str, Callable[[Path], Pools]] = {
    "open_data": files.opened,
    "caltech101": files.caltech101,
    "dtd": files.dtd,
    "sun397": files.sun397,
    "eurosat": files.eurosat,
    "resisc45": files.resisc45,
    "diabetic_retinopathy": files.diabetic_retinopathy,
    "svhn": arrays.svhn,
    "patch_camelyon": arrays.patch_camelyon,
    "smallnorb_azimuth": arrays.smallnorb_azimuth,
    "smallnorb_elevation": arrays.smallnorb_elevation,
    "dsprites_location": arrays.dsprites_location,
    "dsprites_orientation": arrays.dsprites_orientation,
    "clevr_count": scenes.clevr_count,
    "clevr_distance": scenes.clevr_distance,
    "kitti_distance": scenes.kitti_distance,
    "dmlab": records.dmlab,
}


@dataclass(frozen=True)
class TaskImages:
    fit: Source  # 800
    choose: Source  # 200
    test: Source
    split: str  # where the 1,000 come from: PUBLISHED or OWN
    same_test: bool  # whether the images to test on are the published ones
    note: str = ""


def open_task(folder: Path, name: str) -> TaskImages | None:
    """The images of a task below FOLDER; None where FOLDER has no folder of it.

    The folder is called as the task or its data set is. It is a copy of the benchmark, with
    train800.txt, val200.txt and test.txt of lines "path label", or the data set as its publisher
    distributes it, unpacked. Raises DataError.
    """
    task = TASKS[name]
    roots = [folder / called for called in (name, *task.folders) if (folder / called).is_dir()]
    if not roots:
        return None
    # Where both are there, the published lists are taken.
    copy = next((root for root in roots if (root / LIST).is_file()), None)
    if copy is not None:
        fit, choose, test = files.with_lists(copy, task.classes)
        if (len(fit), len(choose)) != (FIT, CHOOSE) or not len(test):
            raise DataError(
                f"{copy}: the lists name {len(fit)}, {len(choose)} and {len(test)} images; "
                f"expected {FIT}, {CHOOSE} and those to test on; fetch them again"
            )
        return TaskImages(fit, choose, test, PUBLISHED, len(test) == task.test_images)
    root = roots[0]
    pools = READERS[task.reader](root)
    classes = len(pools.train.class_names)
    if classes != task.classes:
        raise DataError(
            f"{root}: found {classes} classes, {name} has {task.classes}; fetch the data set again"
        )
    if not len(pools.test):
        raise DataError(f"{root}: found no images to test on; fetch the data set again")
    title = f"{root}, {name}"
    if pools.val is not None:
        fit, choose = drawn(pools.train, FIT, title), drawn(pools.val, CHOOSE, title)
    else:
        both = drawn(pools.train, FIT + CHOOSE, title)
        fit, choose = (chosen(both, part) for part in parted(len(both), (0.8, 0.2)))
    same_test = pools.same_test and len(pools.test) == task.test_images
    return TaskImages(fit, choose, pools.test, OWN, same_test, pools.note)
