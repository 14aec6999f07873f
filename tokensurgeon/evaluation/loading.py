"""Load a causal language model and its tokenizer for measuring, and refuse what is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from tokensurgeon.device import find_device
from tokensurgeon.errors import InputError, PolicyError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

DTYPES = ("float32", "bfloat16", "float16", "auto")

# What transformers and its readers make of files that are not what they should be.
_UNREADABLE = (
    OSError, ValueError, TypeError, LookupError, AttributeError, SafetensorError, StrictDataclassError,
)  # fmt: skip


def load_model(
    model_dir: str, *, device: str = "auto", dtype: str = "float32", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load a causal language model for scoring.

    Args:
        model_dir: Local directory or hub id.
        device: A torch device, or ``auto``: CUDA where there is one.
        dtype: One of ``DTYPES``; ``auto`` keeps the checkpoint's.
        trust_remote_code: Whether code that comes with the checkpoint may run.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        RecipeError: No such device or dtype.
        InputError: The directory holds no causal language model, or not all of its weights.
        PolicyError: It needs its own code, and that is not allowed.
    """
    if dtype not in DTYPES:
        raise RecipeError(f"dtype {dtype!r}", f"one of {', '.join(DTYPES)}")
    target = find_device(device)
    try:
        with silent_loading():
            config = AutoConfig.from_pretrained(model_dir, trust_remote_code=trust_remote_code)
            check_architecture(model_dir, config.architectures, getattr(config, "auto_map", None))
            tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=trust_remote_code)
            model, loading = AutoModelForCausalLM.from_pretrained(
                model_dir,
                config=config,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, by name
            )
    except _UNREADABLE as error:
        if "trust_remote_code" in str(error):
            raise PolicyError(
                f"{model_dir}: needs code that comes with the checkpoint", "a model transformers knows"
            ) from error
        raise InputError(f"{model_dir}: {error}", "a causal language model with its tokenizer") from error
    wrong = sorted(loading["missing_keys"]) + sorted(str(key[0]) for key in loading["mismatched_keys"])
    if wrong:
        # transformers would fill these with random numbers and go on.
        raise InputError(
            f"{model_dir}: {len(wrong)} tensors missing or of another shape, the first {wrong[0]}",
            f"all weights of {type(model).__name__}",
        )
    return model.eval().to(target), tokenizer


def load_tokenizer(directory: str, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """Load a tokenizer alone.

    Args:
        directory: Local directory or hub id.
        trust_remote_code: Whether code that comes with it may run.

    Returns:
        As AutoTokenizer reads it.

    Raises:
        InputError: There is none that can be read.
    """
    try:
        with silent_loading():
            tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(
                directory, trust_remote_code=trust_remote_code
            )
    except _UNREADABLE as error:
        raise InputError(f"{directory}: {error}", "a tokenizer that AutoTokenizer can read") from error
    return tokenizer


@contextmanager
def silent_loading() -> Iterator[None]:
    """Keep transformers quiet while it loads a model, or lets one write."""
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()


def check_architecture(
    model_dir: str, architectures: Sequence[str] | None, auto_map: Mapping[str, str] | None
) -> None:
    """Refuse a checkpoint that AutoModelForCausalLM would turn into something it was not.

    Args:
        model_dir: For the message.
        architectures: As its config says.
        auto_map: As its config says.

    Raises:
        InputError: It is a masked or sequence-to-sequence model, or another that writes no text.
    """
    known = {str(name) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}
    named = set(architectures or ())
    own_code = "AutoModelForCausalLM" in (auto_map or {})
    if named and not named & known and not own_code:
        raise InputError(f"{model_dir}: {', '.join(sorted(named))}", "a causal language model")
