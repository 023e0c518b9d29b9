"""`vitkit selftrain LABELLED UNLABELLED`: students of a teacher that labels images for them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vitkit.data.facts import DataFacts
from vitkit.recipes.noisy_student import noisy_student
from vitkit.terminal import print_columns, printable
from vitkit.training.config import flat, to_json
from vitkit.words import SelfTrain, given_in, parse, require

if TYPE_CHECKING:
    from vitkit.workflows.selftrain_job import Job


def selftrain(argv: list[str]) -> Any:
    words = parse(SelfTrain(config=noisy_student(DataFacts())), "selftrain", argv)
    require(words.labelled, "selftrain", "LABELLED, images as docs/data.md lists them")
    require(words.unlabelled, "selftrain", "UNLABELLED, images of which no label is read")
    fields = {name: flat(words.config)[name] for name in sorted(given_in(argv))}
    told = {
        "rounds": words.rounds, "students": words.student, "pseudo": words.pseudo,
        "threshold": words.threshold, "per_class": words.per_class,
    }  # fmt: skip
    if words.dry_run:
        from vitkit.workflows.selftrain_job import prepared
        from vitkit.workflows.selftrain_words import SelfTrainWords

        job = prepared(
            words.labelled, words.unlabelled, SelfTrainWords(**told), words.teacher, words.out,
            words.device, True, fields,
        )  # fmt: skip
        return words, dry_run(job)
    from vitkit.reports.selftraining import rounds_table
    from vitkit.workflows.selftrain import selftrain as workflow

    found = workflow(
        words.labelled, words.unlabelled, teacher=words.teacher, out=words.out,
        resume=words.resume, device=words.device, **told, **fields,
    )  # fmt: skip
    table = rounds_table(found.record)
    print()
    print_columns(table.header, table.rows, right=(2, 3, 4, 5, 6, 7))
    print(table.note)
    print(printable(f"report {found.folder / 'report.html'}"))
    best = found.best or words.teacher
    print(printable(f"Next: vitkit predict {best} IMAGES/ -o predictions.csv"))
    return words, {"selftrain": str(found.folder), "best_net": str(best), **found.record}


def dry_run(job: Job) -> dict[str, Any]:
    """What the teacher, and a student that learns all images, would take."""
    from vitkit.reports.plans import lines
    from vitkit.workflows.plan import plan
    from vitkit.workflows.pretrain import net_config

    task, images = job.images.task, job.facts.images
    students = f"a student of all {images:,} + {len(job.images.unlabelled):,} images"
    stages = [(1, students, images + len(job.images.unlabelled))]
    if job.teacher is None:
        stages.insert(0, (0, f"the teacher, of {images:,} labelled images", images))
    plans = {}
    for number, who, count in stages:
        config = job.config(number, count)
        # Only the student's steps are timed: it trains the longest.
        found = plan(net_config(config, len(task.train.class_names)), config, count,
                     device=job.device, probe=number > 0)  # fmt: skip
        plans["student" if number else "teacher"] = {"config": to_json(config), "plan": found}
        print("\n".join([f"{who}:", *(f"  {line}" for line in lines(found))]))
    print(json.dumps(to_json(job.usual), indent=2))
    print(f"{job.words.rounds} rounds; a student has the fewer images the fewer pass the threshold")
    print("Next: the same command without --dry-run")
    return plans
