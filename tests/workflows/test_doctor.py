"""`vitkit doctor RUN` says what is whole, what is damaged and what to do, and changes nothing."""

import fcntl
import json
import os
import shlex
import shutil

import pytest

import vitkit
from vitkit.cli import main
from vitkit.training.storage import seal

COMMAND = ["/somewhere/bin/vitkit", "pretrain", "my digits", "--steps", "8", "--out", "runs/a"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    vitkit.pretrain("digits", out=folder, steps=8, batch_size=16, save_every=4, quiet=True)
    edit(folder / "config.json", command=COMMAND)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A finished run with states of the steps 4 and 8, to be damaged."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def unfinished(run):
    """The same as if it had been killed after step 4."""
    shutil.rmtree(state(run, 8))
    shutil.rmtree(run / "last")
    return run


@pytest.fixture
def doctor(capsys):
    """Look at a run -> (exit code, what was printed, errors, the JSON); the run is unchanged."""

    def look(run):
        before = everything(run)
        capsys.readouterr()
        code = main(["doctor", str(run), "--json"])
        assert everything(run) == before
        out, errors = capsys.readouterr()
        *lines, last = out.splitlines() or [""]
        assert "Traceback" not in errors and "unexpected" not in errors
        return code, "\n".join(lines), errors, json.loads(last or "{}")

    return look


def everything(folder):
    """Name, kind, size, time of change and content of all that is in a folder, at any depth."""
    found = {}
    for path in [*folder.parent.glob(folder.name), *folder.rglob("*")]:
        facts = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[path] = (facts.st_mode, facts.st_size, facts.st_mtime_ns, content)
    return found


def state(run, step):
    return run / "checkpoints" / f"step-{step:08d}"


def shard(run, step):
    return state(run, step) / "shard-00000-00000.safetensors"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reseal(run, number, **changes):
    """A manifest that says something else, and is as valid as one that vitkit wrote."""
    path = state(run, number) / "manifest.json"
    content = json.loads(path.read_text()) | changes
    del content["sha256"]
    path.write_text(json.dumps({**content, "sha256": seal(content)}))


def flip(path, place=-100):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def states(found):
    """The states in the JSON, the newest first."""
    return [part for name, part in found["parts"].items() if name.startswith("checkpoints/")]


def row(text, name):
    return next(line for line in text.splitlines() if line.startswith(name))


def test_a_finished_run_is_whole_and_ready_to_be_evaluated(run, doctor):
    code, text, errors, found = doctor(run)
    assert code == 0 and not errors
    assert "step 8 of 8" in text.splitlines()[0]
    assert text.splitlines()[-1] == f"Next: vitkit evaluate {run} DATA"
    size = sum(path.stat().st_size for path in state(run, 8).iterdir())
    assert states(found)[0]["bytes"] == size
    names = ["config.json", "metrics.jsonl", "checkpoints/step-00000008",
             "checkpoints/step-00000004", "best/", "last/"]  # fmt: skip
    assert list(found["parts"]) == names and len(text.splitlines()) == len(names) + 6
    assert (found["step"], found["steps"], found["finished"]) == (8, 8, True)
    assert found["problems"] == [] and found["in_use_by"] is None
    assert all(row(text, name).endswith("  whole") for name in names[2:])


def test_it_stays_finished_where_its_states_were_deleted(run, doctor):
    shutil.rmtree(run / "checkpoints")
    code, _, _, found = doctor(run)
    assert code == 0 and found["finished"] and found["resume_from"] is None


def test_an_unfinished_run_is_resumed_by_the_command_that_started_it(unfinished, doctor):
    code, text, _, found = doctor(unfinished)
    assert code == 0 and not found["finished"]
    assert found["resume_from"] == "checkpoints/step-00000004"
    assert "goes on from step 4 of 8" in text
    assert "not there yet" in row(text, "last/")
    command = f"vitkit pretrain 'my digits' --steps 8 --out runs/a --resume {unfinished}"
    assert text.splitlines()[-1] == f"Next: {command}"
    assert found["advice"] == command


@pytest.mark.parametrize(
    ("command", "processes", "expected"),
    [
        (["x/vitkit/__main__.py", "pretrain", "d", "--resume", "auto"], 1, "vitkit pretrain d"),
        (["vitkit", "pretrain", "--resume=auto", "d", "--gpus=2"], 2, "vitkit pretrain d --gpus=2"),
        (["x/__main__.py", "pretrain", "d"], 4, "torchrun OPTIONS -m vitkit pretrain d"),
        (["vitkit", "pretrain", "d; rm -rf ~"], 1, "vitkit pretrain 'd; rm -rf ~'"),
        (["vitkit", "demo"], 1, "call vitkit.pretrain again as vitkit demo did"),
        (["train.py", "pretrain"], 1, "call vitkit.pretrain again as train.py pretrain did"),
        (["-c"], 1, "call vitkit.pretrain again as -c did"),
        ([], 1, "call vitkit.pretrain again"),
        ({"not": "a list"}, 1, "call vitkit.pretrain again"),
    ],
)
def test_the_command_to_resume_names_this_run(unfinished, doctor, command, processes, expected):
    """`--resume auto` would take another run where there is one with a higher number."""
    resolved = json.loads((unfinished / "config.json").read_text())["resolved"]
    edit(unfinished / "config.json", command=command, resolved=resolved | {"processes": processes})
    advice = doctor(unfinished)[3]["advice"]
    how = f", with resume={str(unfinished)!r}" if "call" in expected else f" --resume {unfinished}"
    assert advice == expected + how
    if "call" not in expected:
        assert shlex.split(advice).count("--resume") == 1


# Damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: flip(shard(run, 8)), "shard-00000-00000.safetensors: damaged: its SHA-256 is"),
        (
            lambda run: os.truncate(shard(run, 8), 99),
            "shard-00000-00000.safetensors: damaged: 99 bytes",
        ),
        (lambda run: shard(run, 8).unlink(), "shard-00000-00000.safetensors: missing"),
        (lambda run: (state(run, 8) / "manifest.json").unlink(), "manifest.json: missing"),
        (lambda run: flip(state(run, 8) / "manifest.json", 30), "manifest.json: "),
        (lambda run: (state(run, 8) / "manifest.json").write_text("[" * 10**5), "manifest.json: "),
        (lambda run: (state(run, 8) / "a.safetensors").touch(), "does not belong to this state"),
        (lambda run: reseal(run, 8, step=7), "is the manifest of step 7"),
    ],
)
def test_a_damaged_state_is_named_and_the_one_before_it_is_resumed(run, doctor, damage, said):
    damage(run)
    shutil.rmtree(run / "last")
    code, text, _, found = doctor(run)
    assert code == 0
    assert said in states(found)[0]["problem"]
    assert said in row(text, "checkpoints/step-00000008")
    assert "whole (resumed from here)" in row(text, "checkpoints/step-00000004")
    assert (found["step"], found["resume_from"]) == (4, "checkpoints/step-00000004")


