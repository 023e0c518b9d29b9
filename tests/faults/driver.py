"""`python driver.py VERB ...` is `vitkit VERB ...` in which something goes wrong.

What goes wrong is in the environment variable FAULT, as JSON, and is arranged when this file is
imported, so that it is so in every process of a run, whoever starts it. The project's own code
knows nothing of it.
"""

import ctypes
import errno
import hashlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

FAULT = json.loads(os.environ.get("FAULT", "{}"))


def rank():
    return int(os.environ.get("RANK", "0"))


def here():
    return FAULT.get("rank") in (None, rank())


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def replaced(owner, name, make):
    """Put `make(the original)` in its place."""
    setattr(owner, name, make(getattr(owner, name)))


def note_batches():
    """Write down what every process reads: the batch's number, and a hash of each image."""
    from vitkit.data.pipeline import TrainingStream

    def noting(batches):
        def noted(self, first=0):
            with Path(FAULT["note"], f"{rank()}-{os.getpid()}.txt").open("a") as file:
                for number, batch in enumerate(batches(self, first), first):
                    hashes = [
                        hashlib.sha256(image.numpy().tobytes() + bytes([label])).hexdigest()[:16]
                        for image, label in zip(batch.images, batch.labels, strict=True)
                    ]
                    file.write(f"{number} {' '.join(hashes)}\n")
                    file.flush()
                    yield batch

        return noted

    replaced(TrainingStream, "batches", noting)


def slow_steps():
    from vitkit.training import loop

    def slowed(step):
        def run(*given, **named):
            time.sleep(FAULT["slow"])
            return step(*given, **named)

        return run

    replaced(loop, "train_step", slowed)


def slow_evaluation():
    from vitkit.workflows import run

    def slowed(in_step):
        def batches(*given):
            for batch in in_step(*given):
                time.sleep(FAULT["slow_evaluation"])
                yield batch

        return batches

    replaced(run, "in_step", slowed)


def slow_save():
    from vitkit.training import storage

    def slowed(save_file):
        def run(*given, **named):
            time.sleep(FAULT["slow_save"])
            save_file(*given, **named)

        return run

    replaced(storage, "save_file", slowed)


def slow_rotation():
    from vitkit.training import saving

    def slowed(rotate):
        def run(*given):
            time.sleep(FAULT["slow_rotation"])
            rotate(*given)

        return run

    replaced(saving, "rotate", slowed)


def kill_in_save():
    """Die in the n-th save, in one of its stages."""
    stage, left = FAULT["stage"], [FAULT["save"]]

    def at(name, last=lambda: None):
        left[0] -= stage == name
        if stage == name and not left[0]:
            last()
            die()

    while_shards_are_written(at)
    while_the_folder_is_completed(at)


