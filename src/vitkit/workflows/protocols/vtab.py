"""vtab: the tasks of VTAB-1k (arXiv 1910.04867), by linear probes or by fine-tuning.

The folder DATA holds a folder for each task or data set (vitkit.data.vtab). 800 images are fitted,
200 choose the penalty of the probe, and what is fitted to all 1,000 is scored on the test images.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from vitkit.data.checks import DataError, first_line, some
from vitkit.data.vtab.opening import PUBLISHED, TaskImages, open_task
from vitkit.data.vtab.tasks import GROUPS, TASKS
from vitkit.errors import UsageError, VitkitError, named
from vitkit.evaluation.findings import Findings
from vitkit.plain import Table
from vitkit.training.world import together
from vitkit.workflows.protocols.job import Job
from vitkit.workflows.protocols.vtab_methods import Scored, scored

HEADER = ("task", "group", "classes", "top-1", "test images", "fitted by", "split", "test split")
PROBED = (
    "VTAB-1k by linear probes of the frozen features: 800 images to fit on, 200 to choose the "
    "penalty by, then all 1,000. The paper fine-tunes the whole net: compare only with probes."
)
FINE_TUNED = (
    "VTAB-1k by fine-tuning on all 1,000 images with the recipe table4-vtab, without crops and "
    "mirror images; nothing was chosen, and the last weights were scored."
)


def run(job: Job) -> Findings:
    folder = job.folder
    if folder is None:
        raise UsageError(
            f"DATA is {job.name}; vtab takes one folder, with a folder for each task in it, such "
            "as caltech101/"
        )
    wanted = [named("task", word, TASKS) for word in words(job.options.tasks)] or list(TASKS)
    results: dict[str, Scored] = {}
    absent: list[str] = []
    failed: dict[str, str] = {}
    for name in wanted:
        try:
            images = together(partial(opened, folder, name))
            if images is None:
                absent.append(name)
            else:
                results[name] = scored(job, name, images)
        except UsageError:
            raise
        except VitkitError as error:  # the other tasks go on
            failed[name] = str(error)
    if not results:
        why = "; ".join(failed.values()) or f"found no folder of {some(absent)}"
        raise DataError(f"{job.name}: none of the tasks could be scored: {why}")
    return Findings(
        means(results), tables=(table(results, absent, failed),),
        notes=tuple(notes(job, results, absent, failed)),
        images=sum(result.images for result in results.values()),
    )  # fmt: skip


def words(text: str) -> list[str]:
    """Words with commas between them, each once."""
    return list(dict.fromkeys(word for part in text.split(",") if (word := part.strip())))


def opened(folder: Path, name: str) -> TaskImages | None:
    try:
        return open_task(folder, name)
    except VitkitError:
        raise
    except Exception as error:  # zlib, lzma and others have kinds of their own for hostile bytes
        raise DataError(
            f"{folder}, {name}: cannot be read ({type(error).__name__}: {first_line(error)}); "
            "fetch the data set again"
        ) from error


# What is told


def means(results: dict[str, Scored]) -> dict[str, float]:
    """Top-1: the mean over the tasks, over those of each group, and of each task."""
    shares = {name: result.top1 for name, result in results.items()}
    found = {"mean": math.fsum(shares.values()) / len(shares)}
    for group in GROUPS:
        of_group = [share for name, share in shares.items() if TASKS[name].group == group]
        if of_group:
            found[group] = math.fsum(of_group) / len(of_group)
    return found | shares


def table(results: dict[str, Scored], absent: list[str], failed: dict[str, str]) -> Table:
    rows = []
    for name, task in TASKS.items():
        start = (name, task.group, f"{task.classes}")
        if name in results:
            result = results[name]
            of = "" if result.images == task.test_images else f" of {task.test_images:,}"
            tested = "published" if result.data.same_test else "own"
            rows.append((
                *start, f"{result.top1:.1%}", f"{result.images:,}{of}", result.how,
                result.data.split, tested,
            ))  # fmt: skip
        elif name in absent or name in failed:
            rows.append((*start, "missing" if name in absent else "damaged", "", "", "", ""))
    return Table("VTAB-1k", HEADER, tuple(rows))


def notes(
    job: Job, results: dict[str, Scored], absent: list[str], failed: dict[str, str]
) -> list[str]:
    said = [FINE_TUNED if job.options.vtab_method == "finetune" else PROBED]
    missing = [name for name in TASKS if name not in results]
    if missing:
        said.append(
            f"The mean is over {len(results)} of {len(TASKS)} tasks; without {', '.join(missing)}."
        )
    if absent:
        said.append(f"No folder in {job.name}: {', '.join(absent)}.")
    said += [f"{name} is left out: {why}." for name, why in failed.items()]
    own = [name for name, result in results.items() if result.data.split != PUBLISHED]
    if own:
        said.append(
            "The 1,000 images are an own draw (seed 0), not those of the benchmark, of "
            f"{', '.join(own)}: a copy with train800.txt, val200.txt and test.txt has those."
        )
    other = [name for name in results if not results[name].data.same_test]
    if other:
        said.append(f"The test images are not all the published ones, of {', '.join(other)}.")
    if job.options.vtab_test:
        said.append(f"At most {job.options.vtab_test:,} test images of each task were scored.")
    remarks = {name: result.data.note for name, result in results.items() if result.data.note}
    return said + [f"{name}: {remark}." for name, remark in remarks.items()]
