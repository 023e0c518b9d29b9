"""Folders and files that are complete or absent, whatever happens while they are written."""

import errno
import os
from pathlib import Path

import pytest

import vitkit.files as module
from vitkit.errors import UsageError
from vitkit.files import leave_cache, whole_folder, write_whole


def write(path: Path, text: str) -> None:
    with whole_folder(path) as folder:
        (folder / "a.txt").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# whole_folder


def test_a_folder_appears_when_the_block_has_ended(tmp_path):
    path = tmp_path / "deep" / "inside"
    with whole_folder(path) as folder:
        (folder / "a.txt").write_text("new")
        assert not path.exists()
    assert (path / "a.txt").read_text() == "new"
    assert names(tmp_path / "deep") == ["inside"]


def test_an_older_folder_is_replaced_with_all_that_is_in_it(tmp_path):
    write(tmp_path / "x", "old")
    (tmp_path / "x" / "more.txt").write_text("old")
    write(tmp_path / "x", "new")
    assert names(tmp_path / "x") == ["a.txt"]
    assert (tmp_path / "x" / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_in_the_block_leaves_the_older_folder_and_nothing_else(tmp_path, error):
    def interrupted() -> None:
        with whole_folder(tmp_path / "x") as folder:
            (folder / "a.txt").write_text("half")
            raise error

    write(tmp_path / "x", "old")
    with pytest.raises(error):
        interrupted()
    assert (tmp_path / "x" / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    write(tmp_path / "there", "old")
    (tmp_path / "x").symlink_to(tmp_path / "there", target_is_directory=True)
    write(tmp_path / "x", "new")
    assert (tmp_path / "x").is_symlink()
    assert (tmp_path / "there" / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["there", "x"]


def test_links_in_a_loop_are_said(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises((UsageError, OSError)):  # by the version of Python
        write(tmp_path / "loop", "new")
    assert names(tmp_path) == ["loop"]


@pytest.mark.parametrize("path", [".", "..", "../y", ""])
def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch, path):
    (tmp_path / "y").mkdir()
    monkeypatch.chdir(tmp_path / "y")
    with pytest.raises(UsageError, match="is the current folder, or above it"):
        write(Path(path), "new")
    assert names(tmp_path) == ["y"]


def test_an_error_between_the_renames_puts_the_older_folder_back(tmp_path, monkeypatch):
    write(tmp_path / "x", "old")
    rename, done = Path.rename, []

    def failing(self, target):
        done.append(target)
        if len(done) == 2:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"):
        write(tmp_path / "x", "new")
    monkeypatch.undo()
    assert (tmp_path / "x" / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_two_that_write_at_once_do_not_mix(tmp_path):
    with whole_folder(tmp_path / "x") as first, whole_folder(tmp_path / "x") as second:
        assert first != second
        (first / "1.txt").write_text("1")
        (second / "2.txt").write_text("2")
    assert len(names(tmp_path / "x")) == 1


@pytest.fixture
def order(monkeypatch) -> list[str]:
    """What is synced to the disk and renamed, in order."""
    seen = []
    fsync, rename = os.fsync, Path.rename

    def spy_sync(descriptor):
        seen.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def spy_rename(self, target):
        seen.append(f"rename to {Path(target).name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", spy_sync)
    monkeypatch.setattr(Path, "rename", spy_rename)
    monkeypatch.setattr(Path, "replace", spy_rename)
    return seen


on_linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors by name")


@on_linux
def test_every_file_is_on_the_disk_before_the_rename_and_the_rename_before_the_end(tmp_path, order):
    with whole_folder(tmp_path / "x") as folder:
        for name in ("a", "b", "c"):
            (folder / name).write_text(name)
    place = order.index("rename to x")
    assert {"sync a", "sync b", "sync c", f"sync {folder.name}"} == set(order[:place])
    assert order[place + 1 :] == [f"sync {tmp_path.name}"]


@on_linux
def test_files_in_inner_folders_are_on_the_disk_too(tmp_path, order):
    with whole_folder(tmp_path / "x") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "deep").write_text("deep")
    assert {"sync deep", "sync inner"} <= set(order[: order.index("rename to x")])


# write_whole


def test_a_file_is_written_as_utf8_into_a_new_folder(tmp_path):
    write_whole(tmp_path / "new" / "a.txt", "naïve 日本\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "naïve 日本\n".encode()
    assert names(tmp_path / "new") == ["a.txt"]


def test_an_older_file_is_replaced(tmp_path):
    for text in ("a long text", "short"):
        write_whole(tmp_path / "a.txt", text)
    assert (tmp_path / "a.txt").read_text() == "short"
    assert names(tmp_path) == ["a.txt"]


def test_an_error_before_the_file_is_whole_leaves_the_older_one(tmp_path, monkeypatch):
    write_whole(tmp_path / "a.txt", "old")

    def failing(_):
        raise OSError("the disk is full")

    monkeypatch.setattr(module, "sync", failing)
    with pytest.raises(OSError, match="disk is full"):
        write_whole(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"


def test_text_that_cannot_be_written_leaves_the_older_file_and_nothing_else(tmp_path):
    write_whole(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "a.txt", "lone surrogate \udce9")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@on_linux
def test_a_file_is_on_the_disk_before_the_rename_and_the_rename_before_the_end(tmp_path, order):
    write_whole(tmp_path / "a.txt", "new")
    (first, second, third) = order
    assert first.startswith("sync .a.txt")
    assert second == "rename to a.txt"
    assert third == f"sync {tmp_path.name}"


def test_a_system_that_cannot_drop_a_file_from_its_cache_is_left_alone(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 5000)
    leave_cache(path)
    asked = []

    def unknown(descriptor, begin, length, advice):
        asked.append(os.fstat(descriptor).st_size)
        raise OSError(errno.EINVAL, "unknown")

    monkeypatch.setattr(os, "posix_fadvise", unknown, raising=False)
    leave_cache(path)
    assert asked == [5000]
    monkeypatch.delattr(os, "posix_fadvise")
    leave_cache(path)
    assert path.read_bytes() == b"x" * 5000


def test_a_full_disk_is_told_with_the_file_that_had_no_room(tmp_path, monkeypatch):
    def full(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as error:
        write_whole(tmp_path / "page.html", "x")
    assert error.value.filename == str(tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