def while_shards_are_written(at):
    """Each process writes two shards and more; it dies before the first, or in the second."""
    from vitkit.training import storage

    storage.SHARD_BYTES = 20_000

    def save_file(original):
        def run(tensors, path, **named):
            if here() and path.stem.endswith("-00000"):
                at("nothing written")
            original(tensors, path, **named)
            if here() and path.stem.endswith("-00001"):
                at("shard half written", lambda: os.truncate(path, os.path.getsize(path) // 2))
                at("shard unsynced")

        return run

    def write_data(original):
        def run(*given):
            found = original(*given)
            if here():
                at("shard synced")
            return found

        return run

    replaced(storage, "save_file", save_file)
    replaced(storage.StateWriter, "write_data", write_data)


def while_the_folder_is_completed(at):
    from vitkit.training import saving, storage

    def commit(original):
        def run(fresh, folder, files, progress):
            half = json.dumps({"step": progress["step"], "files": files})[:50]
            at("manifest half written", lambda: (fresh / "manifest.json").write_text(half))
            original(fresh, folder, files, progress)

        return run

    def rename(original):
        def run(self, target):
            of_state = Path(target).name.startswith("step-")
            if of_state:
                at("not yet renamed")
            found = original(self, target)
            if of_state:
                at("renamed")
            return found

        return run

    def rmtree(original):
        def run(path, **named):
            if Path(path).name.startswith(".step-") and str(path).endswith(".old"):
                at("old state half removed", lambda: next(Path(path).glob("shard-*")).unlink())
            original(path, **named)

        return run

    replaced(storage, "commit", commit)
    replaced(Path, "rename", rename)
    replaced(saving.shutil, "rmtree", rmtree)


def at_batch(happen):
    """Call `happen(setup, state)` before the step that reads batch FAULT["batch"], once."""
    from vitkit.training import loop

    done = []

    def watched(step):
        def run(setup, state, *given, **named):
            if state.position == FAULT["batch"] and state.parts and not done and here():
                done.append(True)
                happen(setup, state)
            return step(setup, state, *given, **named)

        return run

    replaced(loop, "train_step", watched)


def bad_number():
    """The loss or a gradient of one part of a batch is NaN or infinite in one process."""
    from vitkit.training import step

    value, part = float(FAULT["value"]), FAULT.get("part", 0)
    wanted = []

    def happen(setup, state):
        if FAULT["where"] == "gradient":
            parameter = next(state.net.parameters())
            handle = parameter.register_hook(lambda g: (handle.remove(), g * 0 + value)[1])
        else:
            wanted.append(part)

    def spoiled(cross_entropy):
        def run(*given):
            loss = cross_entropy(*given)
            if wanted:
                if wanted[0] == 0:
                    wanted.clear()
                    return loss * value
                wanted[0] -= 1
            return loss

        return run

    at_batch(happen)
    replaced(step, "cross_entropy", spoiled)


def spike():
    """A batch whose loss, or whose pixels, are 10,000 times as large."""
    from vitkit.training import loop, step

    def watched(train_step):
        def run(setup, state, *given, **named):
            on = state.position == FAULT["batch"]
            changed = "cross_entropy" if FAULT["of"] == "loss" else "normalised"
            original = getattr(step, changed)
            if on:
                setattr(step, changed, lambda *words: original(*words) * 1e4)
            try:
                return train_step(setup, state, *given, **named)
            finally:
                setattr(step, changed, original)

        return run

    replaced(loop, "train_step", watched)


def leave_out():
    """A stream without some batches: what a run that was taken back should have seen."""
    from vitkit.data.pipeline import TrainingStream

    begin, end = FAULT["leave_out"]

    def shorter(batches):
        def run(self, first=0):
            assert first <= begin
            for number, batch in enumerate(batches(self, first), first):
                if not begin <= number <= end:
                    yield batch

        return run

    replaced(TrainingStream, "batches", shorter)


def out_of_memory():
    from vitkit.training import step

    wanted = []
    if FAULT["oom"] == "at once":
        wanted += [True] if here() else []
    else:
        at_batch(lambda setup, state: wanted.append(True))

    def spoiled(cross_entropy):
        def run(*given):
            if wanted:
                wanted.clear()
                raise step.torch.OutOfMemoryError("as if there were no more")
            return cross_entropy(*given)

        return run

    replaced(step, "cross_entropy", spoiled)


def stop():
    """The process sends itself SIGTERM when it is about to take a step."""
    at_batch(lambda setup, state: os.kill(os.getpid(), signal.SIGTERM))


def hang():
    """One process does not go on: asleep, or in a call that never gives Python back."""

    def happen(setup, state):
        if FAULT["how"] == "asleep":
            time.sleep(1000)
        elif FAULT["how"] == "holding the GIL":
            ctypes.PyDLL(None).sleep(1000)
        else:
            os.kill(os.getpid(), signal.SIGSTOP)

    at_batch(happen)


def bad_loader():
    from vitkit.data.pipeline import TrainingStream

    count, lock = [0], threading.Lock()

    def spoiled(image):
        def run(self, index):
            with lock:
                count[0] += 1
                reached = count[0] == FAULT["image"]
            if reached and here():
                if FAULT["how"] == "hangs":
                    time.sleep(1000)
                raise RuntimeError("the loader died")
            return image(self, index)

        return run

    replaced(TrainingStream, "image", spoiled)


def bad_disk():
    """From one batch on nothing can be written, to another; or an fsync fails, once."""
    from vitkit.training import storage

    if FAULT["how"] == "fsync":
        left = [FAULT["call"]]

        def failing(sync):
            def run(path):
                left[0] -= 1
                if not left[0] and here():
                    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
                sync(path)

            return run

        replaced(storage, "sync", failing)
        return
    from vitkit.training import loop

    filler = Path(FAULT["filler"])

    def watched(step):
        def run(setup, state, *given, **named):
            if rank() == 0 and state.position == FAULT["full"]:
                fill(filler)
            if rank() == 0 and state.position == FAULT.get("free"):
                filler.unlink()
            return step(setup, state, *given, **named)

        return run

    replaced(loop, "train_step", watched)


def fill(path):
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass


def without_defence():
    """The negative controls: what the defence is against must then happen."""
    from vitkit.data import pipeline
    from vitkit.training import loop, saving, state, step, storage, watch

    off = FAULT["without"]
    if off == "order":  # each process draws on its own
        start = pipeline.TrainingStream.__init__

        def init(self, *given, **named):
            start(self, *given, **named)
            self.seed += self.rank

        pipeline.TrainingStream.__init__ = init
    elif off == "position":  # a resumed run reads the data from the beginning again
        original = state.TrainState.restore

        def restore(self, progress):
            original(self, {**progress, "position": 0})

        state.TrainState.restore = restore
    elif off == "rename":  # a state is written where it will lie
        storage.StateWriter.prepare_global_plan = in_place
        storage.commit = commit_in_place
        saving.problem_with = lambda *given, **named: None
    elif off == "signals":
        loop.StopSignals.CAUGHT = ()
    elif off == "waiting":  # for the process that verifies and removes old states
        saving.dist.barrier = lambda *given: None
    elif off == "heartbeats":
        watch.SILENCE = 10**6
    elif off == "launcher":
        watch.Heartbeats.mind_launcher = lambda self: None
    elif off == "hold":
        state.TrainState.note = lambda self, norm, limit: None
    elif off == "halving":
        step.is_out_of_memory = lambda error: False
    elif off == "settling":  # of DDP's buckets
        loop.settle = lambda *given: None
    elif off == "strictness":  # whatever fails in the loader is taken for a bad image
        pipeline.ImageError = Exception
    elif off == "tolerance":  # of a save that fails
        loop.FAILED_SAVES = 1
    else:
        raise ValueError(off)


def in_place(self, plans):
    from dataclasses import replace

    self.fresh = self.folder
    self.fresh.mkdir(parents=True)
    return [
        replace(plan, storage_data=self.fresh / f"shard-{number:05d}")
        for number, plan in enumerate(plans)
    ]


def commit_in_place(fresh, folder, files, progress):
    (folder / "progress.json").write_text(json.dumps(progress))
    (folder / "manifest.json").write_text(json.dumps({"step": progress["step"], "files": files}))


ARRANGED = {
    "note": note_batches,
    "slow": slow_steps,
    "slow_evaluation": slow_evaluation,
    "slow_save": slow_save,
    "slow_rotation": slow_rotation,
    "stage": kill_in_save,
    "value": bad_number,
    "of": spike,
    "leave_out": leave_out,
    "oom": out_of_memory,
    "stop": stop,
    "hang": hang,
    "loader": bad_loader,
    "disk": bad_disk,
    "without": without_defence,
}
for key, arrange in ARRANGED.items():
    if key in FAULT:
        arrange()

if __name__ == "__main__":
    from vitkit.cli import main

    code = main()
    if "RANK" in os.environ:
        from vitkit.training.world import leave

        leave(code)
    sys.exit(code)
