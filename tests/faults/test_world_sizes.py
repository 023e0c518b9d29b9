"""A run goes on in another number of processes, on the same stream of images."""

import random

import pytest
from runs import STEPS, Run, batches_of, records

from vitkit.data.sampling import places_of

pytestmark = pytest.mark.faults

WORDS = ["--dropout", "0"]


def images_of(out):
    """Batch -> the hashes of its images in the order of the stream, whoever read them."""
    shares: dict[int, dict[int, list[str]]] = {}
    for one in batches_of(out):
        for rank, read in one.items():
            for number, hashes in read.items():
                shares.setdefault(number, {})[rank, len(hashes.split())] = hashes.split()
    batches = {}
    for number, found in shares.items():
        for images in {images for _, images in found}:
            ranks = [share for (_, n), share in sorted(found.items()) if n == images]
            if images * len(ranks) == 16:
                whole = [""] * 16
                for rank, share in enumerate(ranks):
                    for place, one in zip(places_of(0, 16, rank, len(ranks)), share, strict=True):
                        whole[place] = one
                assert batches.setdefault(number, whole) == whole, f"batch {number} differs"
    return batches


def change(out, reference, sizes, stops, fault=None):
    """Go on in other numbers of processes -> as the undisturbed run."""
    for number, size in enumerate(sizes):
        stop = {"stop": True, "batch": stops[number], "rank": 0} if number < len(stops) else {}
        run = Run(out, *WORDS, processes=size, resume=number > 0, fault={**stop, **(fault or {})})
        assert run.ended() == (143 if stop else 0), run.words()
    found, expected = images_of(out), images_of(reference)
    assert all(found[n] == expected[n] for n in range(STEPS)), "other images"
    losses = [{r["step"]: r["loss"] for r in records(o, "train")} for o in (out, reference)]
    for step in range(1, STEPS + 1):
        # Sums of gradients are rounded in another order; Adam makes more of that with each step.
        tolerance = 1e-6 if step <= stops[0] + 20 else 1e-5
        assert losses[0][step] == pytest.approx(losses[1][step], rel=tolerance), step


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("two") / "run", *WORDS).done().out


def test_two_one_and_two_processes_see_one_stream_and_agree_in_their_losses(
    tmp_path, two, rounds, long, table
):
    number_of = max(1, rounds // 10) if long else 1
    for number in range(number_of):
        first = random.Random(number).randint(5, 35)
        change(tmp_path / f"{number}", two, [2, 1, 2], [first, first + 10])
    table("2, then 1, then 2 processes", number_of,
          "the same images; losses within 1e-6 over 20 steps")  # fmt: skip


@pytest.mark.usefixtures("long_only")
def test_two_four_and_one_processes_agree(tmp_path, two):
    change(tmp_path / "run", two, [2, 4, 1], [20, 30])


@pytest.mark.usefixtures("long_only")
def test_a_stream_that_is_drawn_in_each_process_is_found_out(tmp_path, two):
    with pytest.raises(AssertionError, match="other images"):
        change(tmp_path / "run", two, [2, 1, 2], [20, 30], fault={"without": "order"})
