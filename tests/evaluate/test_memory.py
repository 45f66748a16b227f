"""Memory is measured from outside: each model in a process of its own, failures told with what it wrote."""

import subprocess
import sys

import pytest

from potstill.core.errors import ResourceError
from potstill.evaluate.memory import measure_peak_memory
from potstill.evaluate.speed import Work

WORK = Work(prompt_tokens=8, new_tokens=2, rounds=1)


def test_a_larger_model_takes_more_and_order_is_kept(run_inputs):
    paths = {
        "file": run_inputs["export"] / "student-float32.gguf",
        "model": run_inputs["student"] / "model",
        "int8": run_inputs["export"] / "student-int8.gguf",
    }
    peaks = measure_peak_memory(paths, WORK, threads=1)
    assert list(peaks) == list(paths)
    assert peaks["model"] > peaks["file"] > 5e6


def test_a_model_that_does_not_open_is_told_with_the_reason(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(ResourceError, match=r"exit code 3.*broken\.gguf"):
        measure_peak_memory({"a": tmp_path / "broken.gguf"}, WORK, threads=1)


def test_the_process_for_files_never_imports_torch(run_inputs):
    code = (
        "import sys\n"
        "from potstill.evaluate.memory import _measure, main\n"
        "from pathlib import Path\n"
        "from potstill.evaluate.speed import Work\n"
        "_measure(Path(sys.argv[1]), Work(4, 2, 1), 1)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    path = run_inputs["export"] / "student-int8.gguf"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
