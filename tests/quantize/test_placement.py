"""Every matrix gets the grid of its scheme, or a finer one with a sentence that says so."""

import pytest

from potstill.core.errors import RecipeError
from potstill.quantize.placement import Grid, is_matrix, placements
from potstill.quantize.settings import Int4, Int8, Int8Channel, Keep, KQuant2, KQuant3


@pytest.mark.parametrize(
    ("scheme", "columns", "grid"),
    [
        (Int8(), 64, Grid("int8", 32)),
        (Int8(), 172, Grid("float16")),
        (Int8Channel(), 172, Grid("int8")),
        (Int4(), 96, Grid("int4", 32)),
        (Int4(group=128), 256, Grid("int4", 128)),
        (Int4(group=128), 352, Grid("int4", 32)),
        (Int4(group=128), 172, Grid("float16")),
        (KQuant3(), 512, Grid("q3_k", 256)),
        (KQuant2(), 384, Grid("int4", 32)),
        (KQuant2(), 172, Grid("float16")),
    ],
)
def test_columns_decide_the_grid_and_a_finer_one_is_told(scheme, columns, grid):
    placed = placements(scheme, {"w": columns}, where="here")["w"]
    assert placed.grid == grid
    asked = grid.name == scheme.scheme.partition("-")[0] and grid.group in {getattr(scheme, "group", grid.group), None}
    assert (placed.fallback is None) == asked
    assert asked or f"w has {columns} columns" in placed.fallback


def test_the_first_pattern_that_matches_decides():
    keep = (Keep(tensors="*.down.weight"), Keep(tensors="block.*", dtype="int8"))
    names = dict.fromkeys(("block.down.weight", "block.up.weight", "head.weight"), 256)
    placed = placements(Int4(group=128, keep=keep), names, where="here")
    assert [placement.grid.name for placement in placed.values()] == ["float16", "int8", "int4"]
    assert not any(placement.fallback for placement in placed.values()), "what was asked for is no fallback"


def test_a_pattern_that_matches_nothing_is_refused_with_names_that_exist():
    with pytest.raises(RecipeError, match=r"keep: 'lm_heat\.weight' matches no matrix(.|\n)*lm_head\.weight"):
        placements(Int4(keep=(Keep(tensors="lm_heat.weight"),)), {"lm_head.weight": 64}, where="here")


def test_vectors_and_tables_of_positions_are_no_matrices():
    assert is_matrix("model.layers.0.mlp.up_proj.weight", (64, 32))
    assert not is_matrix("model.norm.weight", (64,))
    assert not is_matrix("transformer.wpe.weight", (64, 32))
    assert not is_matrix("model.decoder.embed_positions.weight", (64, 32))
