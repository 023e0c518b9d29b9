"""Runs in which something goes wrong: started, watched, harmed, and compared bit by bit."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file

from vitkit.training.saving import newest_state, states_in

DRIVER = Path(__file__).with_name("driver.py")
STEPS = 60
WORDS = [
    "pretrain", "digits", "--device", "cpu", "--precision", "fp32", "--batch-size", "16",
    "--dropout", "0.1", "--polyak", "0.9", "--log-every", "1", "--save-every", "5",
    "--evaluate-every", "20", "--steps", str(STEPS),
]  # fmt: skip
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SLOWLY = {"slow": 0.03}  # so that a random time falls into training, not into starting


class Run:
    """A run in processes of its own, started by `--gpus`, by torchrun, or, sooner, one by one."""

    def __init__(self, out, *words, fault=None, processes=2, launcher=None, resume=False) -> None:
        self.out, self.notes = Path(out), Path(f"{out}-notes")
        self.notes.mkdir(exist_ok=True)
        self.before = set(self.notes.iterdir())
        self.said = self.notes.resolve().with_name(f"{self.notes.name}-said.txt")
        self.size = processes
        words = [*WORDS, "--out", str(out), *(["--resume", "auto"] if resume else []), *words]
        fault = {"note": str(self.notes), **(fault or {})}
        if launcher == "torchrun":
            self.processes = [self.start([*TORCHRUN, str(DRIVER), *words], fault)]
        elif launcher == "gpus":
            command = [str(DRIVER), *words, "--gpus", str(processes)]
            self.processes = [self.start(command, fault)]
        else:
            port = str(free_port())
            self.processes = [
                self.start([str(DRIVER), *words], fault, {} if processes == 1 else {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
                    "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                })
                for rank in range(processes)
            ]  # fmt: skip

    def start(self, command, fault, more=None) -> subprocess.Popen:
        with self.said.open("ab") as said:
            return subprocess.Popen(
                [sys.executable, *command], stdout=said, stderr=said, stdin=subprocess.DEVNULL,
                cwd=self.notes.parent, start_new_session=True,
                env=os.environ | {"FAULT": json.dumps(fault)} | (more or {}),
            )  # fmt: skip

    def words(self) -> str:
        return self.said.read_text(errors="replace")

    def ranks(self) -> dict[int, int]:
        """Rank -> process, of those that have begun to train."""
        started = set(self.notes.iterdir()) - self.before
        return {int(rank): int(pid) for rank, pid in (p.stem.split("-") for p in started)}

    def training(self, seconds=120.0) -> "Run":
        """Wait until all processes train."""
        until = time.monotonic() + seconds
        while len(self.ranks()) < self.size:
            assert all(p.poll() is None for p in self.processes), self.words()
            assert time.monotonic() < until, self.words()
            time.sleep(0.02)
        return self

    def signal(self, whom, number=signal.SIGKILL) -> None:
        """To a rank, "all" ranks, the "launcher", or "everyone" as a scheduler does."""
        ranks, launcher = self.ranks(), [process.pid for process in self.processes]
        pids = {"all": ranks.values(), "launcher": launcher,
                "everyone": {*ranks.values(), *launcher}}  # fmt: skip
        for pid in [ranks[whom]] if isinstance(whom, int) else pids[whom]:
            with suppress(ProcessLookupError):  # it had ended
                os.kill(pid, number)

    def ended(self, seconds=120.0) -> int:
        """Wait until the launcher and all ranks are gone -> the first exit code that is not 0."""
        until = time.monotonic() + seconds
        try:
            codes = [p.wait(max(0.0, until - time.monotonic())) for p in self.processes]
            while any(alive(pid) for pid in self.ranks().values()):
                assert time.monotonic() < until, f"ranks live on\n{self.words()}"
                time.sleep(0.05)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended after {seconds} s\n{self.words()}") from None
        finally:
            self.kill()
        return next((code for code in codes if code), 0)

    def kill(self) -> None:
        for pid in self.ranks().values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def done(self, seconds=300.0) -> "Run":
        code = self.ended(seconds)
        assert code == 0, f"exit code {code}\n{self.words()}"
        return self


def free_port() -> int:
    """One that no outgoing connection is given while the processes, which need it, still start."""
    while True:
        port = random.SystemRandom().randrange(15_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def records(out, kind=None) -> list[dict]:
    """The whole lines of metrics.jsonl, as far as it has been written."""
    path = Path(out) / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [r for r in map(json.loads, lines) if kind in (None, r["kind"])]


def tensors_in(state: Path) -> dict[str, torch.Tensor]:
    """All tensors of a state: net, optimizer and average."""
    shards = sorted(state.glob("shard-*.safetensors"))
    return {name: t for shard in shards for name, t in load_file(shard).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


TIMED = ("images_per_second", "data_share", "memory_bytes")


def check_same_run(out, reference) -> None:
    """That not a bit differs: weights, optimizer, average, losses, data, evaluations."""
    for name in ("last", "best"):
        found, expected = (
            load_file(Path(o) / name / "model.safetensors") for o in (out, reference)
        )
        assert same(found, expected), f"{name} differs"
    found, expected = (newest_state(Path(o) / "checkpoints")[0] for o in (out, reference))
    assert found.name == expected.name
    assert same(tensors_in(found), tensors_in(expected)), "the final states differ"
    lines, wanted = (
        [{k: v for k, v in r.items() if k not in TIMED} for r in records(o)]
        for o in (out, reference)
    )
    assert lines == wanted, "metrics.jsonl differs"
    check_same_data(out, reference)


def batches_of(out) -> list[dict[int, dict[int, str]]]:
    """For each process that read data: rank -> (the batch's number -> hashes of its images)."""
    found = []
    for path in sorted(Path(f"{out}-notes").iterdir()):
        text = path.read_text()
        lines = text[: text.rfind("\n") + 1].splitlines()  # one may have been killed while writing
        read = [line.split(" ", 1) for line in lines]
        rank = int(path.stem.split("-")[0])
        found.append({rank: {int(number): hashes for number, hashes in read}})
    return found


def check_same_data(out, reference) -> None:
    """That each batch, whoever read it and how often, was the one of the undisturbed run."""
    expected = {rank: read for one in batches_of(reference) for rank, read in one.items()}
    seen = {rank: set() for rank in expected}
    for one in batches_of(out):
        for rank, read in one.items():
            for number, digest in read.items():
                assert expected[rank].get(number, digest) == digest, f"batch {number} differs"
            seen[rank] |= set(read)
    for rank, read in expected.items():
        assert set(range(STEPS)) <= seen[rank] & set(read), "batches were left out"


def steps_saved(out) -> list[int]:
    return [int(folder.name[5:]) for folder in states_in(Path(out) / "checkpoints")]
