"""What does a GGUF file say of its model and tokenizer besides the weights? The keys of its header."""

from collections.abc import Mapping
from types import MappingProxyType

from gguf import GGML_QUANT_VERSION, GGUFWriter, LlamaFileType, RopeScalingType

from potstill.export.families import DecoderFacts
from potstill.export.llama_layout import local_period
from potstill.export.rope import Rope
from potstill.export.settings import Dtype
from potstill.export.tokenizer import GgufTokenizer

__all__ = ["describe_model", "describe_tokenizer"]

_FILE_TYPES: Mapping[Dtype, LlamaFileType] = MappingProxyType(
    {
        "float32": LlamaFileType.ALL_F32,
        "float16": LlamaFileType.MOSTLY_F16,
        "bfloat16": LlamaFileType.MOSTLY_BF16,
        "int8": LlamaFileType.MOSTLY_Q8_0,
        "int4": LlamaFileType.MOSTLY_Q4_0,
        "q3_k": LlamaFileType.MOSTLY_Q3_K_S,
        "q2_k": LlamaFileType.MOSTLY_Q2_K,
    }
)


def describe_model(writer: GGUFWriter, facts: DecoderFacts, dtype: Dtype) -> None:
    """Write the keys of a model that ``gguf_facts`` accepted."""
    writer.add_type("model")
    writer.add_file_type(_FILE_TYPES[dtype])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(facts.vocabulary)
    writer.add_context_length(facts.context)
    writer.add_block_count(len(facts.blocks))
    writer.add_embedding_length(facts.width)
    writer.add_feed_forward_length(facts.mlp_width)
    writer.add_head_count(facts.heads)
    writer.add_head_count_kv(facts.kv_heads)
    writer.add_key_length(facts.head_width)
    writer.add_value_length(facts.head_width)
    if facts.layout.norm == "rms":
        writer.add_layer_norm_rms_eps(facts.norm_epsilon)
    else:
        writer.add_layer_norm_eps(facts.norm_epsilon)
    if facts.layout.parallel:
        writer.add_parallel_residual(facts.parallel)
    if facts.logit_cap is not None:
        writer.add_final_logit_softcapping(facts.logit_cap)
    _describe_positions(writer, facts)


def _describe_positions(writer: GGUFWriter, facts: DecoderFacts) -> None:
    """Rotations and windows: those of the blocks that see everything, and those of the others where there are any."""
    rope = next((block.rope for block in facts.blocks if not block.window), facts.blocks[0].rope)
    if rope is None:
        return
    writer.add_rope_dimension_count(rope.columns)
    writer.add_rope_freq_base(rope.base)
    if rope.kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.factor)
    period = local_period(facts)
    local: list[tuple[Rope, int]] = [(b.rope, b.window) for b in facts.blocks if b.window and b.rope is not None]
    if local and period is not None and period > 1:
        writer.add_sliding_window(local[0][1])
        writer.add_sliding_window_pattern(period)
        writer.add_rope_freq_base_swa(local[0][0].base)


def describe_tokenizer(writer: GGUFWriter, tokenizer: GgufTokenizer) -> None:
    """Write the keys ``tokenizer.*``."""
    if tokenizer.model_name is not None:
        writer.add_name(tokenizer.model_name)
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(list(tokenizer.tokens))
    writer.add_token_types(list(tokenizer.types))
    if tokenizer.scores is None:
        writer.add_token_merges(list(tokenizer.merges))
    else:
        writer.add_token_scores(list(tokenizer.scores))
    if tokenizer.space_before is not None:
        writer.add_add_space_prefix(tokenizer.space_before)
    if tokenizer.bos is not None:
        writer.add_bos_token_id(tokenizer.bos)
    if tokenizer.eos is not None:
        writer.add_eos_token_id(tokenizer.eos)
    if tokenizer.pad is not None:
        writer.add_pad_token_id(tokenizer.pad)
    if tokenizer.unknown is not None:
        writer.add_unk_token_id(tokenizer.unknown)
    writer.add_add_bos_token(tokenizer.bos is not None)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)
