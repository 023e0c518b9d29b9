"""ImageNet's classes by any of their names, and the sets that go with ImageNet."""

import pytest
from timm.data import ImageNetInfo
from torchvision.models import ViT_B_16_Weights

from vitkit.data.checks import DataError
from vitkit.data.classes.imagenet import (
    SETS,
    classes_of_set,
    imagenet_classes,
    imagenet_numbers,
    looks_like,
    objectnet_folders,
    places_in_set,
    same_imagenet_classes,
)

ALL = list(range(1000))
WNIDS = ImageNetInfo().label_names()
WORDS = ImageNetInfo().label_descriptions()
TORCHVISION = ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"]


def test_the_table_is_that_of_timm():
    assert [known.wnid for known in imagenet_classes()] == WNIDS
    assert [known.names for known in imagenet_classes()] == WORDS


@pytest.mark.parametrize("names", [WNIDS, WORDS, TORCHVISION, [str(n) for n in ALL]])
def test_a_thousand_names_of_any_library_are_the_thousand_classes(names):
    assert imagenet_numbers(names) == ALL


@pytest.mark.parametrize("names", [WNIDS, [str(n) for n in ALL]])
def test_they_may_come_in_any_order(names):
    assert imagenet_numbers(names[::-1]) == ALL[::-1]


def test_a_few_names_are_found_by_all_their_words_the_first_or_any():
    names = ["n01440764", "tench, Tinca tinca", "great_white_shark", "Tiger Shark", "tub", "cock"]
    assert imagenet_numbers(names[:1]) == imagenet_numbers(names[1:2]) == [0]
    assert imagenet_numbers(names[2:]) == [2, 3, 876, 7]
    assert imagenet_numbers(["man-eating shark", "crane (n02012849)"]) == [2, 134]


def test_letters_tell_the_dog_from_the_jacket():
    assert imagenet_numbers(["Cardigan", "cardigan"]) == [264, 474]


@pytest.mark.parametrize("name", ["crane", "7", "n99999999", "", "a tenchlike fish", "n014407641"])
def test_what_may_mean_several_classes_or_none_is_none(name):
    assert imagenet_numbers([name]) == [None]


def test_of_two_names_for_a_class_the_better_one_has_it():
    assert imagenet_numbers(["Tinca tinca", "n01440764"]) == [None, 0]
    assert imagenet_numbers(["n01440764", "n01440764_tench"]) == [None, None]


def test_numbers_are_only_taken_for_classes_where_all_thousand_are_there():
    assert imagenet_numbers([str(n) for n in range(10)]) == [None] * 10
    assert imagenet_numbers([str(n) for n in range(999)]) == [None] * 999


def test_classes_of_two_lists_are_matched_whatever_they_are_called():
    assert same_imagenet_classes(TORCHVISION, WNIDS) == ALL
    assert same_imagenet_classes(["goldfish", "cat", "tench"], ["n01440764", "n01443537"]) == [2, 0]
    assert same_imagenet_classes(["goldfish"], ["tench", "cat"]) == [None, None]


def test_sets_have_their_published_sizes():
    assert {title: len(classes_of_set(title)) for title in SETS} == {
        "imagenet-r": 200, "imagenet-a": 200, "imagenet-v2": 1000, "imagenet-sketch": 1000,
        "objectnet": 113,
    }  # fmt: skip


@pytest.mark.parametrize("title, file", [("imagenet-r", "r"), ("imagenet-a", "a")])
def test_the_200_classes_are_those_of_timm(title, file):
    from importlib.resources import files

    theirs = (files("timm.data") / f"_info/imagenet_{file}_indices.txt").read_text().split()
    assert classes_of_set(title) == [(int(number),) for number in theirs]


def test_objectnet_has_313_folders_some_of_several_classes_and_no_class_in_two():
    folders = objectnet_folders()
    assert len(folders) == 313
    assert sum(map(bool, folders.values())) == 113
    named = {folder: [imagenet_classes()[n].names.split(", ")[0] for n in folders[folder]]
             for folder in ("alarm_clock", "banana", "bicycle", "air_freshener")}  # fmt: skip
    assert named["alarm_clock"] == ["analog clock", "digital clock"]
    assert named["bicycle"] == ["bicycle-built-for-two", "mountain bike"]
    assert named["banana"] == ["banana"]
    assert named["air_freshener"] == []
    numbers = [number for several in folders.values() for number in several]
    assert len(numbers) == len(set(numbers)) == 125


def test_places_in_a_set_follow_its_own_order():
    assert places_in_set("imagenet-r", ["n01484850", "n01443537"]) == [1, 0]
    assert places_in_set("imagenet-v2", ["10", "2"]) == [10, 2]
    assert places_in_set("objectnet", ["air_freshener", "backpack"]) == [None, 1]


@pytest.mark.parametrize(
    "title, name",
    [("imagenet-r", "n01440764"), ("imagenet-v2", "1000"), ("objectnet", "dragon"),
     ("imagenet-sketch", "dragon")],
)  # fmt: skip
def test_a_class_that_is_not_of_the_set_is_named(title, name):
    with pytest.raises(DataError, match=f"{name}.*none of {title}"):
        places_in_set(title, [name])


def test_sets_are_known_by_exactly_their_folders():
    of_r = [WNIDS[n] for (n,) in classes_of_set("imagenet-r")]
    of_a = [WNIDS[n] for (n,) in classes_of_set("imagenet-a")]
    folders = objectnet_folders()
    assert looks_like(of_r[::-1]) == "imagenet-r"
    assert looks_like(of_a) == "imagenet-a"
    assert looks_like(list(folders)) == "objectnet"
    assert looks_like([folder for folder in folders if folders[folder]]) == "objectnet"
    assert looks_like(of_r[1:]) is None
    assert looks_like(WNIDS) is None
