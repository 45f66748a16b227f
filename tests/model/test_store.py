"""Models on disk: what is written loads anywhere, and what is damaged, foreign or unsafe is refused in words."""

import contextlib
import json
import os
import shutil
import socket
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from potstill.core.durable import sha256_of_file
from potstill.core.errors import InputError, RemoteError
from potstill.model.build import build_llama
from potstill.model.shapes import LlamaShape
from potstill.model.store import load_model, load_tokenizer, model_fingerprint, save_model, tokenizer_fingerprint


@pytest.fixture
def saved(tiny_llama: LlamaForCausalLM, tokenizer_dir: Path, tmp_path: Path) -> Path:
    save_model(tiny_llama, tokenizer_dir, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object):
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def change_json(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_a_saved_model_loads_with_transformers_alone(saved: Path, tiny_llama: LlamaForCausalLM, random_tokens):
    tokens_BT = random_tokens(64)
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert torch.equal(model(tokens_BT).logits, tiny_llama(tokens_BT).logits)
    assert AutoTokenizer.from_pretrained(saved)("w1 w2")["input_ids"] == [2, 3]
    expected = {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    assert {path.name for path in saved.iterdir()} >= expected


def test_saving_and_loading_keeps_every_bit(saved: Path, tiny_llama: LlamaForCausalLM):
    loaded = load_model(saved).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in tiny_llama.state_dict().items())


def test_tied_weights_are_stored_once(saved: Path, tiny_llama: LlamaForCausalLM):
    stored = load_file(saved / "model.safetensors")
    assert sum(weight.numel() for weight in stored.values()) == sum(
        weight.numel() for weight in tiny_llama.parameters()
    )


def test_the_same_model_gives_the_same_bytes_wherever_it_came_from(saved: Path, tokenizer_dir: Path, tmp_path: Path):
    save_model(load_model(saved), tokenizer_dir, tmp_path / "again")
    for path in saved.iterdir():
        assert sha256_of_file(path) == sha256_of_file(tmp_path / "again" / path.name), path.name


def test_saving_over_an_earlier_try_leaves_none_of_its_weights(saved: Path, tiny_llama: LlamaForCausalLM):
    (saved / "model-00001-of-00002.safetensors").write_bytes(b"half")
    (saved / "model.safetensors.index.json").write_text("{")
    (saved / "history.json").write_text("[]")
    save_model(tiny_llama, None, saved, card="# Mine\n")
    load_model(saved)
    assert sorted(path.name for path in saved.glob("*.safetensors*")) == ["model.safetensors"]
    assert (saved / "README.md").read_text() == "# Mine\n"
    assert (saved / "history.json").exists()


def test_leftovers_of_a_killed_write_are_gone_after_the_next(saved: Path, tiny_llama: LlamaForCausalLM):
    (saved / ".model.abc.partial").mkdir()
    (saved / ".model.abc.partial" / "model.safetensors").write_bytes(b"half")
    (saved / ".config.json.12345678.partial").write_bytes(b"half")
    save_model(tiny_llama, None, saved)
    assert not list(saved.glob(".*"))


@pytest.mark.parametrize("steps_done", range(14))
def test_a_write_that_stops_anywhere_leaves_no_mixture(
    saved: Path, tokenizer_dir: Path, steps_done: int, monkeypatch: pytest.MonkeyPatch
):
    """A directory that was being overwritten holds the old model whole, the new one whole, or doesn't load."""
    old = load_model(saved)
    other = build_llama(LlamaShape(1, 32, 64, 1, 1, 64), seed=9)
    done = 0

    def replace(source: Path, target: Path) -> None:
        nonlocal done
        if done == steps_done:
            raise OSError("the disk is gone")
        done += 1
        os.rename(source, target)  # noqa: PTH104 - what os.replace does, where that is being watched

    monkeypatch.setattr(os, "replace", replace)
    with contextlib.suppress(OSError):
        save_model(other, tokenizer_dir, saved)
    monkeypatch.undo()
    with contextlib.suppress(InputError):
        loaded = load_model(saved)
        whole = old if loaded.config.num_hidden_layers == 2 else other
        assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in whole.state_dict().items())
    save_model(other, tokenizer_dir, saved)
    assert load_model(saved).config.num_hidden_layers == 1


