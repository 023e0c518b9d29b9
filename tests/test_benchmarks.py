"""The benchmarks start, and what the one of training writes is complete."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
PROGRAMS = [p.name for p in sorted(FOLDER.glob("*.py")) if "__main__" in p.read_text("utf-8")]


def run(name, *words):
    command = [sys.executable, str(FOLDER / name), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_help(name):
    assert "usage" in run(name, "--help")


def test_there_are_programs():
    assert {"training.py", "scaling.py"} <= set(PROGRAMS)


TINY = ("--net", "ViT-Femto/2", "--threads", "1", "--rounds", "1")


def test_training_writes_what_it_measured(tmp_path):
    file = tmp_path / "training.json"
    rows = ("vitkit bf16 eager", "vitkit fp32 eager", "timm fp32 eager", "torchvision bf16 eager")
    printed = run("training.py", *TINY, "--image-size", "8", "--classes", "10", "--batch-size", "4",
                  "--rows", ",".join(rows), "--json", str(file))  # fmt: skip
    found = json.loads(file.read_text())
    assert found["versions"].keys() >= {"torch", "timm", "torchvision"}
    assert "training.py --net ViT-Femto/2" in found["command"]
    assert found["threads"] == 1 and found["clock"] == "wall" and found["device"] == "cpu"
    assert all(found[key] for key in ("date", "device_name", "matmul_flops_per_second"))
    assert [row["row"].split(" (")[0] for row in found["rows"]] == list(rows)
    for row in found["rows"]:
        assert row["row"] in printed
        assert row["images_per_second"] == pytest.approx(4 / row["step_seconds"])
        assert len(row["all_step_seconds"]) == 1 and row["first_step_seconds"] > 0
        assert 0 < row["share_of_matmul_rate"] < 1
        assert row["peak_bytes"] is None  # is measured where asked for
        assert 0 < row["last_loss"] < 5
    speeds = {row["row"]: row["images_per_second"] for row in found["rows"]}
    ours = max(speeds["vitkit bf16 eager"], speeds["vitkit fp32 eager"])
    theirs = found["rows"][3]
    assert theirs["vitkit_ratio"] == pytest.approx(ours / speeds[theirs["row"]])
    same = speeds["vitkit bf16 eager"] / speeds[theirs["row"]]
    assert theirs["vitkit_ratio_same_precision"] == pytest.approx(same)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_row_is_that_of_its_weights_at_least():
    words = ("--net", "ViT-Pico/4", "--threads", "1", "--image-size", "32", "--batch-size", "4")
    found = run("training.py", *words, "--one-row-memory", "vitkit fp32 eager")
    weights = 400_000 * 4  # and as much again for gradients and each of AdamW's moments
    assert 4 * weights < int(found) < 2**30


def test_scaling_writes_its_tables(tmp_path):
    file = tmp_path / "scaling.json"
    run("scaling.py", *TINY, "--parts", "length,depth,batch", "--side", "8", "--batch-size", "2",
        "--image-sizes", "4,8", "--depths", "1,2", "--batch-sizes", "1,2",
        "--json", str(file))  # fmt: skip
    found = json.loads(file.read_text())
    assert [row["tokens"] for row in found["length"]] == [5, 17]
    assert [row["depth"] for row in found["depth"]] == [1, 2]
    assert [row["batch_size"] for row in found["batch"]] == [1, 2]
    for row in found["length"] + found["depth"] + found["batch"]:
        assert row["step_seconds"] > 0 and row["flops_of_step"] > 0


def test_masking_compares_each_objective_with_the_supervised_step(tmp_path):
    file = tmp_path / "masking.json"
    chosen = ["mae", "masked-patches pixels"]
    run("masking.py", "--nets", "ViT-Femto/2", "--batch-sizes", "2", "--image-size", "8",
        "--threads", "1", "--rounds", "1", "--rows", *chosen, "--json", str(file))  # fmt: skip
    rows = json.loads(file.read_text())["rows"]
    assert [row["objective"] for row in rows] == chosen
    for row in rows:
        assert row["ratio"] == pytest.approx(row["step_seconds"] / row["supervised_seconds"])
