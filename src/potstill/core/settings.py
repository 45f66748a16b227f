"""Strict, frozen settings: how a choice in a recipe is written down, and how a wrong one is answered."""

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from potstill.core.errors import RecipeError

__all__ = ["Count", "Settings", "parse_count", "parse_settings", "recipe_error"]

S = TypeVar("S", bound="Settings")

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}


class Settings(BaseModel):
    """Base of every settings class: unknown keys refused, values frozen, no coercion between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


def parse_count(value: object) -> object:
    """Turn ``"500k"``, ``"3M"``, ``"1.5B"`` into an integer; leave anything else for pydantic to judge."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([kKmMbBgG]?)\s*", value)
    if match is None:
        msg = f"{value!r} is not a count; write an integer, or 500k, 3M, 1.5B"
        raise ValueError(msg)
    return round(float(match[1].replace("_", "")) * _UNITS[match[2].lower()])


Count = Annotated[int, BeforeValidator(parse_count)]
"""A positive number of things, written as an integer or as ``500k``, ``3M``, ``1.5B``."""


def parse_settings(settings_type: type[S], value: object, *, source: str) -> S:
    """Validate ``value`` as ``settings_type``.

    Raises: RecipeError: naming every wrong key, its value, and the nearest key that exists.
    """
    try:
        return settings_type.model_validate(value)
    except ValidationError as error:
        raise recipe_error(error, settings_type, source=source) from error


def recipe_error(error: ValidationError, settings_type: type[BaseModel], *, source: str) -> RecipeError:
    """Say in one RecipeError what pydantic found, with the nearest right spelling of each unknown key."""
    known = sorted(_field_names(settings_type))
    lines = [_problem(problem, known) for problem in error.errors(include_url=False)]
    return RecipeError("; ".join(dict.fromkeys(lines)), where=source, next_step="see docs/recipe.md for every key")


def _problem(problem: Any, known: Sequence[str]) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"unknown key {path!r}{hint}"
    if problem["type"] == "missing":
        return f"{path!r} is missing"
    if problem["type"] == "union_tag_invalid":
        context = problem["ctx"]
        near = difflib.get_close_matches(str(context["tag"]), re.findall(r"'([^']+)'", context["expected_tags"]), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{path}: no such kind {context['tag']!r}; there are {context['expected_tags']}{hint}"
    if problem["type"] == "union_tag_not_found":
        return f"{path}: say which kind, as in {{kind: ...}}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{path} = {problem['input']!r}: {message}"


def _field_names(settings_type: type[BaseModel]) -> set[str]:
    names: set[str] = set()
    waiting: list[object] = [settings_type]
    seen: set[object] = set()
    while waiting:
        candidate = waiting.pop()
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            if candidate in seen:
                continue
            seen.add(candidate)
            for name, field in candidate.model_fields.items():
                names.add(name)
                waiting.append(field.annotation)
        waiting.extend(getattr(candidate, "__args__", ()))
    return names
