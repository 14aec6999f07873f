"""Every code of a warning or an error: its title, what it means, and what to do about it.

``TS001`` and so on are warnings: a run ends well with them, and they stand in its report. ``TE2`` and so on
are errors, one for each exit code. Codes are stable: none is ever given to something else.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from tokensurgeon.errors import (
    InputError,
    InterruptError,
    PolicyError,
    RecipeError,
    ResourceError,
    TokensurgeonError,
    VerificationError,
)


@dataclass(frozen=True)
class Explanation:
    """What a code stands for.

    Attributes:
        title: In one line.
        meaning: Why it matters, or what leads to it.
        remedy: What a user can do.
    """

    title: str
    meaning: str
    remedy: str


CODES: dict[str, Explanation] = {
    "TS001": Explanation(
        "numbers are cut differently; expect worse arithmetic",
        "The body learnt to calculate on the base's digit tokens, single digits for instance. The target "
        "cuts the same numbers into other groups, which no method of making rows can teach the body to "
        "read.",
        "Set keep_digits: true in the recipe, choose a target that cuts numbers as the base does, or heal "
        "the output on text with numbers.",
    ),
    "TS002": Explanation(
        "more than one BOS in front of a prompt",
        "The tokenizer adds a BOS and the chat template writes another one, or it adds two. Most models "
        "read such prompts worse.",
        "Tokenise rendered chats with add_special_tokens=False, or take the BOS out of the template.",
    ),
    "TS003": Explanation(
        "target tokens that no method of the recipe serves were made by the fallback",
        "The method needs what these tokens lack, mostly a row in the donor, whose embedding may be shorter "
        "than its tokenizer.",
        "Nothing, if the tokens are rare. Else spell them with anchors.map, or name another fallback.",
    ),
    "TS004": Explanation(
        "several target tokens stand for the same bytes",
        "They can only be told apart by id, as a byte piece and a letter of the same byte. Each is matched "
        "on its own, by kind first.",
        "Nothing; `tokensurgeon inspect` and the report show examples.",
    ),
    "TS005": Explanation(
        "a chat marker has no counterpart in the base",
        "The target's chat template writes special tokens that the base never saw. A method made their "
        "rows, which say little of where a turn begins or ends.",
        "Map each to what the base has instead, such as anchors.map: {'<|im_end|>': '<end_of_turn>'}, or "
        "train on chats.",
    ),
    "TS006": Explanation(
        "a config names a token that the target does not have",
        "A field such as pad_token_id named a base token without a counterpart. It is null in the output.",
        "Set the field in the output's config by hand if a program needs it, or map the token with "
        "anchors.map.",
    ),
    "TS007": Explanation(
        "config.json and the stored embedding disagree on the vocabulary size",
        "The base itself says so: some libraries would not load it. The output's config says what is stored.",
        "Nothing; check the base with `tokensurgeon verify` if it was meant to be used as well.",
    ),
    "TS008": Explanation(
        "the tokenizers normalise text differently",
        "One of them folds case, strips accents or rewrites letters, the other does not. Tokens are matched "
        "by what is left after that, and the output reads text as the target leaves it.",
        "Choose a cased target for a cased base; otherwise expect the output to miss what the target drops.",
    ),
    "TS009": Explanation(
        "the target has no BOS; the base was trained with one",
        "Attention of many models rests on the first token. Without it the first words are read badly, and "
        "sometimes all of a text.",
        "Put the token that the base's BOS became in front of prompts, or name one with anchors.map.",
    ),
    "TS010": Explanation(
        "new tokens share one row",
        "A method gave several tokens the same row, as `mean` and `zero` do by design and others do where "
        "all they know of the tokens is equal. The model cannot tell them apart.",
        "Choose a method that tells tokens apart, or heal the output.",
    ),
    "TS011": Explanation(
        "AutoTokenizer frames texts with other special tokens than tokenizer.json",
        "The class that transformers chooses adds BOS or EOS by its own rule; or it gives other ids, which "
        "verify.allow_reader_mismatch let pass.",
        "Compare ids in the program that will read the output; PreTrainedTokenizerFast reads tokenizer.json "
        "as it is.",
    ),
    "TS012": Explanation(
        "warnings while the output was loaded",
        "transformers, or Python, warned in the fresh process in which the output was loaded.",
        "Read the text of the warning. Base and target give the same one where they are at fault.",
    ),
    "TS013": Explanation(
        "base pieces do not spell all bytes of some tokens",
        "The base's tokenizer has no token for some bytes, so that methods that read pieces know only a "
        "part of these tokens.",
        "Use a method with a donor for them, or spell them with anchors.map.",
    ),
    "TS014": Explanation(
        "the target directory holds tokenizer files of two kinds",
        "Which one counts depends on the program that reads the output; they may disagree.",
        "Delete the one that is not used from a copy of the target, and run again.",
    ),
    "TS015": Explanation(
        "the output was not loaded for verification",
        "verify.forward is off, so bytes and ids were checked, but no model was built from them.",
        "Run `tokensurgeon verify OUT` where there is memory for the model.",
    ),
    "TS016": Explanation(
        "base tokens have no row of their own",
        "Their ids lie past the base's embedding. They are treated as if they were not there.",
        "Nothing; the base could not read them either.",
    ),
    "TS017": Explanation(
        "an id without a token is the most likely next one",
        "A padding row of the base wins on one of the probe prompts, so that generation can give an id that "
        "decodes to nothing. The row is the base's own and was not changed.",
        "Set rows: exact to leave padding rows out, or suppress the id when generating.",
    ),
    "TS018": Explanation(
        "the texts were not scored",
        "The output is finished and verified, but bits per byte could not be measured, for the reason given.",
        "Mend that, and run `tokensurgeon eval BASE OUT --text FILE`; --max-bpb-increase refuses such "
        "outputs.",
    ),
    "TS019": Explanation(
        "the base opens every prompt with BOS, the target's tokenizer does not",
        "The target has a BOS but does not add it by itself. Without it many models ramble.",
        "Put the token that the warning names in front of each prompt.",
    ),
    "TS020": Explanation(
        "the base is tied, the output is not",
        "untie: true gave the output an lm_head of its own, which costs what the warning says.",
        "Nothing, if that was meant; leave untie out otherwise.",
    ),
    "TS021": Explanation(
        "untie changes nothing",
        "The base already stores an lm_head of its own.",
        "Leave untie out of the recipe.",
    ),
    "TS022": Explanation(
        "ids of texts with numbers differ from those of the raw target's tokenizer",
        "keep_digits rewrote tokenizer.json to cut numbers as the base does. Data that the raw target "
        "tokenised has other ids wherever there are digits.",
        "Tokenise data for the output with the output's own tokenizer.",
    ),
    "TS023": Explanation(
        "keep_digits changes nothing",
        "Base and target cut numbers alike.",
        "Leave keep_digits out of the recipe.",
    ),
    "TS024": Explanation(
        "auto did not measure its candidates",
        "The base could not be run, or there was too little to hide, so the first candidate was taken.",
        "Mend the reason that is given, name a method, or set method.calibrate: true to be refused instead.",
    ),
    "TS025": Explanation(
        "healing diverged; the best rows before are kept",
        "A loss was no number, or held-out text was read much worse. Training ended there.",
        "Lower heal.learning_rate, or raise heal.batch_tokens.",
    ),
    "TS026": Explanation(
        "healing changed nothing",
        "No held-out score was better than that of the rows as they were made, or there was nothing to "
        "train.",
        "Give more text, text of the kind the model is for, or more steps.",
    ),
    "TS027": Explanation(
        "auto had too little time",
        "method.minutes were over before every candidate was tried, or what was left of them was too little "
        "to fit rows to as many texts as new_rows.head_texts asks for.",
        "Give more minutes, fewer candidates, or no limit.",
    ),
    TokensurgeonError.code: Explanation(
        "a bug",
        "Something happened that the program does not expect. No output was left behind.",
        "Report it with the traceback above the message, the command and the recipe.",
    ),
    RecipeError.code: Explanation(
        "the recipe or the command line is wrong",
        "A key, an option or a value is unknown, or several do not go together. All mistakes of a recipe "
        "are listed at once; nothing was read or written.",
        "Change what the message names; `tokensurgeon VERB --help` and `tokensurgeon recipes` show what "
        "there is.",
    ),
    InputError.code: Explanation(
        "an input cannot be used as it is",
        "A model, tokenizer, text or other file is missing, damaged, or of a kind that is not known.",
        "Mend or replace the file that the message names.",
    ),
    PolicyError.code: Explanation(
        "refused until it is allowed",
        "It could be done, but may harm: an output exists, a model brings its own code or pickles, there "
        "are too few anchors for good rows.",
        "If you are sure, give what the message names, such as --force or --trust-remote-code.",
    ),
    VerificationError.code: Explanation(
        "a checkpoint is not what it should be",
        "A check failed: of `verify`, of an output before it appears, of a draft by the rule of an engine; "
        "or an output has a warning of --fail-on, or costs more bits per byte than --max-bpb-increase "
        "allows.",
        "A run has published nothing; the message names each check with what was found.",
    ),
    ResourceError.code: Explanation(
        "not enough memory or disk",
        "The run would need more than there is, or met the end of it.",
        "Free some, lower runtime.memory_gb, or choose another place for the output.",
    ),
    InterruptError.code: Explanation(
        "interrupted",
        "Ctrl-C ended the program. No output was left behind.",
        "Run it again; with --work-dir a long run goes on from the batches that it had finished.",
    ),
}


def find_code(name: str) -> str:
    """Look a code up, whatever its case.

    Args:
        name: Such as ``ts017``.

    Returns:
        The code as it is written.

    Raises:
        RecipeError: There is none of that name.
    """
    code = name.strip().upper()
    if code not in CODES:
        near = difflib.get_close_matches(code, CODES, n=1)
        raise RecipeError(
            f"code {name!r}",
            "a code of a warning or an error, such as TS001",
            f"did you mean {near[0]!r}? `tokensurgeon --explain all` lists them"
            if near
            else "`tokensurgeon --explain all` lists them",
        )
    return code
