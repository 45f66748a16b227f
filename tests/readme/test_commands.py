"""Every command that the README and the documents show works: cheap ones are run, the others' parts all exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from potstill.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").rglob("*.md"))
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
RUN_AS_THEY_STAND = {"plan", "env", "init", "--help"}


def blocks():
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").strip().splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield pytest.param(words, id=f"{page.name}: {line[:60]}")


COMMANDS = list(blocks())


def potstill(*arguments, cwd):
    command = [sys.executable, "-m", "potstill", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=120)


@pytest.mark.parametrize("words", COMMANDS)
def test_a_documented_command_exists(words, tmp_path):
    """Its program, target or verb, its options, and the recipes it names are there; the cheap ones end with 0."""
    program, *arguments = words
    if program == "make":
        targets = [word for word in arguments if "=" not in word]
        assert targets
        for target in targets:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if program in {"python", ".venv/bin/python"}:
        assert (ROOT / arguments[0]).is_file()
        return
    if program == "torchrun":
        program, *arguments = _under_torchrun(arguments)
    assert Path(program).name == "potstill"
    verb, *rest = arguments
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "my.txt").write_text("Text of the reader's own.\n")
    if verb in RUN_AS_THEY_STAND:
        ended = potstill(*arguments, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        return
    help_text = potstill(verb, "--help", cwd=tmp_path).stdout
    assert f"Usage: potstill {verb}" in help_text
    for option in (word for word in rest if word.startswith("--")):
        assert option in help_text
    for recipe in (word for word in rest if word.startswith("recipes/")):
        overrides = [rest[index + 1] for index, word in enumerate(rest) if word == "--set"]
        load_recipe(ROOT / recipe, overrides)


def test_the_readme_shows_the_two_commands():
    """The first block of the README is what a newcomer types."""
    first = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert [line.split()[0] for line in first[1].strip().splitlines()] == ["make", ".venv/bin/potstill"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Every relative link of a page names a file that is there."""
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_the_tree_in_the_readme_is_the_tree():
    """Every folder and module that the annotated tree names exists, and no package is missing from it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme[readme.index("## The tree") :]
    tree = tree[tree.index("```") + 3 :]
    tree = tree[: tree.index("```")]
    source = ROOT / "src" / "potstill"
    inside = [line.split()[0] for line in tree.splitlines() if line.startswith("  ")]
    assert all((source / name).exists() for name in inside)
    outside = [line.split()[0] for line in tree.splitlines() if line.strip() and not line.startswith("  ")]
    assert all((ROOT / name).exists() for name in outside)
    packages = {path.parent.name + "/" for path in source.glob("*/__init__.py")}
    assert packages <= set(inside)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_says_how_to_run_it_and_what_to_expect(path):
    """Each recipe is valid, its name is its file's, and its header has the command, the wall time and the result."""
    assert load_recipe(path).name == path.stem
    header = path.read_text(encoding="utf-8").split("\nname:")[0]
    for word in (f"potstill run recipes/{path.name}", "wall time", "expected"):
        assert word in header.lower(), f"the header has no {word!r}"
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def _under_torchrun(arguments):
    """The command that torchrun starts, if its own options exist."""
    module = arguments.index("-m")
    command = [sys.executable, "-m", "torch.distributed.run", "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for option in (word for word in arguments[:module] if word.startswith("--")):
        assert option in help_text, option
    return arguments[module + 1 :]
