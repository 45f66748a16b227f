"""``potstill quantize``: any model's directory to files without a recipe, and a sentence for whatever is wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from potstill.cli import main
from potstill.core.errors import InputError, RecipeError, ResourceError
from potstill.data.settings import Files
from potstill.export.llama_layout import gguf_facts, gguf_name
from potstill.export.settings import CompressedTensorsExport, GgufExport, OnnxExport, OpenvinoExport
from potstill.model.weights import Weights
from potstill.one_model import QuantizeSettings, quantize_one_model
from potstill.quantize.settings import Float16, Gptq, Int4
from potstill.runtime.table import open_engine


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random Llama of a name with dashes, with a byte-level tokenizer."""
    directory = tmp_path_factory.mktemp("models") / "small-llama"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["a number comes after a number"] * 3, trainer)
    special = dict.fromkeys(("bos_token", "eos_token"), "<|end|>")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "numbers.txt"
    path.write_text(
        "\n\n".join(f"Number {i} is a number, and {i + 1} comes after it. Everybody knows." for i in range(60))
    )
    return path


def exit_code(*arguments):
    """How the command line ends; typer leaves by SystemExit where all went well."""
    try:
        return main(list(arguments))
    except SystemExit as ended:
        return ended.code


def num_blocks(model):
    return json.loads((model / "config.json").read_text())["num_hidden_layers"]


def copied(model, tmp_path):
    return Path(shutil.copytree(model, tmp_path / "copy"))


def test_the_verb_quantizes_with_text_and_writes_a_file_that_llama_cpp_runs(model, text, tmp_path, capsys):
    arguments = ["--scheme", "int4", "--group", "128", "--method", "gptq", "--data", str(text)]
    more = ["--calibration-tokens", "1500", "--out", str(tmp_path), "--json", "--strict"]
    assert exit_code("quantize", str(model), *arguments, *more) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["label"] == "int4-g128-gptq"
    assert summary["calibration_tokens"] >= 1400
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    (file,) = [Path(entry["path"]) for entry in summary["files"]]
    assert file.name == "small_llama-int4-g128-gptq.gguf"
    types = {tensor.name: tensor.tensor_type for tensor in GGUFReader(file).tensors}
    assert types["blk.0.ffn_up.weight"] == GGMLQuantizationType.Q4_0
    with open_engine(file, threads=1) as engine:
        assert len(engine.generate([0, 5], 4)) == 4


def test_linears_that_suffer_most_are_kept_in_every_file(model, text, tmp_path, capsys):
    arguments = ["--scheme", "int4", "--keep-sensitive", "2", "--data", str(text), "--out", str(tmp_path), "--json"]
    assert exit_code("quantize", str(model), *arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["label"] == "int4-sensitive2"
    told = json.loads((Path(summary["directory"]) / "sensitivity.json").read_text())
    dearest = sorted(told, key=told.get)[-2:]
    types = {tensor.name: tensor.tensor_type for tensor in GGUFReader(summary["files"][0]["path"]).tensors}
    facts = gguf_facts(json.loads((model / "config.json").read_text()), "")
    assert {types[gguf_name(name, facts)] for name in dearest} == {GGMLQuantizationType.F16}
    assert list(types.values()).count(GGMLQuantizationType.F16) == 2


def test_strict_turns_a_fallback_into_exit_code_6(model, tmp_path, capsys):
    arguments = ["quantize", str(model), "--scheme", "q3_k", "--out", str(tmp_path)]
    assert exit_code(*arguments, "--strict") == 6
    assert exit_code(*arguments) == 0
    told = capsys.readouterr().err
    assert "small_llama-q3_k: model.embed_tokens.weight has 128 columns, no multiple of 256: kept in int4" in told
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["fallbacks"]) == summary["files"][0]["fallbacks"] == 1 + 6 * num_blocks(model)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--scheme", "int5"], 2, "no such kind 'int5'"),
        (["--scheme", "int4", "--group", "64"], 2, "group"),
        (["--scheme", "float16", "--group", "32"], 2, "unknown key"),
        (["--scheme", "int4", "--method", "gptk"], 2, "gptk"),
        (["--scheme", "int4", "--method", "gptq"], 2, "method gptq looks at text"),
        (["--scheme", "int4", "--keep-sensitive", "2"], 2, "keep_sensitive looks at text"),
        (["--scheme", "int4", "--format", "gguff"], 2, "gguff"),
        (["--scheme", "int4", "--keep", "lm_heat*"], 2, "matches no matrix"),
        (["--scheme", "int4", "--method", "gptq", "--data", "nowhere.txt"], 3, "nowhere.txt"),
    ],
)
def test_wrong_options_are_answered_with_a_sentence(model, tmp_path, capsys, arguments, code, message):
    assert exit_code("quantize", str(model), *arguments, "--out", str(tmp_path)) == code
    assert message in capsys.readouterr().err


