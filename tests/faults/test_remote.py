"""A server that breaks, lies, falls silent and fails: every sample comes once, with its bytes."""

import hashlib
import io
import json
import random
import tarfile
import threading

import numpy as np
import pytest

from file_server import Faults, serving
from vitkit.data.checks import DataError
from vitkit.data.order import shards_around, windowed
from vitkit.data.remote import cache as remote_cache
from vitkit.data.remote import reading as remote
from vitkit.data.tars.opening import open_tars

pytestmark = pytest.mark.faults

SHARDS, EACH, AT_ONCE, THREADS = 10, 16, 3, 4
KINDS = ("reset", "500", "short", "less", "silent", "drip", "wrong")
SILENCE = 0.1  # seconds; the server's is longer


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Samples of random bytes in shards with a list of their hashes, and what each should be."""
    monkeypatch.setattr(remote, "BACKOFF", 0.001)
    monkeypatch.setattr(remote, "SILENCE", SILENCE)
    monkeypatch.setattr(remote, "RANGE", 8192)
    remote.filesystem.cache_clear()
    folder, right, draw = tmp_path / "shards", {}, random.Random(0)
    folder.mkdir()
    sums = []
    for shard in range(SHARDS):
        path = folder / f"{shard:02}.tar"
        with tarfile.open(path, "w") as tar:
            for number in range(EACH):
                key = f"{shard:02}-{number:02}"
                right[key] = draw.randbytes(draw.randint(100, 3000))
                label = json.dumps({"label": shard % 3}).encode()
                for kind, data in (("jpg", right[key]), ("json", label)):
                    info = tarfile.TarInfo(f"{key}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        sums.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    (folder / "SHA256SUMS").write_text("".join(sums))
    yield folder, right
    remote.filesystem.cache_clear()


def epoch(train, key):
    """What an epoch gives as {sample: [bytes, ...]}, read by threads, shards fetched ahead."""
    order = windowed(np.arange(len(train)), train.shard_lengths, AT_ONCE, key).tolist()
    found, errors, lock = {}, [], threading.Lock()

    def read(thread):
        try:
            for place in range(thread, len(order), THREADS):
                train.prefetch(shards_around(place, train.shard_lengths, AT_ONCE, key))
                data = train.encoded(order[place])
                with lock:
                    found.setdefault(train.key(order[place]), []).append(data)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    return found


def rounds_of(shards, tmp_path, monkeypatch, rounds, faults, cached):
    """Epochs from a server with faults, each with an empty cache for so many shards."""
    folder, right = shards
    size = (folder / "00.tar").stat().st_size
    with serving(folder, faults) as server:
        for number in range(rounds):
            monkeypatch.setenv("VITKIT_CACHE", str(tmp_path / f"cache-{number}"))
            monkeypatch.setenv("VITKIT_CACHE_GB", str(20 * size / 1e9))
            faults.wrongs.clear()
            remote_cache.reads.clear()
            train = open_tars([f"{server.url}/{{00..{SHARDS - 1:02}}}.tar"]).train
            monkeypatch.setenv("VITKIT_CACHE_GB", str(cached * size / 1e9))
            remote_cache.make_room(0)
            faults.wrongs.clear()
            assert epoch(train, number) == {key: [data] for key, data in right.items()}


def test_every_sample_comes_once_from_a_server_with_faults(
    shards, tmp_path, monkeypatch, rounds, long, table
):
    number_of = max(1, rounds * 2 // 5) if long else 1
    faults = Faults(seed=1, share=0.2, kinds=KINDS)
    rounds_of(shards, tmp_path, monkeypatch, number_of, faults, cached=5)
    # How many requests there are, and so faults, depends on the time that they take.
    assert faults.counts.total() >= (1000 if long else 20)
    assert not long or faults.counts.keys() == set(KINDS)
    kinds = "connections broken, errors 500, bodies short, silent and slow, bytes wrong"
    table(f"a server of shards: {kinds}", faults.counts.total(), "every sample once, 0 bytes wrong")


def test_every_sample_comes_once_without_room_for_a_shard(
    shards, tmp_path, monkeypatch, rounds, long, table
):
    number_of = max(1, rounds // 10) if long else 1
    (shards[0] / "SHA256SUMS").unlink()  # of a part of a file no hash is known
    faults = Faults(seed=2, share=0.2, kinds=[kind for kind in KINDS if kind != "wrong"])
    rounds_of(shards, tmp_path, monkeypatch, number_of, faults, cached=0.5)
    assert faults.counts.total() >= 10
    table("the same, each sample read by itself", faults.counts.total(),
          "every sample once, 0 bytes wrong")  # fmt: skip


@pytest.mark.usefixtures("long_only")
def test_trust_in_wrong_bytes_is_found_out(shards, tmp_path, monkeypatch):
    (shards[0] / "SHA256SUMS").unlink()
    faults = Faults(seed=1, share=0.2, kinds=["wrong"], wrong=99)
    with pytest.raises((AssertionError, DataError)):  # in an image, or in a header
        rounds_of(shards, tmp_path, monkeypatch, 1, faults, cached=5)
