"""Accuracy on corrupted and on shifted pictures: every kind, severity and shift by itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from vitkit.data.changed import Changed
from vitkit.data.checks import DataError
from vitkit.data.opening import digits
from vitkit.data.source import ArraySource, Splits, Subset
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError
from vitkit.evaluation.corruptions import corrupted, standard
from vitkit.models.bit import BiT, BiTConfig
from vitkit.models.variants import build
from vitkit.prediction.model import Model
from vitkit.workflows.evaluate import found
from vitkit.workflows.protocols.corruptions import corrupted_source

FEW = Subset(digits().test or digits().val or digits().train, np.arange(60))
SPLITS = Splits("some digits", FEW)
PIXELS = Preprocessing.direct((8, 8))


class NearestMean(nn.Module):
    """A net that takes a digit for the one whose mean picture is nearest; right of most."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(classes=10, image_size=(8, 8))
        train = digits().train
        pixels = torch.stack([PIXELS(train.image(i)) for i in range(len(train))])
        means = [pixels[torch.from_numpy(train.labels == digit)].mean(dim=0) for digit in range(10)]
        self.means = nn.Parameter(torch.stack(means))  # (10, 3, 8, 8)

    def forward(self, images):
        return -((images[:, None] - self.means) ** 2).sum(dim=(2, 3, 4))


@pytest.fixture(scope="module")
def model():
    return Model(NearestMean(), FEW.class_names, PIXELS)


def right(model, images) -> np.ndarray:
    """What the net makes of pictures (uint8), one by one, without any of the protocols."""
    said = model.predict([image.permute(1, 2, 0).numpy() for image in images], top=1)
    wanted = [FEW.class_names[label] for label in FEW.labels]
    return np.array([one.label == name for one, name in zip(said, wanted, strict=True)])


def test_each_share_is_that_of_the_pictures_corrupted_by_hand(model):
    _, result = found(model, SPLITS, "corruptions", corruptions="contrast,gaussian-noise",
                      severities="5,1", seed=3)  # fmt: skip
    pictures = [FEW.image(i) for i in range(60)]
    expected = {
        (kind, severity): right(
            model, [corrupted(p, kind, severity, 3, i) for i, p in enumerate(pictures)]
        ).mean()
        for kind in ("contrast", "gaussian-noise")
        for severity in (1, 5)
    }
    clean = right(model, pictures).mean()
    assert clean > 0.5
    (curve,) = result.curves
    assert curve.x.tolist() == [0, 1, 5]
    for kind, line in curve.lines.items():
        assert line == pytest.approx([clean, expected[kind, 1], expected[kind, 5]])
        assert result.metrics[kind] == pytest.approx((expected[kind, 1] + expected[kind, 5]) / 2)
    mean = np.mean(list(expected.values()))
    assert result.metrics["top1"] == pytest.approx(clean)
    assert result.metrics["mean_corrupted"] == pytest.approx(mean)
    assert result.metrics["relative"] == pytest.approx(mean / clean)
    (table,) = result.tables
    assert [row[0] for row in table.rows] == ["contrast", "gaussian-noise", "mean"]
    assert table.rows[0][2] == f"{expected['contrast', 5]:.2%}"
    assert result.images == 60


def test_every_picture_is_corrupted_by_draws_of_its_own_index():
    source = corrupted_source(FEW, "gaussian-noise", 2, seed=4)
    for index in (0, 7):
        expected = corrupted(FEW.image(index), "gaussian-noise", 2, 4, index)
        assert torch.equal(source.image(index), expected)
    assert source.fingerprint() != corrupted_source(FEW, "gaussian-noise", 2, seed=5).fingerprint()


def test_by_default_13_kinds_at_5_severities_are_tried(model):
    little = Splits("few", Subset(FEW, np.arange(3)))
    _, result = found(model, little, "corruptions")
    assert len(result.tables[0].rows) == 13 + 1
    assert len(result.tables[0].header) == 1 + 5 + 1


class Looking(nn.Module):
    """A net that keeps what it is shown."""

    def __init__(self, image_size) -> None:
        super().__init__()
        self.config = SimpleNamespace(classes=10, image_size=image_size)
        self.nothing, self.seen = nn.Parameter(torch.zeros(1)), []

    def forward(self, images):
        self.seen += [images]
        return torch.zeros(len(images), 10)


def shown(preprocessing, image) -> torch.Tensor:
    """(3, height, width) that a net is given of the image, uncorrupted."""
    net = Looking(preprocessing.image_size)
    data = ArraySource(image.permute(1, 2, 0).numpy()[None], [3], FEW.class_names)
    found(Model(net, FEW.class_names, preprocessing), data, "corruptions",
          corruptions="brightness", severities="1")  # fmt: skip
    uncorrupted, corrupted = net.seen
    assert uncorrupted.shape == corrupted.shape == (1, 3, *preprocessing.image_size)
    assert not torch.equal(uncorrupted, corrupted)
    return uncorrupted[0]


