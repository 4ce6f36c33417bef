"""POST /v1/chat/completions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparkwell.engine.request import Output, TokenLogprob
from sparkwell.server.answer import Answer, Chunk
from sparkwell.server.logprobs import chat_logprobs
from sparkwell.server.protocol import ChatRequest, invalid, parse
from sparkwell.server.responses import (
    ChatChoice,
    ChatChunkChoice,
    ChatLogprobs,
    ChatMessage,
    Delta,
)
from sparkwell.server.service import Service

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

# Fields that OpenAI's own answers carry, so that clients send them back in the history.
_EMPTY_ONLY = ("annotations", "audio", "function_call", "refusal", "tool_calls")


def prepare(service: Service, body: bytes) -> tuple[ChatRequest, list[list[int]]]:
    """The request and its prompt's tokens.  Slow for long prompts: not for the event loop.

    Raises: ApiError 400, 404; BadInput where the model has no chat template.
    """
    request = parse(ChatRequest, body, service.engine.vocab_size)
    service.check_model(request.model)
    messages = [_message(i, message) for i, message in enumerate(request.messages)]
    chars = sum(len(message["content"]) for message in messages)
    service.limits.check_chars(chars, service.max_tokens, "messages")
    prompt_ids = service.engine.tokenizer.chat(messages)
    service.check_length(len(prompt_ids), request, "messages")
    return request, [prompt_ids]


def _message(index: int, message: Mapping[str, Any]) -> dict[str, str]:
    """One message as chat templates take it: role, content as one text, name if there is one."""
    where = f"messages[{index}]"
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{where}.role", f"{role!r} came, want one of {', '.join(ROLES)}")
    plain = {"role": ROLES[role], "content": _content(f"{where}.content", message.get("content"))}
    for name, value in message.items():
        if name in ("role", "content") or value is None:
            continue
        if name == "name" and isinstance(value, str):
            plain["name"] = value
        elif name not in _EMPTY_ONLY or value != []:
            raise invalid(f"{where}.{name}", "is not supported by this server; drop it")
    return plain


def _content(where: str, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(where, f"{content!r:.40} came, want a text or a list of text parts")
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind != "text":
            raise invalid(f"{where}[{i}].type", f"{kind!r} came; only text parts are supported")
        if not isinstance(text, str):
            raise invalid(f"{where}[{i}].text", f"{text!r:.40} came, want a text")
        texts.append(text)
    return "".join(texts)


class ChatAnswer(Answer):
    """Words the outputs as a chat completion."""

    def __init__(self, service: Service, request: ChatRequest) -> None:
        kind = "chat.completion.chunk" if request.stream else "chat.completion"
        super().__init__(request, service.head("chatcmpl", kind), [""] * request.n)
        self._names, self._wants_logprobs = service.names, request.logprobs

    def opening(self) -> Iterator[Chunk]:
        """The role, once for each choice."""
        for choice in range(self.request.n):
            yield self._piece(choice, Delta(role="assistant", content=""))

    def pieces(self, choice: int, output: Output) -> Iterator[Chunk]:
        """The output's text and log-probabilities, then what ended the choice."""
        if output.text or output.logprobs:
            logprobs = self._logprobs(output.logprobs or ())
            yield self._piece(choice, Delta(content=output.text), logprobs)
        if output.finish_reason is not None:
            yield self._piece(choice, Delta(), None, output.finish_reason)

    def whole(self, choice: int, text: str, entries: Sequence[TokenLogprob], reason: Any) -> Chunk:
        """A choice of the body."""
        return ChatChoice(
            index=choice,
            message=ChatMessage(content=text),
            logprobs=self._logprobs(entries),
            finish_reason=reason,
        ).model_dump()

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        return chat_logprobs(self._names, entries) if self._wants_logprobs else None

    def _piece(
        self, choice: int, delta: Delta, logprobs: ChatLogprobs | None = None, reason: Any = None
    ) -> Chunk:
        piece = ChatChunkChoice(index=choice, delta=delta, logprobs=logprobs, finish_reason=reason)
        return {**piece.model_dump(), "delta": delta.model_dump(exclude_unset=True)}