def test_where_nothing_is_whole_nothing_can_be_resumed(run, doctor):
    for step in (4, 8):
        flip(shard(run, step))
    for bundle in ("best", "last"):
        flip(run / bundle / "model.safetensors")
    code, _, errors, found = doctor(run)
    assert code == 1
    assert errors.count("\n") == 1 and "no saved state is whole" in errors
    assert "from a backup, or start a new run" in errors and "evaluate" not in errors
    assert len(found["problems"]) == 4 and found["resume_from"] is None


def test_a_whole_bundle_of_a_run_that_cannot_be_resumed_is_of_use(run, doctor):
    for step in (4, 8):
        flip(shard(run, step))
    shutil.rmtree(run / "best")
    code, _, errors, _ = doctor(run)
    assert code == 1
    assert f"vitkit evaluate {run}/last DATA" in errors


def test_a_state_of_a_newer_version_is_no_damage_but_needs_that_version(unfinished, doctor):
    reseal(unfinished, 4, format_version=2)
    code, text, errors, found = doctor(unfinished)
    assert code == 1 and "resume the run with the version that wrote it" in errors
    assert states(found)[0]["other_version"]
    assert "damaged" not in row(text, "checkpoints/step-00000004")


def test_what_a_file_manager_leaves_in_a_state_is_no_damage(run, doctor):
    (state(run, 8) / ".DS_Store").touch()
    assert doctor(run)[3]["problems"] == []


