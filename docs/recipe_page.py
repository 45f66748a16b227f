"""Write docs/recipe.md, every key of a recipe, from the settings classes themselves: ``python docs/recipe_page.py``.

A test compares the page with what this script writes now; a key without a meaning fails, and so does the reverse.
"""

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

from potstill.core.settings import Settings
from potstill.recipe import Recipe

PAGE = Path(__file__).with_name("recipe.md")

HEAD = """\
# Every key of a recipe

Written by `python docs/recipe_page.py` from the settings classes; don't edit it by hand.

A recipe is YAML. Only `name` is required. The whole recipe is validated before the first second of work, and an
unknown key is answered with the nearest right one. Counts may be written as `500k`, `3M`, `1.5B`. `potstill init`
writes a recipe to start from; `potstill plan RECIPE` tells what it would do.

Any key can be set on the command line, its value in YAML, lists and mappings included:

```bash
potstill plan recipes/quickstart.yaml --set data.sentences=1000 --set student.epochs=3
potstill plan recipes/quickstart.yaml --set 'data.source={kind: files, paths: [my.txt]}'
```

Where a key offers several kinds, write the one you want as `kind`, and its own keys beside it.
"""

SENSITIVE = "linears that stay finer for suffering most from rounding, by measurement; a bare number means float16"
MEANINGS = {
    "Recipe.name": "what the run is called; its directory is runs/NAME unless --out says otherwise",
    "Recipe.seed": "seed of every random draw: the same recipe gives the same bytes on a CPU",
    "Recipe.device": "what to compute on; auto takes a GPU where there is one",
    "Recipe.precision": "of matrix products; auto is bfloat16 where the hardware multiplies it natively, else float32",
    "Recipe.threads": "how many threads PyTorch may use; null leaves it to PyTorch",
    "Recipe.parallel": "what each of several processes keeps of a model in training: ddp all of it, fsdp its share; "
    "see [scale](scale.md)",
    "Recipe.data": "where text comes from and how it becomes rows of tokens",
    "Recipe.teacher": "who is learnt from; null trains the student on the true tokens alone",
    "Recipe.labels": "which soft labels are kept; null without a teacher",
    "Recipe.student": "the small model and how it learns",
    "Recipe.prune": "what to remove from the student afterwards; null removes nothing",
    "Recipe.quantize": "schemes, one variant each",
    "Recipe.export": "file formats; every variant is written in each",
    "Recipe.evaluate": "what is measured on every model and file",
    "DataSettings.source": "where the text comes from",
    "DataSettings.sentences": "rows that the student learns from",
    "DataSettings.validation_sentences": "held-out rows for the curves of every epoch and for stopping early",
    "DataSettings.test_sentences": "held-out rows for the table of models, which no choice ever looks at",
    "DataSettings.tokens_per_sentence": "T, tokens of a row, the beginning-of-text token included",
    "DataSettings.shortest_sentence": "rows of fewer tokens are dropped, and counted",
    "DataSettings.tokenizer": "how text becomes tokens",
    "DataSettings.on_bad_input": "refuse: stop at the first unreadable row; skip: leave it out, and count it",
    "Docstrings.packages": "distributions by name, python for the standard library; null takes all that are installed",
    "Files.paths": "files or globs, relative to the current directory: .txt, .jsonl, .parquet",
    "Files.field": "the field of a row that holds the text, dotted where it lies deeper",
    "Hub.id": "the data set, as in Salesforce/wikitext",
    "Hub.field": "the field of a row that holds the text",
    "Hub.split": "which split of the data set",
    "Hub.config": "which configuration of the data set; null takes its default",
    "Hub.revision": "which commit or tag; null takes the newest",
    "Hub.rows": "at most so many rows are streamed",
    "Answers.paths": "files or globs: .jsonl, .parquet",
    "Answers.prompt": "the field that holds the prompt; context only, never scored",
    "Answers.answer": "the field that holds the teacher's answer",
    "TrainTokenizer.vocabulary": "entries of the byte-level BPE that is trained on the training text",
    "LoadedTeacher.model": "a Hugging Face directory or a hub id; safetensors only",
    "TrainedTeacher.sentences": "rows that the teacher reads; all: every row of the text, null: the student's",
    "TrainedTeacher.grow_from": "a shallower model to train first; it then grows to the full depth without loss",
    "GrowFrom.blocks": "how many blocks it has",
    "GrowFrom.epochs": "for how many epochs it is trained before it grows",
    "GrowFrom.learning_rate": "its peak learning rate; null: by its number of parameters",
    "TrainedTeacher.parameters": "about how many parameters the teacher has; its shape follows from that",
    "StudentSettings.parameters": "about how many parameters the student has; its shape follows from that",
    "StudentSettings.from": "scratch, or teacher: the embeddings start as the teacher's, projected",
    "StudentSettings.losses": "what the student minimises, a weighted sum",
    "StudentSettings.twin": "also train the same student without the teacher: true, for as many steps and then for as "
    "long as distilling took; `steps`, only the former; null: true if there is a teacher",
    "TrainingSettings.epochs": "how often the text is gone through",
    "TrainingSettings.batch_sentences": "rows per step of the optimiser",
    "TrainingSettings.micro_batch_sentences": "rows in memory at once; null takes the whole batch",
    "TrainingSettings.learning_rate": "its peak; null is 2e-3 · (2M / parameters)^0.3",
    "TrainingSettings.warmup_share": "share of the steps in which the rate rises from zero",
    "TrainingSettings.final_learning_rate_share": "the last rate as a share of the peak, reached along a cosine",
    "TrainingSettings.weight_decay": "of matrices, decoupled as in AdamW",
    "TrainingSettings.gradient_clip": "largest norm of the gradient; longer ones are scaled down",
    "TrainingSettings.patience": "stop after so many epochs without a lower validation loss; null never stops early",
    "StructuredPruning.keep_parameters": "share of the parameters that is left",
    "StructuredPruning.calibration_sentences": "training rows whose activations decide what matters",
    "StructuredPruning.epochs": "of healing by training; 0 leaves the wound open",
    "StructuredPruning.learning_rate": "of healing, its peak; null is 2e-3 · (2M / parameters)^0.3",
    "StructuredPruning.batch_sentences": "rows per step of healing",
    "TopK.k": "how many tokens a label names; the mass of all others goes into one bucket",
    "Sampled.draws": "draws at every scored position; about a byte each on disk",
    "Sampled.sampling": "`systematic` draws lie evenly spaced and vary least; `multinomial` ones are independent",
    "_Weighted.weight": "of this loss in the sum",
    "Sampled.temperature": "of what is drawn from; other than 1, draws carry importance weights",
    "_Softened.temperature": "softens both distributions; other than 1 needs dense labels",
    "JensenShannon.beta": "the teacher's share of the mixture, and the weight of its KL; near 0 as forward KL",
    "SkewKl.alpha": "the teacher's share of the mixture",
    "HiddenStates.match": "cosine: 1 - the cosine of the angle; mse: the mean squared difference over the width",
    "HiddenStates.blocks": "pairs [student's block, teacher's block], counted from 0, or auto",
    "SkewReverseKl.alpha": "the student's share of the mixture",
    "Int8.group": "columns that share one scale",
    "Int4.group": "columns that share one scale",
    "Int8.method": "how codes and scales are chosen; its name alone is enough, as in `method: gptq`",
    "Int8Channel.method": "how codes and scales are chosen",
    "Int4.method": "how codes and scales are chosen",
    "KQuant3.method": "how llama.cpp's search weighs columns: rtn alike, search by their inputs",
    "KQuant2.method": "how llama.cpp's search weighs columns: rtn alike, search by their inputs",
    "Calibrated.calibration_tokens": "how many tokens of the training rows it looks at",
    "Gptq.activation_order": "columns of large inputs first, scales chosen beforehand; else in place",
    "Gptq.damping": "share of the Hessian's mean diagonal that is added to it, more where it is singular",
    "Awq.steps": "how many exponents from 0 to 1 are tried for each group of linears",
    "SmoothQuant.strength": "a: 0 leaves the activations as they are, 1 makes all their columns equally large",
    "Int8.keep": "matrices that stay finer, by pattern: `lm_head.weight`, `*.down_proj.weight`",
    "Int8Channel.keep": "matrices that stay finer, by pattern",
    "Int4.keep": "matrices that stay finer, by pattern",
    "KQuant3.keep": "matrices that stay finer, by pattern",
    "KQuant2.keep": "matrices that stay finer, by pattern",
    "Int8.keep_sensitive": SENSITIVE,
    "Int8Channel.keep_sensitive": SENSITIVE,
    "Int4.keep_sensitive": SENSITIVE,
    "KQuant3.keep_sensitive": SENSITIVE,
    "KQuant2.keep_sensitive": SENSITIVE,
    "KeepSensitive.linears": "how many",
    "KeepSensitive.dtype": "what they are stored in instead",
    "KeepSensitive.calibration_tokens": "how many tokens of the training rows are measured on",
    "Keep.tensors": "a name as in the model's safetensors; `*` stands for anything",
    "Keep.dtype": "what they are stored in instead",
    "OnnxExport.activations": "what products of quantized weights read: rounded inputs, or inputs as they are",
    "OpenvinoExport.activations": "what products of quantized weights read: rounded inputs, or inputs as they are",
    "EvaluateSettings.prompts": "texts to look into token by token in the report",
    "EvaluateSettings.num_prompts": "how many to draw from the test text where prompts names none",
    "EvaluateSettings.test_sentences": "at most so many rows of the test text are scored",
    "EvaluateSettings.continuation_tokens": "how far prompts are continued in the report",
    "EvaluateSettings.speed": "measure prefill and decode tokens/s",
    "EvaluateSettings.prompt_tokens": "length of the prompt for prefill speed",
    "EvaluateSettings.new_tokens": "how many tokens are decoded for decode speed",
    "EvaluateSettings.rounds": "how often speed is measured, models interleaved",
    "EvaluateSettings.threads": "of every runtime; null takes every core this process may use",
    "EvaluateSettings.resamples": "bootstrap resamples behind every 95 % interval",
    "EvaluateSettings.seed": "of the drawn prompts and of the bootstrap",
}

