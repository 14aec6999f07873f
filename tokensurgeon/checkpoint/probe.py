"""Load a checkpoint as a user would, in a process of its own: ``python -m tokensurgeon.checkpoint.probe``.

Reads a job from stdin, writes one JSON document to stdout, as its last line. Only this file instantiates a
model: with its weights (task ``read``), or without them to ask what its class ties (task ``ties``).
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from typing import Any

import torch

from tokensurgeon.child import limit_self
from tokensurgeon.vocab.chat import pinned_time


class _Collector(logging.Handler):
    """Keeps warnings of the libraries instead of printing them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.messages.append(record.getMessage())


def main() -> None:
    """Do the job on stdin."""
    job = json.load(sys.stdin)
    limit_self(**job["limits"])
    out, sys.stdout = sys.stdout, sys.stderr  # a model's own code may print
    import transformers

    collector = _Collector()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.add_handler(collector)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = _find_ties(job) if job["task"] == "ties" else _read(job)
    result["warnings"] = [*collector.messages, *(str(warning.message) for warning in caught)]
    out.write(f"\n{json.dumps(result)}\n")


def _read(job: dict[str, Any]) -> dict[str, Any]:
    result = _read_tokenizer(job)
    tokenizer = result.pop("tokenizer", None)
    if job["forward"]:
        result["model"] = _run_model(job, tokenizer)
    return result


def _read_tokenizer(job: dict[str, Any]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["directory"], trust_remote_code=job["trust_remote_code"])
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in job["texts"]]
    framed = [tokenizer(text)["input_ids"] for text in job["texts"]]
    chat = None
    if job["messages"] and tokenizer.chat_template:
        text = tokenizer.apply_chat_template(job["messages"], tokenize=False, strftime_now=pinned_time)
        chat = [text, tokenizer(text, add_special_tokens=False)["input_ids"]]
    roles = {
        role: getattr(tokenizer, f"{role}_token_id")
        for role in ("bos", "eos", "pad", "unk")
        if getattr(tokenizer, f"{role}_token_id", None) is not None
    }
    return {
        "tokenizer": tokenizer,
        "tokenizer_class": type(tokenizer).__name__,
        "ids": ids,
        "framed": framed,
        "chat": chat,
        "roles": roles,
    }


def _run_model(job: dict[str, Any], tokenizer: Any) -> dict[str, Any]:  # noqa: ANN401 - a transformers class
    config = _read_config(job)
    model, info = _find_class(config).from_pretrained(
        job["directory"],
        dtype="auto",
        trust_remote_code=job["trust_remote_code"],
        output_loading_info=True,
    )
    model.eval()
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    generation = getattr(model, "generation_config", None)
    return {
        "class": type(model).__name__,
        "problems": {key: sorted(map(str, value)) for key, value in dict(info).items() if value},
        "embedding_as_stored": _is_stored(table, job["embedding"]),
        "head_as_stored": head is None or job["head"] is None or _is_stored(head, job["head"]),
        "positions_from_pad": _counts_from_padding(model, config),
        "default_pad": getattr(type(config)().get_text_config(), "pad_token_id", None),
        "untied_alike": _untied_alike(model, tokenizer, job) if job["untied"] else None,
        "config_ids": {role: getattr(config, f"{role}_token_id", None) for role in ("bos", "eos", "pad")},
        "generation_ids": {
            role: getattr(generation, f"{role}_token_id", None) for role in ("bos", "eos", "pad")
        },
        **_forward(model, tokenizer, job),
    }


def _read_config(job: dict[str, Any]) -> Any:  # noqa: ANN401 - a transformers class
    import transformers

    return transformers.AutoConfig.from_pretrained(
        job["directory"], trust_remote_code=job["trust_remote_code"]
    )


def _find_class(config: Any) -> Any:  # noqa: ANN401
    import transformers

    name = (config.architectures or ["AutoModel"])[0]
    return getattr(transformers, name, transformers.AutoModelForCausalLM)


