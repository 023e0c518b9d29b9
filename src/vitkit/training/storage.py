"""A state on disk: safetensors shards written by torch.distributed.checkpoint, under a manifest.

A step's folder holds the shards of each process, progress.json and manifest.json with the size and
SHA-256 of each file. No file of it is pickled, and no tensor is read before all hashes are right:
neither safetensors nor torch.distributed.checkpoint notices a flipped bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from vitkit.checkpoints.containers import read_json
from vitkit.checkpoints.problems import CheckpointError
from vitkit.errors import VitkitError
from vitkit.files import leave_cache, sync
from vitkit.values import fits

FORMAT_VERSION = 1
SHARD_BYTES = 64 << 20  # a shard is written, hashed and let out of the page cache before the next
PROGRESS, MANIFEST = "progress.json", "manifest.json"
Stamp = tuple[int, int, int, int]  # of a file: inode, size, times of the last write and change
NO_STAMPS: Mapping[Path, Stamp] = {}
SHARDING_INFO = "DCP_SHARDING_INFO"  # where HuggingFaceStorageReader looks for a shard's offsets

# A run of a single process is no mistake.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninit")


class StateError(VitkitError):
    """A state cannot be written or read: the disk, damage, or it is of another run or version."""

    everywhere = True


class StateWriter(StorageWriter):
    """Each process writes its shards into one fresh folder, which the main one commits.

    torch.distributed.checkpoint calls the methods in this order, `prepare_global_plan` and
    `finish` in the main process only, and tells all processes of an error in one.
    """

    def __init__(self, folder: Path, names: set[str], progress: dict[str, Any]) -> None:
        self.folder, self.names, self.progress = folder, names, progress
        self.fresh: Path | None = None
        self.stamps: dict[Path, Stamp] = {}

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self.fresh = self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex[:8]}.tmp")
        self.fresh.mkdir(parents=True)
        return [
            replace(plan, storage_data=self.fresh / f"shard-{rank:05d}")
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results = []
        for number, (tensors, offsets) in enumerate(shards_of(plan, planner)):
            path = Path(f"{plan.storage_data}-{number:05d}.safetensors")
            save_file(tensors, path, metadata={"format": "pt", SHARDING_INFO: json.dumps(offsets)})
            sync(path)
            self.stamps[self.folder / path.name] = stamp_of(path)  # before it is read for its hash
            facts = facts_of(path)
            leave_cache(path)
            results.append(WriteResult(MetadataIndex(path.name), facts["bytes"], facts))
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        assert self.fresh is not None
        for name in sorted(self.names ^ set(metadata.state_dict_metadata)):
            raise ValueError(f"{name} was written by no process, or is of no use")
        files = {r.index.fqn: r.storage_data for written in results for r in written}
        for name in files:
            if not (self.fresh / name).is_file():
                raise OSError(f"{name} was written by a process that does not share this folder")
        commit(self.fresh, self.folder, files, self.progress)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


def shards_of(
    plan: SavePlan, planner: SavePlanner
) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    """The tensors of each shard, at most SHARD_BYTES or one, and where in the whole they begin."""
    tensors, offsets, size = {}, {}, 0
    for item in plan.items:
        tensor = planner.resolve_data(item)
        assert isinstance(tensor, Tensor)
        if not tensor.numel():  # of a small tensor over many processes some have nothing
            continue
        if tensors and size + tensor.nbytes > SHARD_BYTES:
            yield tensors, offsets
            tensors, offsets, size = {}, {}, 0
        name, chunk = item.index.fqn, item.index.offset
        tensors[name] = tensor.detach().cpu().contiguous()
        offsets[name] = {"saved_offsets": list(chunk or [0] * tensor.dim())}
        size += tensor.nbytes
    if tensors:
        yield tensors, offsets


def commit(
    fresh: Path, folder: Path, files: dict[str, dict[str, Any]], progress: dict[str, Any]
) -> None:
    """Complete a folder of synced shards and give it its name, which makes it a state."""
    path = fresh / PROGRESS
    path.write_text(json.dumps(progress))
    sync(path)
    content = {
        "format_version": FORMAT_VERSION, "step": progress["step"],
        "files": {**files, PROGRESS: facts_of(path)},
    }  # fmt: skip
    path = fresh / MANIFEST
    path.write_text(json.dumps({**content, "sha256": seal(content)}, indent=2))
    sync(path)
    sync(fresh)
    if folder.exists():
        raise OSError(f"{folder} is there already")  # a step's folder is never used again
    fresh.rename(folder)
    sync(folder.parent)


def write_state(
    folder: Path,
    tensors: dict[str, Tensor],
    names: set[str],
    progress: dict[str, Any],
    group: dist.ProcessGroup | None = None,
) -> dict[Path, Stamp]:
    """Write a state, by all processes together; each gives the tensors it is to write.

    Sharded tensors are given by all that hold a part, others by one; `names` are those of all.
    Returns the stamps of the shards that this process wrote and hashed.
    Raises StateError, in all processes where one fails, and what the connections between them
    raise where one has ended. What was written then is removed.
    """
    writer = StateWriter(folder, names, progress)
    try:
        dcp_save(tensors, storage_writer=writer, process_group=group)
    except BaseException as error:
        if writer.fresh is not None:
            shutil.rmtree(writer.fresh, ignore_errors=True)
        if not hasattr(error, "failures"):
            raise
        raise StateError(f"{folder}: cannot be written: {reasons(error)}") from error
    return writer.stamps


def read_state(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, sharded or not, from a state; all processes call it together."""
    try:
        dcp_load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
    except BaseException as error:  # its CheckpointException is no Exception
        if not hasattr(error, "failures"):
            raise
        raise StateError(f"{folder}: cannot be read: {reasons(error)}") from error


