"""Package trained weights as a Hugging Face model folder."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from model import Bard, Config
from safetensors.torch import load_file, save_file


def save_weights(model: Bard, path: Path) -> None:
    """bf16 throughout, except the routers' correction bias, which decides near ties: fp32."""
    tensors = {
        name: t.detach().to(torch.float32 if keep(name) else torch.bfloat16)
        for name, t in model.state_dict().items()
    }
    save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, path, {"format": "pt"})


def keep(name: str) -> bool:
    return name.endswith("e_score_correction_bias")


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Bard:
    """The training module with the packaged weights."""
    raw = json.loads((folder / "config.json").read_text())
    raw["rope_theta"] = raw["rope_parameters"]["rope_theta"]
    names = Config.__dataclass_fields__
    model = Bard(Config(**{k: v for k, v in raw.items() if k in names}))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.to(dtype).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path(".train/run/model.safetensors"))
    parser.add_argument("--tokenizer", type=Path, default=Path(".train/tokenizer"))
    parser.add_argument("--out", type=Path, default=Path("src/sparkwell/assets/bard"))
    parser.add_argument("--config", type=json.loads, default={}, help="JSON overrides")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shutil.copy(args.weights, args.out / "model.safetensors")
    for file in args.tokenizer.iterdir():
        shutil.copy(file, args.out / file.name)
    config = Config(**args.config).to_hf()
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {
        "bos_token_id": 0,
        "eos_token_id": [0],
        "pad_token_id": 1,
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.95,
        "max_new_tokens": 256,
    }
    (args.out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    load_model(args.out)
    size = sum(file.stat().st_size for file in args.out.iterdir())
    print(f"{args.out}: {size} bytes")


if __name__ == "__main__":
    main()
