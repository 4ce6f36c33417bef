"""Log-probabilities in the two shapes of OpenAI's API."""

from collections.abc import Sequence

from sparkwell.engine.request import TokenLogprob
from sparkwell.engine.tokenizer import INCOMPLETE, Tokenizer
from sparkwell.server.responses import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    TopLogprob,
)


class TokenNames:
    """The text of single tokens.  One for a server: it remembers each token it has named.

    Special tokens and parts of characters have no text of their own.  They are called token_id:N,
    so that two alternatives never share a name, and their bytes are null.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, list[int] | None]] = {}

    def text(self, token_id: int) -> str:
        """The token's text, or token_id:N."""
        return self._name(token_id)[0]

    def bytes(self, token_id: int) -> list[int] | None:
        """UTF-8 of the token's text; None if it has none."""
        return self._name(token_id)[1]

    def _name(self, token_id: int) -> tuple[str, list[int] | None]:
        if token_id not in self._known:
            text = self._tokenizer.decode([token_id])
            has_text = text != "" and INCOMPLETE not in text
            made = (text, list(text.encode())) if has_text else (f"token_id:{token_id}", None)
            self._known[token_id] = made
        return self._known[token_id]


def chat_logprobs(names: TokenNames, entries: Sequence[TokenLogprob]) -> ChatLogprobs:
    """logprobs of a chat choice, or of one chunk of it."""
    return ChatLogprobs(
        content=[
            ChatTokenLogprob(
                token=names.text(entry.token_id),
                logprob=entry.logprob,
                bytes=names.bytes(entry.token_id),
                top_logprobs=[
                    TopLogprob(token=names.text(token), logprob=value, bytes=names.bytes(token))
                    for token, value in entry.top
                ],
            )
            for entry in entries
        ]
    )


class CompletionLogprobsBuilder:
    """logprobs of a completion choice, chunk by chunk.

    A token's text_offset is the number of characters of the choice's text before it, which follows
    from decoding the tokens in a row: single tokens' texts do not add up to it where characters
    are split over tokens.

    with_top: whether alternatives were asked for.
    """

    def __init__(
        self, names: TokenNames, tokenizer: Tokenizer, prompt_ids: Sequence[int], *, with_top: bool
    ) -> None:
        self._names, self._with_top = names, with_top
        self._text = tokenizer.detokenizer(prompt_ids)
        self._offset = 0

    def take(self, entries: Sequence[TokenLogprob]) -> CompletionLogprobs:
        """The next tokens of the choice."""
        offsets = []
        for entry in entries:
            offsets.append(self._offset)
            self._offset += len(self._text.push(entry.token_id))
        tops = [{self._names.text(token): p for token, p in reversed(e.top)} for e in entries]
        return CompletionLogprobs(
            tokens=[self._names.text(entry.token_id) for entry in entries],
            token_logprobs=[entry.logprob for entry in entries],
            top_logprobs=tops if self._with_top else None,
            text_offset=offsets,
        )
