"""DPO's loss and gradients are TRL's, on the same weights and pairs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers

from burnish.methods import _losses, dpo
from burnish.tokens.batch import join

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")


def theirs(hf: Any, start: Any, rows: list[Any], folder: Path, loss: str, weights: list[float]) -> float:
    """TRL's loss of these rows as one batch, its gradient left in `hf`."""

    class Ready(trl.DPOTrainer):  # type: ignore[misc, name-defined]
        def _prepare_dataset(self, dataset: Any, *others: Any, **named: Any) -> Any:
            return dataset  # it is ids already

    told: dict[str, list[Any]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    for row in rows:
        at = int(np.argmax(row.weights > 0))
        values = row.ids[:at], row.ids[at:], row.rejected.ids[at:]
        for name, value in zip(told, values, strict=True):
            told[name].append(value.tolist())
    args = trl.DPOConfig(
        output_dir=str(folder),
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_length=None,
        beta=0.3,
        loss_type=loss.split("+"),
        loss_weights=weights,
        gradient_checkpointing=False,
        per_device_train_batch_size=len(rows),
        dataloader_pin_memory=False,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(hf.name_or_path)
    made = Ready(hf, start, args=args, train_dataset=datasets.Dataset.from_dict(told), processing_class=tokenizer)
    made.model.train()
    found = made.compute_loss(made.model, made.data_collator(list(made.train_dataset)))
    found.backward()
    return float(found.detach())


@pytest.mark.parametrize(
    ("loss", "weights", "own"),
    [
        ("sigmoid", [1.0], {}),
        ("ipo", [1.0], {"loss": "ipo"}),
        ("sigmoid+sft", [1.0, 0.7], {"sft": 0.7}),
    ],
)
def test_loss_and_gradients(
    loss: str, weights: list[float], own: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Loss to 1e-5, gradients to 1e-5 of the largest: TRL pads, and sums float32 numbers in another order.

    TRL's sft term is a mean over the tokens of the batch and ours one over pairs: compared on one pair.
    """
    made = tiny.model("llama", "language", tmp_path_factory)
    rows = tiny.rows("llama", "pairs", tmp_path_factory)[: 1 if "sft" in own else 8]
    made.hf.name_or_path = str(made.base.folder)
    start, policy = copy.deepcopy(made.hf), copy.deepcopy(made.hf)
    with torch.no_grad():
        batch = join(rows, shared=True)
        reference = _losses.answers(made.eval()(batch), batch)[0]
        for theirs_, ours in zip(policy.parameters(), made.hf.parameters(), strict=True):
            noise = 0.02 * torch.randn(ours.shape, generator=torch.Generator().manual_seed(ours.numel()))
            theirs_.add_(noise)
            ours.add_(noise)
    expected = theirs(policy, start, rows, tmp_path, loss, weights)
    batch.extras["reference"] = reference
    told = dpo.loss(made.train()(batch), batch, dpo.Settings(beta=0.3, **own)) / len(rows)
    told.backward()
    assert abs(expected - dpo.preference(torch.zeros(()), dpo.Settings()).item()) > 1e-3  # not where both begin
    assert told.item() == pytest.approx(expected, rel=1e-5)
    most = max(float(value.grad.abs().max()) for value in policy.parameters())
    for (name, ours), theirs_ in zip(made.hf.named_parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs_.grad, rtol=0, atol=1e-5 * most, msg=lambda m, n=name: f"{n} {m}")
