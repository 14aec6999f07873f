"""Which tensors have one row per token is told from names and shapes, or the run stops by name."""

from __future__ import annotations

import pytest
from checkpoint_files import headers

from tokensurgeon.checkpoint.layout import TensorRole, find_layout, is_vocab_name
from tokensurgeon.errors import InputError

V, H = 100, 8
EMBEDDING, HEAD, BIAS, PER_LAYER = (role.value for role in TensorRole)
LAYER = {"model.layers.0.self_attn.q_proj.weight": (H, H), "model.layers.0.mlp.up_proj.weight": (20, H)}
LLAMA = {"model.embed_tokens.weight": (V, H), **LAYER, "model.norm.weight": (H,)}
UNTIED = {**LLAMA, "lm_head.weight": (V, H)}

# Family: tensors, then what each vocabulary tensor is, then whether the model is tied.
FAMILIES = {
    "llama tied": (LLAMA, {"model.embed_tokens.weight": EMBEDDING}, True),
    "llama untied": (UNTIED, {"model.embed_tokens.weight": EMBEDDING, "lm_head.weight": HEAD}, False),
    "gpt2": (
        {"wte.weight": (V, H), "wpe.weight": (50, H), "h.0.attn.c_attn.weight": (H, 24)},
        {"wte.weight": EMBEDDING},
        True,
    ),
    "neox": (
        {
            "gpt_neox.embed_in.weight": (V, H),
            "gpt_neox.final_layer_norm.bias": (H,),
            "embed_out.weight": (V, H),
        },
        {"gpt_neox.embed_in.weight": EMBEDDING, "embed_out.weight": HEAD},
        False,
    ),
    "bert": (
        {
            "bert.embeddings.word_embeddings.weight": (V, H),
            "bert.embeddings.position_embeddings.weight": (50, H),
            "bert.embeddings.token_type_embeddings.weight": (2, H),
            "cls.predictions.bias": (V,),
            "cls.predictions.decoder.weight": (V, H),
            "cls.predictions.decoder.bias": (V,),
            "cls.predictions.transform.dense.bias": (H,),
        },
        {
            "bert.embeddings.word_embeddings.weight": EMBEDDING,
            "cls.predictions.bias": BIAS,
            "cls.predictions.decoder.weight": HEAD,
            "cls.predictions.decoder.bias": BIAS,
        },
        False,
    ),
    "roberta": (
        {
            "roberta.embeddings.word_embeddings.weight": (V, H),
            "lm_head.bias": (V,),
            "lm_head.dense.weight": (H, H),
            "lm_head.layer_norm.bias": (H,),
        },
        {"roberta.embeddings.word_embeddings.weight": EMBEDDING, "lm_head.bias": BIAS},
        True,
    ),
    "t5": (
        {
            "shared.weight": (V, H),
            "encoder.embed_tokens.weight": (V, H),
            "decoder.embed_tokens.weight": (V, H),
            "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 4),
            "lm_head.weight": (V, H),
        },
        {
            "shared.weight": EMBEDDING,
            "encoder.embed_tokens.weight": EMBEDDING,
            "decoder.embed_tokens.weight": EMBEDDING,
            "lm_head.weight": HEAD,
        },
        False,
    ),
    "bart": (
        {
            "model.shared.weight": (V, H),
            "model.encoder.embed_positions.weight": (52, H),
            "final_logits_bias": (1, V),
        },
        {"model.shared.weight": EMBEDDING, "final_logits_bias": BIAS},
        True,
    ),
    "mamba": (
        {"backbone.embeddings.weight": (V, H), "backbone.layers.0.mixer.A_log": (16, 4)},
        {"backbone.embeddings.weight": EMBEDDING},
        True,
    ),
    "gemma3n": (
        {
            "model.language_model.embed_tokens.weight": (V, H),
            "model.language_model.embed_tokens_per_layer.weight": (90, 12),
            "model.embed_vision.embedding.weight": (16, H),
        },
        {
            "model.language_model.embed_tokens.weight": EMBEDDING,
            "model.language_model.embed_tokens_per_layer.weight": PER_LAYER,
        },
        True,
    ),
    "deepseek mtp": (
        {
            "model.layers.61.embed_tokens.weight": (V, H),
            "model.layers.61.shared_head.head.weight": (V, H),
            "model.layers.61.eh_proj.weight": (H, 2 * H),
            **UNTIED,
        },
        {
            "model.layers.61.embed_tokens.weight": EMBEDDING,
            "model.layers.61.shared_head.head.weight": HEAD,
            "model.embed_tokens.weight": EMBEDDING,
            "lm_head.weight": HEAD,
        },
        False,
    ),
    "multimodal": (
        {
            "vision_tower.embeddings.patch_embedding.weight": (H, 3, 14, 14),
            "vision_tower.embeddings.position_embedding.weight": (64, H),
            "language_model.model.embed_tokens.weight": (V, H),
            "language_model.lm_head.weight": (V, H),
        },
        {"language_model.model.embed_tokens.weight": EMBEDDING, "language_model.lm_head.weight": HEAD},
        False,
    ),
}


