"""The command line: verbs, and how errors become sentences and exit codes.

Every verb is one Python call. What is heavy is imported inside the verbs, so that ``potstill --help`` answers at once.
Results go to stdout, with ``--json`` as exactly one document; everything else goes to stderr.
"""

import errno
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill import __version__, verb_quantize
from potstill.core.errors import Interrupted, PotstillError, RecipeError
from potstill.core.world import launched_as
from potstill.output import print_line, print_tree_of, require_nothing_told, show_result, summary_printer, tell
from potstill.variants import locate_run, variant_path

if TYPE_CHECKING:
    pass

__all__ = ["app", "main"]

BUG, RESOURCES, INTERRUPTED = 1, 4, 130
_OUT_OF_RESOURCES = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENOMEM}

app = typer.Typer(
    name="potstill",
    help="Make a large language model small, and see what every step took, gave and lost.",
    epilog="Exit codes: 0 done, 1 a bug, 2 usage or recipe, 3 data or artefact, 4 memory, disk or permissions, "
    "5 hub or remote teacher, 6 quality gate, 7 run directory busy, 130 and 143 interrupted. "
    "--debug, anywhere, shows the traceback of an error.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, in YAML.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a key, as in data.sentences=1000; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="The run directory; runs/NAME unless told.", show_default=False)
]
Strict = Annotated[bool, typer.Option("--strict", help="A warning or a fallback ends with exit code 6.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run directory, or its name under runs/.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A model directory, a hub id, a GGUF file, or RUN:VARIANT as in quickstart:student."
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(__version__)
        raise typer.Exit


@app.callback()
def _everywhere(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    as_json: AsJson = False,
    strict: Strict = False,
) -> None:
    """Run the whole pipeline; again: go on, and do nothing twice. Under torchrun: by all its processes together."""
    from potstill import pipeline  # noqa: PLC0415 - see the module's docstring
    from potstill.recipe import load_recipe  # noqa: PLC0415
    from potstill.terminal import listening  # noqa: PLC0415

    resolved = load_recipe(recipe, overrides or ())
    directory = out or Path("runs") / resolved.name
    rank, _ = launched_as()
    if rank > 0:
        pipeline.run(resolved, directory)
        return
    with listening(sys.stderr) as listener:
        summary = pipeline.run(resolved, directory, listeners=[listener])
    show_result(summary, as_json=as_json, printer=summary_printer(stages=False))
    tell(f"report: {directory / 'report.html'}")
    if strict:
        require_nothing_told(summary, directory)


@app.command("plan")
def show_plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Tell what would run: shapes, parameters, bytes, memory, minutes. Writes nothing."""
    from potstill.plan import plan  # noqa: PLC0415
    from potstill.recipe import load_recipe  # noqa: PLC0415
    from potstill.tables import print_plan  # noqa: PLC0415

    resolved = load_recipe(recipe, overrides or ())
    show_result(plan(resolved, out or Path("runs") / resolved.name), as_json=as_json, printer=print_plan)


@app.command()
def inspect(model: Model, as_json: AsJson = False) -> None:
    """Count a model's parameters by part and its bytes by dtype, from its config alone."""
    from potstill.model.inspect import inspect_config  # noqa: PLC0415

    show_result(inspect_config(variant_path(model, of_config=True) or model), as_json=as_json, printer=print_tree_of)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Where to write it.")] = Path("recipe.yaml"),
) -> None:
    """Write a recipe with every choice explained; never over a file that is there."""
    from importlib.resources import files  # noqa: PLC0415

    template = files("potstill").joinpath("recipe_template.yaml").read_text(encoding="utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(template)
    except FileExistsError as error:
        raise RecipeError("is there already", where=str(path), next_step="name another path") from error
    tell(f"wrote {path}; now: potstill plan {path}")


@app.command()
def show(run: RunName, as_json: AsJson = False) -> None:
    """Print a run's summary."""
    from potstill import pipeline  # noqa: PLC0415

    summary = pipeline.read_summary(locate_run(run))
    show_result(summary, as_json=as_json, printer=summary_printer(stages=True))


@app.command()
def report(run: RunName) -> None:
    """Build a run's page again, from the run directory alone."""
    from potstill.report.page import build_report  # noqa: PLC0415

    directory = locate_run(run)
    build_report(directory)
    print_line(str(directory / "report.html"))


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to go on from.", show_default=False)],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="How many tokens to add.")] = 40,
) -> None:
    """Go on from a text with a model's likeliest words."""
    from potstill.continuation import continue_text  # noqa: PLC0415
    from potstill.model.directory import locate  # noqa: PLC0415
    from potstill.terminal import visible_lines  # noqa: PLC0415

    path = variant_path(model) or (Path(model) if Path(model).exists() or model.endswith(".gguf") else locate(model))
    print_line(visible_lines(prompt + continue_text(path, prompt, tokens)))


@app.command("bench")
def show_bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Files, folders, or RUN:VARIANT.")],
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1, help="Length of the prompt read.")] = 128,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="How many tokens are decoded.")] = 32,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often all are measured in turn.")] = 5,
    threads: Annotated[
        list[int] | None, typer.Option("--threads", min=1, help="Of every runtime; may be repeated: each is tried.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure models in every runtime that opens them, in turn, and name the fastest."""
    from potstill.bench import bench  # noqa: PLC0415
    from potstill.evaluate.speed import Work  # noqa: PLC0415

    paths = {name: variant_path(name) or Path(name) for name in models}
    result = bench(paths, Work(prompt_tokens, new_tokens, rounds), threads=threads)
    show_result(result, as_json=as_json, printer=print_tree_of)


@app.command()
def quantize(  # noqa: PLR0913 - an option each
    model: Model,
    scheme: verb_quantize.Scheme,
    group: verb_quantize.Group = None,
    method: verb_quantize.Method = None,
    keep: verb_quantize.Keep = None,
    keep_sensitive: verb_quantize.KeepSensitive = None,
    format: verb_quantize.Format = "gguf",  # noqa: A002 - the option is called so
    data: verb_quantize.Data = None,
    calibration_tokens: verb_quantize.CalibrationTokens = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where to; MODEL-SCHEME unless told.")] = None,
    as_json: AsJson = False,
    strict: Strict = False,
) -> None:
    """Quantize a model and write it as files, without a recipe; again: go on."""
    summary = verb_quantize.quantize_of_options(model, locals(), out, require_nothing_told if strict else None)
    show_result(summary, as_json=as_json, printer=print_tree_of)


@app.command()
def env(as_json: AsJson = False) -> None:
    """Print what a bug report needs; no user, host or path names."""
    from potstill import environment  # noqa: PLC0415

    show_result(environment.describe(), as_json=as_json, printer=print_tree_of)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code says how it ended."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        app([argument for argument in given if argument != "--debug"], prog_name="potstill")
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the one place that answers every error
        if debug:
            traceback.print_exc()
        text, code = _sentence_and_exit_code(error)
        if not (isinstance(error, Interrupted) and launched_as()[0] > 0):  # the leading process says it for all
            _tell_error(text)
        return code
    return 0


def _sentence_and_exit_code(error: BaseException) -> tuple[str, int]:
    """What to tell people of ``error``, and the exit code that tells scripts."""
    if isinstance(error, PotstillError):
        return str(error), error.process_exit_code
    if isinstance(error, KeyboardInterrupt):
        return "stopped", INTERRUPTED
    if isinstance(error, MemoryError) or _says_out_of_memory(error):
        advice = "a smaller batch, fewer tokens per sentence or a smaller model in the recipe needs less"
        return f"out of memory\n  → {advice}", RESOURCES
    if isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES:
        advice = "make room or give permission there, or choose another place; the same command then goes on"
        return f"{error.filename or 'the system'}: {error.strerror}\n  → {advice}", RESOURCES
    advice = "this is a bug of potstill; --debug shows the traceback; please report it with the output of potstill env"
    return f"{type(error).__name__}: {error}\n  → {advice}", BUG


def _tell_error(text: str) -> None:
    from potstill.terminal import visible_lines  # noqa: PLC0415

    tell(f"error: {visible_lines(text)}")


def _says_out_of_memory(error: BaseException) -> bool:
    """Whether this is PyTorch's way of saying it, which has no exception type of its own on the CPU."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
