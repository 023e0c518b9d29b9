"""`vitkit plan`: the numbers, the words, and what is refused."""

import json

import pytest

from vitkit.cli import main
from vitkit.errors import UsageError
from vitkit.models.variants import config as net_config
from vitkit.reports.plans import lines
from vitkit.training.accelerators import ACCELERATORS, accelerator
from vitkit.training.config import TrainConfig
from vitkit.workflows.plan import plan


def planned(model="ViT-Pico/8", **more):
    fields = {"batch_size": 64, "epochs": 2.0, "polyak": 0.999, **more.pop("fields", {})}
    config = TrainConfig(model=model, **fields)
    return plan(net_config(model, 1000, 64), config, 6400, probe=False, **more)


def test_the_numbers_are_those_of_a_hand_calculation():
    found = planned()
    assert found["parameters"] == 569_416
    assert (found["steps"], found["images_seen"], found["epochs"]) == (200, 12_800, 2.0)
    assert found["exaflops"] == pytest.approx(3 * found["flops_per_image"] * 12_800 / 1e18)
    weights = 4 * found["parameters"]
    for row in found["memory"]:
        assert (row["weights"], row["gradients"], row["average"]) == (weights,) * 3
        assert row["optimizer"] == 2 * weights
        assert row["saving"] == 4 * weights
        parts = ("weights", "gradients", "optimizer", "average", "activations", "saving")
        assert row["total"] == sum(row[part] for part in parts)
    activations = [row["activations"] for row in found["memory"]]
    assert activations == sorted(activations, reverse=True) and len(activations) == 3
    # two states of weights, two moments and an average, and two bundles
    assert found["disk_checkpoints"] == weights * (3 * 4 + 2)
    assert found["seconds"] is None


def test_an_accelerators_time_is_by_its_peak_and_divided_among_devices():
    one, eight = (planned(named_accelerator="H100", processes=n) for n in (1, 8))
    assert one["precision"] == "bf16"
    expected = 3 * one["flops_per_image"] * 64 / (0.4 * 989e12)
    assert one["seconds_per_step"] == pytest.approx(expected)
    assert eight["seconds_per_step"] == pytest.approx(expected / 8)
    assert eight["device_days"] == pytest.approx(one["device_days"])
    assert one["memory_free"] == 80e9


def test_fsdp_divides_weights_gradients_and_optimizer():
    rows = planned(named_accelerator="A100-40", processes=4)["memory"]
    ddp, fsdp = (next(r for r in rows if r["sharding"] == kind) for kind in ("ddp", "fsdp"))
    for part in ("weights", "gradients", "optimizer", "average"):
        assert fsdp[part] * 4 == pytest.approx(ddp[part], rel=1e-6)


@pytest.mark.slow
def test_the_paper_s_largest_run_in_its_own_unit():
    """ViT-H/14 took 2,500 TPUv3-core-days (Table 2): the assumed share is of the right size."""
    net = net_config("ViT-H/14", 18_291, 224, hidden_head=True)
    config = TrainConfig(model="ViT-H/14", batch_size=4096, epochs=14.0)
    found = plan(net, config, 303_000_000, named_accelerator="TPUv3", processes=1024)
    assert 4262 * 0.98 < found["exaflops"] < 4262 * 1.02
    assert 1250 < found["device_days"] < 5000


@pytest.mark.slow
def test_a_net_without_transformer_blocks_is_not_planned_as_compiled():
    # As a run on such a GPU would choose; uncompiled in bf16 its norms keep float32 copies.
    for name, compiled in (("ViT-Ti/16", True), ("BiT-R50x1", False)):
        net = net_config(name, 1000, 64)
        config = TrainConfig(model=name, batch_size=64, epochs=2.0)
        found = plan(net, config, 6400, named_accelerator="H100")
        assert found["compile"] is compiled
        totals = [row["total"] for row in found["memory"]]
        assert totals == sorted(totals, reverse=True)


def test_an_unknown_accelerator_names_the_nearest():
    with pytest.raises(UsageError, match="H100"):
        accelerator("h10")
    assert all(a.memory > 1e9 and (a.bf16 or a.fp32) >= a.fp32 for a in ACCELERATORS.values())


def test_a_net_that_does_not_fit_is_told_with_what_would(monkeypatch):
    monkeypatch.setattr("vitkit.workflows.plan.free_memory", lambda device, processes: 2**26)
    found = planned(fields={"batch_size": 512})
    assert not any(row["fits"] for row in found["memory"])
    assert "--accumulation" in found["what_would_fit"] or "processes" in found["what_would_fit"]
    assert any("does not fit; what would fit" in line for line in lines(found))


def test_a_probe_tells_seconds_and_minutes_become_steps():
    config = TrainConfig(model="ViT-Femto/2", image_size=(8, 8), batch_size=16, minutes=1.0)
    found = plan(net_config("ViT-Femto/2", 10, 8), config, 1000, device="cpu")
    assert found["steps"] == int(60 / found["seconds_per_step"])
    assert any("device-days" in line for line in lines(found))


def test_on_the_command_line(capsys):
    words = ["plan", "--model", "ViT-Pico/8", "--image-size", "160", "--accelerator", "RTX-4090",
             "--images", "1000", "--classes", "10", "--epochs", "3", "--gpus", "2",
             "--json"]  # fmt: skip
    assert main(words) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert found["image_size"] == [160, 160] and found["processes"] == 2
    rows = [line for line in printed.splitlines() if line.startswith("full checkpointing, fsdp")]
    assert [row.split()[-1] for row in rows] == ["fits"]
    assert main(["plan", "digits", "--images", "3"]) == 2
    assert "leave them out" in capsys.readouterr().err
    assert main(["plan", "--gpus", "0"]) == 2
    assert main(["plan", "--gpus", "7", "--batch-size", "64", "--no-probe"]) == 2
    assert "64 cannot be shared by 7 processes" in capsys.readouterr().err


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["pretrain", "digits", "--steps", "7", "--dry-run", "--out", str(out), "--json"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "memory of a process" in printed and "7 steps of 64 images" in printed
    assert "on top come the libraries" in printed
    assert json.loads(printed.splitlines()[-1])["plan"]["steps"] == 7
    assert not out.exists()
