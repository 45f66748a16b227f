"""A program that fits tiny models, alone or as one of several processes under torchrun: JSON of jobs in.

Each job gets its own directory, in which ``history.json``, the checkpoint and ``model.safetensors`` are left. A job
that is stopped leaves a checkpoint only, as it does after a signal.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from potstill.core import interrupt
from potstill.core.errors import Interrupted
from potstill.core.trace import Trace
from potstill.core.world import current, joined
from potstill.data.sequences import PackedSequences
from potstill.distill.objective import Objective
from potstill.distill.settings import CrossEntropy
from potstill.model.build import build_llama
from potstill.model.shapes import LlamaShape
from potstill.train.loop import Training, TrainingText, fit
from potstill.train.settings import TrainingSettings

VOCABULARY = 64
SHAPE = LlamaShape(blocks=2, width=32, mlp_width=64, heads=1, kv_heads=1, vocabulary=VOCABULARY)


def counting(num_sequences: int, *, seed: int, tokens_per_sequence: int = 12) -> PackedSequences:
    """Rows that count upwards from a random start; lengths differ."""
    generator = np.random.default_rng(seed)
    lengths_N = generator.integers(4, tokens_per_sequence + 1, num_sequences).astype(np.int32)
    starts_N = generator.integers(1, VOCABULARY, num_sequences)
    counting_NT = (starts_N[:, None] + np.arange(tokens_per_sequence)) % (VOCABULARY - 1) + 1
    inside_NT = np.arange(tokens_per_sequence) < lengths_N[:, None]
    return PackedSequences(
        np.where(inside_NT, counting_NT, 0).astype(np.uint16), lengths_N, np.ones(num_sequences, dtype=np.int32)
    )


def run(job: dict) -> None:
    """Do one job: ``out``, ``rows``, ``held_out``, ``settings``, ``parallel``, ``stop_after`` steps, ``seed``."""
    left = [job.get("stop_after", 0)]

    def stop(event) -> None:
        if event["name"] == "step_loss_nats":
            left[0] -= 1
            if left[0] == 0:
                interrupt._received.append(15)

    model = build_llama(SHAPE, seed=job.get("seed", 0))
    training = Training(
        who="student",
        model=model,
        text=TrainingText(counting(job["rows"], seed=1)),
        validation=TrainingText(counting(job["held_out"], seed=2)),
        objective=Objective([CrossEntropy()]),
        settings=TrainingSettings(**job["settings"]),
        seed=7,
        precision="float32",
        parallel=job.get("parallel", "ddp"),
    )
    out = Path(job["out"])
    listeners = [stop] if current().rank == current().size - 1 else []  # only one process hears of the stop
    try:
        fit(training, out, Trace(listeners=listeners))
    except Interrupted:
        interrupt._received.clear()
        return
    if current().leads:
        save_file({name: weight.detach() for name, weight in model.named_parameters()}, out / "model.safetensors")


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    with joined("cpu"):
        for one in json.loads(Path(sys.argv[1]).read_text()):
            run(one)
