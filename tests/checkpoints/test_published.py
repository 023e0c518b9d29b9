"""The table of published weights against the libraries that publish or know the same files."""

import re
from functools import cache
from math import floor
from typing import Any

import pytest
import timm
import torchvision

from vitkit.checkpoints.published import PUBLISHED, Published, published_rows, row_of
from vitkit.data.transforms import HALF, Preprocessing
from vitkit.models import variants
from vitkit.models.variants import VARIANTS


def of(start: str) -> dict[str, Published]:
    """The rows whose file begins with this; at least one."""
    found = {name: row for name, row in PUBLISHED.items() if row.where.startswith(start)}
    assert found
    return found


# Every row


def test_names_are_lower_case_and_plain():
    for name in PUBLISHED:
        assert re.fullmatch(r"[a-z0-9]+(?:[-_][a-z0-9]+)*", name)


def test_the_model_is_one_that_can_be_built_at_this_size():
    for name, row in PUBLISHED.items():
        assert row.model in VARIANTS, name
        assert variants.config(row.model, image_size=row.preprocessing.image_size), name


def test_the_name_says_the_size_of_the_net():
    for name, row in PUBLISHED.items():
        size = row.model.rsplit("-", 1)[-1].replace("/", "").lower()  # b16, r50x1, b0
        assert re.search(rf"(?<![a-z0-9]){size}(?![a-z0-9])", name), name


def test_a_number_at_the_end_of_the_name_is_the_image_size():
    for name, row in PUBLISHED.items():
        if side := re.search(r"-(\d{3})$", name):
            assert row.preprocessing.image_size == (int(side[1]), int(side[1])), name


def test_pixels_are_normalised_in_one_of_two_ways():
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for name, row in PUBLISHED.items():
        assert (row.preprocessing.mean, row.preprocessing.std) in ((HALF, HALF), imagenet), name


def test_accuracies_are_shares_and_each_row_has_a_source():
    for name, row in PUBLISHED.items():
        assert row.source, name
        assert row.accuracy is None or 0.6 < row.accuracy < 0.95, name


def test_weights_that_do_not_classify_imagenet_have_no_accuracy_and_say_why():
    for name, row in PUBLISHED.items():
        if re.search(r"-i21k$|^dinov2|^mae-[a-z]\d+$|^bit-m-r\d+x\d$", name):
            assert row.accuracy is None, name
            assert row.note, name


def test_files_come_over_https_or_from_the_hub():
    way = r"https://[\w./+-]+\.(npz|pth|pth\.tar)|hf:[\w.-]+/[\w.-]+"
    for row in PUBLISHED.values():
        assert re.fullmatch(way, row.where)


def test_no_two_names_have_one_file():
    where = [row.where for row in PUBLISHED.values()]
    assert len(set(where)) == len(where)


# The authors' files


def test_augreg_files_are_named_as_in_the_authors_readme():
    """README.md of vision_transformer, the first and the last row of its table."""
    folder = "https://storage.googleapis.com/vit_models/augreg/"
    large = folder + "L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0"
    tiny = folder + "R_Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"
    by_rate = "--imagenet2012-steps_20k-lr_{}-res_384.npz"
    assert PUBLISHED["vit-l16-augreg-i21k"].where == large + ".npz"
    assert PUBLISHED["vit-l16-augreg-i21k-i1k-384"].where == large + by_rate.format("0.01")
    assert PUBLISHED["r-vit-ti16-augreg-i21k"].where == tiny + ".npz"
    assert PUBLISHED["r-vit-ti16-augreg-i21k-i1k-384"].where == tiny + by_rate.format("0.03")


def test_the_authors_resize_straight_to_the_size():
    for name, row in of("https://storage.googleapis.com/vit_models").items():
        size = row.preprocessing.image_size
        assert row.preprocessing == Preprocessing.direct(size), name
        if resolution := re.search(r"-res_(\d+)", row.where):
            assert size[0] == int(resolution[1]), name


