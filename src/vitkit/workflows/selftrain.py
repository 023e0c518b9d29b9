"""Self-training after Noisy Student (arXiv 1911.04252): a teacher labels images that have no
labels, a noised student learns them and the labelled ones, and becomes the next teacher."""

from __future__ import annotations

import math
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitkit.data.pipeline import evaluation_batches
from vitkit.data.source import Concatenated
from vitkit.errors import UsageError, VitkitError
from vitkit.evaluation.topk import top_k
from vitkit.models import cost
from vitkit.models.variants import name_of
from vitkit.prediction.model import Model, load
from vitkit.reports.selftraining import Example, write_selftraining
from vitkit.training.config import TrainConfig
from vitkit.training.log import headline, numbers
from vitkit.training.precision import choose_device
from vitkit.workflows import pseudo_labels, selftrain_record
from vitkit.workflows.pictures import picture
from vitkit.workflows.pretrain import net_config, pretrain
from vitkit.workflows.pseudo_labels import Guesses
from vitkit.workflows.run_folder import unlock
from vitkit.workflows.selftrain_job import OUT, Job, prepared
from vitkit.workflows.selftrain_words import SelfTrainWords
from vitkit.workflows.task import Task
from vitkit.workflows.teaching import fingerprint

SHOWN_CLASSES, SHOWN_IMAGES = 20, 6  # of the report's examples


@dataclass(frozen=True)
class SelfTraining:
    """A finished self-training; `record` is what its selftrain.json holds."""

    folder: Path
    record: dict[str, Any]

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """One for the teacher and one for each student, with "metrics" on the held-out images."""
        return self.record["rounds"]

    @property
    def best(self) -> Path | None:
        """The run of the net that did best on them; None where that is the teacher given."""
        folder = self.rounds[self.record["best"]]["folder"]
        return None if folder is None else self.folder / folder

    @property
    def model(self) -> Model:
        """The last student."""
        return load(self.folder / self.rounds[-1]["folder"])


def selftrain(
    labelled: Any,
    unlabelled: Any,
    *,
    rounds: int = 3,
    teacher: str | Path | Model | None = None,
    students: tuple[str, ...] = (),
    pseudo: str = "soft",
    threshold: float = 0.3,
    per_class: int | str = "auto",
    out: str | Path | None = None,
    resume: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    **fields: Any,
) -> SelfTraining:
    """Train a teacher on LABELLED, and `rounds` students on it and on UNLABELLED.

    LABELLED is DATA as `pretrain` takes it, UNLABELLED what `open_unlabelled` takes; images of it
    that are held out in LABELLED are a UsageError. `teacher` is a checkpoint of the same classes in
    place of training one. `students` are the nets of the rounds, the last one also of further
    rounds; by default the teacher's. A student learns the images whose confidence is above
    `threshold`: `per_class` of each class, "auto" for as many images in all as passed, "all" for
    those that passed as they are; with their probabilities ("soft") or likeliest class ("hard") for
    labels. `fields` change those of vitkit.recipes.noisy_student, as in `pretrain`, for the teacher
    and all students. With `resume` "auto" or a folder finished rounds are not run again. Raises
    UsageError, DataError and, where a net diverges or no image passes the threshold, VitkitError.
    """
    words = SelfTrainWords(rounds, students, pseudo, threshold, per_class)
    job = prepared(labelled, unlabelled, words, teacher, out, device, quiet, fields)
    folder, record = selftrain_record.open_record(Path(out or OUT), resume, job.asked_for())
    try:
        Rounds(job, folder, record).to_the_end()
    finally:
        unlock(folder)
    return SelfTraining(folder, record)


