"""Names of models become folders; the Hub is a fake that records what it was asked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from checkpoints.checkpoint_files import assert_says
from sparkwell.checkpoints import locate as module
from sparkwell.checkpoints.locate import locate
from sparkwell.errors import BadCheckpoint

NAMES = "a folder with config.json, a packaged model, or a Hub id owner/name[@revision]"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """The calls that reached the Hub's client; each is answered with tmp_path / "snapshot"."""
    calls: list[dict[str, Any]] = []

    def snapshot_download(repo_id: str, **options: Any) -> str:
        calls.append({"repo_id": repo_id, **options})
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


@pytest.fixture
def assets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "assets" / "parrot"
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    (tmp_path / "assets" / "unfinished").mkdir()
    (tmp_path / "config.json").touch()
    monkeypatch.setattr(module, "ASSETS", tmp_path / "assets")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "assets"


def refusal(model: str | Path) -> BadCheckpoint:
    with pytest.raises(BadCheckpoint) as caught:
        locate(model)
    return caught.value


def test_folder(hub: list[Any], assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = assets.parent / "owner" / "name"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(assets.parent))
    for model in (folder, str(folder), "owner/name", "./owner/name", Path("owner/name")):
        assert locate(model).resolve() == folder
    assert locate("~/owner/name") == folder
    assert hub == []


def test_packaged_model(hub: list[Any], assets: Path) -> None:
    assert locate("parrot") == assets / "parrot"
    (assets.parent / "parrot").mkdir()
    assert locate("parrot") == Path("parrot"), "a local folder comes first"
    assert hub == []


def test_the_assets_lie_inside_the_package() -> None:
    import sparkwell

    assert Path(sparkwell.__file__).parent / "assets" == module.ASSETS


@pytest.mark.parametrize(
    ("model", "repo", "revision"),
    [
        ("owner/name", "owner/name", None),
        ("own-er/N.ame_2@v1.0", "own-er/N.ame_2", "v1.0"),
        ("owner/name@refs/pr/3", "owner/name", "refs/pr/3"),
    ],
)
def test_hub_id(
    hub: list[dict[str, Any]], assets: Path, model: str, repo: str, revision: str | None
) -> None:
    assert locate(model) == assets.parent / "snapshot"
    (call,) = hub
    assert (call["repo_id"], call["revision"]) == (repo, revision)
    assert "tqdm_class" not in call


@pytest.mark.parametrize(
    ("name", "fetched"),
    [
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("config.json", True),
        ("tokenizer.model", True),
        ("tokenizer.json", True),
        ("merges.txt", True),
        ("chat_template.jinja", True),
        ("pytorch_model.bin", False),
        ("model.gguf", False),
        ("original/model.safetensors", False),
        ("consolidated.safetensors", False),
        ("README.md", False),
        ("modeling_custom.py", False),
    ],
)
def test_what_is_downloaded(
    hub: list[dict[str, Any]], assets: Path, name: str, fetched: bool
) -> None:
    locate("owner/name")
    patterns = {k: hub[0][k] for k in ("allow_patterns", "ignore_patterns")}
    kept = list(huggingface_hub.utils.filter_repo_objects([name], **patterns))
    assert bool(kept) is fetched


@pytest.mark.parametrize(
    "model",
    ["unfinished", "nothing", "", "./owner/name", "/owner/name", "a/b/c", "../name", "./name",
     "owner/name@", "-/@", Path("owner/name"), "owner name", "own\u00e9r/name"],
)  # fmt: skip
def test_no_such_model(hub: list[Any], assets: Path, model: str | Path) -> None:
    assert_says(
        refusal(model),
        f"no model {str(model)!r}",
        file=None,
        came="no such folder, and no Hub id",
        wanted=f"{NAMES}; packaged: parrot",
        do="check the path",
    )
    assert hub == []


