"""Model: anything that holds images goes in, a prediction for each comes out in its place."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vitkit
from vitkit.checkpoints.bundle import Bundle, CheckpointError, write_bundle
from vitkit.data.decode import ImageError, decode
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError, VitkitError
from vitkit.models.vit import VisionTransformer, ViTConfig
from vitkit.prediction.model import Model, Prediction, load

CLASSES = [f"class {number}" for number in range(7)]
GOLDEN = Path(__file__).parents[1] / "golden"


def new_net(seed: int = 0) -> VisionTransformer:
    """A net whose head is not zero, so that images are told apart."""
    torch.manual_seed(seed)
    net = VisionTransformer(ViTConfig(4, 12, 2, 3, 24, classes=7, image_size=(16, 12)))
    with torch.no_grad():
        torch.nn.init.normal_(net.head.weight)
    return net


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(new_net(), CLASSES, Preprocessing.direct((16, 12)), {"source": "a test"})


def pixels(seed: int = 0, height: int = 20, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(array: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def write(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(pixels(seed)))
    return path


def one(predictions: list[Prediction]) -> Prediction:
    (prediction,) = predictions
    return prediction


def alike(first: list[Prediction], second: list[Prediction]) -> bool:
    """Whether the same was predicted, but for rounding; the names of the images do not count."""
    pairs = zip(first, second, strict=True)
    return all(dict(a.top) == pytest.approx(dict(b.top), abs=1e-5) for a, b in pairs)


# Every way to give an image


def test_a_path_bytes_a_picture_and_an_array_of_one_image_are_predicted_alike(model, tmp_path):
    path = write(tmp_path / "1.png")
    array = pixels()
    ways = [path, str(path), path.read_bytes(), Image.open(path), Image.fromarray(array), array]
    results = [one(model.predict(way)) for way in ways]
    assert len({result.top for result in results}) == 1
    assert [result.image for result in results] == [str(path)] * 2 + ["image 0"] * 4


def test_a_list_a_tuple_and_a_generator_keep_their_order(model, tmp_path):
    paths = [write(tmp_path / f"{name}.png", seed) for seed, name in enumerate("cab")]
    expected = [one(model.predict(path)) for path in paths]
    for images in (paths, tuple(paths), (path for path in paths)):
        predictions = model.predict(images)
        assert [p.image for p in predictions] == [str(path) for path in paths]
        assert alike(predictions, expected)


def test_kinds_can_be_mixed_and_what_has_no_name_is_called_by_its_place(model, tmp_path):
    path = write(tmp_path / "1.png")
    predictions = model.predict([pixels(1), path, encoded(pixels(2)), Image.fromarray(pixels(3))])
    assert [p.image for p in predictions] == ["image 0", str(path), "image 2", "image 3"]
    assert len({p.top for p in predictions}) == 4


def test_a_folder_gives_every_image_in_it_at_any_depth_in_order(model, tmp_path):
    names = ["b.png", "a/2.JPG", "a/1.png", "c.txt", "d/e/f.webp"]
    for seed, name in enumerate(names):
        write(tmp_path / name, seed)
    found = [Path(p.image).relative_to(tmp_path).as_posix() for p in model.predict(tmp_path)]
    assert found == ["a/1.png", "a/2.JPG", "b.png", "d/e/f.webp"]


def test_a_file_named_by_itself_is_read_whatever_it_is_called(model, tmp_path):
    assert one(model.predict(write(tmp_path / "photo.dat"))).error is None


def test_a_folder_beside_files_is_opened_in_its_place(model, tmp_path):
    first, last = write(tmp_path / "z.png"), write(tmp_path / "a.png")
    inner = write(tmp_path / "folder" / "1.png")
    predictions = model.predict([first, tmp_path / "folder", last])
    assert [p.image for p in predictions] == [str(first), str(inner), str(last)]


def test_grey_arrays_are_three_equal_channels(model):
    grey = pixels()[..., 0]
    as_colour = np.stack([grey] * 3, axis=-1)
    assert model.predict(grey) == model.predict(as_colour)


def test_a_stack_of_arrays_is_as_many_images(model):
    stack = np.stack([pixels(seed) for seed in range(5)])
    predictions = model.predict(stack)
    assert [p.image for p in predictions] == [f"image {n}" for n in range(5)]
    assert alike(predictions, model.predict(list(stack)))


def test_arrays_may_be_views_and_are_left_as_they_are(model):
    array = pixels()
    before = array.copy()
    mirrored = model.predict(array[:, ::-1])
    assert mirrored == model.predict(np.ascontiguousarray(array[:, ::-1]))
    array.setflags(write=False)
    assert model.predict(array) != mirrored
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_orientation_of_a_picture_is_applied_however_it_is_given(model, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(pixels(), exif=exif)
    upright = np.rot90(pixels(), {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    expected = one(model.predict(np.ascontiguousarray(upright))).top
    assert one(model.predict(data)).top == expected
    assert one(model.predict(Image.open(io.BytesIO(data)))).top == expected


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_any_mode_are_predicted_as_their_files_are(model, mode):
    if mode == "I;16":
        picture = Image.fromarray(pixels()[..., 0].astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(pixels()).convert(mode)
    file = io.BytesIO()
    picture.save(file, "TIFF")
    assert model.predict(picture) == model.predict(file.getvalue())


# What comes out


def test_the_likeliest_classes_come_first_and_are_the_nets(model):
    image = decode(encoded(pixels()))
    with torch.no_grad():
        expected = model.net(model.preprocessing(image)[None]).softmax(-1)[0]
    prediction = one(model.predict(pixels(), top=3))
    order = expected.argsort(descending=True)[:3].tolist()
    assert [name for name, _ in prediction.top] == [CLASSES[label] for label in order]
    found = torch.tensor([share for _, share in prediction.top])
    torch.testing.assert_close(found, expected[order], atol=1e-6, rtol=1e-5)
    assert (prediction.label, prediction.probability) == prediction.top[0]


@given(seed=st.integers(0, 999), top=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_probabilities_fall_and_over_all_classes_sum_to_one(model, seed, top):
    found = one(model.predict(pixels(seed), top=top)).top
    values = [share for _, share in found]
    assert len(found) == min(top, 7)
    assert values == sorted(values, reverse=True)
    assert all(0 <= value <= 1 for value in values)
    if top >= 7:
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert {name for name, _ in found} == set(CLASSES)


def test_five_classes_are_given_if_nothing_is_said(model):
    assert len(one(model.predict(pixels())).top) == 5


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_the_batch_size_changes_nothing(model, batch_size):
    stack = np.stack([pixels(seed) for seed in range(7)])
    whole, parts = model.predict(stack, 7), model.predict(stack, 7, batch_size)
    for first, second in zip(whole, parts, strict=True):
        expected = dict(first.top)
        assert first.image == second.image
        assert dict(second.top) == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(
        model.features(stack), model.features(stack, batch_size), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_that_cannot_be_is_an_error_and_no_empty_answer(model, batch_size):
    with pytest.raises(ValueError, match="batch"):
        model.predict(pixels(), batch_size=batch_size)


@pytest.mark.parametrize("top", [0, -1])
def test_fewer_classes_than_one_cannot_be_asked_for(model, top):
    with pytest.raises(UsageError, match=f"top is {top}; it must be 1 or more"):
        model.predict(pixels(), top=top)


def test_dropout_is_off():
    net = VisionTransformer(ViTConfig(4, 12, 2, 3, 24, classes=7, image_size=(8, 8), dropout=0.9))
    torch.nn.init.normal_(net.head.weight)
    noisy = Model(net.train(), CLASSES, Preprocessing.direct((8, 8)))
    assert noisy.predict(pixels()) == noisy.predict(pixels())


# Images that cannot be used


BAD = [
    (b"", "empty"),
    (b"hello", "not an image"),
    (encoded(pixels())[:300], "truncated PNG"),
    (np.zeros((4, 4, 4), np.uint8), "shape (4, 4, 4)"),
    (np.zeros((4, 4, 3), np.float32), "float32 array"),
    (np.zeros((0, 4, 3), np.uint8), "shape (0, 4, 3)"),
    (Image.open(io.BytesIO(encoded(pixels())[:300])), "truncated"),
    (Image.new("RGB", (0, 4)), ""),
]


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_a_bad_image_has_an_error_in_its_place_and_disturbs_no_other(model, bad, reason):
    predictions = model.predict([pixels(1), bad, pixels(2)], batch_size=2)
    assert predictions[1].error is not None
    assert reason in predictions[1].error
    assert (predictions[1].top, predictions[1].label) == ((), None)
    assert predictions[1].probability is None
    assert [p.error for p in predictions[::2]] == [None, None]
    assert alike(predictions[::2], model.predict([pixels(1), pixels(2)]))


def test_a_picture_that_turns_out_broken_when_its_pixels_are_read_is_a_bad_image(model):
    """Pillow reads pixels late, and has several kinds of error for what it finds then."""
    first, second, *rest = encoded(pixels(height=200, width=200)).split(b"IDAT")
    broken = first + b"IDAT" + second + b"\xc9\xff\xef\x93" + b"IDAT".join(rest)
    good, bad = model.predict([pixels(), Image.open(io.BytesIO(broken))])
    assert good.error is None
    assert bad.error


def test_a_file_that_is_no_image_has_an_error_in_its_place(model, tmp_path):
    (tmp_path / "a.png").write_text("hello")
    write(tmp_path / "b.png")
    first, second = model.predict(tmp_path)
    assert first.error
    assert second.error is None


def test_nothing_but_bad_images_are_nothing_but_errors(model):
    assert [p.error for p in model.predict([b"", b""])] == ["the file is empty"] * 2


@pytest.mark.parametrize("images", [[], (), np.zeros((0, 4, 4, 3), np.uint8)])
def test_no_images_at_all_are_an_error(model, images):
    with pytest.raises(VitkitError, match="no images given"):
        model.predict(images)


def test_a_folder_without_images_is_an_error(model, tmp_path):
    with pytest.raises(VitkitError, match="no images given"):
        model.predict(tmp_path)


def test_a_path_that_is_not_there_is_named(model, tmp_path):
    with pytest.raises(VitkitError, match=r"cat\.png: no such image or folder"):
        model.predict([write(tmp_path / "1.png"), tmp_path / "cat.png"])


def test_a_path_that_is_not_there_is_found_before_any_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "run", lambda *_: pytest.fail("an image was predicted"))
    with pytest.raises(VitkitError, match="no such image"):
        model.predict([pixels(), tmp_path / "cat.png"], batch_size=1)


def test_hidden_files_of_a_folder_are_not_predicted(model, tmp_path):
    write(tmp_path / "1.png")
    write(tmp_path / "._1.png")
    assert one(model.predict(tmp_path)).error is None


# Features


def test_features_are_what_the_nets_last_layer_reads(model):
    stack = np.stack([pixels(seed) for seed in range(5)])
    images = torch.stack([model.preprocessing(decode(encoded(array))) for array in stack])
    with torch.no_grad():
        expected = model.net.features(images)
    features = model.features(stack)
    assert features.dtype == np.float32
    assert features.shape == (5, 12)
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_a_bad_image_among_features_is_an_error_that_names_it(model):
    with pytest.raises(ImageError, match="image 1: the file is empty"):
        model.features([pixels(), b""])


# Saving and loading


def test_a_model_that_is_saved_and_loaded_predicts_the_same(model, tmp_path):
    model.save(tmp_path / "saved")
    again = vitkit.load(tmp_path / "saved")
    assert alike(again.predict(pixels(), top=7), model.predict(pixels(), top=7))
    assert (again.class_names, again.preprocessing) == (model.class_names, model.preprocessing)
    assert again.provenance == {"source": "a test"}
    assert not again.net.training


def saved(path: Path, seed: int) -> list[Prediction]:
    """Write a bundle there; what it predicts."""
    net, preprocessing = new_net(seed), Preprocessing.direct((16, 12))
    write_bundle(path, Bundle(net, CLASSES, preprocessing))
    return Model(net, CLASSES, preprocessing).predict(pixels())


def test_of_a_run_the_best_net_is_taken_and_else_the_last(tmp_path):
    last = saved(tmp_path / "run" / "last", seed=1)
    assert alike(load(tmp_path / "run").predict(pixels()), last)
    best = saved(tmp_path / "run" / "best", seed=2)
    assert alike(load(tmp_path / "run").predict(pixels()), best)
    assert alike(load(tmp_path / "run" / "last").predict(pixels()), last)
    assert not alike(best, last)


def test_an_npz_of_the_authors_is_loaded_too():
    model = load(GOLDEN / "vit-token-prelogits" / "checkpoint.npz")
    assert len(one(model.predict(pixels(), top=99)).top) == 10


def test_class_names_and_preprocessing_can_be_replaced(model, tmp_path):
    model.save(tmp_path / "saved")
    names = list("abcdefg")
    crop = Preprocessing.resize_crop((16, 12), (24, 24))
    changed = load(tmp_path / "saved", class_names=names, preprocessing=crop)
    assert changed.class_names == names
    assert changed.preprocessing == crop
    expected = Model(model.net, names, crop).predict(pixels())
    assert alike(changed.predict(pixels()), expected)
    assert not alike(load(tmp_path / "saved", class_names=names).predict(pixels()), expected)


def test_as_many_class_names_as_classes_are_asked_for(model, tmp_path):
    model.save(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="2 class names given for a net of 7 classes"):
        load(tmp_path / "saved", class_names=["a", "b"])


def test_a_preprocessing_for_another_size_than_the_nets_is_refused_at_once(model):
    other = replace(model.preprocessing, image_size=(16, 16))
    with pytest.raises(VitkitError, match="16x16"):
        Model(model.net, CLASSES, other)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nothing: no such checkpoint"):
        load(tmp_path / "nothing")


def test_a_folder_that_is_neither_bundle_nor_run_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither a bundle .* nor a run with best/"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["weights.pkl", "weights", "weights.txt"])
def test_another_kind_of_file_is_refused_unread(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=f"{name}: not a known kind of file"):
        load(tmp_path / name)


def test_a_folder_with_the_name_of_published_weights_is_read_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = vitkit.build("ViT-Pico/2", classes=2, image_size=16)
    Model(net, ["a", "b"], Preprocessing.direct((16, 16))).save("vit-b16-i21k")
    model = load("vit-b16-i21k")
    assert model.net.config == net.config
    assert model.preprocessing == Preprocessing.direct((16, 16))