def test_bit_names_its_files_by_the_net():
    for name, row in of("https://storage.googleapis.com/bit_models").items():
        assert row.model.removeprefix("BiT-") in re.split(r"[-_/.]", row.where), name
        side = 480 if "ILSVRC2012" in row.where else 224
        assert row.preprocessing.image_size == (side, side), name


def test_t2t_names_its_files_by_their_accuracy():
    for name, row in of("https://github.com/yitu-opensource").items():
        file = row.where.rpartition("/")[2]
        assert row.accuracy == pytest.approx(float(file[:4]) / 100), name
        assert f"_{row.model.rpartition('-')[2]}." in file, name


# torchvision


def test_torchvision_rows_are_its_weights_meta():
    models = torchvision.models.list_models(include=["vit_*", "efficientnet_b*"])
    known: dict[str, Any] = {
        weights.url: (model, weights)
        for model in models
        for weights in torchvision.models.get_model_weights(model)
    }
    for name, row in of("https://download.pytorch.org").items():
        model, weights = known[row.where]
        expected = weights.transforms()
        assert model == re.sub("[-/]", "_", row.model.lower()), name
        accuracy = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert row.accuracy == pytest.approx(accuracy / 100), name
        assert row.preprocessing == Preprocessing(
            (expected.crop_size[0], expected.crop_size[0]), "shorter-side", expected.resize_size[0],
            expected.interpolation.value, expected.antialias,
            rounding="torchvision", mean=tuple(expected.mean), std=tuple(expected.std),
        ), name  # fmt: skip


# timm


@cache
def timm_configs() -> dict[Any, Any]:
    """By URL, and by the id on the Hub."""
    configs = [timm.get_pretrained_cfg(name) for name in timm.list_models(pretrained=True)]
    by_url = {config.url: config for config in configs if config and config.url}
    return by_url | {f"hf:{config.hf_hub_id}": config for config in configs if config}


def test_timm_rows_are_its_default_configs():
    for name, row in of("hf:timm/").items():
        config = timm_configs()[row.where]
        side = config.input_size[-1]
        assert (config.crop_mode, config.num_classes) == ("center", 1000), name
        assert row.preprocessing == Preprocessing(
            (side, side), "shorter-side", floor(side / config.crop_pct), config.interpolation, True,
            rounding="torchvision", mean=config.mean, std=config.std,
        ), name  # fmt: skip


def test_files_that_timm_has_too_are_normalised_and_sized_alike():
    both = {name: row for name, row in PUBLISHED.items() if row.where in timm_configs()}
    assert all(family in " ".join(both) for family in ("augreg", "deit", "dinov2", "mae", "timm"))
    for name, row in both.items():
        config, ours = timm_configs()[row.where], row.preprocessing
        assert (ours.mean, ours.std) == (config.mean, config.std), name
        assert ours.image_size == tuple(config.input_size[1:]), name


# Reading the table


def test_a_row_is_found_by_its_name_and_by_its_place():
    on_the_hub, file = PUBLISHED["timm-vit-b16"], PUBLISHED["vit-b16-i21k"]
    assert row_of("timm-vit-b16") is row_of(on_the_hub.where) is on_the_hub
    assert row_of(on_the_hub.where + "@main") is on_the_hub
    assert row_of("vit-b16-i21k") is row_of(file.where) is file
    assert row_of("runs/base") is row_of("hf:owner/name") is None


def test_the_rows_of_all_nets_or_of_one_are_plain_values():
    everything, base = published_rows(), published_rows("ViT-B/16")
    assert [row["name"] for row in everything] == list(PUBLISHED)
    assert 0 < len(base) < len(everything)
    assert {row["model"] for row in base} == {"ViT-B/16"}
    fields = {"name", "model", "image_size", "accuracy", "where", "source", "note"}
    assert all(set(row) == fields for row in everything)
