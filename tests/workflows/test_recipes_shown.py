"""`vitkit recipes`: the list, one of them, the page, and what its docstrings say of cost."""

import json
import re
from pathlib import Path

import pytest

from vitkit.cli import main
from vitkit.recipes import planning
from vitkit.recipes.recipe import IMAGENET, JFT
from vitkit.training.config import override
from vitkit.workflows.plan import length
from vitkit.workflows.pretrain import net_config
from vitkit.workflows.recipes import cost, described, every, in_lines, page, settings

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
COST = re.compile(r"^    (\S+) +([\d.]+) +([\d.]+)$", re.MULTILINE)
PRICED = [row for row in every() if row[2].data is not None]


@pytest.mark.parametrize("row", PRICED, ids=lambda row: row[1])
def test_the_costs_in_a_docstring_are_those_of_the_plan(row):
    verb, name, recipe = row
    stated = COST.findall(described(verb, name, recipe)["text"])
    assert [net for net, _, _ in stated][: len(recipe.nets)] == list(recipe.nets)
    assert stated
    for net, exaflops, core_days in stated:
        found = cost(name, net)
        assert float(exaflops) == pytest.approx(found["exaflops"], rel=6e-3), net
        assert float(core_days) == pytest.approx(found["core_days"], rel=6e-3), net


@pytest.mark.parametrize("row", PRICED, ids=lambda row: row[1])
def test_a_docstring_tells_the_command_and_what_to_expect(row):
    verb, name, recipe = row
    text = recipe.make.__doc__
    assert f"vitkit {verb} DATA" in text and f"--recipe {name}`" in text
    assert "Expected" in text and "Measured: " in text


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run: vitkit recipes -o docs/recipes.md"


def test_the_links_of_the_page_lead_to_its_headings():
    text = page()
    headings = {
        re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-")
        for heading in re.findall(r"^### (.+)$", text, re.MULTILINE)
    }
    linked = set(re.findall(r"\]\(#(.+?)\)", text))
    assert linked == headings and len(linked) == len(list(every()))


def test_it_is_told_what_the_authors_choose_among_and_by_what():
    rows = {row[1]: described(*row)["choice"] for row in every()}
    assert rows["table4-imagenet"] == (
        "Learning rates: 0.003, 0.01, 0.03, of ResNets and hybrids 0.06 too, by 1% of the training "
        "images."
    )
    assert rows["table4-vtab"] == "Learning rates: 0.01." and rows["jft-vit-b"] == ""


def test_settings_leave_out_what_does_nothing():
    said = settings(planning("table4-cifar", IMAGENET))
    assert said["optimizer.momentum"] == 0.9 and "optimizer.betas" not in said
    assert "schedule.linear_end" not in said and "schedule.stairs" not in said
    assert said["steps"] == 10_000 and "epochs" not in said and "threads" not in said
    said = settings(planning("jft-vit-b", IMAGENET))
    assert said["schedule.linear_end"] == 1e-5 and "schedule.warmup_share" not in said
    assert said["optimizer.clip_norm"] == 0.0


def test_lines_break_between_settings_only():
    text = in_lines({"optimizer.betas": (0.9, 0.999), "loss": "sigmoid"}, width=26)
    assert text == "optimizer.betas 0.9 0.999,\nloss sigmoid"


