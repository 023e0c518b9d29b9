"""What is found in a net is what the functions of vitkit.inspection give of the same images."""

from dataclasses import asdict, is_dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from small_nets import CONVOLUTIONAL, EVERY, VITS, WITH_TOKENS, small_net, vit_config
from vitkit import plain
from vitkit.data.source import ArraySource, Splits
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError, VitkitError
from vitkit.inspection.attention import attention, notes_on_attention, pool_attention, token_names
from vitkit.inspection.distance import mean_distances
from vitkit.inspection.embeddings import positions
from vitkit.inspection.faithfulness import faithfulness
from vitkit.inspection.filters import filters
from vitkit.inspection.flow import flow, note_on_flow
from vitkit.inspection.grad_cam import grad_cam
from vitkit.inspection.lens import lens
from vitkit.inspection.neighbours import neighbours
from vitkit.inspection.norms import norms_found, patch_norms
from vitkit.inspection.relevance import relevance
from vitkit.inspection.result import Inspection
from vitkit.inspection.rollout import rollout_of
from vitkit.models.nets import make
from vitkit.prediction.model import Model
from vitkit.workflows import inspect_images
from vitkit.workflows.inspect import SEED, inspect, write

NAMES = ["a", "b", "c", "d", "e"]
KINDS_OF_QUERY = ["token", "mean", "map", "distilled", "token+mean, registers", "hybrid"]


def model_of(config, names=NAMES, **provenance):
    return Model(small_net(config), names, Preprocessing.direct(config.image_size), provenance)


def pixels_for(model, count=2, seed=0):
    """(N, H, W, 3) uint8, of the size that the net reads."""
    size = (count, *model.net.config.image_size, 3)
    return np.random.default_rng(seed).integers(0, 255, size, np.uint8)


def prepared(model, pixels):
    """(N, 3, H, W), as the net reads them."""
    return torch.stack([model.preprocessing(torch.from_numpy(p).permute(2, 0, 1)) for p in pixels])


def source_of(model, count, names=NAMES, seed=1, labels=None):
    labels = np.arange(count) % len(names) if labels is None else labels
    return ArraySource(pixels_for(model, count, seed), labels, names)


