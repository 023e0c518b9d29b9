"""`vitkit selftrain LABELLED UNLABELLED`: students of a teacher that labels images for them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vitkit.data.facts import DataFacts
from vitkit.recipes.noisy_student import check_fields, noisy_student
from vitkit.terminal import print_columns, printable
from vitkit.training.config import flat, to_json
from vitkit.words import SelfTrain, StudentConfig, given_in, parse, require

if TYPE_CHECKING:
    from vitkit.workflows.selftrain_job import Job


def selftrain(argv: list[str]) -> Any:
    check_fields(given_in(argv))
    usual = StudentConfig(**vars(noisy_student(DataFacts())))
    words = parse(SelfTrain(config=usual), "selftrain", argv)
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
    """What the teacher, and students that learn all images, would take."""
    from vitkit.reports.plans import clock, lines
    from vitkit.workflows.plan import plan
    from vitkit.workflows.pretrain import net_config

    task, images = job.images.task, job.facts.images
    both, rounds = images + job.learned_at_most, range(1, job.words.rounds + 1)
    stages = {} if job.teacher is not None else {
        "teacher": (f"the teacher, of {images:,} labelled images", 0, images)
    }  # fmt: skip
    names = [f"student {job.model(number) or ''}".strip() for number in rounds]
    for number, name in zip(rounds, names, strict=True):
        who = f"a {name} of all {images:,} + {both - images:,} images"
        stages.setdefault(name, (who, number, both))
    plans = {}
    for name, (who, number, count) in stages.items():
        config = job.config(number, count)
        found = plan(net_config(config, len(task.train.class_names)), config, count,
                     device=job.device)  # fmt: skip
        plans[name] = {"config": to_json(config), "plan": found}
        print("\n".join([f"{who}:", *(f"  {line}" for line in lines(found))]))
    print(json.dumps(to_json(job.usual), indent=2))
    taken = [plans[name]["plan"]["seconds"] for name in (*({"teacher"} & plans.keys()), *names)]
    whole = "" if None in taken else f", about {clock(sum(taken))} in all"
    print(
        f"{job.words.rounds} rounds{whole}; a student has the fewer images the fewer pass the "
        "threshold; evaluation and making pseudo-labels come on top"
    )
    print("Next: the same command without --dry-run")
    return plans
