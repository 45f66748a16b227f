"""docs/recipe.md says what the settings classes say."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_recipe_keys_is_fresh():
    """Every key is on the page with its type, default and meaning, as ``python docs/recipe_page.py`` writes it."""
    spec = importlib.util.spec_from_file_location("recipe_page", DOCS / "recipe_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "recipe.md").read_text(encoding="utf-8") == module.page()
