"""`vitkit inspect` on the command line: what it takes, prints and writes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from small_nets import CONVOLUTIONAL, small_net, vit_config
from vitkit import plain
from vitkit.cli import main
from vitkit.data.transforms import Preprocessing
from vitkit.inspection.result import Inspection
from vitkit.prediction.model import Model

DIGITS = [str(number) for number in range(10)]


def saved(config, folder, names=None):
    net = small_net(config)
    names = names or [f"class {number}" for number in range(config.classes)]
    Model(net, names, Preprocessing.direct(config.image_size)).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """Of three layers, two heads, 3 x 3 patches, that knows digits."""
    folder = tmp_path_factory.mktemp("nets") / "net"
    return saved(vit_config(image_size=(12, 12), classes=10), folder, DIGITS)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"no image")
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def strict(text):
    """JSON without NaN, which is none."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_a_page_is_written_with_all_numbers_beside_it(net, images, tmp_path, capsys):
    out, figures = tmp_path / "found", tmp_path / "figures"
    words = ["inspect", net, str(images), "--data", "digits", "--count", "7", "-o", str(out),
             "--layers=-1,0", "--heads", "1", "--query", "1,2", "--of", "3", "--neighbours", "2",
             "--maps", "--flow", "--untrained", "--figures", str(figures), "--json"]  # fmt: skip
    assert main([*words, "--device", "cpu"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert {path.name for path in out.iterdir()} == {"report.html", "report.json", "report.npz"}
    assert f"wrote {out / 'report.html'}, figures in {figures}" in lines
    assert any(figures.glob("*.svg")) and any(figures.glob("*.png"))
    strict((out / "report.json").read_text())
    found = plain.load(Inspection, out / "report")
    assert [image.name for image in found.images] == [str(images / f"{n}.png") for n in (0, 1)]
    for image in found.images:
        assert (image.layers, image.heads, image.query) == ((2, 0), (1,), "patch 1,2")
        assert image.relevance_of == "3" and len(image.neighbours) == 2
        assert image.maps.shape == (2, 1, 10, 10) and image.flow.shape == (10,)
        assert f"{image.name}  {image.top[0][0]}" in "\n".join(lines)
        assert any(line.endswith(f"{image.top[0][1]:.1%}") for line in lines)
    assert found.distances.images == 7 and found.distances.untrained is not None
    assert found.lens is not None
    assert all(f"- {note}" in lines for note in found.notes)
    assert any("bad.png" in note for note in found.notes)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert net in page and "digits" in page
    result = strict(last)
    assert result["report"] == str(out / "report.html")
    assert result["notes"] == list(found.notes) and result["net"] == found.net
    assert result["distances"]["pixels"] == found.distances.pixels.tolist()
    assert result["positions"]["rows"] == found.positions.rows
    assert result["images"][1] == {
        "image": found.images[1].name, "top": [list(pair) for pair in found.images[1].top]
    }  # fmt: skip
    assert f"Next: vitkit evaluate {net} digits" in lines


def test_distances_are_printed_by_layer(net, images, tmp_path, capsys):
    assert main(["inspect", net, str(images / "0.png"), "-o", str(tmp_path / "page.html")]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = plain.load(Inspection, tmp_path / "page")
    begin = next(n for n, line in enumerate(lines) if line.startswith("mean attention distance"))
    assert "over 1 images" in lines[begin]
    assert lines[begin].endswith(f"has {found.distances.uniform:.1f}")
    for layer, (line, row) in enumerate(
        zip(lines[begin + 2 : begin + 5], found.distances.pixels, strict=True)
    ):
        assert line.split() == [
            str(layer), *(f"{value:.1f}" for value in (row.min(), row.mean(), row.max()))
        ]  # fmt: skip
    assert f"Next: vitkit inspect {net} {images / '0.png'} --data DATA" in lines


def test_without_images_the_weights_are_looked_into_and_images_asked_for(net, tmp_path, capsys):
    page = tmp_path / "page.html"
    for _ in range(2):  # a page is written over
        assert main(["inspect", net, "-o", str(page)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "page.json", "page.npz"}
    lines = capsys.readouterr().out.splitlines()
    assert f"wrote {page}" in lines and f"Next: vitkit inspect {net} IMAGES..." in lines
    found = plain.load(Inspection, tmp_path / "page")
    assert found.filters is not None and found.images == () and found.distances is None


def test_a_folder_that_is_in_use_gets_a_number(net, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in ("", "-2"):
        assert main(["inspect", net, "--json"]) == 0
        result = strict(capsys.readouterr().out.splitlines()[-1])
        assert result["report"] == f"runs/inspect{number}/report.html"
        assert (tmp_path / result["report"]).is_file()


def test_a_net_without_attention_and_one_without_defined_positions_have_json(tmp_path, capsys):
    """3 x 2 patches have no correlation along rows, BiT has no positions."""
    for name, config in (("vit", vit_config()), ("bit", CONVOLUTIONAL["BiT"])):
        net = saved(config, tmp_path / name)
        assert main(["inspect", net, "-o", str(tmp_path / f"{name}.html"), "--json"]) == 0
        result = strict(capsys.readouterr().out.splitlines()[-1])
        strict((tmp_path / f"{name}.json").read_text())
        assert result["distances"] is None and result["images"] == []
        if name == "vit":
            assert result["positions"]["rows"] is None and result["positions"]["columns"] < 1
        else:
            assert result["positions"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--layers", "3"], "no layer 3"), (["--heads", "2"], "no head 2"),
        (["--query", "3,0"], "no patch 3,0"), (["--query", "all"], "--query 'all'"),
        (["--of", "ten"], "class of --of 'ten'"), (["--show", "0"], "--show is 0"),
        (["--count", "0"], "--count is 0"), (["--neighbours=-1"], "--neighbours is -1"),
        (["--layers", "1,x"], "layers"),
    ],
)  # fmt: skip
def test_wrong_words_are_told_in_a_sentence(net, tmp_path, capsys, words, said):
    out = ["-o", str(tmp_path / "page.html")]
    assert main(["inspect", net, "--data", "no such data", *out, *words]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_needed_and_must_be_there(tmp_path, capsys):
    out = ["-o", str(tmp_path / "page.html")]
    assert main(["inspect", *out]) == 2
    assert "CHECKPOINT" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "nowhere"), *out]) == 1
    assert "no such checkpoint" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_images_none_of_which_can_be_read_are_an_error(net, images, tmp_path, capsys):
    words = ["inspect", net, str(images / "bad.png"), "-o", str(tmp_path / "page.html")]
    assert main(words) == 1
    assert "could be read" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
