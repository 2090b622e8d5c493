"""Five steps of every method: equal to thirty lines of float64 written apart from the loop, and to what they were.

The goldens (one text file a method, five losses a case) change only in a commit that says why:
`BURNISH_WRITE_GOLDENS=1 pytest tests/golden` writes them anew.
"""

import copy
import math
import os
from pathlib import Path

import pytest
import tiny
import torch

from burnish.train import loop

HERE = Path(__file__).parent
CASES = [
    (*case, smoothing)
    for case in tiny.PAIRINGS
    for smoothing in (0.0, 0.1)
    if not smoothing or (case[0] in ("sft", "classify") and case[3] in ("llama", "bert", "bart"))
]
NEAR = {"rel": 1e-5, "abs": 1e-6}  # absolute: a squared error near 0 loses digits to the difference it is the square of
TRAIN = {"warmup": 2, "learning_rate": 3e-3, "weight_decay": 0.1, "clip": 0.7, "schedule": "cosine", "floor": 0.1}


def by_hand(hf, method, kind, row, smoothing, start=None):
    """(sum of losses, weight) of one row, alone and unpadded, straight from transformers in double precision.

    start: the model before its first step (dpo's reference).
    """
    if method == "dpo":
        (chosen, rejected), (was_chosen, was_rejected) = (
            [-by_hand(each, "sft", kind, one, 0.0)[0] for one in (row, row.rejected)] for each in (hf, start)
        )
        return -torch.sigmoid(0.1 * (chosen - was_chosen - rejected + was_rejected)).log(), 1.0
    ids, weights = torch.from_numpy(row.ids).long()[None], torch.from_numpy(row.weights).double()
    if method in ("classify", "regress"):
        logits = hf(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        if method == "regress":
            return (logits[0] - row.label) ** 2, 1.0
        if not isinstance(row.label, int):  # several classes: a coin for each
            y = torch.from_numpy(row.label).double() * (1 - smoothing) + smoothing / 2
            p = torch.sigmoid(logits)
            return -(y * p.log() + (1 - y) * (1 - p).log()).mean(), 1.0
        told, weights = logits.log_softmax(-1)[None], torch.ones(1).double()
        wanted = torch.tensor([row.label])
    elif kind in tiny.PAIRS:
        start = hf.config.decoder_start_token_id
        shifted = torch.cat([torch.tensor([[start]]), ids[:, :-1]], 1)
        told = (
            hf(input_ids=torch.from_numpy(row.source).long()[None], decoder_input_ids=shifted).logits[0].log_softmax(-1)
        )
        wanted = ids[0]
    elif kind in tiny.ENCODERS:
        told, wanted = hf(input_ids=ids).logits[0].log_softmax(-1), torch.from_numpy(row.targets).long()
    else:
        told, wanted, weights = hf(input_ids=ids).logits[0, :-1].log_softmax(-1), ids[0, 1:], weights[1:]
    right = told[torch.arange(len(wanted)), wanted]
    return -(((1 - smoothing) * right + smoothing * told.mean(-1)) * weights).sum(), float(weights.sum())


def reference(run, method, kind, smoothing, steps=5, peak=3e-3):
    """Losses of AdamW (Loshchilov & Hutter 2019, algorithm 2) with warm-up, cosine and clipping, by the book."""
    hf, start = (copy.deepcopy(run.model.hf).double() for _ in range(2))
    weights = [value for value in hf.parameters() if value.requires_grad]
    m, v, losses = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights], []
    for step in range(1, steps + 1):
        rows = [run.batches._row(epoch, i) for epoch, i in run.batches.drawn(step)]
        parts = [by_hand(hf, method, kind, row, smoothing, start) for row in rows]
        loss = sum(part[0] for part in parts) / sum(part[1] for part in parts)
        losses.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, weights)
        norm = math.sqrt(sum(float((g * g).sum()) for g in gradients))
        shrink = min(1.0, 0.7 / (norm + 1e-6))
        rate = peak * step / 2 if step <= 2 else peak * (0.1 + 0.9 * (1 + math.cos(math.pi * (step - 2) / 3)) / 2)
        with torch.no_grad():
            for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):
                m[i] = 0.9 * m[i] + 0.1 * g * shrink
                v[i] = 0.999 * v[i] + 0.001 * (g * shrink) ** 2
                if w.ndim >= 2:
                    w -= rate * 0.1 * w
                w -= rate * (m[i] / (1 - 0.9**step)) / ((v[i] / (1 - 0.999**step)).sqrt() + 1e-8)
    return losses


def case_of(method, head, kind, smoothing):
    return f"{kind}-{head}" + (f"-smoothed-{smoothing}" if smoothing else "")


@pytest.mark.parametrize(("method", "head", "target", "kind", "smoothing"), CASES)
def test_five_steps(method, head, target, kind, smoothing, tmp_path_factory, tmp_path):
    own = {"label_smoothing": smoothing} if smoothing else {}
    run = tiny.run(method, head, target, kind, tmp_path_factory, tmp_path, own=own, **TRAIN)
    tiny.redraw({name: value for name, value in run.model.trainable().items() if name in run.model.fresh})
    expected = reference(run, method, kind, smoothing)
    losses = [event.numbers["loss"] for event in loop.fit(run) if event.kind == "step"]
    assert losses == pytest.approx(expected, **NEAR)
    assert len({round(loss, 3) for loss in losses}) > 1

    golden = HERE / f"{method}.txt"
    kept = dict(line.split(maxsplit=1) for line in golden.read_text().splitlines()) if golden.exists() else {}
    case = case_of(method, head, kind, smoothing)
    if os.environ.get("BURNISH_WRITE_GOLDENS"):
        kept[case] = " ".join(f"{loss:.8f}" for loss in losses)
        golden.write_text("".join(f"{case} {kept[case]}\n" for case in sorted(kept)))
    assert losses == pytest.approx([float(loss) for loss in kept[case].split()], **NEAR)