@pytest.mark.parametrize(("shapes", "roles", "tied"), FAMILIES.values(), ids=FAMILIES)
def test_vocabulary_tensors_of_a_family_are_found(shapes, roles, tied):
    layout = find_layout(headers(shapes), {"vocab_size": V})
    assert {tensor.name: tensor.role.value for tensor in layout.tensors} == roles
    assert layout.names == set(roles)
    assert layout.tied is tied
    assert layout.rows == V
    assert layout.embedding.role is TensorRole.EMBEDDING


@pytest.mark.parametrize(("shapes", "roles", "tied"), FAMILIES.values(), ids=FAMILIES)
def test_names_alone_tell_the_shards_to_fetch(shapes, roles, tied):
    assert all(is_vocab_name(name) for name in roles)
    assert not is_vocab_name("model.layers.0.self_attn.q_proj.weight")


def test_a_bias_in_one_row_counts_tokens_on_its_last_axis():
    layout = find_layout(headers(FAMILIES["bart"][0]), {})
    bias = layout.find(TensorRole.BIAS)
    assert (bias.axis, bias.rows) == (1, V)


def test_a_per_layer_embedding_has_its_own_number_of_rows():
    layout = find_layout(headers(FAMILIES["gemma3n"][0]), {"text_config": {"vocab_size": V}})
    assert layout.find(TensorRole.PER_LAYER).rows == 90


def test_copies_inside_a_layer_are_not_the_main_tensors():
    layout = find_layout(headers(FAMILIES["deepseek mtp"][0]), {"vocab_size": V})
    assert layout.embedding.name == "model.embed_tokens.weight"
    assert layout.head.name == "lm_head.weight"


def test_a_tied_model_uses_its_embedding_as_head():
    layout = find_layout(headers(LLAMA), {})
    assert layout.head is layout.embedding


def test_the_declared_size_tells_the_main_embedding():
    shapes = {"audio.embed_tokens.weight": (300, H), "model.embed_tokens.weight": (V, H)}
    layout = find_layout(headers(shapes), {"text_config": {"vocab_size": V}})
    assert layout.names == {"model.embed_tokens.weight"}


@pytest.mark.parametrize("prefix", ["", "model."])
def test_of_two_equal_embeddings_the_encoders_is_the_main_one(prefix):
    names = [f"{prefix}{side}.embeddings.word_embeddings.weight" for side in ("decoder", "encoder")]
    layout = find_layout(headers(dict.fromkeys(names, (V, H))), {"encoder": {"vocab_size": V}})
    assert layout.embedding.name == names[1]
    assert layout.names == set(names)


def test_rows_in_the_file_are_the_truth():
    assert find_layout(headers(UNTIED), {"vocab_size": -1}).rows == V


@pytest.mark.parametrize("shape", [(V, H), (H, V), (V,), (1, V, H)])
def test_an_unknown_tensor_of_vocabulary_size_stops_by_name(shape):
    with pytest.raises(InputError, match=r"tensor model\.mystery \[.*\] has the vocabulary size 100"):
        find_layout(headers({**LLAMA, "model.mystery": shape}), {"vocab_size": V, "hidden_size": H})


@pytest.mark.parametrize("name", ["vocab_projector.bias", "pred_layer.proj.bias", "model.mystery.bias"])
def test_a_bias_with_an_entry_per_token_is_one_whatever_its_layer_is_called(name):
    layout = find_layout(headers({**LLAMA, name: (V,)}), {"vocab_size": V, "hidden_size": H})
    assert [(bias.name, bias.axis) for bias in layout.tensors if bias.role is TensorRole.BIAS] == [(name, 0)]
    assert layout.tied
    sizes = {"vocab_size": V, "hidden_size": H, "intermediate_size": V}
    assert find_layout(headers({**LLAMA, name: (V,)}), sizes).find(TensorRole.BIAS) is None


@pytest.mark.parametrize("key", ["padded_vocab_size", "n_vocab", "decoder_vocab_size", "embedding_size"])
def test_no_spelling_of_vocabulary_size_excuses_an_unknown_tensor(key):
    with pytest.raises(InputError, match=r"tensor model\.ff_out\.weight \[100, 8\] has the vocabulary size"):
        find_layout(headers({**LLAMA, "model.ff_out.weight": (V, H)}), {"vocab_size": V, key: V})


