"""What a recipe brings besides the models: texts, word vectors, a text encoder. Read when first asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokensurgeon.errors import InputError, ResourceError
from tokensurgeon.evaluation.texts import read_texts
from tokensurgeon.methods.base import WordVectors
from tokensurgeon.recipe.schema import ResourceRules
from tokensurgeon.solvers.dictionary import fast_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_MOST_WORDS = 200_000
_TEXTS_AT_A_TIME = 256


class FileResources:
    """The resources of a recipe, from files.

    Args:
        rules: Names them.
        base: Directory of the base.
        device: Where to compute.
        trust_remote_code: Whether code that comes with a model may run.
        seed: Of what the base writes.
    """

    def __init__(
        self,
        rules: ResourceRules,
        base: Path,
        device: torch.device,
        trust_remote_code: bool = False,
        seed: int = 0,
    ) -> None:
        self._rules = rules
        self._base = base
        self._device = device
        self._trust_remote_code = trust_remote_code
        self._seed = seed
        self._written: dict[tuple[int, int, str], dict[str, str]] = {}

    def check(self) -> None:
        """Read what is quick to read, so that a run does not fail after an hour.

        Raises:
            InputError: A file is missing, empty, or not what it should be.
        """
        rules = self._rules
        for path in (rules.base_vectors, rules.target_vectors):
            if path is not None and not Path(path).expanduser().is_file():
                raise InputError(f"{path}: no such file", "word vectors in word2vec's text or binary format")
        _ = (self.corpus, self.parallel, self.dictionary)
        if rules.encoder is not None:
            self.embed_texts(["a"])

    @cached_property
    def digest(self) -> str:
        """A name for the contents of all files, large ones by size and time.

        The hypernetwork is not one of them: a run may write it, and nothing kept depends on it.
        """
        rules = self._rules
        texts = [*rules.corpus, *(path for pair in rules.parallel for path in (pair.base, pair.target))]
        texts += [path for path in (rules.dictionary,) if path is not None]
        large = [Path(path) for path in (rules.base_vectors, rules.target_vectors) if path is not None]
        large += sorted(self._base.glob("*.safetensors"))
        if rules.encoder is not None:
            large += sorted(Path(rules.encoder.path).expanduser().glob("*.safetensors"))
        stats = [(str(path), path.expanduser().stat()) for path in large if path.expanduser().is_file()]
        facts = [repr(rules.encoder), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)]
        digest = hashlib.sha256(repr(facts).encode())
        for path in texts:
            digest.update(hashlib.sha256(Path(path).expanduser().read_bytes()).digest())
        return digest.hexdigest()

    @cached_property
    def corpus(self) -> list[str]:
        """Lines of the corpus, none of them blank."""
        lines = [line for path in self._rules.corpus for line in _read_lines(path) if line.strip()]
        if self._rules.corpus and not lines:
            raise InputError(f"{', '.join(self._rules.corpus)}: blank", "lines of text")
        return lines

    @cached_property
    def parallel(self) -> list[tuple[str, str]]:
        """Pairs of lines, neither of them blank."""
        pairs: list[tuple[str, str]] = []
        for files in self._rules.parallel:
            ours, theirs = _read_lines(files.base), _read_lines(files.target)
            if len(ours) != len(theirs):
                raise InputError(
                    f"{files.base}: {len(ours)} lines, {files.target}: {len(theirs)} lines",
                    "as many lines in both, each the translation of the other",
                )
            pairs += [pair for pair in zip(ours, theirs, strict=True) if all(line.strip() for line in pair)]
        return pairs

    @cached_property
    def dictionary(self) -> list[tuple[str, str]]:
        """Pairs of words."""
        if self._rules.dictionary is None:
            return []
        pairs = []
        for number, line in enumerate(_read_lines(self._rules.dictionary), 1):
            word, tab, translation = line.strip().partition("\t")
            if not line.strip():
                continue
            if not tab:
                raise InputError(
                    f"{self._rules.dictionary}: line {number} has no tab", "a base word, a tab, a translation"
                )
            pairs.append((word, translation))
        return pairs

    @cached_property
    def base_vectors(self) -> WordVectors | None:
        """Word vectors of the base's language."""
        return _read_vectors(self._rules.base_vectors)

    @cached_property
    def target_vectors(self) -> WordVectors | None:
        """Word vectors of the target's language."""
        return _read_vectors(self._rules.target_vectors)

    @cached_property
    def _encoder(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        from tokensurgeon.evaluation.loading import silent_loading

        reference = self._rules.encoder
        assert reference is not None, "the plan refuses a method without its encoder"
        options = {"revision": reference.revision, "trust_remote_code": self._trust_remote_code}
        try:
            with silent_loading():
                tokenizer = AutoTokenizer.from_pretrained(reference.path, **options)
                model = AutoModel.from_pretrained(
                    reference.path, dtype="float32", use_safetensors=True, **options
                )
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(
                f"{reference.path}: {error}", "a text encoder that AutoModel and AutoTokenizer can load"
            ) from error
        return tokenizer, model.eval().to(self._device)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts: the mean of the encoder's last hidden states.

        Args:
            texts: Any number of texts, none of them empty.

        Returns:
            ``(n, d)`` float32, on the CPU.
        """
        tokenizer, model = self._encoder
        # Texts of one length together need no padding, and what else is read does not matter.
        groups: dict[int, list[tuple[int, list[int]]]] = {}
        for place, ids in enumerate(tokenizer(list(texts), truncation=True)["input_ids"]):
            groups.setdefault(len(ids), []).append((place, ids))
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        for group in groups.values():
            for start in range(0, len(group), _TEXTS_AT_A_TIME):
                batch = group[start : start + _TEXTS_AT_A_TIME]
                ids = torch.tensor([ids for _, ids in batch], device=self._device)
                for (place, _), vector in zip(batch, self._encode(model, ids), strict=True):
                    found[place] = vector
        return torch.stack(found)

    @torch.inference_mode()
    def _encode(self, model: Any, ids: Tensor) -> Tensor:  # noqa: ANN401 - a model of transformers
        try:
            states = model(input_ids=ids).last_hidden_state
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"resources.encoder: {type(model).__name__}: {error}", "a model that encodes a text by itself"
            ) from error
        return torch.nn.functional.normalize(states.mean(dim=1), dim=1).cpu()

    def load_body(self) -> PreTrainedModel:
        """The base as a causal language model, float32; kept for the lm_head's turn."""
        return self._base_model[0]

    def of_model(self, directory: Path) -> FileResources:
        """The same with another model in the base's place.

        Args:
            directory: A checkpoint.

        Returns:
            Resources that share nothing with these.
        """
        return FileResources(self._rules, directory, self._device, self._trust_remote_code, self._seed)

    def reload_body(self) -> PreTrainedModel:
        """The base once more, whatever rows the one that was loaded before was given."""
        self.__dict__.pop("_base_model", None)
        return self.load_body()

    def load_base_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that came with the body."""
        return self._base_model[1]

    @cached_property
    def _base_model(self) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        return self._load_model("float32")

    def _load_model(self, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        from tokensurgeon.evaluation.loading import load_model

        return load_model(
            str(self._base), device=str(self._device), dtype=dtype, trust_remote_code=self._trust_remote_code
        )

    def write_texts(
        self,
        turn: int,
        samples: int,
        limit: str = "",
        words: Sequence[int] = (),
        between: Sequence[int] = (),
    ) -> dict[str, str]:
        """Texts that the base writes, by name; seeded, the same for every use in a run.

        Args:
            turn: Other texts for another number.
            samples: How many.
            limit: A name for what they are limited to; empty for texts as the base pleases.
            words: Base ids that may open a text and go on with it, if it is limited.
            between: Base ids that may only go on with it.

        Returns:
            At most so many texts.

        Raises:
            InputError: The base writes no text.
        """
        from tokensurgeon.evaluation.sampling import Allowed, sample_texts

        key = (turn, samples, limit)
        if key not in self._written:
            rows = len(self.load_body().get_input_embeddings().weight)
            known = [index for index in words if index < rows]
            allowed = Allowed(known, [*known, *(i for i in between if i < rows)]) if limit else None
            self._written[key] = sample_texts(
                self.load_fast_body(),
                self.load_base_tokenizer(),
                seed=self._seed + turn,
                samples=samples,
                allowed=allowed,
            )
        return self._written[key]

    def load_fast_body(self) -> PreTrainedModel:
        """The base in the dtype that is fastest, for what need not be exact; not kept."""
        body, dtype = self.load_body(), fast_dtype(self._device)
        return body if dtype is body.dtype else self._load_model(str(dtype).removeprefix("torch."))[0]

    def load_hypernetwork(self) -> dict[str, Tensor] | None:
        """Weights from the recipe's file; None where there is none."""
        if self._rules.hypernetwork is None or not Path(self._rules.hypernetwork).expanduser().is_file():
            return None
        try:
            weights: dict[str, Tensor] = load_file(Path(self._rules.hypernetwork).expanduser())
        except SafetensorError as error:
            raise InputError(
                f"{self._rules.hypernetwork}: {error}", "a hypernetwork that tokensurgeon saved"
            ) from error
        return weights

    def save_hypernetwork(self, weights: dict[str, Tensor]) -> None:
        """Write weights to the recipe's file, if it names one."""
        if self._rules.hypernetwork is None:
            return
        path = Path(self._rules.hypernetwork).expanduser()
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: part.contiguous() for name, part in weights.items()}, unfinished)
            unfinished.replace(path)
        except OSError as error:
            raise ResourceError(f"{path}: {error.strerror}", "a file that can be written") from error


def _read_lines(path: str) -> list[str]:
    text = next(iter(read_texts([Path(path).expanduser()]).values())).removeprefix("\ufeff")
    # Not splitlines: it would cut at characters that no other tool counts as the end of a line.
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _read_vectors(path: str | None) -> WordVectors | None:
    if path is None:
        return None
    from gensim.models import KeyedVectors

    try:
        vectors = KeyedVectors.load_word2vec_format(
            str(Path(path).expanduser()), binary=path.endswith(".bin"), limit=_MOST_WORDS
        )
    except (OSError, ValueError, EOFError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: {error}", "word vectors in word2vec's text format, or binary ones in a .bin"
        ) from error
    return WordVectors(list(vectors.index_to_key), torch.tensor(vectors.vectors, dtype=torch.float32))
