"""CLEVR and KITTI: labels from what is in a scene, and splits that share no video."""

import numpy as np
import pytest

from vitkit.data.checks import DataError
from vitkit.data.vtab import scenes
from vtab_sets import clevr, kitti, kitti_object, write

FAR = 11.0


def test_clevr_counts_3_to_10_objects(tmp_path):
    clevr(tmp_path, {"train": [[FAR] * 3, [FAR] * 10], "val": [[FAR] * 7]})
    pools = scenes.clevr_count(tmp_path)
    assert pools.train.labels.tolist() == [0, 7]
    assert pools.test.labels.tolist() == [4]
    assert pools.train.class_names[4] == "7 objects"
    assert pools.test.image(0).shape == (3, 8, 8)


def test_the_depth_of_clevr_is_that_of_the_nearest_object(tmp_path):
    depths = [7.9, 8.0, 8.001, 8.5, 9.0, 9.25, 10.0, 10.001, 20.0]
    clevr(tmp_path, {"train": [[FAR * 2, depth] for depth in depths], "val": [[FAR]]})
    # tf.reduce_max(tf.where(limits - depth < 0)) of task_adaptation's data/clevr.py
    limits = np.array([0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0])
    expected = [max(np.flatnonzero(limits - depth < 0)) for depth in depths]
    assert scenes.clevr_distance(tmp_path).train.labels.tolist() == expected
    assert expected == [0, 0, 1, 1, 2, 3, 4, 5, 5]


def test_two_or_eleven_objects_are_damage(tmp_path):
    for objects in (2, 11):
        clevr(tmp_path, {"train": [[FAR] * objects], "val": [[FAR] * 3]})
        with pytest.raises(DataError, match="out of range"):
            scenes.clevr_count(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", '{"scenes": 3}', '{"scenes": [{"objects": []}]}', "[" * 100_000]
)
def test_scenes_of_another_kind_are_an_error(tmp_path, text):
    clevr(tmp_path, {"train": [[FAR] * 3], "val": [[FAR] * 3]})
    write(tmp_path / "scenes/CLEVR_val_scenes.json", text)
    with pytest.raises(DataError, match="CLEVR_val_scenes"):
        scenes.clevr_distance(tmp_path)


def test_kitti_tells_how_far_the_nearest_car_van_or_truck_is(tmp_path):
    texts = {
        kitti_object("Car", 8.0) + kitti_object("Van", 30): 0,
        kitti_object("Truck", 8.1) + kitti_object("Pedestrian", 3): 1,
        kitti_object("Van", 20.5): 2,
        kitti_object("Tram", 2) + kitti_object("DontCare", -1000): 3,
    }
    for text, expected in texts.items():
        write(tmp_path / "a.txt", text)
        assert scenes.vehicle_label(tmp_path / "a.txt") == expected


def test_an_empty_file_of_objects_is_a_scene_without_vehicles(tmp_path):
    write(tmp_path / "a.txt", "")
    assert scenes.vehicle_label(tmp_path / "a.txt") == 3


def test_kitti_splits_share_no_video_and_are_those_of_tensorflow_datasets(tmp_path):
    kitti(tmp_path, [kitti_object("Car", 10)] * 60, videos=30)
    pools = scenes.kitti_distance(tmp_path)
    parts = [
        {int(part.key(n).split("/")[-1][:6]) for n in range(len(part))}
        for part in (pools.train, pools.val, pools.test) if part is not None
    ]  # fmt: skip
    assert [len(part) for part in parts] == [48, 6, 6]
    videos = [{number % 30 for number in part} for part in parts]
    assert not videos[0] & videos[1] and not videos[0] & videos[2] and not videos[1] & videos[2]
    # The state that its _build_splits sets, and the two draws that it makes.
    names = [f"2011_09_26_drive_{video:04}_sync" for video in range(30)]
    np.random.seed(123)
    test = set(np.random.choice(names, 3, replace=False))
    val = set(np.random.choice(sorted(set(names) - test), 3, replace=False))
    assert {names[video] for video in videos[2]} == test
    assert {names[video] for video in videos[1]} == val
    assert pools.same_test


def test_kitti_without_the_mapping_of_videos_is_an_error(tmp_path):
    write(tmp_path / "training/image_2/000000.png")
    with pytest.raises(DataError, match="mapping"):
        scenes.kitti_distance(tmp_path)


@pytest.mark.parametrize("text", ["1,2,x", "0,1", "1,999", ""])
def test_a_damaged_mapping_is_an_error(tmp_path, text):
    kitti(tmp_path, [""] * 9, videos=9)
    write(tmp_path / "mapping/train_rand.txt", text)
    with pytest.raises(DataError, match="mapping"):
        scenes.kitti_distance(tmp_path)


def test_a_damaged_line_of_an_object_is_an_error(tmp_path):
    write(tmp_path / "a.txt", "Car 0.00 0\n")
    with pytest.raises(DataError, match="15 fields"):
        scenes.vehicle_label(tmp_path / "a.txt")
