"""Data by URL is fetched whole or in parts, checked, kept in bounds, and never without a URL."""

import errno
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
import time

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_sources import encoded, value_of

from file_server import Faults, serving
from vitkit.data.checks import DataError
from vitkit.data.indexes.index import build_index, open_index, write_index
from vitkit.data.opening import held_out, open_data
from vitkit.data.remote import cache as remote_cache
from vitkit.data.remote import reading as remote
from vitkit.data.source import Concatenated, Splits, Subset
from vitkit.errors import UsageError


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """A cache of its own, and no time lost between tries."""
    monkeypatch.setenv("VITKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "BACKOFF", 0.001)
    monkeypatch.setattr(remote, "SILENCE", 0.5)
    remote.filesystem.cache_clear()
    yield
    remote.filesystem.cache_clear()


def write_shards(folder, shards=3, each=4, padding=0, start=1):
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:03}.tar", "w") as tar:
            for number in range(start + shard * each, start + (shard + 1) * each):
                content = {"png": encoded(number), "cls": str(number % 2).encode()}
                if padding:
                    content["bin"] = bytes(padding)
                for kind, data in content.items():
                    info = tarfile.TarInfo(f"{number:04}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def write_sums(folder):
    files = sorted(folder.glob("*.tar"))
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def values(source):
    return [value_of(source, index) for index in range(len(source))]


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache/files").glob("*/*"))


@pytest.mark.parametrize("scheme", ["http", "file", "memory"])
def test_tar_shards_by_url(tmp_path, scheme):
    folder = write_shards(tmp_path / "shards")
    (folder / "classes.txt").write_text("cat\ndog\n")
    with serving(folder) as server:
        url = {"http": server.url, "file": f"file://{folder}", "memory": "memory://tars"}[scheme]
        if scheme == "memory":
            for path in folder.iterdir():
                fsspec.filesystem("memory").pipe_file(f"/tars/{path.name}", path.read_bytes())
        train = open_data(f"{url}/{{000..002}}.tar").train
        assert values(train) == list(range(1, 13))
        assert train.class_names == ["cat", "dog"]
        assert train.shard_lengths == [4, 4, 4]
        assert train.name(5) == f"{url}/001.tar 0006"
        assert cached(tmp_path) == ["000.tar", "001.tar", "002.tar"]


def test_a_second_opening_reads_nothing_but_what_the_server_says_of_the_files(
    tmp_path, monkeypatch
):
    # Where a HEAD takes longer, fsspec asks by GET, of which it reads no body.
    monkeypatch.setattr(remote, "SILENCE", 60)
    with serving(write_shards(tmp_path / "shards")) as server:
        url = f"{server.url}/{{000..002}}.tar"
        assert values(open_data(url).train) == list(range(1, 13))
        server.requests.clear()
        assert values(open_data(url).train) == list(range(1, 13))
        assert not [path for kind, path, _ in server.requests if kind == "GET" and "tar" in path]


def test_a_file_that_changed_on_the_server_is_fetched_again(tmp_path):
    with serving(write_shards(tmp_path / "shards")) as server:
        url = f"{server.url}/{{000..002}}.tar"
        open_data(url)
        write_shards(tmp_path / "shards", start=101)
        assert values(open_data(url).train) == list(range(101, 113))


def test_missing_shards_are_counted_and_named(tmp_path):
    with serving(write_shards(tmp_path / "shards")) as server:
        names = f"{server.url}/003.tar, {server.url}/004.tar"
        with pytest.raises(DataError, match=f"2 of 5 shards are not there: {names};"):
            open_data(f"{server.url}/{{000..004}}.tar")


@pytest.mark.parametrize("kind", ["reset", "500", "short", "less", "silent"])
def test_a_server_that_always_fails_is_an_error_that_names_it(tmp_path, kind):
    faults = Faults(share=1, kinds=[kind], in_a_row=99)
    faults.draw = lambda path, wanted: kind if wanted else None
    with serving(write_shards(tmp_path / "shards"), faults) as server:
        began = time.monotonic()
        with pytest.raises(DataError, match=rf"{server.url}/000.tar: cannot be read \(5 tries\): "):
            open_data(f"{server.url}/000.tar")
        assert time.monotonic() - began < 10
        ranged = [wanted for _, path, wanted in server.requests if path == "/000.tar" and wanted]
        assert 5 <= len(ranged) <= 10  # aiohttp asks once more when a connection breaks


def test_what_is_forbidden_is_not_tried_again(tmp_path, monkeypatch):
    calls = []

    def forbidden():
        calls.append(1)
        raise PermissionError("no")

    with pytest.raises(DataError, match="cannot be read: PermissionError"):
        remote.tried("s3://bucket/a.tar", forbidden)
    assert len(calls) == 1


def test_waiting_grows_between_tries(monkeypatch):
    waited = []
    monkeypatch.setattr(remote, "BACKOFF", 0.5)
    monkeypatch.setattr(remote.time, "sleep", waited.append)

    def fails():
        raise OSError("down")

    with pytest.raises(DataError, match=r"OSError: down"):
        remote.tried("https://x/a", fails)
    assert len(waited) == 4
    assert all(0.25 * 2**n <= wait <= 0.75 * 2**n for n, wait in enumerate(waited))


def test_wrong_bytes_are_fetched_again_and_then_an_error(tmp_path):
    folder = write_shards(tmp_path / "shards", shards=1)
    write_sums(folder)
    faults = Faults()
    with serving(folder, faults) as server:
        faults.__init__(share=1, kinds=["wrong"], wrong=2)
        assert values(open_data(f"{server.url}/000.tar").train) == [1, 2, 3, 4]
        assert faults.counts == {"wrong": 2}
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  000.tar\n")
    with serving(folder) as server, pytest.raises(DataError, match="came 3 times with the SHA-256"):
        open_data(f"{server.url}/000.tar")


def test_passwords_and_signatures_are_never_shown(tmp_path):
    folder = write_shards(tmp_path / "shards", shards=1)
    with serving(folder) as server:
        url = f"{server.url}/000.tar?signature=SECRET"
        train = open_data(url).train
        assert "SECRET" not in train.name(0)
        write_index(tmp_path / "a.index", open_data(url))
        with pytest.raises(DataError) as caught:
            open_data(f"{server.url}/001.tar?signature=SECRET")
        assert "SECRET" not in str(caught.value)
    with pytest.raises(DataError) as caught:
        open_data(f"{server.url.replace('//', '//me:SECRET@')}/000.tar?x=SECRET")
    assert "SECRET" not in str(caught.value)
    for path in tmp_path.rglob("*"):
        assert "SECRET" not in path.name
        assert not path.is_file() or b"SECRET" not in path.read_bytes()


def test_the_cache_keeps_within_its_bound_and_drops_what_was_not_used_for_longest(
    tmp_path, monkeypatch
):
    folder = write_shards(tmp_path / "shards", shards=4, padding=10_000)
    size = (folder / "000.tar").stat().st_size
    monkeypatch.setenv("VITKIT_CACHE_GB", str(2.5 * size / 1e9))
    with serving(folder) as server:
        train = open_data([f"{server.url}/{n:03}.tar" for n in range(4)]).train
        assert len(cached(tmp_path)) == 2
        for index in (0, 4, 1, 8):
            assert value_of(train, index) == index + 1
            time.sleep(0.02)
        assert cached(tmp_path) == ["000.tar", "002.tar"]
        assert values(train) == list(range(1, 17))


def test_a_file_in_use_is_never_dropped(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "shards", shards=2, padding=10_000)
    size = (folder / "000.tar").stat().st_size
    monkeypatch.setenv("VITKIT_CACHE_GB", str(1.5 * size / 1e9))
    with serving(folder) as server:
        first, second = (remote.looked_up(f"{server.url}/00{n}.tar") for n in (0, 1))
        with remote_cache.on_disk(first) as path:
            assert remote_cache.read(second, 0, 512)[:8] == b"0005.png"  # straight from afar
            assert path.exists()
        assert remote_cache.read(second, 0, 512)[:8] == b"0005.png"
        assert cached(tmp_path) == ["001.tar"]


def test_shards_larger_than_the_cache_are_read_in_parts(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "shards")
    with serving(folder) as server:
        train = open_data(f"{server.url}/{{000..002}}.tar").train
        monkeypatch.setenv("VITKIT_CACHE_GB", "0.000001")
        remote_cache.make_room(0)
        assert values(train) == list(range(1, 13))
        assert cached(tmp_path) == []
        with pytest.raises(DataError, match="do not fit into the cache of 1,000; raise VITKIT"):
            open_data(f"{server.url}/000.tar")


def test_a_few_reads_of_a_large_shard_do_not_fetch_it(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "RANGE", 1000)
    with serving(write_shards(tmp_path / "shards", shards=1)) as server:
        train = open_data(f"{server.url}/000.tar").train
        remote_cache.CACHED.forget(str(remote_cache.cached_path(train.shards.all[0])))
        for path in (tmp_path / "cache/files").glob("*/*"):
            path.unlink()
        remote_cache.reads.clear()
        for index in range(4):
            assert value_of(train, index) == index + 1
        assert cached(tmp_path) == []
        assert value_of(train, 0) == 1
        assert cached(tmp_path) == ["000.tar"]


def test_a_shard_that_vanishes_is_an_error_not_a_bad_image(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "shards")
    with serving(folder) as server:
        train = open_data(f"{server.url}/{{000..002}}.tar").train
        monkeypatch.setenv("VITKIT_CACHE", str(tmp_path / "other"))
        (folder / "001.tar").unlink()
        with pytest.raises(DataError, match=r"001.tar: is not there any more"):
            train.encoded(5)


def test_a_full_disk_costs_only_the_cache(tmp_path, monkeypatch):
    def full(shard, file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with serving(write_shards(tmp_path / "shards")) as server:
        train = open_data(f"{server.url}/{{000..002}}.tar").train
        monkeypatch.setenv("VITKIT_CACHE", str(tmp_path / "other"))
        monkeypatch.setattr(remote_cache, "download", full)
        assert values(train) == list(range(1, 13))
        assert not list((tmp_path / "other/files").glob("*/*"))


def test_a_cache_that_cannot_be_used_is_no_bad_image(tmp_path, monkeypatch):
    with serving(write_shards(tmp_path / "shards")) as server:
        train = open_data(f"{server.url}/{{000..002}}.tar").train
        (tmp_path / "file").write_text("x")
        monkeypatch.setenv("VITKIT_CACHE", str(tmp_path / "file/cache"))
        with pytest.raises(DataError, match="set VITKIT_CACHE to a folder"):
            train.encoded(0)


def test_what_a_killed_process_left_is_removed(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "shards", shards=1)
    left = tmp_path / "cache/files/abc/.1234.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(100_000))
    monkeypatch.setenv("VITKIT_CACHE_GB", "0.00011")
    with serving(folder) as server:
        open_data(f"{server.url}/000.tar")
    assert cached(tmp_path) == ["000.tar"]


def test_prefetch_fetches_in_the_background(tmp_path):
    with serving(write_shards(tmp_path / "shards")) as server:
        train = open_data(f"{server.url}/{{000..002}}.tar").train
        for shard in train.shards.all:
            remote_cache.CACHED.forget(str(remote_cache.cached_path(shard)))
        for path in (tmp_path / "cache/files").glob("*/*"):
            path.unlink()
        train.prefetch([2, 0])
        until = time.monotonic() + 10
        while cached(tmp_path) != ["000.tar", "002.tar"] and time.monotonic() < until:
            time.sleep(0.01)
        assert cached(tmp_path) == ["000.tar", "002.tar"]


def test_shards_of_parts_of_a_source_are_prefetched_by_their_place(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(remote_cache, "prefetch", lambda shards: asked.extend(
        shard.place[-7:] for shard in shards))  # fmt: skip
    with serving(tmp_path) as server:
        for name in "ab":
            write_shards(tmp_path / name)
        one, other = (open_data(f"{server.url}/{name}/{{000..002}}.tar").train for name in "ab")
        joined = Concatenated([one, other])
        assert joined.shard_lengths == [4] * 6
        part = Subset(joined, [0, 1, 2, 9, 15, 23])
        assert part.shard_lengths == [3, 0, 1, 1, 0, 1]
        part.prefetch([2, 3, 5])
        assert asked == ["002.tar", "000.tar", "002.tar"]
        train = held_out(one, "one", share=0.5).train
        assert sum(train.shard_lengths) == len(train)


def test_threads_and_processes_share_the_cache(tmp_path):
    folder = write_shards(tmp_path / "shards", shards=6)
    code = (
        "import sys\n"
        "from vitkit.data.remote import cache as remote_cache\n"
        "from vitkit.data.remote import reading as remote\n"
        "shards = remote.remote_shards([f'{sys.argv[1]}/00{n}.tar' for n in range(6)])\n"
        "print(*(remote_cache.read(s, 0, 4).decode() for _ in range(9) for s in shards))"
    )
    with serving(folder) as server:
        command = [sys.executable, "-c", code, server.url]
        runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        first = "0001 0005 0009 0013 0017 0021"
        for run in runs:
            assert run.communicate(timeout=60)[0].split() == first.split() * 9
        whole = [wanted for kind, path, wanted in server.requests if path == "/000.tar" and wanted]
        assert len(whole) == 1


def test_threads_that_want_the_same_file_fetch_it_once(tmp_path):
    faults = Faults()
    faults.draw = lambda path, wanted: "drip"
    with serving(write_shards(tmp_path / "shards", shards=1), faults) as server:
        shard = remote.looked_up(f"{server.url}/000.tar")
        path, begin = remote_cache.cached_path(shard), threading.Barrier(6)

        def fetch():
            begin.wait()
            assert remote_cache.fetch(shard, path)

        threads = [threading.Thread(target=fetch) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len([1 for kind, _, wanted in server.requests if wanted]) == 1


@pytest.mark.parametrize("scheme", ["http", "memory"])
def test_folders_of_images_by_url(tmp_path, scheme):
    for place, name in enumerate(["train/cat/1.png", "train/dog/2.png", "val/cat/3.png",
                                  "val/dog/x/4.png", "val/dog/.5.png"]):  # fmt: skip
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(place + 1))
        fsspec.filesystem("memory").pipe_file(f"/photos/{name}", path.read_bytes())
    with serving(tmp_path) as server:
        root = server.url if scheme == "http" else "memory:/"
        splits = open_data(f"{root}/photos")
        assert values(splits.train) == [1, 2]
        assert values(splits.val) == [3, 4]
        assert splits.val.key(1) == "dog/x/4.png"
        assert splits.train.class_names == ["cat", "dog"]
        assert values(open_data(f"{root}/photos/val/").train) == [3, 4]
        few = Splits("few", Subset(splits.train, [1]))
        index = write_index(tmp_path / "few.index", few, f"{root}/photos")
        assert values(open_data(index).train) == [2]


def test_a_url_with_nothing_to_use_says_what_was_found(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with serving(tmp_path) as server, pytest.raises(DataError, match=r"found notes.txt; expected"):
        open_data(server.url)


def test_parquet_files_by_url(tmp_path):
    for split, numbers in (("train", [1, 2, 3]), ("validation", [4, 5])):
        table = pa.table(
            {"image": [encoded(n) for n in numbers], "label": [n % 2 for n in numbers]}
        )
        (tmp_path / "set").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / f"set/{split}-00000-of-00001.parquet")
    with serving(tmp_path / "set") as server:
        url = f"{server.url}/train-00000-of-00001.parquet"
        assert values(open_data(url).train) == [1, 2, 3]
        splits = open_data(server.url)
        assert values(splits.train) == [1, 2, 3]
        assert values(splits.val) == [4, 5]


def test_an_index_by_url_leads_to_the_shards_beside_it(tmp_path):
    folder = write_shards(tmp_path / "data" / "shards")
    build_index(sorted(folder.glob("*.tar")), tmp_path / "data" / "photos.index", hash=True)
    with serving(tmp_path) as server:
        train = open_data(f"{server.url}/data/photos.index").train
        assert train.name(0) == f"{server.url}/data/shards/000.tar 0001"
        assert train.shard_lengths == [4, 4, 4]
        assert not [path for _, path, _ in server.requests if path.endswith(".tar")]
        assert values(train) == list(range(1, 13))
        before = len(server.requests)
        assert values(open_data(f"{server.url}/data/photos.index").train) == list(range(1, 13))
        assert len(server.requests) - before <= 4  # index.json


def test_an_index_of_files_by_url(tmp_path):
    for place, name in enumerate(["cat/1.png", "dog/2.png"]):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(encoded(place + 1))
    build_index(tmp_path / "photos", tmp_path / "photos.index")
    with serving(tmp_path) as server:
        assert values(open_data(f"{server.url}/photos.index").train) == [1, 2]


def test_only_an_index_that_was_made_here_leads_to_the_network(tmp_path, monkeypatch):
    with serving(write_shards(tmp_path / "shards")) as server:
        index = build_index(f"{server.url}/{{000..002}}.tar", tmp_path / "a.index")
        assert values(open_data(index).train) == list(range(1, 13))
        monkeypatch.setenv("VITKIT_CACHE", str(tmp_path / "other"))
        server.requests.clear()
        with pytest.raises(
            DataError, match=r"leads to http://.*, but was not made on this machine"
        ):
            open_index(index)
        assert not server.requests


def test_chained_urls_and_unknown_schemes_are_refused():
    with pytest.raises(UsageError, match="chained URLs"):
        open_data("zip://x.tar::https://example.invalid/a.zip")
    with pytest.raises(UsageError, match="nosuch:// is not known"):
        open_data("nosuch://bucket/0.tar")


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(DataError, match=r"pip install 'vitkit\[remote\]'"):
        open_data("http://127.0.0.1:9/0.tar")


def test_local_data_does_not_import_network_code(tmp_path):
    write_shards(tmp_path / "shards")
    code = (
        "import sys\nfrom vitkit.data.opening import open_data\n"
        f"open_data({str(tmp_path / 'shards')!r}).train.encoded(0)\n"
        "assert not {'fsspec', 'aiohttp', 'vitkit.data.remote.reading'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_eight_threads_read_while_the_cache_turns_over(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "shards", shards=6, padding=5_000)
    size = (folder / "000.tar").stat().st_size
    monkeypatch.setenv("VITKIT_CACHE_GB", str(3.5 * size / 1e9))
    wrong = []
    with serving(folder) as server:
        train = open_data(f"{server.url}/{{000..005}}.tar").train

        def read(seed):
            for index in np.random.default_rng(seed).permutation(24).tolist():
                if value_of(train, index) != index + 1:
                    wrong.append(index)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