def photo(*size) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=random)


@pytest.mark.parametrize("size", [(300, 400), (224, 224)])
def test_a_large_picture_is_cropped_once_and_read_as_it_is_by_a_net_of_224(size):
    usual = Preprocessing.small_crop((224, 224), 256)
    expected = standard(photo(*size)).float() / 127.5 - 1
    assert torch.allclose(shown(usual, photo(*size)), expected, atol=1e-6)


def test_a_net_of_another_size_reads_the_whole_cropped_picture():
    seen = shown(Preprocessing.small_crop((56, 56), 64), photo(300, 400))
    fourth = torch.nn.functional.interpolate(
        standard(photo(300, 400))[None], size=56, mode="bilinear", antialias=True
    )[0]
    assert torch.allclose(seen, fourth / 127.5 - 1, atol=1e-6)


def test_a_small_picture_is_read_as_by_the_other_protocols():
    usual = Preprocessing.small_crop((28, 28), 36)
    assert torch.allclose(shown(usual, photo(36, 60)), usual(photo(36, 60)), atol=1e-6)


@pytest.mark.parametrize(
    "options, why",
    [
        ({"corruptions": "fogg"}, "did you mean 'fog'"), ({"corruptions": "fog,fog"}, "twice"),
        ({"severities": "0"}, "from 1 to 5"), ({"severities": "1,6"}, "from 1 to 5"),
        ({"severities": ""}, "from 1 to 5"),
    ],
)  # fmt: skip
def test_wrong_words_are_told(model, options, why):
    with pytest.raises(UsageError, match=why):
        found(model, SPLITS, "corruptions", **options)


@pytest.mark.parametrize("protocol", ["corruptions", "translations"])
def test_images_of_several_labels_are_refused(model, protocol):
    labels = np.eye(10, dtype=np.uint8)[:4]
    several = ArraySource(np.zeros((4, 8, 8), np.uint8), labels, model.class_names)
    with pytest.raises(DataError, match=f"{protocol} takes images of one class each"):
        found(model, Splits("several", several), protocol)


def test_a_fingerprint_tells_which_change_was_made():
    same, other = (Changed(FEW, lambda image, index: image, title) for title in ("a", "b"))
    assert len({same.fingerprint(), other.fingerprint(), FEW.fingerprint()}) == 3
    assert same.fingerprint() == Changed(FEW, lambda image, index: image, "a").fingerprint()
    assert (same.key(3), same.name(3), same.target(3)) == (FEW.key(3), FEW.name(3), FEW.target(3))


def constant() -> Model:
    """A net that says the same of every picture."""
    net = build("ViT-Pico/4", classes=10, image_size=8)
    torch.nn.init.zeros_(net.head.weight)
    with torch.no_grad():
        net.head.bias.copy_(torch.eye(10)[7])
    return Model(net, FEW.class_names, PIXELS)


def test_a_net_that_says_the_same_of_everything_is_fully_consistent_and_no_more_accurate():
    _, result = found(constant(), SPLITS, "translations")
    sevens = float((FEW.labels == 7).mean())
    assert any("patches are 4 pixels wide" in note for note in result.notes)
    assert result.metrics == {
        "consistency": 1.0, "top1_unshifted": pytest.approx(sevens),
        "top1_shifted": pytest.approx(sevens),
    }  # fmt: skip


def test_consistency_falls_as_a_picture_leaves_the_window(model):
    _, result = found(model, SPLITS, "translations", shifts="1,3")
    (curve,) = result.curves
    assert curve.x.tolist() == [0, 1, 3]
    stays = curve.lines["predicted as unshifted"]
    assert stays[0] == 1
    assert 0.9 > stays[1] > stays[2]
    assert result.metrics["consistency"] == pytest.approx(stays[1:].mean())
    assert curve.lines["top-1"][0] == result.metrics["top1_unshifted"]
    assert [row[0] for row in result.tables[0].rows] == ["0", "1", "3"]


def test_two_nets_are_shown_the_same_pictures(monkeypatch):
    """Of a ViT and a BiT of one image size all images that reach them are equal."""
    seen: list[list[torch.Tensor]] = []
    bit = BiT(BiTConfig(units=(1,), classes=10, image_size=(8, 8)))
    for net in (build("ViT-Pico/4", classes=10, image_size=8), bit):
        model, images = Model(net, FEW.class_names, PIXELS), []
        monkeypatch.setattr(
            Model,
            "run",
            lambda self, function, x, images=images: images.append(x) or x.flatten(1)[:, :10],
        )
        found(model, Splits("few", Subset(FEW, np.arange(5))), "translations", shifts="2")
        seen.append(images)
    assert len(seen[0]) == len(seen[1]) == 5
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


@pytest.mark.parametrize("shifts", ["0", "9", "two"])
def test_shifts_are_whole_pixels_within_the_picture(model, shifts):
    with pytest.raises(UsageError, match="--shifts is"):
        found(model, SPLITS, "translations", shifts=shifts)
