"""Train the model: dense warm-up of the indexer, then sparse attention, then long windows.

Every batch is drawn by (seed, step), so a resumed run sees what an unbroken one would have.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from export import save_weights
from model import Bard, Config, MoE
from muon import Muon
from torch import Tensor

CHUNK = 15 * 2**20


class Corpus:
    """Random windows over a token stream, with each source given its share of the batch."""

    def __init__(self, folder: Path, shares: dict[str, float], device: torch.device) -> None:
        self.tokens = torch.from_numpy(np.load(folder / "train.npy").astype(np.int64)).to(device)
        spans: dict[str, list[int]] = {}
        for d in json.loads((folder / "train.json").read_text()):
            end = d["start"] + d["tokens"]
            spans.setdefault(d["source"], [d["start"], end])[1] = end
        sizes = {name: end - start for name, (start, end) in spans.items()}
        weights = [sizes[name] * shares.get(name, 1.0) for name in spans]
        self.weights = torch.tensor(weights, device=device)
        self.starts = torch.tensor([s for s, _ in spans.values()], device=device)
        self.ends = torch.tensor([e for _, e in spans.values()], device=device)
        self.device = device

    def batch(self, seed: int, rows: int, length: int) -> Tensor:
        """[rows, length + 1]: the inputs and, one later, their targets."""
        rng = torch.Generator(self.device).manual_seed(seed)
        source = torch.multinomial(self.weights, rows, replacement=True, generator=rng)
        room = (self.ends[source] - self.starts[source] - length - 1).clamp_min(1)
        where = torch.rand(rows, generator=rng, device=self.device) * room
        start = self.starts[source] + where.long()
        return self.tokens[start[:, None] + torch.arange(length + 1, device=self.device)]


def windows(path: Path, length: int, device: torch.device) -> Tensor:
    tokens = np.load(path).astype(np.int64)
    usable = len(tokens) // length * length
    return torch.from_numpy(tokens[:usable]).view(-1, length).to(device)


@torch.no_grad()
def evaluate(model: Bard, data: Tensor, dense: Tensor, rows: int = 32) -> float:
    model.eval()
    total = 0.0
    for part in data.split(rows):
        with torch.autocast(data.device.type, torch.bfloat16):
            logits = model(part, dense).logits[:, :-1]
        total += F.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten()).item() * len(
            part
        )
    model.train()
    return total / len(data)


def optimizers(model: Bard, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    matrices, indexer, rest = [], [], []
    for name, p in model.named_parameters():
        if ".indexer." in name:
            indexer.append(p)
        elif p.ndim == 2 and "embed" not in name and not name.endswith("mlp.gate.weight"):
            matrices.append(p)
        else:
            rest.append(p)
    groups = [
        {"params": [p for p in rest if p.ndim == 2], "weight_decay": args.weight_decay},
        {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0},
        {"params": indexer, "weight_decay": 0.0, "lr": args.index_lr},
    ]
    fused = torch.cuda.is_available()
    return [
        Muon(matrices, lr=args.muon_lr, weight_decay=args.weight_decay),
        torch.optim.AdamW(groups, lr=args.adam_lr, betas=(0.9, 0.98), fused=fused),
    ]


def factor(step: int, steps: int, warmup: int, decay: float) -> float:
    """Warm-up, plateau, then a linear fall to zero over the last `decay` of the run."""
    rise = (step + 1) / warmup
    fall = (steps - step) / max(1.0, steps * decay)
    return min(1.0, rise, fall)


def save_state(folder: Path, state: dict[str, object]) -> None:
    """The whole state in chunks small enough to copy anywhere; the index is written last."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    for i in range(math.ceil(len(data) / CHUNK)):
        (folder / f"state.{i}").write_bytes(data[i * CHUNK : (i + 1) * CHUNK])
    (folder / "state.json").write_text(json.dumps({"step": state["step"], "bytes": len(data)}))


