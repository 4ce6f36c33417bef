"""Held-out perplexity of the packaged model and of the baselines; agreement with transformers."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from baselines import KneserNey, load, unigram
from export import load_model
from model import Bard
from numpy.typing import NDArray
from tokenizers import Tokenizer

WINDOW = 512


def cut(folder: Path, split: str) -> tuple[NDArray[np.int64], list[str]]:
    """Non-overlapping windows within documents, and each window's source."""
    tokens = load(folder, split)
    rows, sources = [], []
    for d in json.loads((folder / f"{split}.json").read_text()):
        for start in range(d["start"], d["start"] + d["tokens"] - WINDOW + 1, WINDOW):
            rows.append(tokens[start : start + WINDOW])
            sources.append(d["source"])
    return np.stack(rows), sources


def text_bytes(tokenizer: Tokenizer, ids: NDArray[np.int64]) -> int:
    return len(tokenizer.decode(ids.tolist(), skip_special_tokens=False).encode())


@torch.no_grad()
def model_log_prob(model: Bard, rows: NDArray[np.int64], dense: bool = False) -> NDArray:
    flag = torch.tensor(dense)
    out = []
    for part in torch.from_numpy(rows).split(2):
        log_p = model(part, flag).logits.float().log_softmax(-1)[:, :-1]
        out.append(log_p.gather(-1, part[:, 1:, None])[..., 0].double().numpy())
    return np.concatenate(out)


def score(log_p: NDArray, size: int) -> dict[str, float]:
    return {
        "perplexity": round(math.exp(-log_p.mean()), 3),
        "bits_per_byte": round(float(-log_p.sum()) / math.log(2) / size, 4),
    }


@torch.no_grad()
def compare(folder: Path, ids: torch.Tensor, mine: Bard) -> dict[str, float]:
    """Logits of transformers' own implementation beside the training module's, fp32 on CPU."""
    from transformers import AutoModelForCausalLM, __version__

    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    a, b = theirs(ids).logits, mine(ids, torch.tensor(False)).logits
    gap = (a - b).abs().amax(-1).flatten()
    return {
        "transformers": __version__,
        "tokens": ids.shape[1],
        "max_abs": float(gap.max()),
        "median_row_max_abs": float(gap.median()),
        "rows_over_1e-3": int((gap > 1e-3).sum()),
        "argmax_agreement": float((a.argmax(-1) == b.argmax(-1)).float().mean()),
        "logit_std": float(a.std()),
    }


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(".train"))
    parser.add_argument("--model", type=Path, default=Path("src/sparkwell/assets/bard"))
    parser.add_argument("--run", type=Path, default=Path(".train/run/run.json"))
    parser.add_argument("--out", type=Path, default=here / "results.json")
    args = parser.parse_args()

    model = load_model(args.model)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    width = model.config.vocab_size
    train = load(args.data, "train")
    kneser_ney = KneserNey(train, width)
    results: dict[str, object] = {
        "protocol": f"{WINDOW}-token windows, fp32 arithmetic on the packaged bf16 weights, sparse "
        f"attention (top {model.config.index_topk}); {WINDOW - 1} tokens scored a window"
    }
    for split in ("validation", "test"):
        rows, sources = cut(args.data, split)
        sizes = np.array([text_bytes(tokenizer, row[1:]) for row in rows])
        scores = {
            "model": model_log_prob(model, rows),
            "model_dense_attention": model_log_prob(model, rows, dense=True),
            "kneser_ney_5gram": kneser_ney.log_prob(rows),
            "unigram": unigram(train, width, rows),
        }
        table = {}
        for source in ["all", *sorted(set(sources))]:
            pick = np.array([source in ("all", s) for s in sources])
            size = int(sizes[pick].sum())
            table[source] = {"tokens": int(pick.sum()) * (WINDOW - 1), "bytes": size}
            for name, log_p in scores.items():
                table[source][name] = score(log_p[pick], size)
        results[split] = table
    text = (here / "heldout_excerpt.txt").read_text()
    ids = np.array(tokenizer.encode(text).ids)
    rows = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
    size = sum(text_bytes(tokenizer, row[1:]) for row in rows)
    results["heldout_excerpt"] = {"tokens": int(rows[:, 1:].size), "bytes": size} | score(
        model_log_prob(model, rows), size
    )
    results["agreement"] = compare(args.model, torch.from_numpy(ids[None, :400]), model)
    if args.run.exists():
        run = json.loads(args.run.read_text())
        results["training"] = run
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({k: v for k, v in results.items() if k != "training"}, indent=1))


if __name__ == "__main__":
    main()
