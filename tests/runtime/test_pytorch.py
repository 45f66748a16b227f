"""PyTorch behind the Engine: transformers' own numbers, whatever the batch and the dtype on disk."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.quantize.settings import Float16, Int8
from potstill.quantize.stage import quantize_model
from potstill.runtime import pytorch
from potstill.runtime.pytorch import PytorchEngine
from potstill.runtime.table import open_engine


@pytest.fixture(scope="module")
def engine(make_llama):
    with PytorchEngine(make_llama("tied"), threads=1) as opened:
        yield opened


def tokens(*shape):
    return np.random.default_rng(0).integers(0, 400, shape)


def test_logits_are_those_of_the_model_and_float32(engine, make_llama):
    tokens_BT = tokens(3, 20)
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(make_llama("tied"))(torch.from_numpy(tokens_BT)).logits
    logits_BTV = engine.logits(tokens_BT)
    assert logits_BTV.dtype == np.float32
    np.testing.assert_allclose(logits_BTV, expected.numpy(), atol=1e-5)


def test_parts_of_a_batch_give_the_whole(engine, monkeypatch):
    tokens_BT = tokens(7, 20)
    whole = engine.logits(tokens_BT)
    monkeypatch.setattr(pytorch, "_LOGITS_PER_CALL", 3 * 20 * 400)
    np.testing.assert_allclose(engine.logits(tokens_BT), whole, atol=1e-5)


def test_greedy_decoding_is_the_argmax_of_scoring(engine):
    prompt = tokens(12).tolist()
    continuation = engine.generate(prompt, 20)
    logits_TV = engine.logits(np.array([prompt + continuation]))[0]
    assert continuation == logits_TV[len(prompt) - 1 : -1].argmax(-1).tolist()


def test_threads_hold_only_during_a_call(make_llama):
    before = torch.get_num_threads()
    with PytorchEngine(make_llama("tied"), threads=before + 1) as engine:
        engine.logits(tokens(1, 3))
        assert torch.get_num_threads() == before


@pytest.mark.parametrize(("scheme", "dtype"), [(None, "float32"), (Float16(), "float16"), (Int8(), "int8")])
def test_facts_name_the_dtype_on_disk(make_llama, tmp_path, scheme, dtype):
    source = make_llama("tied")
    if scheme:
        quantize_model(scheme, source, tmp_path, Trace())
    with open_engine(tmp_path if scheme else source, threads=1) as engine:
        facts = engine.facts
        assert np.isfinite(engine.logits(tokens(1, 5))).all()
    assert (facts.format, facts.engine, facts.dtype, facts.parameters) == ("safetensors", "pytorch", dtype, 654_208)
    weights = next((tmp_path if scheme else source).glob("*.safetensors"))
    assert facts.file_bytes == weights.stat().st_size


def test_tokens_outside_the_vocabulary_and_empty_prompts_are_refused(engine):
    with pytest.raises(InputError, match="the vocabulary has 400"):
        engine.logits(np.array([[400]]))
    with pytest.raises(InputError, match="empty prompt"):
        engine.generate([], 3)


def test_what_is_no_model_is_refused_with_what_would_be_one(tmp_path):
    for path, message in ((tmp_path, "is neither a .gguf file nor"), (tmp_path / "none", "doesn't exist")):
        with pytest.raises(InputError, match=message):
            open_engine(path)
