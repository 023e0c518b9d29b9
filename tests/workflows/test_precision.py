"""Training in bfloat16 ends where training in float32 does, to within what the seed changes."""

import statistics

import pytest

import vitkit

SEEDS = range(4)


@pytest.mark.slow
def test_on_digits_bfloat16_is_within_the_spread_of_seeds_of_float32(tmp_path):
    top1 = {
        precision: [
            vitkit.pretrain(
                "digits", out=tmp_path / f"{precision}-{seed}", steps=600, seed=seed,
                precision=precision, quiet=True,
            ).metrics["top1"]
            for seed in SEEDS
        ]
        for precision in ("fp32", "bf16")
    }  # fmt: skip
    print(top1)
    spread = max(top1["fp32"]) - min(top1["fp32"])
    means = {name: statistics.mean(values) for name, values in top1.items()}
    assert means["fp32"] > 0.8
    assert means["bf16"] >= means["fp32"] - max(spread, 0.01)