@dataclass
class Rounds:
    """The rounds, one after another, each with a row of the record."""

    job: Job
    folder: Path
    record: dict[str, Any]

    def to_the_end(self) -> None:
        if self.job.teacher is None:
            self.train(0, self.job.images.task)
        else:
            self.note_given_teacher(self.job.teacher)
        guesses, chosen = None, np.empty(0, np.int64)
        for number in range(1, self.job.words.rounds + 1):
            guesses, chosen = self.guessed(number, guesses)
            self.train(number, self.task_with(guesses, chosen))
        scores = [headline(row["metrics"])[1] for row in self.record["rounds"]]
        self.record["best"] = int(np.argmax(scores))
        selftrain_record.write(self.folder, self.record)
        assert guesses is not None  # there is a round at least
        write_selftraining(self.folder, self.record, self.examples(guesses, chosen))

    def examples(self, guesses: Guesses, chosen: np.ndarray) -> list[Example]:
        """Some of the images of each class that were learned, the most certain first."""
        names, found = self.job.images.task.train.class_names, []
        learned = guesses.passed[np.unique(chosen)]
        for label in np.unique(guesses.labels[learned])[:SHOWN_CLASSES].tolist():
            own = learned[guesses.labels[learned] == label]
            own = own[np.argsort(-guesses.confidences[own], kind="stable")]
            spread = np.unique(np.linspace(0, len(own) - 1, SHOWN_IMAGES).astype(int))
            found += [
                Example(
                    names[label], self.job.images.unlabelled.name(index),
                    float(guesses.confidences[index]),
                    picture(self.job.images.unlabelled, index),
                )
                for index in own[spread].tolist()
            ]  # fmt: skip
        return found

    def row(self, number: int) -> dict[str, Any]:
        rows = self.record["rounds"]
        if len(rows) == number:
            rows.append({"round": number, "folder": f"round-{number}"})
        return rows[number]

    def note(self, row: dict[str, Any], **found: Any) -> None:
        row.update(found)
        selftrain_record.write(self.folder, self.record)

    def note_given_teacher(self, teacher: Model) -> None:
        """The row of a teacher that was not trained here: what it does on the held-out images."""
        row = self.row(0)
        if "metrics" in row:
            return
        teacher = teacher.to(choose_device(self.job.device))
        batches = evaluation_batches(
            self.job.images.task.val, teacher.preprocessing, pseudo_labels.BATCH, self.job.threads
        )
        names = self.job.images.task.train.class_names
        metrics = top_k(lambda images: pseudo_labels.answers(teacher, images, names), batches)
        if not math.isfinite(metrics["loss"]):
            raise VitkitError(
                f"the loss of the teacher {self.job.teacher_name} on the held-out images is not "
                "finite; give a sound checkpoint as --teacher, or leave it out to train one"
            )
        self.note(row, folder=None, model=name_of(teacher.net.config), metrics=numbers(metrics))

    def train(self, number: int, task: Task) -> None:
        """Train the net of a round, or go on with it, and put what came of it into its row."""
        row = self.row(number)
        config = self.job.config(number, len(task.train), task.train.flip_keeps_class)
        who = f"round {number} of {self.job.words.rounds}: " + ("student" if number else "teacher")
        if "metrics" in row:
            self.check_done(row)
            self.say(f"{who} {row['model']}: done before")
            return
        if number:
            self.note_size(number, config)
        self.say(f"{who} {config.model}")
        run = pretrain(
            task, config=config, out=self.folder / row["folder"], resume="auto",
            device=self.job.device, quiet=self.job.quiet,
        )  # fmt: skip
        if not math.isfinite(run.metrics["loss"]):
            raise self.diverged(number)
        self.note(
            row, model=config.model, metrics=run.metrics, steps=run.steps,
            seconds=round(run.seconds, 1), weights=fingerprint(run.model.net),
        )  # fmt: skip

    def diverged(self, number: int) -> VitkitError:
        """Of a round whose net is no teacher; its run is left, and no row says that it is done."""
        before = self.record["rounds"][number - 1]["folder"] if number else None
        kept = f", and --teacher {self.folder / before} to keep its teacher" if before else ""
        return VitkitError(
            f"{self.folder / f'round-{number}'}: its training diverged, the loss on the held-out "
            "images is not finite; start a new self-training without --resume, with a lower "
            f"--learning-rate{kept}"
        )

    def check_done(self, row: dict[str, Any]) -> None:
        """UsageError where a round's net is not the one that its row is of."""
        path, why = self.folder / row["folder"], f"is not the one in {selftrain_record.RECORD}"
        try:
            if fingerprint(load(path).net) == row["weights"]:
                return
        except (VitkitError, OSError) as error:
            why = f"cannot be read ({error})"
        raise UsageError(
            f"{path}: its best net {why}; copy both from a backup, or start a new self-training "
            "without --resume"
        )

    def note_size(self, number: int, config: TrainConfig) -> None:
        """Warn of a student that is smaller than its teacher."""
        teacher = self.teacher(number).net.config
        net = net_config(config, len(self.job.images.task.train.class_names))
        if cost.parameters(net) < cost.parameters(teacher):
            warnings.warn(
                f"round {number}: the student {config.model} has fewer parameters than its teacher "
                f"{name_of(teacher)}; Noisy Student's are equal or larger",
                stacklevel=2,
            )

    def teacher(self, number: int) -> Model:
        """The net that labels images for a round."""
        if number == 1 and self.job.teacher is not None:
            return self.job.teacher
        return load(self.folder / f"round-{number - 1}")

    def guessed(self, number: int, before: Guesses | None) -> tuple[Guesses, np.ndarray]:
        """The pseudo-labels of a round and which of them are learned, made now or read back.

        `before` are those of the round before.
        """
        row, words, images = self.row(number), self.job.words, self.job.images.unlabelled
        path = self.folder / f"pseudo-{number}.npz"
        guesses = pseudo_labels.read(path, row.get("pseudo", {}).get("sha256"))
        fresh = guesses is None
        if guesses is None:
            model = self.teacher(number).to(choose_device(self.job.device))
            given = number == 1 and self.job.teacher is not None
            name = self.job.teacher_name if given else str(self.folder / f"round-{number - 1}")
            guesses = pseudo_labels.guess(
                model, images, self.job.images.task.train.class_names, words.pseudo,
                words.threshold, self.job.threads, self.job.quiet, name,
            )  # fmt: skip
        labels = guesses.labels[guesses.passed]
        chosen = pseudo_labels.balanced(
            labels, guesses.confidences[guesses.passed], words.wanted(labels),
            self.job.usual.seed,
        )  # fmt: skip
        if fresh:
            sha = pseudo_labels.save(path, guesses)
            if sha != row.get("pseudo", {}).get("sha256", sha):
                raise UsageError(
                    f"{path}: was damaged, and made anew it differs from the one that was learned; "
                    "copy it from a backup, or start a new self-training without --resume"
                )
            self.note(row, pseudo=self.described(path, sha, guesses, chosen, before))
        return guesses, chosen

    def described(
        self, path: Path, sha: str, guesses: Guesses, chosen: np.ndarray, before: Guesses | None
    ) -> dict[str, Any]:
        """What the record tells of a round's pseudo-labels."""
        names = self.job.images.task.train.class_names
        learned = guesses.labels[guesses.passed][chosen]
        counts = np.bincount(learned, minlength=len(names)).tolist()
        read = guesses.labels != pseudo_labels.UNREADABLE
        same = None if before is None else float((guesses.labels == before.labels)[read].mean())
        return {
            "file": path.name,
            "sha256": sha,
            "unreadable": int((~read).sum()),
            "passed": len(guesses.passed),
            "learned": len(chosen),
            "different": len(np.unique(chosen)),
            "passed_of_class": dict(zip(names, guesses.per_class(len(names)), strict=True)),
            "learned_of_class": dict(zip(names, counts, strict=True)),
            "same_as_before": same,
        }

    def task_with(self, guesses: Guesses, chosen: np.ndarray) -> Task:
        """The labelled images and those with pseudo-labels, and the same to validate on."""
        task = self.job.images.task
        learned = pseudo_labels.to_learn(
            self.job.images.unlabelled, guesses, chosen, task.train.class_names
        )
        train = Concatenated([task.train, learned], ["labelled", "unlabelled"])
        return replace(task, train=train, name=f"{task.name} with {len(learned):,} pseudo-labels")

    def say(self, text: str) -> None:
        if not self.job.quiet:
            with suppress(OSError):  # nobody need listen
                print(text, file=sys.stderr, flush=True)