def test_a_newer_state_above_a_whole_one_is_not_passed_over(run, doctor):
    """As by `--resume`, which would throw away what the newer version has done."""
    reseal(run, 8, format_version=2)
    code, _, errors, found = doctor(run)
    assert code == 1 and "resume the run with the version that wrote it" in errors
    assert found["resume_from"] is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "missing"),
        (b"\xff\x00", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b" " * (9 << 20), "more than 8 MiB"),
        (b"[]", "not an object"),
        (b"{}", "kind, config, from, data.fingerprint"),
    ],
)
def test_without_a_readable_config_nothing_can_be_resumed(unfinished, doctor, content, said):
    (unfinished / "config.json").unlink()
    if content is not None:
        (unfinished / "config.json").write_bytes(content)
    code, text, errors, found = doctor(unfinished)
    assert code == 1
    assert said in row(text, "config.json") and said in errors
    assert "copy it from a backup" in errors
    assert found["steps"] is None and states(found)[0]["problem"] is None


def test_a_config_with_a_value_of_another_type_is_malformed(unfinished, doctor):
    edit(unfinished / "config.json", resolved={"steps": "8", "precision": "fp32"})
    code, _, errors, _ = doctor(unfinished)
    assert code == 1
    assert "resolved.steps, resolved.torch_threads missing or malformed" in errors


# Bundles


def test_a_damaged_best_leaves_last(run, doctor):
    flip(run / "best" / "model.safetensors")
    code, text, _, found = doctor(run)
    assert code == 0 and found["finished"]
    assert "its SHA-256 is" in found["parts"]["best/"]["problem"]
    assert "last/ can be used instead" in row(text, "best/") and "best/ is damaged" in text
    assert text.splitlines()[-1] == f"Next: vitkit evaluate {run}/last DATA"


def test_a_damaged_last_is_written_again_by_a_resume(run, doctor):
    flip(run / "last" / "model.safetensors")
    code, text, _, found = doctor(run)
    assert code == 0 and not found["finished"]
    assert "written again when the run ends" in row(text, "last/")
    assert "all steps are done, and last/ is written anew" in text
    assert text.splitlines()[-1].endswith(f"--resume {run}")


@pytest.mark.parametrize("damage", ["{", None])
def test_a_damaged_bundle_is_in_no_ones_way(unfinished, doctor, damage):
    """A resume sets aside what is no bundle any more, and writes over one that is."""
    if damage:
        (unfinished / "best" / "config.json").write_text(damage)
    else:
        flip(unfinished / "best" / "model.safetensors")
    code, text, _, _ = doctor(unfinished)
    assert code == 0 and "Can be resumed: it goes on from step 4 of 8.\n" in text
    told = "set aside or kept at the next resume, and written again when an evaluation is the best"
    assert told in row(text, "best/")


# What killed processes leave


def test_a_half_written_line_is_no_problem_and_bad_ones_are(unfinished, doctor):
    path = unfinished / "metrics.jsonl"
    lines = len(path.read_text().splitlines())
    with path.open("ab") as file:
        file.write(b'{"step": 5, "kin')
    code, text, _, found = doctor(unfinished)
    assert code == 0 and found["problems"] == []
    then = ", then a half-written one, which the next resume cuts off"
    assert row(text, "metrics.jsonl").endswith(f"lines in all: {lines}{then}")
    with path.open("ab") as file:
        file.write(b"\n\xff\x00\n" + b"[" * 100_000 + b"\n")
    code, text, _, found = doctor(unfinished)
    assert code == 0 and len(found["problems"]) == 1
    assert row(text, "metrics.jsonl").endswith(f"out: 3; lines in all: {lines + 3}")