@pytest.mark.parametrize("key", ["image_token_id", "image_token_index"])
def test_a_token_id_that_equals_the_size_excuses_nothing(key):
    with pytest.raises(InputError, match=r"tensor model\.mystery"):
        find_layout(headers({**LLAMA, "model.mystery": (V, H)}), {"vocab_size": V, key: V})


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": H},
        {"text_config": {"hidden_size": H}},
        {"num_attention_heads": 2, "head_dim": H // 2},
        {"num_attention_heads": 4, "head_dim": 4, "num_key_value_heads": H // 4},
    ],
)
def test_a_hidden_size_equal_to_the_vocabulary_size_stops_nothing(config):
    shapes = {"model.embed_tokens.weight": (H, H), **LAYER, "model.norm.weight": (H,)}
    assert find_layout(headers(shapes), config).names == {"model.embed_tokens.weight"}


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
@pytest.mark.parametrize("dtype", ["I8", "U8", "F8_E4M3"])
def test_a_quantised_vocabulary_tensor_is_refused_by_name(name, dtype):
    index = headers(UNTIED, **{name.replace(".", "_"): dtype})
    with pytest.raises(InputError, match=rf"{name} is {dtype} \[100, 8\]: a quantised vocabulary tensor"):
        find_layout(index, {"vocab_size": V})


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.qweight",
        "lm_head.scales",
        "lm_head.weight_scale",
        "lm_head.weight_scale_inv",
        "lm_head.weight_packed",
        "model.embed_tokens.qweight",
        "model.embed_tokens.weight.absmax",
        "model.embed_tokens.weight.quant_state.bitsandbytes__nf4",
    ],
)
def test_scales_and_packed_forms_beside_a_vocabulary_tensor_are_refused(name):
    with pytest.raises(InputError, match=rf"{name} is .*a quantised vocabulary tensor"):
        find_layout(headers({**UNTIED, name: (16, 2)}), {"vocab_size": V})


def test_a_quantised_body_is_allowed():
    stem = "model.layers.0.mlp.down_proj"
    packed = {f"{stem}.qweight": (4, 20), f"{stem}.scales": (4,), f"{stem}.weight_scale": (1,)}
    index = headers({**UNTIED, **packed}, **{f"{stem}.qweight".replace(".", "_"): "I32"})
    assert find_layout(index, {"vocab_size": V}).names == {"model.embed_tokens.weight", "lm_head.weight"}


def test_overrides_name_what_names_do_not_tell():
    shapes = {"transformer.tokens_in": (V, H), "transformer.ff_out.weight": (V, H), **LAYER}
    overrides = {"embedding": "transformer.tokens_in", "lm_head": "transformer.ff_out.weight"}
    layout = find_layout(headers(shapes), {"vocab_size": V}, overrides)
    assert layout.embedding.name == "transformer.tokens_in"
    assert layout.head.name == "transformer.ff_out.weight"
    assert not layout.tied


def test_an_override_naming_no_tensor_is_refused():
    with pytest.raises(InputError, match=r"layout\.embedding: no tensor model\.tokens"):
        find_layout(headers(LLAMA), {}, {"embedding": "model.tokens"})


@pytest.mark.parametrize("role", ["embedding", "lm_head"])
def test_an_override_naming_a_tensor_without_rows_is_refused(role):
    with pytest.raises(InputError, match=r"layout: model\.norm\.weight is \[8\]"):
        find_layout(headers(LLAMA), {}, {role: "model.norm.weight"})


def test_an_override_naming_a_head_of_another_size_is_refused():
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(InputError, match=rf"layout\.lm_head: {name} has 20 rows, .* has 100"):
        find_layout(headers(LLAMA), {}, {"lm_head": name})


def test_a_head_with_other_rows_than_the_embedding_is_not_taken_for_a_body_tensor():
    with pytest.raises(InputError, match=r"lm_head\.weight has 92 rows, model\.embed_tokens\.weight has 100"):
        find_layout(headers({**LLAMA, "lm_head.weight": (92, H)}), {"vocab_size": V})


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
@pytest.mark.parametrize("shape", [(0, H), (0,)])
def test_an_empty_vocabulary_tensor_is_refused(name, shape):
    with pytest.raises(InputError, match=rf"{name} is empty: .*\n.*ZeRO-3.*\nnext: run zero_to_fp32"):
        find_layout(headers({**UNTIED, name: shape}), {"vocab_size": V})


def test_a_checkpoint_without_an_input_embedding_is_refused():
    with pytest.raises(InputError, match=r"no input embedding among 2 tensors \(model\.layers"):
        find_layout(headers(LAYER), {"vocab_size": V})
