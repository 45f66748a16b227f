"""Two processes under torchrun capture a store: its bytes are those of one, and each did its share."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from potstill.core.trace import Trace
from potstill.labels.settings import TopK
from potstill.teacher.capture import capture_labels
from potstill.teacher.settings import CaptureSettings

SETTINGS = CaptureSettings(labels=TopK(k=8), sentences=600, batch_sentences=50)
PROGRAM = Path(__file__).with_name("capture_together.py")


def contents(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
def test_two_processes_write_what_is_missing_and_the_store_of_one(tmp_path, made):
    """Three shards of training text, of which one is there and one is damaged, and one shard of held-out text."""
    capture_labels(SETTINGS, made, tmp_path / "one", Trace())
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two" / "train" / "shard-00000256.labels").unlink()
    damaged = tmp_path / "two" / "train" / "shard-00000512.labels"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (tmp_path / "two" / "validation" / "shard-00000000.labels").unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(PROGRAM)]
    arguments = [SETTINGS.model_dump_json(), str(made["data"]), str(made["teacher"]), str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, timeout=200, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    wrote = [json.loads((tmp_path / f"two-{rank}.json").read_text()) for rank in (0, 1)]
    assert wrote == [[[256, 512], [0, 40]], [[512, 600]]]