_TAGS = {"kind", "scheme", "format"}
_PLAIN_TYPES: dict[object, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    types.NoneType: "null",
}


def page() -> str:
    """The whole page as Markdown.

    Raises: KeyError: naming the keys without a meaning, or the meanings without a key.
    """
    used: set[str] = set()
    sections = [_section(path, settings, used) for path, settings in _settings_of("", Recipe)]
    if used != set(MEANINGS):
        raise KeyError(f"without a meaning: {sorted(used - set(MEANINGS))}; no key: {sorted(set(MEANINGS) - used)}")
    return "\n".join([HEAD, *sections])


def _settings_of(path: str, settings: type[Settings]) -> Iterator[tuple[str, type[Settings]]]:
    """A settings class and all that its fields can hold, each under the path of its key, in the order of the recipe."""
    yield path, settings
    for name, field in settings.model_fields.items():
        for inner in _classes_in(field.annotation):
            yield from _settings_of(f"{path}.{field.alias or name}".lstrip("."), inner)


def _classes_in(annotation: object) -> list[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [found for part in typing.get_args(annotation) for found in _classes_in(part)]


def _section(path: str, settings: type[Settings], used: set[str]) -> str:
    tags = [
        f"{name}: {typing.get_args(field.annotation)[0]}"
        for name, field in settings.model_fields.items()
        if name in _TAGS
    ]
    title = f"`{path}`" if path else "The recipe"
    title += f" · `{{{tags[0]}}}`" if tags else ""
    rows = [_row(settings, name, field, used) for name, field in settings.model_fields.items() if name not in _TAGS]
    lines = [f"## {title}", "", *_prose(settings)]
    if rows:
        lines += ["", "| key | type | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _prose(settings: type[Settings]) -> list[str]:
    doc = (settings.__doc__ or "").replace("``", "`").replace("None", "null")
    return [line.strip() for line in doc.strip().splitlines()]


def _row(settings: type[Settings], name: str, field: FieldInfo, used: set[str]) -> str:
    key = field.alias or name
    owner = next(
        f"{cls.__name__}.{key}" for cls in reversed(settings.__mro__) if name in getattr(cls, "model_fields", {})
    )
    own = f"{settings.__name__}.{key}"
    meaning_key = own if own in MEANINGS else owner
    used.add(meaning_key)
    meaning = MEANINGS.get(meaning_key, "")
    return f"| `{key}` | {_type(field)} | {_default(field)} | {meaning} |"


def _type(field: FieldInfo) -> str:
    limits = [
        f"{sign} {bound:,}" if isinstance(bound, int) else f"{sign} {bound}"
        for entry in field.metadata
        for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if (bound := getattr(entry, attribute, None)) is not None
    ]
    return ", ".join([_type_name(field.annotation), *limits])


def _type_name(annotation: object) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_name(parts[0])
    if origin is typing.Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(dict.fromkeys(_type_name(part) for part in parts))
    if origin is tuple:
        return f"list of {_type_name(parts[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return "mapping"
    return _PLAIN_TYPES[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, Settings):
        kinds = [str(getattr(value, tag)) for tag in _TAGS if hasattr(value, tag)]
        return f"`{{kind: {kinds[0]}}}`" if kinds else "as below"
    if isinstance(value, tuple):
        tags = [f"{{{tag}: {getattr(part, tag)}}}" for part in value for tag in _TAGS if hasattr(part, tag)]
        return f"`[{', '.join(tags)}]`"
    if value is None or isinstance(value, bool):
        return f"`{'null' if value is None else str(value).lower()}`"
    return f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.exit(0)