def test_a_file_is_no_model(hub: list[Any], assets: Path) -> None:
    path = assets / "parrot" / "config.json"
    assert_says(
        refusal(path),
        f"{path} is a file",
        file=None,
        came=str(path),
        wanted="the folder that holds it, with config.json and tokenizer files",
        do=f"give {path.parent}",
    )


# ---------------------------------------------------------------- what the Hub may answer


def http_error(kind: type[Exception], text: str) -> Exception:
    """As the client raises it, less the HTTP response."""
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    return error


def offline() -> Exception:
    return errors.OfflineModeIsEnabled("offline mode is enabled.\nsecond line")


UNREACHABLE = "the Hub cannot be reached, and owner/name@v1 is not complete in the local cache"


@pytest.mark.parametrize(
    ("make", "problem", "came", "do"),
    [
        (
            lambda: http_error(errors.GatedRepoError, "403"),
            "owner/name is gated",
            "the Hub refuses access without its licence accepted",
            "accept it at huggingface.co/owner/name, then log in: hf auth login",
        ),
        (
            lambda: http_error(errors.RevisionNotFoundError, "404"),
            "owner/name has no revision 'v1'",
            "owner/name@v1",
            "leave out @v1, or look the name up at huggingface.co/owner/name",
        ),
        (
            lambda: http_error(errors.RepositoryNotFoundError, "404"),
            "no model 'owner/name', here or on the Hub",
            "no such folder, and no such public repository",
            "check the spelling; for a private repository log in",
        ),
        (
            lambda: errors.HFValidationError("bad id"),
            "no model 'owner/name', here or on the Hub",
            "no such folder, and no such public repository",
            "check the spelling",
        ),
        (
            offline,
            UNREACHABLE,
            "OfflineModeIsEnabled: offline mode is enabled.",
            "unset HF_HUB_OFFLINE if it is set and try again, or give a folder's path",
        ),
        (
            lambda: errors.LocalEntryNotFoundError("no network"),
            UNREACHABLE,
            "LocalEntryNotFoundError: no network",
            "unset HF_HUB_OFFLINE",
        ),
        (
            lambda: http_error(errors.HfHubHTTPError, "503"),
            UNREACHABLE,
            "HfHubHTTPError: 503",
            "unset HF_HUB_OFFLINE",
        ),
        (lambda: TimeoutError("slow"), UNREACHABLE, "TimeoutError: slow", "unset HF_HUB_OFFLINE"),
    ],
    ids=["gated", "revision", "unknown", "invalid", "offline", "not cached", "503", "timeout"],
)
def test_the_hub_refuses(
    monkeypatch: pytest.MonkeyPatch,
    assets: Path,
    make: Callable[[], Exception],
    problem: str,
    came: str,
    do: str,
) -> None:
    def snapshot_download(repo_id: str, **options: Any) -> str:
        raise make()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    error = refusal("owner/name@v1")
    wanted = str(error).splitlines()[2].removeprefix("  wanted  ")
    assert_says(error, problem, file=None, came=came, wanted=wanted, do=do)
    assert wanted and error.__cause__ is not None


def test_other_failures_are_not_disguised(monkeypatch: pytest.MonkeyPatch, assets: Path) -> None:
    def snapshot_download(repo_id: str, **options: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(OSError, match="No space left"):
        locate("owner/name")


def test_progress_in_bytes(
    monkeypatch: pytest.MonkeyPatch, assets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def snapshot_download(repo_id: str, *, tqdm_class: Any, **options: Any) -> str:
        files = tqdm_class(total=2, desc="Fetching 2 files")
        received = tqdm_class(total=0, unit="B", unit_scale=True)
        written = tqdm_class(total=0, unit="B", unit_scale=True)
        written.total = 100
        received.update(0)
        written.update(30)
        received.update(20)
        files.update(1)
        written.update(70)
        return "somewhere"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    told: list[tuple[int, int]] = []
    locate("owner/name", progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 0), (30, 100), (30, 100), (100, 100)]
    assert capsys.readouterr() == ("", "")
