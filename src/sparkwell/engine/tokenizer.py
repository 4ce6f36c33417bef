"""Text to tokens and back: a model folder's tokenizer, chat template and end tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparkwell.checkpoints.config import read_json_object
from sparkwell.errors import BadCheckpoint, BadInput

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
INCOMPLETE = "\ufffd"  # what decoders put for bytes that are no whole character
MAX_PENDING = 16  # tokens; longer without a whole character, the bytes are none
CONTEXT = 8  # prompt tokens that the first output token is decoded behind


class Detokenizer:
    """Tokens to text, one at a time; never passes on half a character.

    Decoding depends on what stands before (a leading space, the bytes of a character), so a token
    is decoded together with the tokens since the last but one whole character, and what is new
    in that text is passed on.

    context: tokens that come before the first one pushed; their own text is not passed on.
    """

    def __init__(self, tokenizer: "Tokenizer", context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = list(context[-CONTEXT:])
        text = tokenizer.decode(self._window)
        self._sent = len(text.rstrip(INCOMPLETE))  # characters of the window already passed on
        self._whole = len(self._window)  # tokens up to the last whole character

    def push(self, token_id: int) -> str:
        """The text that the token completes; "" for a special token or part of a character."""
        if token_id in self._tokenizer.special_ids:
            return ""  # has no text, and as the only left neighbour it would hide a space
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        pending = text.endswith(INCOMPLETE)
        if pending and len(self._window) - self._whole <= MAX_PENDING:
            return self._emit(text.rstrip(INCOMPLETE))
        new = self._emit(text)
        if pending:  # bytes that never become a character: forget them
            self._window, self._whole, self._sent = [], 0, 0
            return new
        self._window = self._window[self._whole :]
        self._whole = len(self._window)
        self._sent = len(self._tokenizer.decode(self._window))
        return new

    def flush(self) -> str:
        """The text held back, half a character as U+FFFD: no more tokens follow."""
        return self._emit(self._tokenizer.decode(self._window))

    def _emit(self, text: str) -> str:
        new = text[self._sent :]
        self._sent += len(new)
        return new


class Tokenizer:
    """A model folder's tokenizer.

    backend: a transformers tokenizer; eos_ids: tokens that end an answer.
    """

    def __init__(self, backend: Any, eos_ids: frozenset[int]) -> None:
        self._backend = backend
        self.eos_ids = eos_ids
        added = backend.added_tokens_decoder
        self.special_ids: frozenset[int] = frozenset(backend.all_special_ids) | {
            token_id for token_id, token in added.items() if token.special
        }
        self.vocab_size: int = max(backend.get_vocab().values()) + 1
        # The first call may rewrite the tokenizer's truncation and padding; later ones only read,
        # so that several threads can encode and decode at the same time.
        self.encode("")

    @classmethod
    def load(cls, folder: Path | str) -> "Tokenizer":
        """The tokenizer in a model folder; nothing is downloaded and no code of the folder runs.

        Raises: BadCheckpoint if there is none or it cannot be read.
        """
        from transformers import AutoTokenizer

        folder = Path(folder)
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise _bad_tokenizer(folder, f"none of {', '.join(TOKENIZER_FILES)}")
        try:
            backend = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the tokenizers library raises Exception itself
            raise _bad_tokenizer(folder, f"{type(error).__name__}: {error}") from error
        return cls(backend, _eos_ids(folder, backend))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text; `special` adds what the model wants around it (such as <bos>)."""
        # Not verbose: how long a text may be is for the engine to say, not for the tokenizer.
        return list(self._backend.encode(text, add_special_tokens=special, verbose=False))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(
            self._backend.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation, up to where the assistant's answer begins.

        messages: each with "role" and "content".
        Raises: BadInput if the model has no chat template, or its template refuses the messages.
        """
        from jinja2 import TemplateError

        if not self._backend.chat_template:
            raise BadInput("this model has no chat template; give it plain text to complete")
        for message in messages:
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise BadInput(
                    f'chat: a message is {message!r}, want {{"role": ..., "content": ...}}'
                )
        if not messages:
            raise BadInput("chat: messages is empty, want at least one message")
        try:
            ids = self._backend.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise BadInput(f"chat: the model's template refuses these messages: {error}") from error
        return list(ids)

    def detokenizer(self, context: Sequence[int] = ()) -> Detokenizer:
        """A new incremental decoder; `context`: the tokens before its first one (the prompt)."""
        return Detokenizer(self, context)


def _bad_tokenizer(folder: Path, came: str) -> BadCheckpoint:
    return BadCheckpoint(
        "no tokenizer that can be read",
        file=folder,
        came=came,
        wanted="tokenizer.json and tokenizer_config.json",
        do="download the model's tokenizer files into the folder",
    )


def _eos_ids(folder: Path, backend: Any) -> frozenset[int]:
    """End tokens by generation_config.json, config.json and the tokenizer together.

    Chat models name several, and not all three sources name them all.
    """
    ids = set() if backend.eos_token_id is None else {int(backend.eos_token_id)}
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not path.is_file():
            continue
        named = read_json_object(path).get("eos_token_id")
        listed = named if isinstance(named, list) else [] if named is None else [named]
        if not all(isinstance(token, int) for token in listed):
            raise BadCheckpoint(
                "end tokens that cannot be read",
                file=path,
                came=f"eos_token_id {named!r}",
                wanted="a token id or a list of them",
                do="download the file again",
            )
        ids.update(listed)
    return frozenset(ids)
