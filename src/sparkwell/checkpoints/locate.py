"""A model's name becomes a folder: a local one, a packaged one, or one from the Hub."""

import io
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparkwell.errors import BadCheckpoint

Progress = Callable[[int, int], None]  # bytes done, bytes in all

ASSETS = Path(__file__).resolve().parents[1] / "assets"
HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "*.tiktoken", "*.txt"]
UNWANTED = ["*/*", "consolidated*"]  # other formats of the same weights
NAMES = "a folder with config.json, a packaged model, or a Hub id owner/name[@revision]"


def locate(model: str | Path, *, progress: Progress | None = None) -> Path:
    """The folder of a model, downloaded from the Hugging Face Hub if need be.

    model: a local folder; else the name of a packaged model; else a Hub id, owner/name or
        owner/name@revision.  A Path is only ever a folder.
    progress: called with bytes done and bytes in all during a download.

    Raises BadCheckpoint for a path that is a file, a name that nothing has, a gated or unknown
    repository, and a Hub that cannot be reached.
    """
    path = Path(model).expanduser()
    if str(model) and path.is_dir():
        return path
    if path.is_file():
        raise _refusal(
            f"{model} is a file",
            came=str(model),
            wanted="the folder that holds it, with config.json and tokenizer files",
            do=f"give {path.parent}",
        )
    packaged = ASSETS / str(model)
    if re.fullmatch(r"[\w-]+", str(model)) and (packaged / "config.json").is_file():
        return packaged
    match = HUB_ID.fullmatch(model) if isinstance(model, str) else None
    if match is None or match[0].startswith("."):
        known = sorted(p.parent.name for p in ASSETS.glob("*/config.json"))
        raise _refusal(
            f"no model {str(model)!r}",
            came="no such folder, and no Hub id",
            wanted=NAMES + (f"; packaged: {', '.join(known)}" if known else ""),
            do="check the path",
        )
    return _download(match["repo"], match["revision"], progress)


def _refusal(problem: str, *, came: str, wanted: str, do: str) -> BadCheckpoint:
    return BadCheckpoint(problem, came=came, wanted=wanted, do=do)


def _download(repo: str, revision: str | None, progress: Progress | None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    options: dict[str, Any] = {} if progress is None else {"tqdm_class": _reporter(progress)}
    at = "" if revision is None else f"@{revision}"
    try:
        folder = huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=WANTED,
            ignore_patterns=UNWANTED,
            **options,
        )
    except errors.GatedRepoError as error:
        raise _refusal(
            f"{repo} is gated",
            came="the Hub refuses access without its licence accepted",
            wanted="an account that has accepted the model's licence",
            do=f"accept it at huggingface.co/{repo}, then log in: hf auth login",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise _refusal(
            f"{repo} has no revision {revision!r}",
            came=f"{repo}{at}",
            wanted="a branch, tag or commit of that repository",
            do=f"leave out {at or 'the revision'}, or look the name up at huggingface.co/{repo}",
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise _refusal(
            f"no model {repo!r}, here or on the Hub",
            came="no such folder, and no such public repository",
            wanted=NAMES,
            do="check the spelling; for a private repository log in: hf auth login",
        ) from error
    except (
        errors.LocalEntryNotFoundError,
        errors.HTTPError,  # the HTTP library's own base class: answers and broken connections
        ConnectionError,
        TimeoutError,
    ) as error:
        raise _refusal(
            f"the Hub cannot be reached, and {repo}{at} is not complete in the local cache",
            came=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
            wanted="network access, or the model in a local folder",
            do="unset HF_HUB_OFFLINE if it is set and try again, or give a folder's path",
        ) from error
    return Path(folder)


def _reporter(progress: Progress) -> type:
    """A silent progress bar that tells `progress` about bytes.

    The Hub's client may keep several such bars for one download (received, written); the one
    furthest ahead counts.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    furthest, lock = [0, 0], threading.Lock()  # files arrive in several threads

    class Reporter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> Any:
            shown = super().update(n)
            if self.unit == "B":
                with lock:
                    furthest[0] = max(furthest[0], int(self.n))
                    furthest[1] = max(furthest[1], int(self.total or 0))
                    progress(*furthest)
            return shown

    return Reporter
