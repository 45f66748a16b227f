"""Several processes under torchrun train what one trains, and go on from the checkpoint of any number of them.

What differs from one process to several is the order in which float32 gradients are summed: a few units in the last
place of each, of which AdamW makes weights that differ by about 1e-6 after ten steps. The bounds leave room for ten
times that; rows weighted by process instead of by batch, or a gradient averaged instead of summed, miss them by far.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from potstill.core.errors import InputError

PROGRAM = Path(__file__).with_name("fit_together.py")
SETTINGS = {"epochs": 2, "batch_sentences": 16, "learning_rate": 3e-3, "gradient_clip": 0.6}
LOSS_TOLERANCE_NATS, WEIGHT_TOLERANCE = 2e-6, 3e-5

_spec = importlib.util.spec_from_file_location("fit_together", PROGRAM)
fit_together = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fit_together)


def job(out: Path, kind: str, **more) -> dict:
    """65 rows in batches of 16 leave one row for the last, so all processes but one have none; micro-batches of 3.

    65 held-out rows are one batch for one of two processes and two for the other.
    """
    settings = {**SETTINGS, "micro_batch_sentences": 3}
    return {"out": str(out), "rows": 65, "held_out": 65, "settings": settings, "parallel": kind, **more}


def launch(num_processes: int, jobs: list[dict], folder: Path) -> None:
    file = folder / f"jobs-{num_processes}.json"
    file.write_text(json.dumps(jobs))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(num_processes),
        str(PROGRAM),
    ]
    ended = subprocess.run(
        [*command, str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Directories of jobs done by one, two and three processes; one launch for each number of them."""
    folder = tmp_path_factory.mktemp("parallel")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    fit_together.run(job(folder / "one", "ddp"))
    fit_together.run(job(folder / "one-even", "ddp", rows=64, settings=SETTINGS))
    fit_together.run(job(folder / "one-to-two", "fsdp", stop_after=3))
    jobs = [job(folder / "two-even-ddp", "ddp", rows=64, settings=SETTINGS), job(folder / "one-to-two", "fsdp", seed=9)]
    for kind in ("ddp", "fsdp"):
        jobs += [
            job(folder / f"two-{kind}", kind),
            job(folder / f"two-{kind}-stopped", kind, stop_after=3),
            job(folder / f"two-{kind}-stopped", kind, seed=9),
            job(folder / f"two-{kind}-part", kind, stop_after=7),
        ]
    launch(2, jobs, folder)
    for kind in ("ddp", "fsdp"):
        for number in ("one", "three"):
            shutil.copytree(folder / f"two-{kind}-part", folder / f"two-{kind}-to-{number}")
        fit_together.run(job(folder / f"two-{kind}-to-one", kind, seed=9))
    jobs = [job(folder / f"two-{kind}-to-three", kind, seed=9) for kind in ("ddp", "fsdp")]
    launch(3, jobs, folder)
    torch.set_num_threads(before)
    return folder


def assert_near(one: Path, other: Path) -> None:
    expected, history = (json.loads((made / "history.json").read_text()) for made in (one, other))
    assert [entry["epoch"] for entry in history] == [entry["epoch"] for entry in expected]
    for left, right in zip(expected, history, strict=True):
        for key in ("train_loss_nats", "validation_loss_nats", "validation_accuracy"):
            assert right[key] == pytest.approx(left[key], abs=LOSS_TOLERANCE_NATS), key
    whole, split = (load_file(made / "model.safetensors") for made in (one, other))
    assert whole.keys() == split.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(split[name], weight, rtol=0, atol=WEIGHT_TOLERANCE)


@pytest.mark.parametrize(
    ("one", "other"),
    [("one-even", "two-even-ddp"), ("one", "two-ddp"), ("one", "two-fsdp")],
)
def test_two_processes_give_the_curve_and_the_weights_of_one(made, one, other):
    """Also where a batch has fewer rows than there are processes: none waits for ever, none counts twice."""
    assert_near(made / one, made / other)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_stopped_by_a_signal_to_one_of_two_and_resumed_they_end_in_the_same_bytes(made, kind):
    """A sum of two is the same in either order, so even gloo's."""
    whole, resumed = (load_file(made / name / "model.safetensors") for name in (f"two-{kind}", f"two-{kind}-stopped"))
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name


@pytest.mark.parametrize("other", ["one-to-two", "two-ddp-to-one", "two-fsdp-to-one", "two-ddp-to-three"])
def test_another_number_of_processes_goes_on_from_the_checkpoint(made, other):
    assert_near(made / "one", made / other)


def test_shards_of_two_are_read_by_three(made):
    assert_near(made / "one", made / "two-fsdp-to-three")
    left = {path.name for path in (made / "two-fsdp-to-three").iterdir()}
    shards = {f"{name}-0000{rank}-of-00003.safetensors" for name in ("state-0-10", "best-1") for rank in (1, 2, 3)}
    assert left == {"checkpoint.json", "best.json", "history.json", "model.safetensors", *shards}


def test_each_process_writes_its_share_of_a_sharded_checkpoint(made):
    one, *shards = (
        sum(tensor.numel() for tensor in load_file(file).values())
        for pattern in ("one/state-*", "two-fsdp/state-*-00001-*", "two-fsdp/state-*-00002-*")
        for file in made.glob(pattern)
    )
    assert shards == [one // 2, one // 2]


def test_a_damaged_shard_is_named(made, tmp_path):
    shutil.copytree(made / "two-fsdp-part", tmp_path / "part")
    shard = next((tmp_path / "part").glob("state-*-00002-of-00002.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"00002-of-00002\.safetensors: is damaged"):
        fit_together.run(job(tmp_path / "part", "fsdp"))