def test_loading_honours_the_dtype(saved: Path):
    assert load_model(saved, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_nothing_reaches_the_terminal(saved: Path, tokenizer_dir: Path, tmp_path: Path, capfd):
    save_model(load_model(saved), tokenizer_dir, tmp_path / "again")
    load_tokenizer(saved)
    assert capfd.readouterr() == ("", "")


def refused(directory: Path | str, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_model(directory)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert caught.value.where


def test_a_directory_without_config_is_refused(tmp_path: Path):
    refused(tmp_path, "no config.json")


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path):
    refused(tmp_path / "nothing", "no such directory")
    refused("../nothing/at/all", "no such directory")


def test_a_file_is_refused(saved: Path):
    refused(saved / "model.safetensors", "not a model's directory")


def test_custom_code_is_refused(saved: Path):
    change_json(saved / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    refused(saved, "auto_map", "config.json")


def test_a_kernel_from_the_hub_is_refused(saved: Path):
    change_json(saved / "config.json", attn_implementation="someone/kernel")
    refused(saved, "someone/kernel")


def test_an_unknown_architecture_is_refused(saved: Path):
    change_json(saved / "config.json", model_type="no-such-model")
    refused(saved, "no-such-model")


def test_a_config_with_a_wrong_type_is_refused(saved: Path):
    change_json(saved / "config.json", hidden_size="wide")
    refused(saved, "hidden_size")


def test_weights_that_could_run_code_are_refused_with_the_way_to_convert(saved: Path):
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(b"pickle")
    refused(saved, "pytorch_model.bin", "save_pretrained")


def test_an_adapter_is_refused(saved: Path):
    (saved / "adapter_config.json").write_text("{}")
    refused(saved, "adapter", "merge")


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_truncated_weights_are_refused(saved: Path, keep: int):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(saved, "model.safetensors", "incomplete or damaged")


def test_a_header_that_promises_the_moon_is_refused_at_once(saved: Path):
    (saved / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    refused(saved, "within its header")


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin"])
def test_a_shard_outside_the_directory_is_refused(saved: Path, shard: str):
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    refused(saved, shard, "index")


def test_a_missing_shard_is_refused(saved: Path):
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "model-2.safetensors"}}))
    refused(saved, "model-2.safetensors", "is missing")


def rewrite(saved: Path, change) -> None:
    weights = load_file(saved / "model.safetensors")
    change(weights)
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})


def test_missing_weights_are_never_made_up(saved: Path):
    rewrite(saved, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    refused(saved, "lacks weights", "model.layers.1.mlp.up_proj.weight")


def test_weights_too_many_are_never_dropped(saved: Path):
    rewrite(saved, lambda weights: weights.update({"model.extra.weight": torch.zeros(2)}))
    refused(saved, "no place for", "model.extra.weight")


def test_weights_of_another_shape_are_refused(saved: Path):
    rewrite(saved, lambda weights: weights.update({"model.norm.weight": torch.ones(5)}))
    refused(saved, "model.norm.weight")


def test_weights_that_are_nan_are_refused_by_name(saved: Path):
    rewrite(saved, lambda weights: weights["model.norm.weight"].fill_(float("nan")))
    refused(saved, "model.norm.weight", "NaN")
    assert torch.isnan(load_model(saved, check_finite=False).model.norm.weight).all()


def test_a_hub_id_without_network_is_a_remote_error():
    with pytest.raises(RemoteError) as caught:
        load_model("nobody/no-such-model")
    assert "nobody/no-such-model" in str(caught.value)


def test_a_hub_id_in_the_local_cache_loads_offline(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cached = tmp_path / "hub" / "models--someone--small"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(saved, cached / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_model("someone/small").num_parameters() == load_model(saved).num_parameters()
    assert load_tokenizer("someone/small")("w1")["input_ids"] == [2]


def test_a_directory_without_tokenizer_says_so(saved: Path):
    (saved / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="no tokenizer"):
        load_tokenizer(saved)


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"version": "1.0", "model": {"type": "Nothing"}}'])
def test_a_damaged_tokenizer_is_an_input_error(saved: Path, content: str):
    (saved / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="tokenizer"):
        load_tokenizer(saved)


def test_a_tokenizer_with_custom_code_is_refused(saved: Path):
    change_json(saved / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    with pytest.raises(InputError, match="auto_map"):
        load_tokenizer(saved)


def test_fingerprints_follow_what_decides_the_result_and_nothing_else(saved: Path, tmp_path: Path):
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    (copy / "README.md").write_text("another card")
    assert model_fingerprint(copy) == model_fingerprint(saved)
    assert tokenizer_fingerprint(copy) == tokenizer_fingerprint(saved)
    rewrite(copy, lambda weights: weights["model.norm.weight"].mul_(1.5))
    assert model_fingerprint(copy) != model_fingerprint(saved)
    assert tokenizer_fingerprint(copy) == tokenizer_fingerprint(saved)
