"""`vitkit evaluate` by two processes on the CPU finds what one finds, bit for bit, and says it
once."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import vitkit
from vitkit.data.classes.imagenet import imagenet_classes
from vitkit.data.opening import digits
from vitkit.data.transforms import Preprocessing
from vitkit.models.variants import build
from vitkit.prediction.model import Model
from vitkit.training.precision import computing_threads
from vitkit.workflows.protocols import job

OPTIONS = {
    "top-k": {}, "few-shot": {"shots": (1, 10)}, "knn": {"k": 5}, "linear": {},
    "translations": {"shifts": "1"}, "corruptions": {"corruptions": "contrast", "severities": "2"},
}  # fmt: skip
# 100 images at once, so that the digits are several batches, and not as many for each process.
DRIVER = """
import json, sys
import torch
import vitkit
from vitkit.errors import VitkitError
from vitkit.training.world import joined
from vitkit.workflows.protocols import job

job.BATCH = 100
net, bad, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
with joined(torch.device("cpu")) as world:
    found = {name: vitkit.evaluate(net, "digits", name, device="cpu", **words)
             for name, words in options.items()}
    try:
        vitkit.evaluate(net, bad, device="cpu")
    except VitkitError as error:
        found["bad"] = str(error)
    with open(f"{sys.argv[4]}/{world.rank}.json", "w") as file:
        json.dump(found, file)
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "net"
    vitkit.pretrain("digits", out=out, steps=20, batch_size=16, quiet=True)
    return out / "last"


def photographs(folder, number):
    """The first digits as files in folders of their classes."""
    val = digits().val
    for n in range(number):
        path = folder / val.class_names[val.labels[n]] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(val.image(n).permute(1, 2, 0).numpy()).save(path)
    return path.parent


def ended(*words, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_two_processes_find_what_one_finds_and_both_know_of_a_bad_image(net, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "BATCH", 100)
    monkeypatch.setenv("VITKIT_CACHE", str(tmp_path / "alone"))
    with computing_threads(1):  # as in each of the two: what is fitted depends on their number
        alone = {
            protocol: vitkit.evaluate(net, "digits", protocol, device="cpu", **options)
            for protocol, options in OPTIONS.items()
        }
    (photographs(tmp_path / "data", 150) / "bad.png").write_bytes(b"no image")
    (tmp_path / "driver.py").write_text(DRIVER)
    ended("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
          tmp_path / "driver.py", net, tmp_path / "data", json.dumps(OPTIONS), tmp_path,
          VITKIT_CACHE=str(tmp_path / "two"))  # fmt: skip
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert "bad.png" in found["bad"]
        for protocol, expected in alone.items():
            assert found[protocol]["metrics"] == expected["metrics"]
            assert found[protocol]["images"] == expected["images"] == 359
            assert found[protocol].get("class_recall") == expected.get("class_recall")
    kept = [sorted(p.name for p in (tmp_path / n / "features").iterdir()) for n in ("alone", "two")]
    assert kept[0] == kept[1] and len(kept[0]) == 3  # the names hold a hash of the values


def test_gpus_n_scores_fewer_images_than_processes_and_says_it_once(net, tmp_path):
    (tmp_path / "1").mkdir()
    photographs(tmp_path, 1)
    done = ended("-m", "vitkit", "evaluate", net, tmp_path, "--gpus", "2", "--device", "cpu",
                 "--json", "--no-cache")  # fmt: skip
    assert done.stdout.count("1 images of") == 1
    assert json.loads(done.stdout.splitlines()[-1])["images"] == 1


def test_real_labels_and_sets_beside_imagenet_are_scored_alike_by_two_processes(tmp_path):
    net = build("ViT-Femto/2", 1000, 8)
    torch.nn.init.normal_(net.head.weight)  # the head of a fresh net is zeros
    names = [known.names for known in imagenet_classes()]
    Model(net, names, Preprocessing.direct((8, 8))).save(tmp_path / "net")
    random = np.random.default_rng(0)
    for n in range(7):
        path = tmp_path / "val" / imagenet_classes()[n % 3].wnid / f"ILSVRC2012_val_{n + 1:08}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(path, "PNG")
    labels = [list(range(place % 2, 1000, 2)) for place in range(7)]
    (tmp_path / "real.json").write_text(json.dumps(labels))
    words = ["-m", "vitkit", "evaluate", tmp_path / "net", tmp_path / "val", "--device", "cpu",
             "--json", "--no-cache"]  # fmt: skip
    for more in (["--protocol", "real", "--real", tmp_path / "real.json"],
                 ["--classes", "imagenet-sketch"]):  # fmt: skip
        alone, two = (
            json.loads(ended(*words, *more, *gpus).stdout.splitlines()[-1])
            for gpus in ([], ["--gpus", "2"])
        )
        assert alone["images"] == two["images"] == 7
        assert alone["metrics"] == two["metrics"]