def test_the_list_has_every_recipe_with_its_cost(capsys):
    assert main(["recipes", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads(lines[-1])["recipes"]
    assert len(rows) == len(list(every()))
    line = next(line for line in lines if line.startswith("jft-vit-h14"))
    assert "14 epochs" in line and " 4,260 " in line and "ViT-H/14" in line


def test_one_is_shown_with_words_settings_and_the_next_command(capsys):
    assert main(["recipes", "augreg-imagenet"]) == 0
    out = capsys.readouterr().out
    assert "--recipe augreg-imagenet" in out and "augment.level strong2" in out
    assert "light0" in out, "what all of AugReg leave open"
    following = out.splitlines()[-1].removeprefix("Next: vitkit ")
    assert following == 'plan --recipe augreg-imagenet --model "ViT-B/16" --no-probe'
    assert main(["recipes", "quickstart"]) == 0
    out = capsys.readouterr().out
    assert "vitkit pretrain DATA" in out and "vitkit finetune DATA" in out


def test_the_page_is_written_where_it_is_wanted(tmp_path, capsys):
    out = tmp_path / "page.md"
    assert main(["recipes", "-o", str(out)]) == 0
    assert out.read_text() == page()
    capsys.readouterr()
    assert main(["recipes", "quickstart", "-o", str(out)]) == 2
    assert "leave NAME out" in capsys.readouterr().err


def test_an_unknown_name_exits_2_with_the_nearest(capsys):
    assert main(["recipes", "table4-flower-pets"]) == 2
    assert "'table4-flowers-pets'" in capsys.readouterr().err


SMALL = ["--model", "ViT-Femto/2", "--image-size", "8", "--any-net", "--no-probe", "--json"]


def test_a_plan_takes_the_recipe_s_own_data(capsys):
    assert main(["plan", "--recipe", "jft-vit-b", *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert found["batch_size"] == 4096 and found["steps"] == round(7 * 303e6 / 4096)
    assert lines[-2] == 'Next: vitkit pretrain DATA --recipe jft-vit-b --model "ViT-Femto/2"'


def test_a_plan_is_made_of_a_fine_tuning_recipe_too(capsys):
    assert main(["plan", "--recipe", "table4-flowers-pets", *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert (found["model"], found["steps"]) == ("ViT-Femto/2", 500)
    assert lines[-2] == "Next: vitkit finetune DATA --recipe table4-flowers-pets --from CHECKPOINT"


@pytest.mark.slow
def test_a_plan_of_a_tpu_costs_what_the_recipe_says_with_its_first_net(capsys):
    words = ["plan", "--recipe", "jft-vit-b", "--accelerator", "TPUv3", "--gpus", "1024", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["model"] == "ViT-B/32" and found["epochs"] == pytest.approx(7, abs=1e-3)
    expected = cost("jft-vit-b", "ViT-B/32")
    assert found["exaflops"] == pytest.approx(expected["exaflops"])
    assert found["device_days"] == pytest.approx(expected["core_days"])


def test_epochs_given_reproduce_the_lines_of_table_6_that_table_3_has_no_row_for():
    for name, net, epochs, printed in (
        ("jft-bit-r152", "BiT-R152x2", 14, 1126), ("jft-bit-r152", "BiT-R200x3", 14, 3306),
        ("jft-vit-l16", "ViT-L/16", 7, 783),
    ):  # fmt: skip
        config = override(planning(name, JFT, net, any_net=True), {"epochs": epochs})
        found = length(net_config(config, JFT.classes), config, JFT.images, None, 1)
        assert found["exaflops"] == pytest.approx(printed, rel=0.03)


def test_a_net_not_written_for_exits_2_before_data_are_opened_and_works_with_any_net(
    tmp_path, capsys
):
    words = ["pretrain", "nowhere/", "--recipe", "jft-vit-h14", "--model", "ViT-Femto/2"]
    assert main(words) == 2
    assert "written for ViT-H/14, not for ViT-Femto/2" in capsys.readouterr().err
    words = ["pretrain", "digits", "--recipe", "jft-vit-h14", "--model", "ViT-Femto/2", "--any-net",
             "--image-size", "8", "--batch-size", "8", "--steps", "2"]  # fmt: skip
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (recorded["recipe"], recorded["model"]) == ("jft-vit-h14", "ViT-Femto/2")
    assert recorded["optimizer"]["learning_rate"] == 3e-4 and recorded["hidden_head"]
    assert main(["plan", "--recipe", "jft-vit-h14", "--model", "ViT-Femto/2"]) == 2