def test_leftovers_and_states_that_were_set_aside_are_counted(unfinished, doctor):
    checkpoints = unfinished / "checkpoints"
    for name in (".step-00000008.12345678.tmp", "damaged-step-00000008"):
        shutil.copytree(state(unfinished, 4), checkpoints / name)
    for name in (".best.12345678.tmp", ".last.12345678.old", "damaged-best", "damaged-last"):
        (unfinished / name).mkdir()
    code, text, _, found = doctor(unfinished)
    assert code == 0 and found["problems"] == []
    size = states(found)[0]["bytes"]
    left, aside = "left half-written", "set aside as damaged"
    assert found["parts"][left]["bytes"] == found["parts"][aside]["bytes"] == size
    assert "folders: 3; removed or put back at the next resume" in row(text, left)
    assert "folders: 3; named damaged-*; may be deleted" in row(text, aside)


def test_a_run_that_is_in_use_needs_nothing(unfinished, doctor):
    path = unfinished / ".lock"
    path.write_text("process 123 on here")
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, text, _, found = doctor(unfinished)
    assert code == 0 and found["in_use_by"] == "process 123 on here"
    last = text.splitlines()[-1]
    assert last.startswith("In use by process 123 on here: nothing needs to be done")
    assert doctor(unfinished)[3]["in_use_by"] is None


def test_a_run_that_is_just_starting_is_one(tmp_path, doctor):
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, _, found = doctor(tmp_path)
    assert code == 0 and found["in_use_by"] == "another process"


# What is no run, and what nobody would write


@pytest.mark.parametrize("name", ["nowhere", "empty", "run/best", "run/config.json"])
def test_what_is_no_run_is_said_in_a_sentence(run, doctor, name):
    (run.parent / "empty").mkdir()
    code, text, errors, _ = doctor(run.parent / name)
    assert code == 1 and text == ""
    assert errors.startswith(f"vitkit: {run.parent / name}: ") and errors.count("\n") == 1
    assert "expected one with config.json and checkpoints/" in errors


@pytest.mark.parametrize(
    "changes",
    [
        {"files": ["a"]},
        {"files": 5},
        {"files": {"/dev/zero": {"bytes": 0, "sha256": ""}}},
        {"files": {"../../config.json": {"bytes": 0, "sha256": ""}}},
        {"files": {"progress.json": {"bytes": "many"}}},
        {"files": {"\x00": {}}},
        {"step": "eight"},
        {"padding": "x" * (9 << 20)},
    ],
)
def test_a_hostile_manifest_is_damage(run, doctor, changes):
    reseal(run, 8, **changes)
    shutil.rmtree(run / "last")
    code, _, _, found = doctor(run)
    assert code == 0
    assert states(found)[0]["problem"] and found["resume_from"] == "checkpoints/step-00000004"


def test_pipes_and_links_that_lead_nowhere_do_not_stop_it(run, doctor):
    for path in (run / ".lock", run / "metrics.jsonl", state(run, 8) / "progress.json"):
        path.unlink()
        os.mkfifo(path)
    shutil.rmtree(run / "best")
    (run / "best").symlink_to("best")
    (state(run, 4) / "manifest.json").unlink()
    (state(run, 4) / "manifest.json").symlink_to("/dev/zero")
    code, _, _, found = doctor(run)
    assert code == 1
    assert [s["problem"] for s in states(found)] == [
        "progress.json: missing", "manifest.json: missing",
    ]  # fmt: skip
    assert found["parts"]["best/"]["problem"]


def test_a_pipe_in_place_of_a_manifest_does_not_stop_it(run, doctor):
    (state(run, 8) / "manifest.json").unlink()
    os.mkfifo(state(run, 8) / "manifest.json")
    _, _, _, found = doctor(run)
    assert states(found)[0]["problem"] == "manifest.json: missing"


def test_names_do_not_command_the_terminal(run, doctor):
    (state(run, 8) / "\x1b[2J\nvitkit: all is well.safetensors").touch()
    edit(run / "config.json", command=["vitkit", "pretrain", "\x1b[2J"])
    shutil.rmtree(run / "last")
    code, text, _, found = doctor(run)
    assert code == 0 and found["resume_from"] == "checkpoints/step-00000004"
    assert "\x1b" not in text and r"\x1b[2J" in row(text, "checkpoints/step-00000008")
    assert not any(line.startswith("vitkit: all is well") for line in text.splitlines())