def same(one, other):
    """Whether two results hold the same, NaN and all."""
    if is_dataclass(one):
        return type(one) is type(other) and same(asdict(one), asdict(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    return one == other or (one != one and other != other)


def shares_of(model, image):
    with torch.no_grad():
        return model.net(image[None])[0].softmax(-1)


def close(one, other, atol=1e-6):
    np.testing.assert_allclose(one, np.asarray(other), atol=atol, rtol=1e-4)


def check_named(found, numbers, shares):
    assert [name for name, _ in found] == [NAMES[number] for number in numbers]
    close([share for _, share in found], shares)


# An image


@pytest.mark.parametrize("kind", WITH_TOKENS)
def test_of_an_image_all_is_found_that_the_functions_give(kind):
    model = model_of(WITH_TOKENS[kind])
    net, pixels = model.net, pixels_for(model)
    found = inspect(model, pixels)
    assert [image.name for image in found.images] == ["image 0", "image 1"]
    for image, raw, one in zip(found.images, pixels, prepared(model, pixels), strict=True):
        shares = shares_of(model, one)
        of = int(shares.argmax())
        np.testing.assert_array_equal(image.picture, raw)
        check_named(image.top, shares.argsort(descending=True).tolist(), sorted(shares)[::-1])
        close(image.rollout, rollout_of(net, one[None])[0])
        close(image.patch_norms.ravel(), patch_norms(net, one[None])[0])
        assert image.patch_norms.shape == net.config.grid
        assert image.relevance_of == NAMES[of]
        close(image.relevance, relevance(net, one[None], of)[0])
        close(image.grad_cam, grad_cam(net, one[None], [of])[0])
        numbers, by_layer = (part[0] for part in lens(net, one[None], 3))
        assert len(image.lens) == len(net.blocks) + 1
        for layer, row, values in zip(image.lens, numbers.tolist(), by_layer, strict=True):
            check_named(layer, row, values)
        check_curves(image, faithfulness(net, one, image.relevance, of))
        assert image.maps is None and image.flow is None and image.neighbours == ()


def check_curves(image, expected):
    assert len(image.faithfulness) == 2
    for curve, other in zip(image.faithfulness, expected, strict=True):
        assert curve.title == other.title
        for line in ("map", "random"):
            close(curve.lines[line], other.lines[line])


@pytest.mark.parametrize("kind", KINDS_OF_QUERY)
def test_attention_is_that_of_the_class_token_or_of_the_mean_of_the_patches(kind):
    model = model_of(VITS[kind])
    pixels, names = pixels_for(model, 1), token_names(model.net)
    [image] = inspect(model, pixels).images
    maps = attention(model.net, prepared(model, pixels))[0]
    if "class token" in names:
        assert image.query == "class token"
        close(image.attention, maps[:, :, 0])
    else:
        assert image.query == "mean of all patches"
        close(image.attention, maps[:, :, len(names) :].mean(2))
    assert image.layers == (0, 1, 2) and image.heads == (0, 1)
    [image] = inspect(model, pixels, query="mean").images
    assert image.query == "mean of all patches"
    close(image.attention, maps[:, :, len(names) :].mean(2))


@pytest.mark.parametrize("kind", KINDS_OF_QUERY)
def test_the_asked_layers_heads_patch_and_class_are_shown(kind):
    model = model_of(VITS[kind])
    net, pixels = model.net, pixels_for(model, 1)
    one, (_, columns) = prepared(model, pixels), net.config.grid
    asked = {"layers": (-1, 0), "heads": (-1,), "query": "1,0", "maps": True}
    shares = shares_of(model, one[0])
    of = int(shares.argmin())  # not the one that is predicted
    [image] = inspect(model, pixels, of=NAMES[of], **asked).images
    assert (image.layers, image.heads, image.query) == ((2, 0), (1,), "patch 1,0")
    maps = attention(net, one)[0]
    close(image.maps, maps[[2, 0]][:, [1]])
    close(image.attention, maps[[2, 0]][:, [1], len(token_names(net)) + columns])
    assert image.relevance_of == NAMES[of]
    close(image.relevance, relevance(net, one, of)[0])
    close(image.grad_cam, grad_cam(net, one, [of])[0])
    check_curves(image, faithfulness(net, one[0], image.relevance, of))
    assert image.top[0][0] == NAMES[int(shares.argmax())]


def test_layers_and_heads_asked_for_twice_are_shown_once():
    model = model_of(VITS["token"])
    pixels = pixels_for(model, 1)
    [image] = inspect(model, pixels, layers=(2, 0, -1), heads=(1, 1), maps=True).images
    assert (image.layers, image.heads) == ((2, 0), (1,))
    maps = attention(model.net, prepared(model, pixels))[0][[2, 0]][:, [1]]
    close(image.maps, maps)
    close(image.attention, maps[:, :, 0])


@pytest.mark.parametrize("kind", ["token", "mean", "map"])
def test_flow_comes_from_what_the_head_reads(kind, monkeypatch):
    model, given = model_of(VITS[kind]), []

    def kept(maps, source):  # flows of so small a net are nearly alike, whatever the source
        given.append(source)
        return flow(maps, source)

    monkeypatch.setattr(inspect_images, "flow", kept)
    pixels = pixels_for(model, 1)
    # Whatever is shown, flow goes through all layers and heads.
    [image] = inspect(model, pixels, flow=True, layers=(1,), heads=(0,)).images
    one = prepared(model, pixels)
    maps = attention(model.net, one)[0]
    tokens, prefix = maps.shape[-1], len(token_names(model.net))
    source = np.eye(tokens)[0]
    if kind != "token":
        source = np.zeros(tokens)
        source[prefix:] = 1 / (tokens - prefix)
    if kind == "map":
        source[prefix:] = pool_attention(model.net, one)[0].mean(dim=0)
    close(given[0], source)
    close(image.flow, flow(maps, source))
    assert image.flow_note == note_on_flow(image.flow, maps)


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
def test_of_a_net_without_attention_grad_cam_is_found_and_measured(kind):
    model = model_of(CONVOLUTIONAL[kind])
    pixels = pixels_for(model)
    found = inspect(model, pixels)
    assert (found.grid, found.depth, found.heads, found.prefix) == (None, None, None, ())
    assert found.positions is found.distances is found.norms is found.lens is None
    assert same(found.filters, filters(model.net))
    assert any("position" in note for note in found.notes)
    assert any("filters and Grad-CAM apply" in note for note in found.notes)
    for image, one in zip(found.images, prepared(model, pixels), strict=True):
        of = int(shares_of(model, one).argmax())
        heat = grad_cam(model.net, one[None], [of])[0]
        close(image.grad_cam, heat)
        check_curves(image, faithfulness(model.net, one, heat, of))
        assert image.attention is image.rollout is image.relevance is image.patch_norms is None
        assert image.lens == () and image.query == ""
    assert any("Grad-CAM" in note and "random" in note for note in found.notes)


def test_of_a_net_without_a_head_is_found_what_needs_no_class():
    net = make(vit_config(classes=0)).eval()
    model = Model(net, [], Preprocessing.direct(net.config.image_size))
    pixels = pixels_for(model, 1)
    found = inspect(model, pixels, data=source_of(model, 4))
    [image] = found.images
    close(image.rollout, rollout_of(net, prepared(model, pixels))[0])
    assert image.attention is not None and len(image.neighbours) == 4
    assert image.top == image.lens == image.faithfulness == () and image.relevance_of == ""
    assert image.relevance is image.grad_cam is None
    assert found.lens is None and any("no head" in note for note in found.notes)
    with pytest.raises(UsageError, match="--of a: this net has no head"):
        inspect(model, "no such image", of="a")


def test_a_name_that_two_classes_have_is_that_of_the_class_that_is_predicted():
    model = model_of(VITS["token"], ["a", "a", "a", "a", "a"])
    pixels = pixels_for(model, 4)
    found = inspect(model, pixels)
    predicted = set()
    for image, one in zip(found.images, prepared(model, pixels), strict=True):
        of = int(shares_of(model, one).argmax())
        predicted.add(of)
        close(image.relevance, relevance(model.net, one[None], of)[0])
        check_curves(image, faithfulness(model.net, one, image.relevance, of))
    assert predicted != {0}


def test_probabilities_of_a_net_of_several_labels_are_each_classs_own():
    model = model_of(VITS["token"], multi_label=True)
    pixels = pixels_for(model, 1)
    [image], [one] = inspect(model, pixels).images, prepared(model, pixels)
    with torch.no_grad():
        shares = model.net(one[None])[0].sigmoid()
    order = shares.argsort(descending=True)
    check_named(image.top, order.tolist(), shares[order])
    check_named(image.lens[-1], order[:3].tolist(), shares[order[:3]])
    curves = faithfulness(model.net, one, image.relevance, int(order[0]), shares=torch.sigmoid)
    check_curves(image, curves)


# The net and many images


@pytest.mark.parametrize("kind", EVERY)
def test_from_its_weights_alone_a_net_has_filters_and_positions(kind):
    model = model_of(EVERY[kind])
    found = inspect(model)
    assert found.image_size == model.net.config.image_size and found.images == ()
    assert same(found.filters, filters(model.net))
    try:
        expected = positions(model.net)
    except UsageError as error:
        assert found.positions is None
        assert any(note.endswith(f"{str(error)[1:]}.") for note in found.notes)
    else:
        assert same(found.positions, expected)
    assert found.distances is found.norms is found.lens is None
    if kind in WITH_TOKENS:
        assert (found.grid, found.depth) == (model.net.config.grid, len(model.net.blocks))
        assert found.heads == model.net.config.heads
        assert found.prefix == token_names(model.net)
        assert set(notes_on_attention(model.net)) <= set(found.notes)
        assert any("Attention distances need images" in note for note in found.notes)


@pytest.mark.parametrize("kind", ["token", "map", "T2T-ViT, performer"])
def test_distances_and_norms_are_over_the_given_images_without_data(kind):
    model = model_of(WITH_TOKENS[kind])
    pixels = pixels_for(model, 3)
    found = inspect(model, pixels)
    assert same(found.distances, mean_distances(model.net, [prepared(model, pixels)]))
    expected = norms_found(patch_norms(model.net, prepared(model, pixels)).numpy())
    assert same(found.norms, expected)
    assert found.lens is None


def test_over_data_they_are_of_images_evenly_from_what_is_evaluated():
    model = model_of(VITS["token"])
    sources = [source_of(model, 9, seed=seed) for seed in (1, 2, 3)]
    for given, of in ((sources, 2), (sources[:2], 1), (sources[:1], 0)):
        found = inspect(model, data=Splits("all", *given), count=3)
        images = prepared(model, pixels_for(model, 9, seed=of + 1)[[0, 4, 8]])
        close(found.distances.pixels, mean_distances(model.net, [images]).pixels)
        close(found.norms.norms, patch_norms(model.net, images))
        assert found.distances.images == 3
    assert inspect(model, data=sources[0], count=20).distances.images == 9


def test_accuracy_by_layer_is_in_the_nets_numbering_of_the_classes():
    model, order = model_of(VITS["token"]), [3, 1, 4, 0, 2]
    source = source_of(model, 40, [NAMES[n] for n in order])
    found = inspect(model, pixels_for(model, 1), data=source)
    images = prepared(model, pixels_for(model, 40, seed=1))
    numbers = lens(model.net, images, 1)[0][:, :, 0]  # (B, depth + 1)
    labels = torch.tensor(order)[torch.arange(40) % 5]
    accuracy = (numbers == labels[:, None]).float().mean(dim=0)
    close(found.lens.lines["top-1"], accuracy)
    assert found.lens.x.tolist() == [0, 1, 2, 3]
    with torch.no_grad():
        right = (model.net(images).argmax(1) == labels).float().mean()
    close(found.lens.lines["top-1"][-1], right)


def test_accuracy_by_layer_is_left_out_with_a_note_where_the_classes_are_others():
    model = model_of(VITS["token"])
    found = inspect(model, data=source_of(model, 6, ["cat", "dog"]))
    assert found.lens is None and found.distances.images == 6
    [note] = [note for note in found.notes if note.startswith("Accuracy by layer is left out")]
    assert "cat" in note and note.endswith(".") and not note.endswith("..")


def test_an_untrained_net_is_measured_beside_it_and_is_the_same_each_time():
    model = model_of(VITS["token"])
    pixels = pixels_for(model, 1)
    assert inspect(model, pixels).distances.untrained is None
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = inspect(model, pixels, untrained=True).distances
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    other = inspect(model, pixels, untrained=True).distances
    np.testing.assert_array_equal(one.untrained, other.untrained)
    torch.manual_seed(SEED)
    fresh = make(model.net.config).eval()
    close(one.untrained, mean_distances(fresh, [prepared(model, pixels)]).pixels)
    assert np.abs(one.untrained - one.pixels).max() > 0.01


# Neighbours


def test_neighbours_are_the_nearest_training_images_an_image_itself_among_them():
    model = model_of(VITS["token"])
    train, test = source_of(model, 12), source_of(model, 3, seed=5)
    pixels = np.stack([pixels_for(model, 12, seed=1)[7], *pixels_for(model, 1)])
    found = inspect(model, pixels, data=Splits("both", train, None, test), neighbours=3)
    with torch.no_grad():
        index = model.net.features(prepared(model, pixels_for(model, 12, seed=1)))
        query = model.net.features(prepared(model, pixels))
    rows, cosines = neighbours(query, index, 3)
    for image, of, near in zip(found.images, rows.tolist(), cosines, strict=True):
        assert [n.name for n in image.neighbours] == [train.name(row) for row in of]
        assert [n.label for n in image.neighbours] == [NAMES[row % 5] for row in of]
        close([n.similarity for n in image.neighbours], near)
        for n, row in zip(image.neighbours, of, strict=True):
            np.testing.assert_array_equal(n.picture, train.image(row).permute(1, 2, 0))
    itself = found.images[0].neighbours[0]
    assert itself.name == train.name(7) and itself.similarity == pytest.approx(1)


def test_neighbours_are_looked_for_evenly_in_a_large_set(monkeypatch):
    monkeypatch.setattr(inspect_images, "SEARCHED", 3)
    model = model_of(CONVOLUTIONAL["BiT"])
    train = source_of(model, 9)
    [image] = inspect(model, pixels_for(model, 1), data=train).images
    assert {n.name for n in image.neighbours} == {train.name(place) for place in (0, 4, 8)}
    by_name = {train.name(place): place for place in (0, 4, 8)}
    assert all(n.label == NAMES[by_name[n.name] % 5] for n in image.neighbours)


def test_no_neighbours_where_none_are_asked_for_and_no_label_where_there_are_several():
    model = model_of(VITS["token"])
    several = np.eye(5, dtype=int)[np.arange(8) % 5]
    several[:, 0] = 1
    data = source_of(model, 8, labels=several)
    [image] = inspect(model, pixels_for(model, 1), data=data, neighbours=0).images
    assert image.neighbours == ()
    found = inspect(model, pixels_for(model, 1), data=data)
    assert [n.label for n in found.images[0].neighbours] == [None] * 5
    images = prepared(model, pixels_for(model, 8, seed=1))
    numbers = lens(model.net, images, 1)[0][:, :, 0]
    hits = torch.from_numpy(several).gather(1, numbers).float().mean(dim=0)
    close(found.lens.lines["top-1"], hits)


# Bad words and bad images


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": (3,)}, "no layer 3: this net has 3"), ({"layers": (-4,)}, "no layer -4"),
        ({"heads": (0, 2)}, "no head 2: this net has 2"), ({"heads": (-3,)}, "no head -3"),
        ({"query": "3,0"}, "no patch 3,0"), ({"query": "0,2"}, "no patch 0,2"),
        ({"query": "clas"}, "--query 'clas'"), ({"query": "-1,0"}, "--query '-1,0'"),
        ({"query": "1,1,1"}, "--query '1,1,1'"),
        ({"of": "f"}, "class of --of 'f'"), ({"count": 0}, "--count is 0"),
        ({"show": 0}, "--show is 0"), ({"neighbours": -1}, "--neighbours is -1"),
        ({"layer": (1,)}, "option of inspect 'layer'"),
    ],
)  # fmt: skip
def test_what_the_net_has_not_is_refused_before_anything_is_opened(options, said):
    model = model_of(VITS["token"])
    with pytest.raises(UsageError) as error:
        inspect(model, "no such image", data="no such data", **options)
    assert said in str(error.value)


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
@pytest.mark.parametrize(
    "asked", [{"layers": (0,)}, {"heads": (0,)}, {"maps": True}, {"flow": True}]
)
def test_attention_is_refused_of_a_net_that_has_none(kind, asked):
    with pytest.raises(UsageError, match="Grad-CAM apply"):
        inspect(model_of(CONVOLUTIONAL[kind]), "no such image", **asked)


