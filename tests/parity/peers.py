"""What the parity tests of checkpoints share: other libraries' nets with random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from vitkit.data.transforms import Preprocessing
from vitkit.models.nets import Net
from vitkit.prediction.model import to_pixels


@torch.no_grad()
def randomised(peer: nn.Module, seed: int = 0) -> Any:
    """A net, made on the meta device or not, in eval mode; none of its numbers is zero or one."""
    peer.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in peer.state_dict().items():
        if not tensor.is_floating_point():
            tensor.fill_(7)  # of a BatchNorm: how many batches it saw
        elif tensor.ndim > 1:  # tokens and positions have 1 as their first side
            inputs = tensor[0].numel() if len(tensor) > 1 else 4
            tensor.normal_(0, inputs**-0.5, generator=generator)
        elif name.endswith(("bias", "mean")):
            tensor.normal_(0, 0.2, generator=generator)
        else:  # of norms, of LayerScale; variances
            tensor.uniform_(0.5, 1.5, generator=generator)
    return peer.eval()


def on_meta(make: Any, *arguments: Any, **options: Any) -> Any:
    """A net without memory: its own first weights are not needed."""
    with torch.device("meta"):
        return make(*arguments, **options)


def images_for(net: Net, count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, *net.config.image_size, generator=generator)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """To 1e-5 of their scale, and there is something to compare."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05
    assert (ours - theirs).abs().max() <= 1e-5 * max(1, theirs.abs().max())


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The same names, and the same bits under each."""
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


def assert_same_net(ours: Net, other: Net) -> None:
    """One config and one set of weights."""
    assert ours.config == other.config
    assert_equal(ours.state_dict(), other.state_dict())


def saved(tensors: dict[str, Any], path: Path, **beside: dict[str, Any]) -> Path:
    """A file of tensors by its suffix, JSON beside it by `name={...}` for name.json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    for name, content in beside.items():
        (path.parent / f"{name}.json").write_text(json.dumps(content))
    return path


FOLDER = Path(__file__).parents[1] / "golden" / "preprocess-direct-resize"
PHOTOS = ("n01443537_goldfish.JPEG", "n01614925_bald_eagle.JPEG")


def photos() -> list[Image.Image]:
    """Of many shapes: libraries differ where a side or a crop falls between pixels."""
    whole = [Image.open(FOLDER / name).convert("RGB") for name in PHOTOS]
    sizes = [(353, 250), (206, 255), (301, 217), (360, 180), (333, 251)]
    return whole + [whole[0].crop((5, 5, 5 + width, 5 + height)) for width, height in sizes]


def assert_prepares_alike(preprocessing: Preprocessing, theirs: Callable[[Any], Tensor]) -> None:
    """But for a level of 255 here and there; Pillow and torch may resize by another axis first."""
    for photo in photos():
        ours, expected = preprocessing(to_pixels(photo)), theirs(photo)
        assert ours.shape == expected.shape
        # A crop that is off by one pixel gives 0.03 and more, no rounding to whole pixels 0.004.
        assert (ours - expected).abs().mean() < 0.003, photo.size
