"""A model without weights behind the command line: quick to load, and it says what it was asked.

Run as a program, it is the `sparkwell` command with this model in place of every other.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from engine.fake_runner import FakeRunner
from sparkwell.engine import llm as llm_module
from sparkwell.engine.core import Engine
from sparkwell.engine.llm import LLM
from sparkwell.engine.pages import PagePool
from sparkwell.engine.scheduler import Scheduler
from sparkwell.engine.tokenizer import Tokenizer
from sparkwell.errors import BadCheckpoint

MARK, END, PAGE = 1, 256, 4


class ByteBackend:
    """A byte is a token.  In a conversation each message is a mark, its role's letter, its text."""

    added_tokens_decoder: Mapping[int, Any] = {}
    all_special_ids = (END,)
    eos_token_id = END

    def __init__(self, chat_template: str | None = "{{ messages }}") -> None:
        self.chat_template = chat_template

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(257)}

    def encode(self, text: str, *, add_special_tokens: bool, verbose: bool) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return bytes(token for token in ids if token < 256).decode(errors="replace")

    def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> list[int]:
        said = "".join(f"\x01{m['role'][0]}{m['content']}" for m in messages)
        return list(f"{said}\x01a".encode())


def reply(history: Sequence[int]) -> int:
    """To a conversation, "roles so far: the last message", then the end; else endless letters.

    A message "count" is answered with endless letters, too.
    """
    if MARK not in history:
        return ord("a") + len(history) % 26
    messages = bytes(history).decode(errors="replace").split("\x01")[1:]
    written = len(messages[-1].encode()) - 1
    if messages[-2][1:] == "count":
        return ord("a") + written % 26
    answer = f"{''.join(m[0] for m in messages[:-1])}: {messages[-2][1:]}".encode()
    return answer[written] if written < len(answer) else END


def fake_llm(model: str, **settings: Any) -> LLM:
    """In place of LLM(model, ...).  "missing" is not there, "silent" has no chat template."""
    if model == "missing":
        raise BadCheckpoint("no model", came="missing", wanted="a folder", do="look elsewhere")
    delay = float(os.environ.get("FAKE_DELAY", "0"))
    fail_on = (1,) if model == "failing" else ()
    runner = FakeRunner(PAGE, vocab_size=257, next_token=reply, delay=delay, fail_on=fail_on)
    scheduler = Scheduler(PagePool(settings.get("num_pages") or 200, PAGE), max_batch_tokens=2048)
    tokenizer = Tokenizer(ByteBackend(None if model == "silent" else "yes"), frozenset({END}))
    limit = settings.get("max_context") or 400
    engine = Engine(runner, scheduler, tokenizer, max_context=limit)
    return LLM.from_engine(engine, tokenizer)


if __name__ == "__main__":
    llm_module.LLM = fake_llm  # type: ignore[assignment,misc]
    sys.argv[0] = "sparkwell"
    from sparkwell.cli import main

    main()