@pytest.fixture
def folder(tmp_path):
    """Two images, and two files that are none."""
    made = tmp_path / "images"
    made.mkdir()
    for number, name in enumerate(("b.png", "d.png")):
        Image.new("RGB", (8, 12), (90 * number, 30, 0)).save(made / name)
    for name in ("a.png", "c.png"):
        (made / name).write_bytes(b"no image")
    return made


def test_images_that_cannot_be_read_are_named_and_passed_over(folder):
    found = inspect(model_of(VITS["token"]), folder)
    assert [image.name for image in found.images] == [str(folder / n) for n in ("b.png", "d.png")]
    bad = [note for note in found.notes if note.startswith("Left out, as it cannot be read: ")]
    assert len(bad) == 2 and str(folder / "a.png") in bad[0] and str(folder / "c.png") in bad[1]
    assert found.distances.images == 2


def test_where_no_image_can_be_read_there_is_nothing_to_look_into(folder):
    with pytest.raises(VitkitError, match=r"none of the 2 images could be read.*a\.png"):
        inspect(model_of(VITS["token"]), [folder / "a.png", folder / "c.png"])


def test_no_more_images_are_shown_than_asked_for_and_a_note_says_so():
    model = model_of(VITS["token"])
    pixels = pixels_for(model, 4)
    found = inspect(model, pixels, show=1)
    assert [image.name for image in found.images] == ["image 0"]
    assert "3 more images were given than are shown; --show takes more." in found.notes
    assert not any("--show" in note for note in inspect(model, pixels, show=4).notes)
    assert len(inspect(model, pixels_for(model, 9)).images) == 8


