"""``openvino_genai`` loads the folders as they are: the same greedy tokens, and text through the tokenizer beside."""

import numpy as np
import openvino
import openvino_genai
import pytest
from transformers import AutoTokenizer

from potstill.core.trace import Trace
from potstill.export.openvino import export_openvino
from potstill.export.settings import OpenvinoExport
from potstill.runtime.table import open_engine


@pytest.mark.parametrize("attention", ["PA", "SDPA"])
@pytest.mark.parametrize(("family", "bits"), [("llama-gqa", 4), ("mistral", 8), ("gemma3", 8), ("gpt2", 8)])
def test_the_pipeline_generates_what_pytorch_does(make_family, make_quantized, tmp_path, family, bits, attention):
    source = make_quantized(make_family(family), bits, 32)
    export_openvino(OpenvinoExport(activations="float32"), source, tmp_path / "m.openvino", f"int{bits}", Trace())
    options = {"INFERENCE_PRECISION_HINT": "f32", "ATTENTION_BACKEND": attention, "INFERENCE_NUM_THREADS": 1}
    pipeline = openvino_genai.LLMPipeline(str(tmp_path / "m.openvino"), "CPU", **options)
    greedy = openvino_genai.GenerationConfig(max_new_tokens=30, do_sample=False, ignore_eos=True)
    prompt = [0, 5, 9, 301]
    ids = np.array([prompt], dtype=np.int64)
    given = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
    with open_engine(source, threads=1) as engine:
        assert list(pipeline.generate(given, greedy).tokens[0]) == engine.generate(prompt, 30)
        text = "The function returns a copy"
        tokenizer = AutoTokenizer.from_pretrained(source)
        expected = tokenizer.decode(engine.generate(tokenizer(text).input_ids, 30), skip_special_tokens=True)
    greedy.apply_chat_template = False
    assert str(pipeline.generate(text, greedy)).strip("\ufffd ") == expected.strip("\ufffd ")
