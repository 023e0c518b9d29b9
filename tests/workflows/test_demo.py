"""The demo reaches what the README promises."""

import json
import subprocess
import sys


def test_the_demo_learns_transfers_and_draws(tmp_path):
    command = [sys.executable, "-m", "vitkit", "demo", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["accuracy"] >= 0.97
    assert result["few_shot_accuracy"] >= result["few_shot_accuracy_untrained"] + 0.1
    assert result["seconds"] > 0
    figure = (tmp_path / result["run"] / "demo.png").read_bytes()
    assert figure.startswith(b"\x89PNG") and len(figure) > 50_000
    assert "Next: vitkit " in done.stdout
