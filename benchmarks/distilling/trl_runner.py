"""Distil with TRL: run by a Python that has it, apart from potstill's. ``python trl_runner.py JOB.json``.

The job names the folders of student and teacher, the rows, and the settings; the trained student goes to ``out``.
TRL's ``DistillationTrainer`` learns from text that the student writes itself; on given text the trainer is
``GKDTrainer`` with ``lmbda`` = 0, and forward KL is ``beta`` = 0. Gradient checkpointing, on by default, is off: it
saves memory that isn't short here, and costs time.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.gkd import GKDConfig, GKDTrainer


def main(job: dict[str, Any]) -> None:
    """Train, save, and print one line of facts."""
    torch.set_num_threads(job["threads"])
    rows = np.load(job["rows"])
    tokens_NT, lengths_N = rows["tokens_NT"], rows["lengths_N"]

    def collate(batch: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        index_B = np.array([entry["row"] for entry in batch])
        longest = int(lengths_N[index_B].max())
        tokens_BT = torch.from_numpy(tokens_NT[index_B, :longest].astype(np.int64))
        mask_BT = torch.arange(longest) < torch.from_numpy(lengths_N[index_B])[:, None]
        labels_BT = tokens_BT.masked_fill(~mask_BT, -100)
        labels_BT[:, 0] = -100
        return {"input_ids": tokens_BT, "attention_mask": mask_BT.long(), "labels": labels_BT}

    settings = GKDConfig(
        output_dir=job["out"],
        lmbda=0.0,
        beta=0.0,
        num_train_epochs=job["epochs"],
        per_device_train_batch_size=job["batch"],
        learning_rate=job["learning_rate"],
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": job["final_share"]},
        warmup_steps=job["warmup_share"],  # below 1 it is a share
        weight_decay=job["weight_decay"],
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=job["bfloat16"],
        use_cpu=True,
        gradient_checkpointing=False,
        seed=job["seed"],
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=100,
        dataloader_pin_memory=False,
    )
    trainer = GKDTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["student"]),
        teacher_model=AutoModelForCausalLM.from_pretrained(job["teacher"]),
        args=settings,
        data_collator=collate,
        train_dataset=Dataset.from_dict({"row": list(range(len(lengths_N)))}),
        processing_class=AutoTokenizer.from_pretrained(job["tokenizer"]),
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.save_model(job["out"])
    print(json.dumps({"seconds": seconds, "steps": trainer.state.global_step}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
