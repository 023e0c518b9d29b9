"""The table of VTAB-1k's tasks, and where the 1,000 images of a task come from."""

from collections import Counter

import pytest

from vitkit.data.checks import DataError
from vitkit.data.vtab.opening import OWN, PUBLISHED, READERS, open_task
from vitkit.data.vtab.tasks import GROUPS, TASKS
from vtab_sets import lists, smallnorb, svhn, write


def test_there_are_19_tasks_in_three_groups():
    assert len(TASKS) == 19
    of = Counter(task.group for task in TASKS.values())
    assert of == {"natural": 7, "specialized": 4, "structured": 8}
    assert tuple(of) == GROUPS


def test_every_task_has_a_reader():
    assert {task.reader for task in TASKS.values()} == set(READERS)


def test_a_task_without_a_folder_is_absent(tmp_path):
    assert open_task(tmp_path, "dtd") is None


def test_of_a_publishers_files_800_and_200_are_drawn_that_differ(tmp_path):
    svhn(tmp_path / "svhn")
    task = open_task(tmp_path, "svhn")
    assert task is not None
    assert (len(task.fit), len(task.choose), len(task.test)) == (800, 200, 40)
    fit, choose = ({part.key(n) for n in range(len(part))} for part in (task.fit, task.choose))
    assert len(fit) == 800 and len(choose) == 200 and not fit & choose
    assert task.split == OWN


def test_the_draw_is_always_the_same(tmp_path):
    svhn(tmp_path / "svhn")
    first, second = (open_task(tmp_path, "svhn") for _ in range(2))
    assert first is not None and second is not None
    assert first.fit.fingerprint() == second.fit.fingerprint()
    assert first.fit.fingerprint() != first.choose.fingerprint()


def test_where_the_set_has_images_to_validate_on_the_200_are_of_them(tmp_path):
    smallnorb(tmp_path / "smallnorb")
    task = open_task(tmp_path, "smallnorb_azimuth")
    assert task is not None
    assert "training" in task.fit.key(0) and "testing" in task.choose.key(0)
    assert (len(task.fit), len(task.choose), len(task.test)) == (800, 200, 220)


def test_fewer_test_images_than_published_are_told_apart(tmp_path):
    svhn(tmp_path / "svhn")
    task = open_task(tmp_path, "svhn")
    assert task is not None and not task.same_test


def test_published_lists_are_the_published_split(tmp_path):
    lists(tmp_path / "eurosat", classes=10, test=TASKS["eurosat"].test_images)
    task = open_task(tmp_path, "eurosat")
    assert task is not None
    assert (task.split, task.same_test) == (PUBLISHED, True)
    assert len(task.fit.class_names) == 10


@pytest.mark.parametrize(
    ("task", "folder"), [("clevr_distance", "clevr_dist"), ("cifar100", "cifar"),
                         ("dsprites_location", "dsprites_loc"), ("kitti_distance", "kitti")],
)  # fmt: skip
def test_copies_with_lists_may_be_called_as_they_are_in_circulation(tmp_path, task, folder):
    lists(tmp_path / folder, classes=TASKS[task].classes)
    found = open_task(tmp_path, task)
    assert found is not None and found.split == PUBLISHED


def test_a_list_is_taken_before_the_publishers_files(tmp_path):
    svhn(tmp_path / "svhn")
    lists(tmp_path / "svhn", classes=10)
    task = open_task(tmp_path, "svhn")
    assert task is not None and task.split == PUBLISHED


def test_lists_of_another_length_are_an_error(tmp_path):
    lists(tmp_path / "svhn", classes=10)
    write(tmp_path / "svhn/val200.txt", "images/0.jpg 0\n")
    with pytest.raises(DataError, match="800, 1 and 50"):
        open_task(tmp_path, "svhn")


def test_too_few_images_to_draw_from_are_an_error(tmp_path):
    svhn(tmp_path / "svhn", train=999)
    with pytest.raises(DataError, match="999 images are too few to draw 1000"):
        open_task(tmp_path, "svhn")


def test_another_number_of_classes_is_an_error(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            write(tmp_path / f"pets/{split}/{name}/a.jpg")
    with pytest.raises(DataError, match="2 classes, pets has 37"):
        open_task(tmp_path, "pets")
