"""GGUF and compressed-tensors are written tensor by tensor: what that takes doesn't grow with the model's depth."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
from potstill.core.memory import peak_memory_bytes, reset_peak_memory
from potstill.core.trace import Trace
from potstill.export.settings import CompressedTensorsExport, GgufExport
from potstill.export.stage import export_variants
settings = {"gguf": GgufExport(), "compressed-tensors": CompressedTensorsExport()}[sys.argv[1]]
shallow, source, out = map(Path, sys.argv[2:])
export_variants([settings], {"shallow-float32": shallow}, out, Trace())
reset_peak_memory()
export_variants([settings], {"model-float32": source}, out, Trace())
print(peak_memory_bytes())
"""


@pytest.mark.parametrize("format_", ["gguf", "compressed-tensors"])
def test_peak_memory_of_an_export_does_not_grow_with_depth(make_llama, tmp_path, format_):
    """The peak resident set at 4 blocks and at 16, whose weights are 69 MB more; freed memory goes back at once."""
    peaks = {}
    sources = {
        depth: make_llama(f"deep-{depth}", hidden_size=256, intermediate_size=1536, num_hidden_layers=depth)
        for depth in (4, 16)
    }
    for depth, source in sources.items():
        out = tmp_path / str(depth)
        out.mkdir()
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, format_, str(sources[4]), str(source), str(out)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"},
        )
        peaks[depth] = int(ended.stdout)
    block_bytes = 4 * (4 * 256 * 256 + 3 * 256 * 1536)
    assert peaks[16] - peaks[4] < 2 * block_bytes, peaks