def truncate(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def ask_for_code(directory):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "evil.Model"}}))


def climb(directory):
    index = {"weight_map": {"model.norm.weight": "../../elsewhere.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def lose_tokenizer(directory):
    (directory / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "safetensors"),
        (ask_for_code, "auto_map"),
        (climb, "a shard is a .safetensors file beside the index"),
        (lose_tokenizer, "holds no tokenizer"),
    ],
)
def test_a_damaged_or_unsafe_model_is_refused_before_any_work(model, tmp_path, damage, message):
    directory = copied(model, tmp_path)
    damage(directory)
    settings = QuantizeSettings(scheme=Int4(), export=(GgufExport(),))
    with pytest.raises(InputError, match=message):
        quantize_one_model(settings, directory, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_a_format_no_tokenizer_is_needed(model, tmp_path):
    directory = copied(model, tmp_path)
    lose_tokenizer(directory)
    summary = quantize_one_model(QuantizeSettings(scheme=Float16()), directory, tmp_path / "out")
    assert summary["files"] == []
    assert Weights(Path(summary["directory"])).dtype("model.norm.weight") == "float16"


def test_a_calibrated_method_without_text_is_refused_and_the_same_call_twice_gives_the_same_bytes(
    model, text, tmp_path
):
    scheme = Int4(method=Gptq(calibration_tokens=500))
    with pytest.raises(RecipeError, match="method gptq looks at text"):
        quantize_one_model(QuantizeSettings(scheme=scheme), model, tmp_path)
    settings = QuantizeSettings(scheme=scheme, data=Files(kind="files", paths=(str(text),)))
    made = []
    for name in ("a", "b"):
        summary = quantize_one_model(settings, model, tmp_path / name)
        made.append((Path(summary["directory"]) / "quantized.safetensors").read_bytes())
    assert made[0] == made[1]


def test_a_family_that_a_format_cannot_carry_is_refused_before_any_work(tmp_path, model):
    """Not after the weights were quantized: nothing is written."""
    other = tmp_path / "other"
    shutil.copytree(model, other)
    config = json.loads((other / "config.json").read_text()) | {"model_type": "mamba"}
    (other / "config.json").write_text(json.dumps(config))
    for export in (GgufExport(), OnnxExport(), OpenvinoExport(), CompressedTensorsExport()):
        with pytest.raises(InputError, match="mamba"):
            quantize_one_model(QuantizeSettings(scheme=Float16(), export=(export,)), other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_extra_that_is_missing_is_said_before_any_work(tmp_path, model, monkeypatch):
    monkeypatch.setattr("potstill.export.stage.find_spec", lambda _: None)
    with pytest.raises(ResourceError, match=r"onnx.*isn't installed") as caught:
        quantize_one_model(QuantizeSettings(scheme=Float16(), export=(OnnxExport(),)), model, tmp_path / "out")
    assert "potstill[onnx]" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_one_model_becomes_four_formats(tmp_path, model, capsys):
    """Each is listed with its bytes, and opens in its runtime."""
    formats = "gguf,onnx,openvino,compressed-tensors"
    options = ("--scheme", "int4", "--format", formats, "--out", str(tmp_path), "--json")
    assert exit_code("quantize", str(model), *options) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert sorted(Path(file["path"]).suffix for file in files) == [".compressed-tensors", ".gguf", ".onnx", ".openvino"]
    for file in files:
        assert file["bytes"] > 20_000
        with open_engine(Path(file["path"]), threads=1) as engine:
            assert len(engine.generate([1, 2, 3], 4)) == 4
