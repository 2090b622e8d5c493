"""Turn the last stage's artifact into the embedded base: bfloat16 weights, tokenizer, chat template, nothing else.

python examples/pretrain/bundle.py ARTIFACT OUT
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")


def main(artifact: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tensors = load_file(artifact / "model.safetensors")
    save_file(
        {name: value.to(torch.bfloat16) for name, value in tensors.items()},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((artifact / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "bfloat16"
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in FILES:
        if (artifact / name).exists():
            shutil.copyfile(artifact / name, out / name)
    (out / "model.safetensors").chmod(0o644)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{sum(value.numel() for value in tensors.values()):,} parameters, {size / 1e6:.1f} MB in {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