def _find_ties(job: dict[str, Any]) -> dict[str, Any]:
    """What the class of a checkpoint ties, and what keeps it from untying."""
    kind = type(_read_config(job))
    configs = [kind.from_dict(job[name]) for name in ("config", "untied_config")]
    model, untied = (_set_up(config, job) for config in configs)
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    module = model.get_output_embeddings()
    names = (f"{name}.weight" for name, part in model.named_modules() if part is module)
    head = None if module is None else next(names)
    obstacle = ""
    if head in untied.get_expanded_tied_weights_keys(all_submodels=True):
        obstacle = "is always tied, whatever its config says"
    changed = _differing(*(config.to_dict() for config in configs))
    if changed:
        obstacle = obstacle or f"reads {', '.join(changed)} from tie_word_embeddings, too"
    return {"class": type(model).__name__, "head": head, "tied": tied, "obstacle": obstacle}


def _set_up(config: Any, job: dict[str, Any]) -> Any:  # noqa: ANN401
    """A model without weights."""
    loader = _find_class(config)
    with torch.device("meta"):
        if hasattr(loader, "from_config"):
            return loader.from_config(config, trust_remote_code=job["trust_remote_code"])
        return loader(config)


def _differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Fields of two configs that differ besides the one that was changed."""
    found = []
    for key in sorted((one.keys() | other.keys()) - {"tie_word_embeddings"}):
        old, new = one.get(key), other.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differing(old, new)
        elif old != new:
            found.append(key)
    return found


def _untied_alike(model: Any, tokenizer: Any, job: dict[str, Any]) -> bool:  # noqa: ANN401
    """Whether the two ends are apart, and the class computes what it would compute for tied ones."""
    reads, writes = model.get_input_embeddings(), model.get_output_embeddings()
    if reads.weight is writes.weight:
        return False
    # Some classes scale their hidden states when, and only when, their config says tied.
    levels = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}.values()
    scores = []
    for tied in (True, False):
        for level in levels:
            level.tie_word_embeddings = tied
        scores.append(_call(model, tokenizer, job["prompts"][0])["logits"])
    return torch.equal(*scores)


def _counts_from_padding(model: Any, config: Any) -> bool:  # noqa: ANN401
    """Whether the first position is the one behind the padding id, as in RoBERTa and what was made of it."""
    pad = getattr(config.get_text_config(), "pad_token_id", None)
    return pad is not None and any(
        name.rpartition(".")[2] in ("position_embeddings", "embed_positions") and module.padding_idx == pad
        for name, module in model.named_modules()
        if hasattr(module, "padding_idx")
    )


def _call(model: Any, tokenizer: Any, prompt: str) -> Any:  # noqa: ANN401
    ids = torch.tensor([tokenizer(prompt)["input_ids"] or [0]])
    inputs = {"input_ids": ids}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids[:, :1]
    with torch.inference_mode():
        return model(**inputs)


def _is_stored(module: Any, place: dict[str, str]) -> bool:  # noqa: ANN401
    """Whether a loaded table is the stored one, in the dtype it was loaded in; some zero their padding."""
    from safetensors import safe_open

    loaded, padding = module.weight.detach(), getattr(module, "padding_idx", None)
    with safe_open(place["file"], framework="pt") as file:
        stored = file.get_tensor(place["name"]).to(loaded.dtype)
    if stored.shape == loaded.shape and padding is not None and not loaded[padding].any():
        stored[padding] = 0
    return torch.equal(stored, loaded)


def _forward(model: Any, tokenizer: Any, job: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    finite, margin, answers = True, None, []
    padding = torch.tensor(job["padding_ids"], dtype=torch.int64)
    for prompt in job["prompts"]:
        out = _call(model, tokenizer, prompt)
        scores = out["logits"] if "logits" in out else out[0]
        finite = finite and bool(torch.isfinite(scores).all())
        if "logits" in out and scores.shape[-1] == job["rows"]:
            answers.append(int(scores[0, -1].argmax()))
            if len(padding):
                # How far the best padding id stays below the best token, at the worst position.
                logits = scores[0].to(torch.float32, copy=True)
                best_padding = logits[:, padding].max(dim=1).values
                logits[:, padding] = -torch.inf
                gap = float((logits.max(dim=1).values - best_padding).min())
                margin = gap if margin is None else min(margin, gap)
    return {"finite": finite, "padding_margin": margin, "answers": tokenizer.convert_ids_to_tokens(answers)}


if __name__ == "__main__":
    main()
