"""The command line as users and scripts meet it: verbs, exit codes, what goes to stdout, what help costs."""

import errno
import getpass
import json
import os
import platform
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from potstill.cli import _sentence_and_exit_code
from potstill.core import errors
from potstill.output import require_nothing_told
from potstill.recipe import load_recipe

ROOT = Path(__file__).parents[1]
VERBS = ("run", "plan", "inspect", "init", "show", "report", "generate", "quantize", "env")
HELP_SECONDS = 0.3


def potstill(*arguments, cwd=None, env=None):
    """Run the command line in its own process, as a shell does."""
    command = [sys.executable, "-m", "potstill", *arguments]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment, timeout=300)


def test_help_names_every_verb():
    """Whoever knows nothing finds all there is."""
    ended = potstill("--help")
    assert ended.returncode == 0
    assert all(f"\n  {verb} " in ended.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb):
    """Each verb's help says what it does."""
    ended = potstill(verb, "--help")
    assert ended.returncode == 0
    assert f"Usage: potstill {verb}" in ended.stdout


def test_help_answers_at_once():
    """Help takes at most 0.3 s of a processor: the least of five, since what else the machine does only adds to it.

    Processor time is what an otherwise idle machine shows on the clock; a loaded one shows more on the clock only.
    """
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert potstill("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) <= HELP_SECONDS


def test_help_imports_nothing_heavy():
    """Help needs neither torch nor anything else that takes time to import."""
    program = (
        "import sys\nfrom potstill.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pandas', 'pyarrow', 'pydantic', 'rich', 'yaml', 'altair'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stderr.strip() == "[]"


def test_a_recipe_is_refused_without_importing_torch(tmp_path):
    """A spelling mistake is answered before the seconds that torch takes, with the nearest right key, on stderr."""
    (tmp_path / "recipe.yaml").write_text("name: a\nstudent: {epoch: 3}\n")
    program = (
        "import sys\nfrom potstill.cli import main\ncode = main(['run', 'recipe.yaml', '--json'])\n"
        "assert 'torch' not in sys.modules\nsys.exit(code)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: recipe.yaml: ")
    assert "did you mean 'epochs'?" in ended.stderr
    assert "\n  → " in ended.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [("rnu",), ("run",), ("run", "missing.yaml"), ("env", "--jsn"), ("plan", "missing.yaml", "--set", "nonsense")],
)
def test_wrong_usage_exits_2(arguments, tmp_path):
    """A wrong verb, a missing argument, a wrong option, a recipe that isn't there: usage, and nothing on stdout."""
    ended = potstill(*arguments, cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BugError("x"), 1),
        (errors.RecipeError("x"), 2),
        (errors.InputError("x"), 3),
        (errors.ResourceError("x"), 4),
        (errors.RemoteError("x"), 5),
        (errors.QualityGateError("x"), 6),
        (errors.RunDirectoryError("x"), 7),
        (errors.Interrupted(signal.SIGINT), 130),
        (errors.Interrupted(signal.SIGTERM), 143),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 4),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), 4),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 4),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 4),
        (RuntimeError("something else"), 1),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_error_has_its_exit_code(error, code):
    """The table of DESIGN.md; a bug says that it is one."""
    sentence, given = _sentence_and_exit_code(error)
    assert given == code
    assert ("bug of potstill" in sentence) == (code == 1 and not isinstance(error, errors.PotstillError))


def test_strict_refuses_warnings_and_fallbacks(tmp_path):
    """Under --strict a run that told of either ends with the exit code of a quality gate; a silent one passes."""
    require_nothing_told({"warnings": [], "fallbacks": []}, tmp_path)
    for told in ({"warnings": ["w"], "fallbacks": []}, {"warnings": [], "fallbacks": ["f"]}):
        with pytest.raises(errors.QualityGateError, match="--strict allows none"):
            require_nothing_told(told, tmp_path)


def test_debug_anywhere_shows_the_traceback(tmp_path):
    """Without it an error is a sentence; with it, the traceback comes first."""
    assert "Traceback" not in potstill("show", "nothing", cwd=tmp_path).stderr
    for arguments in (("--debug", "show", "nothing"), ("show", "nothing", "--debug")):
        ended = potstill(*arguments, cwd=tmp_path)
        assert ended.returncode == 3
        assert "Traceback" in ended.stderr
        assert "error: nothing: is no run directory" in ended.stderr


def test_control_characters_of_a_name_are_shown_not_obeyed(tmp_path):
    """A path's escape sequences can't colour, move or clear the terminal."""
    ended = potstill("show", "\x1b[2Jnothing", cwd=tmp_path)
    assert "\x1b" not in ended.stderr
    assert "\\x1b[2Jnothing" in ended.stderr


def test_env_tells_a_bug_report_what_it_needs_and_no_more(tmp_path):
    """One JSON document of versions, processor, memory and runtimes; no user, host or path names."""
    ended = potstill("env", "--json", cwd=tmp_path)
    facts = json.loads(ended.stdout)
    assert {"potstill", "python", "system", "processor", "memory", "pytorch", "runtimes", "libraries"} <= set(facts)
    assert facts["processor"]["cores_usable"] >= 1
    assert facts["runtimes"]["llama.cpp"]
    for secret in (str(Path.home()), platform.node(), str(tmp_path), f'"{getpass.getuser()}"'):
        assert secret not in ended.stdout


def test_init_writes_a_recipe_that_runs_and_never_over_another(tmp_path):
    """What it writes is valid as it stands; a second time it refuses and leaves the file alone."""
    path = tmp_path / "deep" / "recipe.yaml"
    assert potstill("init", str(path)).returncode == 0
    assert load_recipe(path).name == "my-model"
    path.write_text("mine")
    ended = potstill("init", str(path))
    assert ended.returncode == 2
    assert "is there already" in ended.stderr
    assert path.read_text() == "mine"


def test_a_closed_pipe_is_no_error():
    """``potstill env | head -0`` ends quietly, as programs in a pipe do."""
    process = subprocess.Popen(
        [sys.executable, "-m", "potstill", "env", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    complaints = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141
    assert complaints == ""


def test_inspect_needs_a_config_only(tmp_path):
    """A model whose weights are nowhere is counted, in every dtype, from its config."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}
    config |= {"intermediate_size": 128, "num_attention_heads": 2, "vocab_size": 512, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ended = potstill("inspect", str(tmp_path), "--json")
    counted = json.loads(ended.stdout)
    assert counted["parts"]["embeddings"] == 512 * 64
    assert counted["bytes"]["float32"] == 4 * counted["parameters"]
    assert potstill("inspect", str(tmp_path)).stdout.startswith("model type: llama")


def test_the_template_explains_itself():
    """``init`` and the README's quickstart speak of the same keys: every top-level choice stands in the template."""
    text = (ROOT / "src" / "potstill" / "recipe_template.yaml").read_text(encoding="utf-8")
    for key in ("data:", "teacher:", "labels:", "student:", "prune:", "quantize:", "export:", "evaluate:"):
        assert f"\n{key}" in text