def shapes_in(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Name -> (shape, dtype) of each tensor of a state."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: (t.size, t.properties.dtype) for name, t in found.items()}  # type: ignore[union-attr]


def reasons(error: BaseException) -> str:
    """What went wrong, and in which process, of an error that torch.distributed.checkpoint told."""
    failures = getattr(error, "failures", {})
    told = [
        f"{'' if rank == 0 else f'process {rank}: '}{failure[0]}"
        for rank, failure in failures.items()
    ]
    return "; ".join(told) or str(error)


def progress_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / PROGRESS).read_text())


def problem_with(
    folder: Path, part: int = 0, parts: int = 1, trusted: Mapping[Path, Stamp] = NO_STAMPS
) -> str | None:
    """What is wrong with a state, in a sentence; None where its manifest holds.

    Of `parts` that share the work each verifies its part of the files. The hash of a file whose
    stamp is still the one in `trusted` is not made again. StateError for a state of another
    version, and for files that cannot be read now; that is no damage.
    """
    path = folder / MANIFEST
    try:
        if not path.is_file():  # a pipe would keep us waiting
            return f"{path}: missing"
        manifest = read_json(path)
        sealed = manifest.pop("sha256", None) == seal(manifest)
    except OSError as error:
        raise unreadable(path, error) from error
    except (CheckpointError, RecursionError) as error:
        if isinstance(error.__cause__, OSError):
            raise unreadable(path, error.__cause__) from error
        return f"{path}: damaged ({str(error).removeprefix(f'{path}: ')})"
    if not sealed:
        return f"{path}: damaged, its content is not what its SHA-256 says"
    if manifest.get("format_version") != FORMAT_VERSION:
        raise StateError(
            f"{folder}: is a state of format {manifest.get('format_version')}; this version of "
            f"vitkit reads {FORMAT_VERSION}; resume the run with the version that wrote it"
        )
    files, step = manifest.get("files"), manifest.get("step")
    if not isinstance(files, dict) or not fits(list(files.values()), list[dict]):
        return f"{path}: names no files"
    if any(Path(name).name != name for name in files):
        return f"{path}: names files outside its folder"
    if not fits(step, int) or folder.name != f"step-{step:08d}":
        return f"{path}: is the manifest of step {step}"
    for shard in sorted(folder.glob("*.safetensors")):
        if shard.name not in files:
            return f"{shard}: does not belong to this state"
    mine = sorted(files.items())[part::parts]
    problems = (wrong_with(folder / n, facts, trusted.get(folder / n)) for n, facts in mine)
    return next(filter(None, problems), None)


def wrong_with(path: Path, expected: dict[str, Any], stamp: Stamp | None) -> str | None:
    try:
        if not path.is_file():
            return f"{path}: missing"
        found = path.stat().st_size
        if found != expected.get("bytes"):
            return f"{path}: damaged: {found:,} bytes, the manifest says {expected.get('bytes')}"
        if stamp == stamp_of(path):
            return None
        sha256 = facts_of(path)["sha256"]
    except OSError as error:
        raise unreadable(path, error) from error
    if sha256 != expected.get("sha256"):
        return (
            f"{path}: damaged: its SHA-256 is {sha256[:12]}..., the manifest says "
            f"{str(expected.get('sha256'))[:12]}..."
        )
    return None


def unreadable(path: Path, error: OSError) -> StateError:
    why = error.strerror or error
    return StateError(f"{path}: cannot be read ({why}); see to the disk, and try again")


def facts_of(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": sha256}


def stamp_of(path: Path) -> Stamp:
    """Changes when a file is written to (on POSIX) or replaced; not by what a disk does to it."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def seal(manifest: dict[str, Any]) -> str:
    """The SHA-256 of what a manifest says; how it is made stays the same in all versions."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
