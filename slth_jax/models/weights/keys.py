"""Tables of configuration keys, which state for each key whether it is used or ignored."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from slth_jax import checks


class Keys(NamedTuple):
    """The keys of a configuration that a reader accepts.

    Attributes:
      used: a dict from each key that affects the function to its default in the original library.
      only: a dict from each key that affects the function to its supported values.
      ignored: the keys that have no effect on the function.
      aliases: a dict from other names to keys in `used`.
    """

    used: Mapping[str, Any]
    only: Mapping[str, tuple[Any, ...]]
    ignored: frozenset[str]
    aliases: Mapping[str, str] = {}


def read(fields: Any, keys: Keys, *, kind: str) -> dict[str, Any]:
    """Return the used keys with their values in `fields`; absent keys get their defaults.

    Raises:
      ValueError: a key's effect is unknown, its value is not supported, or a key and its alias have
        different values.
    """
    if not isinstance(fields, dict):
        raise checks.fail("config", "a JSON object", type(fields).__name__)
    values = dict(keys.used)
    source: dict[str, str] = {}
    for key, value in fields.items():
        name = keys.aliases.get(key, key)
        if name in keys.used:
            if name in source and values[name] != value:
                raise checks.fail(key, f"equal to {source[name]} = {values[name]!r}", repr(value))
            values[name] = value
            source[name] = key
        elif key in keys.only:
            # Types are compared too, since 1 must not count as True.
            if not any(value == v and type(value) is type(v) for v in keys.only[key]):
                allowed = " or ".join(map(repr, keys.only[key]))
                raise checks.fail(key, f"{allowed} in a {kind} that is supported", repr(value)[:80])
        elif key not in keys.ignored:
            allowed = f"absent, since its effect on a {kind} is unknown to this reader"
            raise checks.fail(repr(key)[:80], allowed, repr(value)[:80])
        elif "drop" in key and value is not None:  # off after training, but a number
            checks.number(key, value, low=0, high=1)
    return values


def flag(values: Mapping[str, Any], name: str) -> bool:
    """Return the value of `name`, which must be true or false; null counts as false."""
    if values[name] is not None and not isinstance(values[name], bool):
        raise checks.fail(name, "true or false", repr(values[name])[:80])
    return bool(values[name])


def size(values: Mapping[str, Any], name: str, otherwise: int | None = None) -> int:
    """Return the value of `name`, a positive integer; return `otherwise` if it is null."""
    if values[name] is None and otherwise is not None:
        return otherwise
    return checks.integer(name, values[name], low=1)


# Keys of any Hugging Face configuration that do not change the logits of a forward pass.
_IGNORED = """
    architectures transformers_version torch_dtype dtype use_cache return_dict
    return_dict_in_generate output_hidden_states output_attentions output_scores id2label
    label2id num_labels problem_type torchscript use_bfloat16 chunk_size_feed_forward
    initializer_range initializer_factor bos_token_id eos_token_id pad_token_id sep_token_id
    cls_token_id mask_token_id unk_token_id decoder_start_token_id forced_bos_token_id
    forced_eos_token_id begin_suppress_tokens suppress_tokens prefix finetuning_task
    task_specific_params tokenizer_class name_or_path _name_or_path _model_name_or_path _commit_hash
    _attn_implementation _attn_implementation_autoset _experts_implementation
    attn_implementation _flash_attn_2_enabled model_type max_length min_length do_sample
    early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids num_return_sequences exponential_decay_length_penalty remove_invalid_values
    tf_legacy_loss gradient_checkpointing pretraining_tp attention_dropout hidden_dropout
    resid_pdrop embd_pdrop attn_pdrop hidden_dropout_prob attention_probs_dropout_prob
    classifier_dropout summary_type summary_use_proj summary_activation summary_proj_to_labels
    summary_first_dropout reorder_and_upcast_attn n_ctx is_llama_config transformers.js_config
    unsloth_fixed unsloth_version output_past
"""
HUGGING_FACE_IGNORED = frozenset(_IGNORED.split())

HUGGING_FACE_ONLY: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "is_encoder_decoder": (False, None),
    "is_decoder": (False, True, None),
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "auto_map": (None,),  # code of the model, which is not run
}
