"""The prediction trace shows the model's real numbers, and draws prompts that people can read."""

import numpy as np
import pytest
import torch

from potstill.core.errors import RecipeError
from potstill.core.trace import Trace
from potstill.data.sequences import PackedSequences
from potstill.data.tokenizer import TextCoder, load_tokenizer
from potstill.evaluate.prediction import candidates, draw_prompts, inside, read_prompts
from potstill.model.store import load_model


@pytest.fixture(scope="module")
def coder(run_inputs):
    return TextCoder.of(load_tokenizer(run_inputs["data"] / "tokenizer"), where="test")


@pytest.fixture(scope="module")
def student(run_inputs):
    return load_model(run_inputs["student"] / "model")


def test_states_are_those_of_transformers_itself(student, coder):
    """Against output_hidden_states: embeddings, then each block; the last block before the final norm."""
    tokens = [0, *coder.encode(["the function returns"])[0]]
    seen = inside(student, tokens, coder.tokenizer)
    with torch.no_grad():
        output = student(torch.tensor([tokens]), output_hidden_states=True)
    for block, state in zip(seen["blocks"][:-1], output.hidden_states[:-1], strict=True):
        np.testing.assert_allclose(block["values"], state[0, -1, :8], atol=1e-5)
        assert block["rms"] == pytest.approx(float(state[0, -1].square().mean().sqrt()), rel=1e-5)
    assert [token["id"] for token in seen["tokens"]] == tokens
    first = student.get_input_embeddings().weight[tokens[1], :8].detach()
    np.testing.assert_allclose(seen["tokens"][1]["embedding"], first, atol=1e-6)


def test_the_lens_on_the_last_block_is_the_models_own_answer(student, coder):
    tokens = [0, *coder.encode(["the function returns an"])[0]]
    with torch.no_grad():
        probabilities = student(torch.tensor([tokens])).logits[0, -1].double().softmax(-1)
    last = inside(student, tokens, coder.tokenizer)["blocks"][-1]
    assert [entry["probability"] for entry in last["top"]] == pytest.approx(
        probabilities.topk(3).values.tolist(), rel=1e-5
    )


def test_hooks_are_gone_afterwards(student, coder):
    def hooks():
        return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in student.modules()]

    before = hooks()
    inside(student, [0, 1], coder.tokenizer)
    assert hooks() == before


def test_candidates_are_sorted_probabilities_with_ties_to_the_lowest_id(from_table, coder):
    table = np.zeros((12, 12), np.float32)
    table[3, [7, 2, 9]] = [2.0, 1.0, 1.0]
    found = candidates(from_table(table), [5, 3], coder.tokenizer)
    assert [entry["id"] for entry in found] == [7, 2, 9, 0, 1]
    assert found[0]["logit"] == 2.0
    assert found[0]["probability"] == pytest.approx(np.exp(2) / (np.exp(2) + 2 * np.e + 9))


def test_drawn_prompts_stop_before_a_word_and_know_what_follows(run_inputs, coder):
    sequences = PackedSequences.load(run_inputs["data"], "test")
    prompts = draw_prompts(sequences, coder.tokenizer, 5, seed=3)
    assert len(prompts) == 5
    for prompt in prompts:
        assert prompt.tokens[0] == coder.beginning_id
        assert 6 <= len(prompt.tokens) <= 16
        assert prompt.true_next[0] == " "
        assert "<|" not in prompt.text
    assert prompts == draw_prompts(sequences, coder.tokenizer, 5, seed=3)
    assert prompts != draw_prompts(sequences, coder.tokenizer, 5, seed=4)


def test_drawn_prompts_hold_the_whole_question_of_an_answer(run_inputs, coder):
    """Where rows have prompts of their own, the cut lies in the answer."""
    sequences = PackedSequences.load(run_inputs["data"], "test")
    asked = PackedSequences(sequences.tokens_NT, sequences.lengths_N, np.full_like(sequences.prompts_N, 9))
    assert all(len(prompt.tokens) >= 9 for prompt in draw_prompts(asked, coder.tokenizer, 5, seed=0))


def test_rows_too_short_to_cut_give_fewer_prompts(coder):
    short = PackedSequences(np.ones((3, 4), np.uint16), np.full(3, 4, np.int32), np.ones(3, np.int32))
    assert draw_prompts(short, coder.tokenizer, 2, seed=0) == []


def test_a_long_prompt_keeps_its_end_with_a_warning(coder):
    events = []
    (prompt,) = read_prompts(["the " * 400 + "end"], coder, Trace(listeners=[events.append]))
    assert len(prompt.tokens) == 257
    assert prompt.text.endswith("end")
    assert [event["kind"] for event in events] == ["warning"]


def test_a_prompt_without_tokens_is_refused(coder):
    with pytest.raises(RecipeError, match="no tokens"):
        read_prompts([""], coder, Trace())
