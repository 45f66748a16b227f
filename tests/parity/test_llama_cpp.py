"""The same model in PyTorch and, as a GGUF file, in llama.cpp: the same tokens, and logits as near as the dtype allows.

float32: rounding only. float16: llama.cpp rounds activations to float16 before each product. int8: llama.cpp rounds
activations to int8, 32 at a time, while PyTorch multiplies the very same dequantized weights in float32; so the
weights' error cancels, and what is left is the activations' rounding.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from potstill.core.trace import Trace
from potstill.export.gguf import export_gguf
from potstill.quantize.settings import Bfloat16, Float16, Int4, Int8, Int8Channel, KQuant2, KQuant3, label_of
from potstill.quantize.stage import quantize_model
from potstill.runtime.table import open_engine

SHAPES = {
    "tied": {},
    "untied-gqa": {"tie_word_embeddings": False, "num_key_value_heads": 2},
    "head64-gqa": {"num_attention_heads": 2, "num_key_value_heads": 1},
    "wide-heads": {"head_dim": 64, "num_key_value_heads": 1},
    "biased": {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    },
}
PROMPTS = ([0], [0, 5, 9, 301], [0, *range(40, 70)], [0, 399, 399, 399])


@pytest.fixture(scope="module", params=SHAPES)
def source(request, make_llama):
    return make_llama(request.param, **SHAPES[request.param])


@pytest.fixture
def tokens_BT():  # noqa: N802 - shape letters in names
    return np.random.default_rng(0).integers(0, 400, (6, 64))


def perplexity(logits_BTV, tokens_BT):
    logprobs_BTV = functional.log_softmax(torch.from_numpy(logits_BTV).double(), dim=-1)[:, :-1]
    chosen_BT = logprobs_BTV.gather(-1, torch.from_numpy(tokens_BT)[:, 1:, None])
    return float((-chosen_BT.mean()).exp())


def test_float32_gives_the_same_greedy_tokens_and_logits(source, tmp_path, tokens_BT):
    export_gguf(source, tmp_path / "model.gguf", "float32", Trace())
    with open_engine(source, threads=1) as torch_engine, open_engine(tmp_path / "model.gguf", threads=1) as llama:
        assert llama.facts.parameters == torch_engine.facts.parameters
        np.testing.assert_allclose(llama.logits(tokens_BT), torch_engine.logits(tokens_BT), atol=5e-5)
        for prompt in PROMPTS:
            assert llama.generate(prompt, 64) == torch_engine.generate(prompt, 64)


def test_float16_stays_near_the_same_weights_in_pytorch(source, tmp_path, tokens_BT):
    quantize_model(Float16(), source, tmp_path / "half", Trace())
    export_gguf(tmp_path / "half", tmp_path / "half.gguf", "float16", Trace())
    with (
        open_engine(tmp_path / "half", threads=1) as torch_engine,
        open_engine(tmp_path / "half.gguf", threads=1) as llama,
    ):
        ours, theirs = torch_engine.logits(tokens_BT), llama.logits(tokens_BT)
    assert np.abs(ours - theirs).max() < 0.02 * ours.std()
    assert perplexity(theirs, tokens_BT) == pytest.approx(perplexity(ours, tokens_BT), rel=5e-4)


def test_int8_is_pytorch_with_the_very_same_codes_but_for_rounded_activations(source, tmp_path, tokens_BT):
    quantize_model(Int8(), source, tmp_path / "int8", Trace())
    export_gguf(tmp_path / "int8", tmp_path / "int8.gguf", "int8", Trace())
    with (
        open_engine(tmp_path / "int8", threads=1) as torch_engine,
        open_engine(tmp_path / "int8.gguf", threads=1) as llama,
    ):
        ours, theirs = torch_engine.logits(tokens_BT), llama.logits(tokens_BT)
    assert np.sqrt(np.square(ours - theirs).mean()) < 0.05 * ours.std()
    assert perplexity(theirs, tokens_BT) == pytest.approx(perplexity(ours, tokens_BT), rel=0.01)


@pytest.mark.parametrize(
    "scheme", [Bfloat16(), Int8Channel(), Int4(), Int4(group=128), KQuant3(), KQuant2()], ids=label_of
)
def test_every_scheme_s_file_is_pytorch_with_the_very_same_weights(make_llama, tmp_path, tokens_BT, scheme):
    """llama.cpp reads the weights that were chosen; W8A8's activations it rounds 32 at a time, PyTorch per token."""
    source = make_llama("wide", hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_key_value_heads=2)
    quantize_model(scheme, source, tmp_path / "made", Trace())
    dtype = scheme.scheme.partition("-")[0]
    export_gguf(tmp_path / "made", tmp_path / "made.gguf", dtype, Trace())
    with (
        open_engine(tmp_path / "made", threads=1) as torch_engine,
        open_engine(tmp_path / "made.gguf", threads=1) as llama,
    ):
        assert torch_engine.facts.dtype == llama.facts.dtype == dtype
        ours, theirs = torch_engine.logits(tokens_BT), llama.logits(tokens_BT)
    assert np.sqrt(np.square(ours - theirs).mean()) < (0.07 if scheme == Int8Channel() else 0.05) * ours.std()
    assert perplexity(theirs, tokens_BT) == pytest.approx(perplexity(ours, tokens_BT), rel=0.02)


@pytest.fixture(scope="module")
def trained(make_llama, make_tokenizer, tmp_path_factory):
    """A model that has learned a text by heart, the usual state of models, unlike random weights."""
    source = make_llama("tied", **SHAPES["tied"])
    tokenizer = make_tokenizer(400)
    text = "The function returns a copy of the array, if it's not None; otherwise it'll raise a ValueError. "
    ids = tokenizer(text * 12).input_ids
    rows = torch.tensor([[0, *ids[start : start + 63]] for start in range(0, len(ids) - 64, 16)])
    model = AutoModelForCausalLM.from_pretrained(source)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
    directory = tmp_path_factory.mktemp("trained")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory, rows.numpy()


def test_a_trained_model_loses_less_than_half_a_percent_of_perplexity_as_int8_in_llama_cpp(trained, tmp_path):
    source, tokens_BT = trained
    quantize_model(Int8(), source, tmp_path / "int8", Trace())
    export_gguf(tmp_path / "int8", tmp_path / "int8.gguf", "int8", Trace())
    with open_engine(source, threads=1) as exact, open_engine(tmp_path / "int8.gguf", threads=1) as llama:
        before, after = exact.logits(tokens_BT), llama.logits(tokens_BT)
    assert perplexity(after, tokens_BT) == pytest.approx(perplexity(before, tokens_BT), rel=0.005)
    assert (before.argmax(-1) == after.argmax(-1)).mean() > 0.97


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_threads_do_not_change_what_a_file_says(make_llama, tmp_path, tokens_BT, dtype):
    export_gguf(make_llama("tied"), tmp_path / "model.gguf", dtype, Trace())
    with open_engine(tmp_path / "model.gguf", threads=1) as one, open_engine(tmp_path / "model.gguf", threads=2) as two:
        np.testing.assert_array_equal(one.logits(tokens_BT), two.logits(tokens_BT))
