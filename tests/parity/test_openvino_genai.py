"""``openvino_genai`` loads the folders as they are: the same greedy tokens, and text through the tokenizer beside.

It runs in a process of its own: after it has generated, a signal ends the process it is loaded in (its alternate
signal stack doesn't hold the frame), and other tests send signals to theirs.
"""

import json
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from potstill.core.trace import Trace
from potstill.export.openvino import export_openvino
from potstill.export.settings import OpenvinoExport
from potstill.runtime.table import open_engine

GENERATE = """
import json, sys
import numpy as np, openvino, openvino_genai
job = json.loads(sys.argv[1])
pipeline = openvino_genai.LLMPipeline(job["folder"], "CPU", **job["options"])
greedy = openvino_genai.GenerationConfig(max_new_tokens=30, do_sample=False, ignore_eos=True)
ids = np.array([job["prompt"]], dtype=np.int64)
given = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
tokens = [int(token) for token in pipeline.generate(given, greedy).tokens[0]]
greedy.apply_chat_template = False
print(json.dumps({"tokens": tokens, "text": str(pipeline.generate(job["text"], greedy))}))
"""


def generated(**job):
    done = subprocess.run(
        [sys.executable, "-c", GENERATE, json.dumps(job)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("attention", ["PA", "SDPA"])
@pytest.mark.parametrize(("family", "bits"), [("llama-gqa", 4), ("mistral", 8), ("gemma3", 8), ("gpt2", 8)])
def test_the_pipeline_generates_what_pytorch_does(make_family, make_quantized, tmp_path, family, bits, attention):
    source = make_quantized(make_family(family), bits, 32)
    export_openvino(OpenvinoExport(activations="float32"), source, tmp_path / "m.openvino", f"int{bits}", Trace())
    options = {"INFERENCE_PRECISION_HINT": "f32", "ATTENTION_BACKEND": attention, "INFERENCE_NUM_THREADS": 1}
    prompt, text = [0, 5, 9, 301], "The function returns a copy"
    found = generated(folder=str(tmp_path / "m.openvino"), options=options, prompt=prompt, text=text)
    with open_engine(source, threads=1) as engine:
        assert found["tokens"] == engine.generate(prompt, 30)
        tokenizer = AutoTokenizer.from_pretrained(source)
        expected = tokenizer.decode(engine.generate(tokenizer(text).input_ids, 30), skip_special_tokens=True)
    assert found["text"].strip("\ufffd ") == expected.strip("\ufffd ")
