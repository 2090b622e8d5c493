"""nanoGPT's published CPU recipe (character Shakespeare, 0.8 M parameters) by Burnish and by plain PyTorch.

    python benchmarks/shakespeare.py TEXT [--json]

TEXT: tiny Shakespeare (or its first 90 %).  Both sides train on the first 90 % of it and are measured on the whole of
the rest: mean nats a character, in windows of 64.  The plain side is nanoGPT's own architecture and sampling (random
windows), written out below; Burnish's is examples/shakespeare/task.yaml on GPT-2's classes.  Exit code 1 when they
differ by more than 0.03.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK, BATCH, STEPS, WIDTH, LAYERS, HEADS = 64, 12, 2000, 128, 4, 4


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (part.view(b, t, HEADS, -1).transpose(1, 2) for part in self.qkv(self.one(x)).split(WIDTH, 2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, WIDTH)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.two(x))))


class Plain(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.layers, self.norm = nn.Sequential(*(Layer() for _ in range(LAYERS))), nn.LayerNorm(WIDTH, bias=False)
        for name, value in self.named_parameters():
            if value.ndim == 2:
                shrink = math.sqrt(2 * LAYERS) if name.endswith(("out.weight", "down.weight")) else 1
                nn.init.normal_(value, std=0.02 / shrink)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        return F.linear(self.norm(self.layers(x)), self.tokens.weight)


def plain(train: Tensor, held: Tensor, vocabulary: int, seed: int) -> float:
    torch.manual_seed(seed)
    model = Plain(vocabulary)
    groups = [[p for p in model.parameters() if p.ndim >= 2], [p for p in model.parameters() if p.ndim < 2]]
    told = [{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(told, lr=1e-3, betas=(0.9, 0.99))
    for step in range(STEPS):
        share = (step + 1) / 101 if step < 100 else 0.1 + 0.45 * (1 + math.cos(math.pi * (step - 100) / (STEPS - 100)))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * share
        starts = torch.randint(len(train) - BLOCK, (BATCH,))
        rows = torch.stack([train[i : i + BLOCK + 1] for i in starts.tolist()])
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        count = (len(held) - 1) // BLOCK
        inputs = held[: count * BLOCK].view(count, BLOCK)
        targets = held[1 : count * BLOCK + 1].view(count, BLOCK)
        losses = [
            F.cross_entropy(model(a).flatten(0, 1), b.flatten(), reduction="sum").item()
            for a, b in zip(inputs.split(256), targets.split(256), strict=True)
        ]
    return sum(losses) / (count * BLOCK)


def base(folder: Path, letters: list[str]) -> None:
    """A GPT-2 configuration of nanoGPT's size and a tokenizer of single characters."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token=letters[0]))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    folder.mkdir(parents=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    told = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": len(letters), "n_embd": WIDTH}
    told |= {"n_layer": LAYERS, "n_head": HEADS, "n_positions": BLOCK + 1, "activation_function": "gelu"}
    told |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None}
    (folder / "config.json").write_text(json.dumps(told))


def ours(train: str, held: str, letters: list[str], seed: int, folder: Path) -> float:
    import burnish

    base(folder / "base", letters)
    (folder / "train.txt").write_text(train, newline="")
    (folder / "validation.txt").write_text(held, newline="")
    task = Path(__file__).parent.parent / "examples" / "shakespeare" / "task.yaml"
    (folder / "task.yaml").write_text(task.read_text())
    result = burnish.train(str(folder / "task.yaml"), rung="full", set=[f"train.seed={seed}"])
    return [point["valid_loss"] for point in result.curve if "valid_loss" in point][-1]


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("text", type=Path)
    words.add_argument("--json", action="store_true")
    asked = words.parse_args()
    text = asked.text.read_text(encoding="utf-8")
    letters = sorted(set(text))
    cut = int(len(text) * 0.9)
    ids = torch.tensor([letters.index(letter) for letter in text])
    clock = time.time()
    reference = plain(ids[:cut], ids[cut:], len(letters), 1337)
    middle = time.time()
    with tempfile.TemporaryDirectory() as folder:
        import os

        os.environ["BURNISH_HOME"] = str(Path(folder) / "home")
        value = ours(text[:cut], text[cut:], letters, 0, Path(folder))
    told = {
        "plain_pytorch": round(reference, 4),
        "burnish": round(value, 4),
        "difference": round(value - reference, 4),
        "seconds": [round(middle - clock, 1), round(time.time() - middle, 1)],
    }
    print(json.dumps(told) if asked.json else "\n".join(f"{key:14} {item}" for key, item in told.items()))
    return int(abs(value - reference) > 0.03)


if __name__ == "__main__":
    sys.exit(main())
