"""A tiny random model of any type that the installed transformers can load.

Sizes are set by the names that configs of all families share; a short table helps types whose fields depend
on each other. A type that cannot be made this way says why.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MOST_PARAMETERS = 6_000_000
PLACE = 3


def _sizes(value: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


# What a field is set to wherever a config, or one inside it, has it. Hidden size 32 = 4 heads of 8.
_SIZES = {
    **_sizes(
        32, "hidden_size d_model n_embd dim embed_dim emb_dim embedding_size model_dim hidden_dim d_embed"
    ),
    **_sizes(32, "word_embed_proj_dim attention_hidden_size width image_size"),
    **_sizes(
        48, "intermediate_size ffn_dim d_ff n_inner encoder_ffn_dim decoder_ffn_dim d_inner mlp_dim d_ffn"
    ),
    **_sizes(48, "ffn_hidden_size dense_intermediate_size intermediate_size_mlp"),
    **_sizes(
        2, "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers depth num_blocks"
    ),
    **_sizes(2, "num_encoder_layers num_decoder_layers encoder_num_hidden_layers decoder_num_hidden_layers"),
    **_sizes(2, "num_hidden_groups num_experts_per_tok top_k_experts moe_topk moe_k num_experts_per_token"),
    **_sizes(
        4, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"
    ),
    **_sizes(4, "num_decoder_attention_heads num_encoder_attention_heads num_key_value_heads num_kv_heads"),
    **_sizes(4, "linear_num_key_heads linear_num_value_heads num_experts num_local_experts n_routed_experts"),
    **_sizes(4, "moe_num_experts num_routed_experts"),
    **_sizes(8, "head_dim d_kv d_head qk_nope_head_dim qk_rope_head_dim v_head_dim kv_lora_rank q_lora_rank"),
    **_sizes(8, "linear_key_head_dim linear_value_head_dim mamba_head_dim global_head_dim index_head_dim"),
    **_sizes(8, "attention_head_dim swa_head_dim kv_channels o_lora_rank"),
    **_sizes(1, "n_group topk_group n_shared_experts num_shared_experts"),
    **_sizes(16, "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size patch_size"),
    **_sizes(512, "max_position_embeddings n_positions max_target_positions"),
    **_sizes(64, "max_source_positions"),
}
_ENTITIES = {"entity_vocab_size": 8, "entity_emb_size": 16}
_HELP: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "zamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "zaya": {"num_experts_per_tok": 1},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    "gemma4_unified_assistant": {"num_kv_shared_layers": 0},
    "fsmt": {"src_vocab_size": 420},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "layer_types": ["mamba", "attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "local"]},
    "roc_bert": {"pronunciation_vocab_size": 16, "shape_vocab_size": 16},
    "luke": _ENTITIES,
    "mluke": _ENTITIES,
    "xmod": {"default_language": "en_XX"},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "gemma3n": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 420},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 420},
    "gemma4": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 420},
    "gemma4_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 420},
    "cohere_compass_text": {"layer_types": ["full_attention", "full_attention"]},
}

# Cast they run in bfloat16, loaded they mix it with float32 and fail.
_FLOAT32 = ("deberta", "xlnet")


def find_types() -> dict[str, list[str]]:
    """Every causal, masked and seq2seq model type of the library, and the classes to try for it in order."""
    from transformers.models.auto import modeling_auto

    found: dict[str, list[str]] = {}
    for mapping in (
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    ):
        for model_type, name in mapping.items():
            found.setdefault(model_type, []).append(name)
    # A text model may be served by the class around it alone.
    for model_type, name in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items():
        if model_type in found and name not in found[model_type]:
            found[model_type].append(name)
    return dict(sorted(found.items()))


def _shrunk(config: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Fields of a config, and of those inside it, at the sizes of this module."""
    from transformers import PreTrainedConfig

    document = config.to_dict()
    names = {*document, *config.attribute_map}
    layers = any(key in names for key in ("num_hidden_layers", "num_layers", "n_layer"))
    small: dict[str, Any] = {key: value for key, value in changes.items() if key in names}
    for key, value in document.items():
        patterned = key.endswith(("layer_types", "_pattern", "layers_block_type")) and key not in changes
        if isinstance(value, list) and layers and patterned:
            small[key] = [*dict.fromkeys(value), value[0]][:2]
        # Places of images, masks and the like: a token that every target of the test has a counterpart of.
        if key.endswith(("_token_id", "_token_index")) and type(value) is int and key not in changes:
            small[key] = changes["decoder_start_token_id"] if key.startswith("decoder_start") else PLACE
    for key in config.sub_configs:
        inner = getattr(config, key, None)
        if isinstance(inner, PreTrainedConfig):
            small[key] = _shrunk(inner, changes)
    return small


def make_model(model_type: str, class_name: str, bound: int, **ids: int | None) -> Any:
    """A random model on the CPU, in bfloat16 where its class can run in it.

    Args:
        model_type: As in ``config.json``.
        class_name: Of the model.
        bound: Number of rows.
        ids: Special ids.

    Raises:
        Exception: It cannot be made small, or does not run.
    """
    import torch
    import transformers

    kind = getattr(transformers, class_name)
    default = transformers.AutoConfig.for_model(model_type)
    if not isinstance(default, kind.config_class):
        raise ValueError(f"{class_name} wants a config of type {kind.config_class.model_type}")
    changes = {**_SIZES, "vocab_size": bound, **ids, **_HELP.get(model_type, {})}
    config = type(default)(**_shrunk(default, changes))
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in kind(config).parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(f"{count:,} parameters at the smallest sizes tried")
    torch.manual_seed(0)
    model = kind(config).eval()
    run(model, range(5, 25))
    try:
        if model_type in _FLOAT32:
            raise RuntimeError
        run(model.to(torch.bfloat16), range(5, 25))
    except RuntimeError:
        run(model.to(torch.float32), range(5, 25))
    return model


def run(model: Any, ids: Iterable[int]) -> Any:
    """The logits of a text."""
    import torch

    batch = torch.tensor([list(ids)])
    inputs = {"input_ids": batch}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = batch[:, :4]
    with torch.inference_mode():
        out = model(**inputs)
    return (out["logits"] if "logits" in out else out[0])[0]
