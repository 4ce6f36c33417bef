"""`sparkwell chat`: a conversation in the terminal, or one line of stdin after another."""

import sys
from typing import TYPE_CHECKING

from sparkwell.cli import options
from sparkwell.cli.model import open_model
from sparkwell.cli.output import configure_logging, note, write
from sparkwell.errors import BadInput, SparkwellError

if TYPE_CHECKING:
    from sparkwell.engine.llm import LLM
    from sparkwell.engine.request import SamplingParams

HELP = "/reset begins anew, /system TEXT sets the system message, /exit or Ctrl-D leaves"


def chat(
    model: options.Model,
    system: options.System = None,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 1.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    device: options.Device = "auto",
    dtype: options.ComputeDtype = options.Dtype.AUTO,
    scheme: options.Scheme = None,
    kv_cache_dtype: options.KvCacheDtype = options.CacheDtype.AUTO,
    page_size: options.PageSize = 64,
    num_pages: options.NumPages = None,
    max_context: options.MaxContext = None,
    enforce_eager: options.EnforceEager = False,
    threads: options.Threads = None,
    debug: options.Debug = False,
) -> None:
    """Chat in the terminal.  Ctrl-C ends an answer; /help lists the commands."""
    configure_logging()
    from sparkwell.engine.request import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    llm = open_model(
        model,
        threads=threads,
        device=device,
        dtype=dtype,
        scheme=scheme,
        kv_cache_dtype=kv_cache_dtype,
        page_size=page_size,
        num_pages=num_pages,
        max_requests=1,
        max_context=max_context,
        enforce_eager=enforce_eager,
    )
    with llm:
        # On a thread of its own a step is never interrupted halfway by Ctrl-C.
        llm.engine.start()
        Conversation(llm, params, system, interactive=sys.stdin.isatty()).run()


class Conversation:
    """The messages so far, and the loop that adds to them.

    interactive: a person types; an answer that fails is then no reason to leave.
    """

    def __init__(
        self, llm: "LLM", params: "SamplingParams", system: str | None, *, interactive: bool
    ) -> None:
        self._llm, self._params, self._system = llm, params, system
        self._interactive = interactive
        self._messages: list[dict[str, str]] = []

    def run(self) -> None:
        """Until /exit or the end of stdin.

        Raises: BadInput for a model that cannot chat; when not interactive, what an answer raises.
        """
        self._ids([{"role": "user", "content": "-"}])  # no chat template: say so before any typing
        if self._interactive:
            note(HELP)
        while (line := self._read()) is not None:
            if not line.strip():
                continue
            if line.startswith("/"):
                if not self._command(line.strip()):
                    return
                continue
            try:
                self._answer(line)
            except SparkwellError as error:
                if not self._interactive:
                    raise
                note(f"error: {error}")

    def _read(self) -> str | None:
        """The next line; None at the end."""
        if not self._interactive:
            try:
                line = sys.stdin.readline()
            except UnicodeDecodeError as error:
                raise BadInput(f"a line on stdin is not UTF-8: {error}") from error
            return line.rstrip("\n") if line else None
        import readline  # noqa: F401  gives input() editing and history

        while True:
            try:
                return input("> ")
            except EOFError:
                note("")
                return None
            except KeyboardInterrupt:
                note("\n" + HELP)

    def _command(self, line: str) -> bool:
        """Obey a line that begins with a slash; False: leave."""
        name, _, rest = line.partition(" ")
        if name == "/exit":
            return False
        if name == "/reset":
            self._messages = []
        elif name == "/system":
            self._system = rest.strip() or None
        elif name == "/help":
            note(HELP)
        else:
            note(f"no command {name}: {HELP}")
        return True

    def _ids(self, messages: list[dict[str, str]]) -> list[int]:
        system = [{"role": "system", "content": self._system}] if self._system else []
        return self._llm.tokenizer.chat([*system, *messages])

    def _answer(self, line: str) -> None:
        """One turn.  It is remembered as far as it got; a turn that was refused is forgotten."""
        messages = [*self._messages, {"role": "user", "content": line}]
        outputs = self._llm.stream(self._ids(messages), self._params)
        text = ""
        try:
            for output in outputs:
                text += output.text
                write(output.text)
        except KeyboardInterrupt:
            outputs.close()  # type: ignore[attr-defined]  # the iterator is a generator
            note(" [cancelled]")
        write("\n")
        self._messages = [*messages, {"role": "assistant", "content": text}]