def load_state(folder: Path, device: torch.device) -> dict[str, object] | None:
    if not (folder / "state.json").exists():
        return None
    size = json.loads((folder / "state.json").read_text())["bytes"]
    parts = [(folder / f"state.{i}").read_bytes() for i in range(math.ceil(size / CHUNK))]
    return torch.load(io.BytesIO(b"".join(parts)), map_location=device)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(".train"))
    parser.add_argument("--out", type=Path, default=Path(".train/run"))
    parser.add_argument("--resume", type=Path, help="folder that holds state.json")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--dense-steps", type=int, default=1500)
    parser.add_argument("--long-steps", type=int, default=0, help="last steps, on long windows")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--long-length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--muon-lr", type=float, default=0.015)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument("--index-lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--decay", type=float, default=0.6)
    parser.add_argument("--bias-rate", type=float, default=1e-3)
    parser.add_argument("--shakespeare", type=float, default=1.5, help="sampling weight")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eval-every", type=int, default=500)
    parser.add_argument("--time-limit", type=float, default=1e9, help="seconds, then save and stop")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--config", type=json.loads, default={}, help="JSON overrides")
    return parser.parse_args()


def main() -> None:
    args = parse()
    begin = time.time()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    config = replace(Config(), **args.config)
    model = Bard(config, args.dropout).to(device)
    corpus = Corpus(args.data, {"shakespeare": args.shakespeare}, device)
    validation = windows(args.data / "validation.npy", args.length, device)
    optims = optimizers(model, args)
    base = [[g["lr"] for g in o.param_groups] for o in optims]
    routers = [layer.mlp.gate for layer in model.model.layers if isinstance(layer.mlp, MoE)]
    flags = {on: torch.tensor(on, device=device) for on in (True, False)}
    step, log = 0, []

    state = load_state(args.resume, device) if args.resume else None
    if state is not None:
        model.load_state_dict(state["model"])
        for o, s in zip(optims, state["optims"], strict=True):
            o.load_state_dict(s)
        step, log = state["step"], state["log"]
        begin -= state["seconds"]

    def loss_fn(tokens: Tensor, dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16):
            logits, index_loss, load = model(tokens[:, :-1], dense)
        ce = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        return ce, index_loss, load

    run = torch.compile(loss_fn, dynamic=False) if args.compile else loss_fn

    def checkpoint() -> None:
        save_weights(model, args.out / "model.safetensors")
        save_state(
            args.out,
            {
                "model": model.state_dict(),
                "optims": [o.state_dict() for o in optims],
                "step": step,
                "log": log,
                "seconds": time.time() - begin,
            },
        )

    model.train()
    mark, mark_tokens, tokens_seen = time.time(), 0, 0
    while step < args.steps:
        long = step >= args.steps - args.long_steps
        length = args.long_length if long else args.length
        rows = max(1, args.batch * args.length // length)
        dense = step < args.dense_steps
        scale = factor(step, args.steps, 200, args.decay)
        for o, lrs in zip(optims, base, strict=True):
            for g, lr in zip(o.param_groups, lrs, strict=True):
                g["lr"] = lr * scale
        batch = corpus.batch(args.seed * 1_000_003 + step, rows, length)
        ce, index_loss, load = run(batch, flags[dense])
        (ce + index_loss).backward()
        for o in optims:
            o.step()
            o.zero_grad(set_to_none=True)
        # Auxiliary-loss-free balance: experts that got too little become likelier to be chosen.
        for router, share in zip(routers, load.detach(), strict=True):
            router.e_score_correction_bias += args.bias_rate * scale * (share.mean() - share).sign()
        step += 1
        tokens_seen += rows * length
        stop = time.time() - begin > args.time_limit
        if step % args.eval_every == 0 or step == args.steps or stop or step == 20:
            train_ce, kl = ce.item(), index_loss.item()
            rate = (tokens_seen - mark_tokens) / (time.time() - mark)
            row = {
                "step": step,
                "train": round(train_ce, 4),
                "index_kl": round(kl, 4),
                "val_sparse": round(evaluate(model, validation, flags[False]), 4),
                "val_dense": round(evaluate(model, validation, flags[True]), 4),
                "load": [round(v, 3) for v in load.aminmax(dim=-1)[0].tolist()],
                "tokens_per_second": round(rate),
                "seconds": round(time.time() - begin, 1),
            }
            log.append(row)
            print(json.dumps(row), flush=True)
            (args.out / "log.json").write_text(json.dumps(log))
            if step % (4 * args.eval_every) == 0 or step == args.steps or stop:
                checkpoint()
            mark, mark_tokens = time.time(), tokens_seen
        if stop:
            break
    run_info = {
        "args": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "steps": step,
        "seconds": round(time.time() - begin, 1),
        "tokens": tokens_seen,
        "seed": args.seed,
        "log": log,
    }
    (args.out / "run.json").write_text(json.dumps(run_info, indent=1) + "\n")


if __name__ == "__main__":
    main()
