"""`sparkwell bench perplexity`: how well a model predicts a text, in each of several schemes.

The text is cut into windows that stand alone; all tokens of a window but the first are scored.
nll = the mean over them of -ln p(token | the window before it); perplexity = exp(nll).
Standard errors count windows, not tokens: tokens of a window are no independent draws.  A scheme is
compared with the first one token by token, so that what a text makes hard for both cancels out.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparkwell.engine.device import choose_device
from sparkwell.engine.tokenizer import Tokenizer
from sparkwell.errors import BadInput
from sparkwell.models.batch import Batch, Span
from sparkwell.models.load import Model, load_model, weight_bytes
from sparkwell.models.products import products

Entry = dict[str, Any]
Progress = Callable[[str, int, int], None]  # scheme, windows done, windows in all
STORED = "stored"  # no scheme: weights as the checkpoint holds them
PAGE = 64  # tokens


@dataclass(frozen=True)
class Text:
    """A held-out text as windows of tokens; `sha256` of its bytes."""

    name: str
    sha256: str
    windows: tuple[tuple[int, ...], ...]

    @property
    def scored(self) -> int:
        """Tokens that are predicted."""
        return sum(len(window) - 1 for window in self.windows)


def read_text(path: Path, tokenizer: Tokenizer, *, window: int, most: int | None = None) -> Text:
    """The whole windows of a file; what is left at its end is not scored, unless it is all.

    most: windows at most.
    Raises BadInput for a file that is none, is not UTF-8, or holds fewer than two tokens.
    """
    try:
        data = path.read_bytes()
        ids = tokenizer.encode(data.decode())
    except OSError as error:
        raise BadInput(f"the text {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"the text {path} is not UTF-8: {error}") from error
    if len(ids) < 2:
        raise BadInput(f"the text {path} has {len(ids)} tokens, want at least 2")
    starts = range(0, max(1, len(ids) - window + 1), window)
    windows = tuple(tuple(ids[start : start + window]) for start in starts)
    return Text(path.name, hashlib.sha256(data).hexdigest(), windows[:most])


@torch.inference_mode()
def losses(
    model: Model,
    text: Text,
    *,
    arithmetic: str = "scheme",
    done: Callable[[int, int], None] = lambda windows, total: None,
) -> list[torch.Tensor]:
    """-ln p of each scored token, fp64, window by window.  Raises BadInput where one is not finite.

    arithmetic: as `models.products.products` has it.
    """
    device, exact = model.embed.device, model.embed.dtype == torch.float32
    pages = -(-max(map(len, text.windows)) // PAGE)
    caches = model.allocate(pages, page_size=PAGE, dtype="fp32" if exact else "bf16", device=device)
    found = []
    for i, window in enumerate(text.windows):
        span = Span(window, 0, range(pages), "all")
        batch = Batch.build([span], page_size=PAGE, device=device)
        with products(arithmetic):
            logits = model.forward(batch, caches)[:-1]  # type: ignore[arg-type]
        wanted = torch.tensor(window[1:], device=device)[:, None]
        found.append(-logits.double().log_softmax(-1).gather(1, wanted)[:, 0].cpu())
        if not torch.isfinite(found[-1]).all():
            raise BadInput(f"window {i}: the model gives logits that are not finite")
        done(i + 1, len(text.windows))
    return found


def mean_and_error(parts: Sequence[torch.Tensor]) -> tuple[float, float | None]:
    """Mean of all values, and its standard error where windows are the draws; None of one window.

    Windows of other sizes weigh by their values (a ratio estimator).
    """
    sizes = torch.tensor([len(part) for part in parts], dtype=torch.float64)
    sums = torch.stack([part.sum() for part in parts])
    mean, count = float(sums.sum() / sizes.sum()), len(parts)
    if count < 2:
        return mean, None
    spread = float((sums - mean * sizes).square().sum()) / (count - 1)
    return mean, math.sqrt(count * spread) / float(sizes.sum())


def measure(
    folder: Path,
    file: Path,
    schemes: Sequence[str],
    *,
    name: str,
    window: int = 512,
    most: int | None = None,
    device: str = "auto",
    arithmetic: str = "scheme",
    progress: Progress = lambda scheme, done, total: None,
) -> list[Entry]:
    """One record for each scheme, the first one being what the others are compared with.

    schemes: of `models.schemes.SCHEMES`, or "stored".  name: of the model, for the records.
    Raises BadInput for a window beyond the model's positions, and as `read_text`, `load_model` and
    `losses` do.
    """
    if repeated := {scheme for scheme in schemes if list(schemes).count(scheme) > 1}:
        raise BadInput(f"scheme {', '.join(sorted(repeated))} is named twice, want each once")
    place = choose_device(device)
    text, entries, base = None, list[Entry](), list[torch.Tensor]()
    for scheme in schemes or (STORED,):
        start = time.perf_counter()
        model = load_model(folder, device=place, scheme=None if scheme == STORED else scheme)
        if not 2 <= window <= model.config.max_position:
            raise BadInput(
                f"window is {window} tokens, want 2 to {model.config.max_position}, the positions "
                "that the model was made for"
            )
        text = text or read_text(file, Tokenizer.load(folder), window=window, most=most)
        found = losses(model, text, arithmetic=arithmetic, done=partial(progress, scheme))
        base = base or found
        entries.append(
            {
                "op": "perplexity",
                "model": name,
                "scheme": scheme,
                "arithmetic": arithmetic,
                "text": text.name,
                "sha256": text.sha256,
                "window": window,
                "windows": len(text.windows),
                "tokens": text.scored,
                **_figures(found, base),
                "versus": (schemes or (STORED,))[0],
                "weight_bytes": weight_bytes(model),
                "device": str(place.type),
                "dtype": str(model.embed.dtype).removeprefix("torch."),
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
    return entries


def _figures(found: Sequence[torch.Tensor], base: Sequence[torch.Tensor]) -> Entry:
    nll, error = mean_and_error(found)
    delta, paired = mean_and_error([a - b for a, b in zip(found, base, strict=True)])
    return {
        "nll": nll,
        "nll_se": error,
        "perplexity": math.exp(nll),
        "delta_nll": delta,
        "delta_se": paired,
    }