def test_a_net_whose_weights_are_not_finite_is_refused_with_their_names():
    model = model_of(VITS["token"])
    with torch.no_grad():
        model.net.blocks[1].attention.qkv.bias[3] = torch.nan
        model.net.head.bias[0] = torch.inf
    with pytest.raises(VitkitError, match=r"2 of \d+ tensors .*blocks\.1\..*head\.bias.*diverged"):
        inspect(model, "no such image", data="no such data")


def test_a_map_that_is_not_finite_is_not_measured(monkeypatch):
    model = model_of(VITS["token"])
    heat = torch.full((1, *model.net.config.grid), torch.nan)
    monkeypatch.setattr(inspect_images, "relevance", lambda *_: heat)
    found = inspect(model, pixels_for(model, 1))
    assert found.images[0].faithfulness == () and found.images[0].grad_cam is not None
    assert not any("random" in note for note in found.notes)


# What is written


def test_what_is_written_is_read_back_as_it_was(tmp_path):
    model = model_of(VITS["token"])
    asked = {"flow": True, "maps": True, "untrained": True}
    found = inspect(model, pixels_for(model), data=source_of(model, 6), **asked)
    page = write(found, tmp_path / "page.html", {"checkpoint": "net"}, tmp_path / "figures")
    assert page == tmp_path / "page.html"
    assert {path.name for path in tmp_path.iterdir()} == {
        "page.html", "page.json", "page.npz", "figures"
    }  # fmt: skip
    assert any((tmp_path / "figures").glob("*.svg"))
    assert same(plain.load(Inspection, tmp_path / "page"), found)
    text = page.read_text(encoding="utf-8")
    assert all(image.name in text for image in found.images)


def test_a_checkpoint_is_opened_by_its_name(tmp_path):
    model = model_of(VITS["token"])
    model.save(tmp_path / "net")
    pixels = pixels_for(model, 1)
    assert same(inspect(tmp_path / "net", pixels), inspect(model, pixels))


@pytest.mark.parametrize(
    "option",
    [{"layers": (0,)}, {"heads": (0,)}, {"query": "1,1"}, {"maps": True}, {"flow": True},
     {"untrained": True}],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
def test_what_is_of_attention_is_refused_for_a_net_that_has_none(option):
    with pytest.raises(UsageError, match="has no attention; filters and Grad-CAM apply"):
        inspect(model_of(CONVOLUTIONAL["BiT"]), "no such image", **option)
