"""report.html of a run."""

import json

import vitkit
from vitkit.reports.training import write_report


def test_what_went_wrong_is_in_the_report_and_damaged_lines_are_passed_over(tmp_path):
    run = vitkit.pretrain("digits", out=tmp_path / "run", steps=4, batch_size=16, quiet=True)
    assert "Incidents" not in (run.folder / "report.html").read_text()
    lines = [
        json.dumps({"step": 3, "kind": "skipped", "loss": None}),
        json.dumps({"step": 2, "kind": "rewind", "spike_at": 1234, "left_out": [1000, 1233]}),
        "no JSON", "3", "{}",
    ]  # fmt: skip
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write("\n".join(lines))
    page = write_report(run.folder).read_text()
    assert "<th>step 3</th><td>the gradient was not finite; nothing was changed" in page
    assert "<th>step 1,234</th><td>the loss shot up; back to step 2, without batches 1,000" in page
