"""Structured pruning: really smaller, near the budget, and what does nothing goes first."""

import json
from dataclasses import asdict

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from potstill.core.errors import InputError, RecipeError
from potstill.model.store import load_model, save_model
from potstill.prune.activation import GATED_FAMILIES, score_by_activation
from potstill.prune.settings import StructuredPruning
from potstill.prune.structured import cut, prune_structured


def all_of(model):
    config = model.config
    return list(range(config.num_hidden_layers)), [torch.arange(config.intermediate_size)] * config.num_hidden_layers


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.floats(0.2, 0.98))
def test_any_reachable_budget_is_met_within_2_percent(model, batches, keep: float):
    pruned, report = prune_structured(model, batches, keep)
    assert abs(pruned.num_parameters() / (keep * model.num_parameters()) - 1) <= 0.02
    assert report.parameters_after == pruned.num_parameters() == sum(w.numel() for w in pruned.parameters())
    assert pruned.config.intermediate_size % 32 == 0


def test_steps_coarser_than_the_target_give_the_nearest_and_the_report_tells(coarse, batches):
    pruned, report = prune_structured(coarse, batches, 0.8)
    assert report.parameters_target == round(0.8 * coarse.num_parameters())
    assert report.parameters_after == pruned.num_parameters()
    assert abs(report.parameters_after / report.parameters_target - 1) > 0.02
    assert len(report.options) == 1


def test_the_pruned_model_is_an_ordinary_one_on_disk(model, batches, tmp_path):
    pruned, report = prune_structured(model, batches, 0.67)
    save_model(pruned, None, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens_BT = batches[0][0]
    assert torch.equal(loaded(tokens_BT).logits, pruned(tokens_BT).logits)
    assert loaded.config.num_hidden_layers == 4 - len(report.blocks_removed)
    assert loaded.config.intermediate_size == report.mlp_width_after
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert load_model(tmp_path).num_parameters() == report.parameters_after


def test_the_report_is_json_and_its_figures_agree_with_each_other(model, batches):
    pruned, report = prune_structured(model, batches, 0.6)
    assert json.loads(json.dumps(asdict(report)))["parameters_after"] == pruned.num_parameters()
    assert len(report.channels_removed) == pruned.config.num_hidden_layers
    assert {len(gone) for gone in report.channels_removed} == {2048 - report.mlp_width_after}
    assert report.kl_to_parent_nats == min(option.kl_to_parent_nats for option in report.options)
    assert report.calibration_positions == 8 * 9
    assert all(0 <= share <= 1 for share in report.mlp_score_removed)


def test_pruning_leaves_the_parent_as_it_was_and_is_repeatable(model, batches):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    first, first_report = prune_structured(model, batches, 0.6)
    second, second_report = prune_structured(model, batches, 0.6)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert first_report == second_report
    assert all(torch.equal(second.state_dict()[name], weight) for name, weight in first.state_dict().items())


@pytest.mark.parametrize("family", GATED_FAMILIES)
def test_removing_nothing_is_the_identity(family: str, batches):
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "eos_token_id": 0,
        "bos_token_id": 0,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **heads)).eval()
    same = cut(model, *all_of(model))
    assert torch.equal(same(batches[0][0]).logits, model(batches[0][0]).logits)
    pruned, _ = prune_structured(model, batches, 0.8)
    assert type(pruned) is type(model)
    assert torch.isfinite(pruned(batches[0][0]).logits).all()


def test_a_channel_that_never_fires_goes_first_and_is_not_missed(model, batches):
    idle_L = [torch.randperm(2048, generator=torch.Generator().manual_seed(block))[:32] for block in range(4)]
    with torch.no_grad():
        for block, idle in enumerate(idle_L):
            model.model.layers[block].mlp.gate_proj.weight[idle] = 0
    without = 4 * 32 * 3 * 32
    pruned, report = prune_structured(model, batches, 1 - without / model.num_parameters())
    narrower = next(option for option in report.options if option.blocks_removed == 0)
    assert narrower.kl_to_parent_nats == pytest.approx(0, abs=1e-6)
    assert report.blocks_removed == ()
    assert [set(gone) for gone in report.channels_removed] == [set(idle.tolist()) for idle in idle_L]
    assert report.mlp_score_removed == (0, 0, 0, 0)
    tokens_BT = batches[0][0]
    torch.testing.assert_close(pruned(tokens_BT).logits, model(tokens_BT).logits)


def test_a_channel_that_nobody_reads_goes_too(model, batches):
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, 5:37] = 0
    scores = score_by_activation(model, batches)
    assert torch.all(scores.channels_LM[:, 5:37] == 0)
    assert torch.all(scores.channels_LM[:, :5] > 0)


def test_a_block_that_changes_nothing_goes_first_and_is_not_missed(model, batches):
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.zero_()
        model.model.layers[2].self_attn.o_proj.weight.zero_()
    in_block = sum(weight.numel() for weight in model.model.layers[2].parameters())
    pruned, report = prune_structured(model, batches, 1 - in_block / model.num_parameters())
    assert report.block_influence[2] == pytest.approx(0, abs=1e-6)
    assert min(report.block_influence) == report.block_influence[2]
    assert report.blocks_removed == (2,)
    assert report.mlp_width_after == 2048
    torch.testing.assert_close(pruned(batches[0][0]).logits, model(batches[0][0]).logits)


def test_influence_is_one_minus_the_cosine_of_scored_positions_only(model, batches):
    scores = score_by_activation(model, batches)
    tokens_BT = torch.cat([tokens for tokens, _ in batches])
    with torch.no_grad():
        states = model(tokens_BT, output_hidden_states=True).hidden_states
    similarity = torch.cosine_similarity(states[1][:, :9].double(), states[2][:, :9].double(), dim=-1).mean()
    assert float(scores.influence_L[1]) == pytest.approx(1 - float(similarity), abs=1e-9)


def test_padding_decides_nothing(model, batches):
    changed = [(torch.where(scored_BT, tokens_BT, 0), scored_BT) for tokens_BT, scored_BT in batches]
    first, second = (score_by_activation(model, those) for those in (batches, changed))
    torch.testing.assert_close(first.channels_LM, second.channels_LM)
    torch.testing.assert_close(first.influence_L, second.influence_L)


def test_an_impossible_budget_is_refused_with_the_smallest_share(model, batches):
    with pytest.raises(RecipeError, match="smallest reachable share is") as caught:
        prune_structured(model, batches, 0.01)
    smallest = float(str(caught.value).split("smallest reachable share is ")[1].split("\n")[0])
    pruned, report = prune_structured(model, batches, smallest)
    assert len(report.blocks_removed) == 3
    assert pruned.config.intermediate_size == 32


def test_another_family_is_refused(batches):
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=1, vocab_size=96, n_positions=16)
    with pytest.raises(InputError, match="'gpt2'"):
        prune_structured(AutoModelForCausalLM.from_config(config), batches, 0.5)


def test_no_scored_position_is_refused(model, batches):
    with pytest.raises(InputError, match="no scored position"):
        prune_structured(model, [(tokens, torch.zeros_like(scored)) for tokens, scored in batches], 0.5)


@pytest.mark.parametrize("keep", [0, 1, -0.5, 1.5, "much"])
def test_settings_refuse_a_share_outside_0_to_1(keep):
    with pytest.raises(ValueError, match="keep_parameters"):
        StructuredPruning(kind="structured", keep_parameters=keep)
