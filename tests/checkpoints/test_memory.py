"""How much memory loading and converting take, measured in a process of their own."""

import json
import subprocess
import sys

import pytest

from vitkit.checkpoints.bundle import Bundle, write_bundle
from vitkit.data.transforms import Preprocessing
from vitkit.models.variants import build

# Peak resident memory of the work alone: what imports took before is subtracted. VmHWM is reset
# just before, since a large import would hide a smaller peak after it.
MEASURE = """
import json, pathlib, resource, sys
import torch, torchvision, vitkit
from vitkit.prediction.model import load
from vitkit.workflows.convert import convert
status = lambda key: int(next(line for line in open("/proc/self/status") if line.startswith(key))
                         .split()[1]) * 1024
torch.zeros(10) @ torch.zeros(10)
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
if sys.argv[1] == "load":
    model = load(sys.argv[2])
else:
    convert(sys.argv[2], sys.argv[3], sys.argv[1])
print(json.dumps({"peak": status("VmHWM") - before}))
"""


def peak(*words) -> int:
    """Bytes at the peak of the work."""
    done = subprocess.run([sys.executable, "-c", MEASURE, *map(str, words)], capture_output=True,
                          text=True, check=True)  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])["peak"]


def bundle_of(name: str, folder) -> int:
    """Write a bundle of random weights -> the bytes of its weights."""
    net = build(name, gelu="erf")
    names = [str(number) for number in range(1000)]
    write_bundle(folder, Bundle(net, names, Preprocessing.direct((224, 224))))
    return sum(tensor.nbytes for tensor in net.state_dict().values())


@pytest.fixture(scope="module")
def vit_b(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory") / "bundle"
    return folder, bundle_of("ViT-B/16", folder)


def test_loading_a_bundle_does_not_wait_for_the_compiler(vit_b):
    code = "import sys; from vitkit.prediction.model import load; load(sys.argv[1]); "
    code += "assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, vit_b[0]], check=True)


def test_a_net_without_memory_is_made_without_the_compiler():
    names = "ViT-B/16 R50+ViT-B/16 BiT-R50x1 AxialResNet-50"
    code = "import sys; from vitkit.models.nets import make_meta; "
    code += "from vitkit.models.variants import config; "
    code += "[make_meta(config(name)) for name in sys.argv[1].split()]; "
    code += "assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, names], check=True)


def test_loading_a_bundle_takes_little_more_memory_than_its_weights(vit_b):
    folder, size = vit_b
    assert peak("load", folder) <= 1.2 * size


@pytest.mark.parametrize("to, name", [("timm", "timm"), ("hf", "hf"), ("torchvision", "a.pth")])
def test_converting_holds_at_most_two_copies(vit_b, tmp_path, to, name):
    folder, size = vit_b
    assert peak(to, folder, tmp_path / name) <= 1.4 * size  # q, k and v may be cut out of one


def test_reading_another_format_holds_at_most_two_copies(vit_b, tmp_path):
    from vitkit.workflows.convert import convert

    folder, size = vit_b
    convert(folder, tmp_path / "weights.safetensors", "timm")
    assert peak("load", tmp_path / "weights.safetensors") <= 1.2 * size


@pytest.mark.slow
def test_loading_vit_l_takes_at_most_1_2_times_its_weights(tmp_path):
    size = bundle_of("ViT-L/16", tmp_path / "bundle")
    assert size > 1.2e9
    assert peak("load", tmp_path / "bundle") <= 1.2 * size
