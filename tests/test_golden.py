"""vitkit's public functions return what the authors' own code returned: see golden/README.md."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vitkit
from vitkit.data.decode import decode
from vitkit.data.transforms import Preprocessing
from vitkit.evaluation.fewshot import least_squares_accuracy
from vitkit.models.nets import make_meta
from vitkit.training.schedules import warmup_decay

GOLDEN = Path(__file__).parent / "golden"


def golden(case: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / case / "io.npz") as arrays:
        return dict(arrays)


def assert_agrees(ours: torch.Tensor, expected: np.ndarray) -> None:
    assert tuple(ours.shape) == expected.shape
    difference = np.abs(ours.double().numpy() - expected).max()
    assert difference <= 1e-5 * max(1, np.abs(expected).max())


CHECKPOINTS = {  # case: (file, the precision that the case was computed in)
    "vit-token-prelogits": ("checkpoint.npz", torch.float32),
    "vit-gap-linen-names": ("checkpoint.npz", torch.float32),
    "hybrid-two-stage": ("checkpoint.npz", torch.float32),
    "hybrid-root-only": ("checkpoint.npz", torch.float32),
    "hybrid-epsilons": ("checkpoint.npz", torch.float32),
    "bit-four-stage": ("checkpoint.npz", torch.float64),
    "bit-epsilons": ("checkpoint.npz", torch.float64),
    "t2t-performer": ("checkpoint.pth", torch.float32),
    "t2t-transformer": ("checkpoint.pth", torch.float32),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
@torch.no_grad()
def test_a_checkpoint_of_the_authors_gives_their_features_and_logits(case):
    arrays, (file, precision) = golden(case), CHECKPOINTS[case]
    net = vitkit.load(GOLDEN / case / file).net.to(precision)
    images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).to(precision)
    assert_agrees(net.features(images), arrays["features"])
    assert_agrees(net(images), arrays["logits"])


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_loaded_checkpoint_is_ready_to_evaluate_in_float32(case):
    net = vitkit.load(GOLDEN / case / CHECKPOINTS[case][0]).net
    assert not net.training
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


@pytest.mark.parametrize("old, new", [(14, 24), (7, 12), (16, 37), (24, 14), (5, 5)])
def test_positions_are_resized_as_the_authors_checkpoint_loader_does(old, new):
    arrays = golden("position-embedding-resize")
    positions = torch.from_numpy(arrays[f"in_{old}_to_{new}"])
    resized = vitkit.resize_positions(positions, (old, old), (new, new), prefix=1)
    assert_agrees(resized, arrays[f"out_{old}_to_{new}"])


@pytest.mark.parametrize("case", ["few-shot-least-squares", "few-shot-least-squares-wide"])
def test_few_shot_accuracy_is_that_of_big_vision_to_one_test_image(case):
    arrays = golden(case)
    names = ["train_features", "train_labels", "test_features", "test_labels"]
    features_and_labels = [arrays[name] for name in names]
    accuracies = least_squares_accuracy(*features_and_labels, arrays["l2"].tolist())
    np.testing.assert_allclose(accuracies, arrays["accuracy"], rtol=0, atol=0.0025 + 1e-9)
    for l2, expected in zip(arrays["l2"].tolist(), arrays["accuracy"], strict=True):
        accuracy = least_squares_accuracy(*features_and_labels, l2)
        assert isinstance(accuracy, float)
        assert accuracy == pytest.approx(expected, abs=0.0025 + 1e-9)


@pytest.mark.parametrize(
    "name",
    [
        "cosine_total100_base0.001_warmup10",
        "linear_total1000_base0.003_warmup100",
        "cosine_total500_base0.03_warmup0",
        "stairs_total500_base0.003_warmup100",
        "stairs_total10000_base0.003_warmup500",
        "stairs_total20000_base0.003_warmup500",
    ],
)
def test_learning_rates_are_those_of_the_authors_schedules(name):
    kind, total, base, warmup = re.fullmatch(
        r"(\w+)_total(\d+)_base([\d.]+)_warmup(\d+)", name
    ).groups()
    arrays = golden("learning-rate-schedules")
    stairs = (0.4, 0.6, 0.8) if total == "500" else (0.3, 0.6, 0.9)
    schedule = warmup_decay(kind, float(base), int(total), int(warmup), stairs=stairs)
    ours = [float(schedule(int(step))) for step in arrays[f"{name}_steps"]]
    expected = arrays[f"{name}_lr"]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * expected.max())


@pytest.mark.parametrize("name", ["n01443537_goldfish", "n01614925_bald_eagle"])
def test_an_image_is_decoded_resized_and_normalised_as_tensorflow_does(name):
    case = "preprocess-direct-resize"
    image = decode((GOLDEN / case / f"{name}.JPEG").read_bytes())
    assert image.dtype == torch.uint8
    ours = Preprocessing.direct((96, 96))(image)
    expected = torch.from_numpy(golden(case)[f"{name}__direct_96"]).permute(2, 0, 1)
    assert ours.shape == (3, 96, 96)
    assert (ours - expected).abs().mean() <= 0.003  # bicubic would be 0.0045 off, a corner 0.015


def test_every_golden_case_is_complete_and_none_of_its_outputs_goes_untested():
    """The lists above are written out; this says when the files hold more than they do."""
    positions, schedules = golden("position-embedding-resize"), golden("learning-rate-schedules")
    assert len(positions) == 2 * 5
    assert len(schedules) == 2 * 6
    assert len(golden("preprocess-direct-resize")) == 2
    assert {folder.name for folder in GOLDEN.iterdir() if folder.is_dir()} == {
        *CHECKPOINTS, "position-embedding-resize", "few-shot-least-squares",
        "few-shot-least-squares-wide", "learning-rate-schedules", "preprocess-direct-resize",
        "attention-rollout-and-flow",  # tests/inspection/test_rollout.py and test_flow.py
        "randaugment",  # tests/data/test_randaugment.py
        "corruptions",  # tests/evaluation/test_corruptions.py
        "axial-resnet",  # whose published files nothing reads: tests/models/test_axial_resnet.py
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [{"gelu": "erf"}, {"norm_eps": 1e-5}, {"norm_eps": 1e-12}])
@torch.no_grad()
def test_a_wrong_gelu_or_norm_epsilon_is_seen_by_the_golden_case(wrong):
    """Of convolutions and group norms: tests/models/test_bit.py and test_resnet_stem.py."""
    case = "vit-token-prelogits"
    arrays, net = golden(case), vitkit.load(GOLDEN / case / "checkpoint.npz").net
    other = make_meta(replace(net.config, **wrong))
    other.load_state_dict(net.state_dict(), assign=True)
    images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
    with pytest.raises(AssertionError):
        assert_agrees(other.eval()(images), arrays["logits"])
