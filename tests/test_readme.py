"""README and docs say what is true."""

import re
import shlex
from pathlib import Path

import pytest

from vitkit import cli, words
from vitkit.recipes import FINETUNE, PRETRAIN

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_there_are_exactly_two_set_up_commands_and_ci_runs_them():
    lines = [
        line
        for line in (ROOT / "README.md").read_text().splitlines()
        if line.startswith("python3 -m venv ")
    ]
    assert len(lines) == 2
    assert lines[0].endswith("vitkit demo")
    assert lines[1].endswith("python -m pytest")
    assert "grep '^python3 -m venv ' README.md" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_the_commands_of_the_docs_exist(page):
    known = {
        "demo": words.Demo(),
        "models": words.Models(),
        "recipes": words.Recipes(),
        "convert": words.Convert(),
        "pretrain": words.Pretrain(),
        "finetune": words.Finetune(),
        "selftrain": words.SelfTrain(),
        "plan": words.Plan(),
        "evaluate": words.Evaluate(),
        "inspect": words.Inspect(),
        "compare": words.Compare(),
        "predict": words.Predict(),
        "doctor": words.Doctor(),
    }
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", page.read_text(), flags=re.S))
    for line in re.findall(r"^ *(?:\$ )?(vitkit [a-z].*)$", blocks, flags=re.M):
        verb, *given = shlex.split(line.split("#")[0])[1:]
        assert verb in cli.VERBS, line
        if verb == "data":  # its verbs have options of their own; tests/test_docs.py runs them
            continue
        options = words.help_of(known[verb], verb)
        for word in words.rewritten([verb, *given])[1:]:
            if word.startswith("-"):
                assert re.search(rf"(?<!\S){re.escape(word)}(?![\w-])", options), (line, word)


def test_every_recipe_tells_its_command():
    for verb, recipes in (("pretrain", PRETRAIN), ("finetune", FINETUNE)):
        for recipe in recipes.values():
            assert f"vitkit {verb} DATA" in (recipe.make.__doc__ or "")
