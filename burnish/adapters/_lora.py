"""What LoRA and its variants share: the adapted layer and its gradient, and which layers are adapted.

In: a loaded Model.  Out: the same Model, frozen, whose linear layers compute W x + s B A x.  The frozen layer may be
nn.Linear, GPT-2's Conv1D (which keeps W transposed), or a quantised one: any module with `in_features`,
`out_features`, `bias` and `dequantized(dtype) -> (out, in)`, whose weight is made again in backward, never kept.

Sources: Hu et al. 2021, LoRA, eq. 3.  rsLoRA: Kalajdzievski 2023.  DoRA: Liu et al. 2024, eq. 5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from burnish.errors import TaskError
from burnish.kinds import setting
from burnish.models.model import Model
from burnish.models.places import present
from burnish.models.shards import is_linear

# PEFT refuses out_proj of these: their kernels read its weight, past any adapter
MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")


@dataclass(frozen=True)
class Settings:
    """Keys of `lora:` and `qlora:` in task.yaml."""

    rank: int = setting(8, "rank of the update of each layer", low=1, high=4096)
    alpha: float = setting(16.0, "the update is scaled by alpha / rank", low=0)
    targets: list[str] = setting([], "layer names, e.g. [q_proj, v_proj]; empty: every linear layer but the head")
    use_rslora: bool = setting(
        False, "rsLoRA: scale by alpha / sqrt(rank), so that high ranks learn as fast as low ones"
    )
    use_dora: bool = setting(
        False, "DoRA: train the length of each output's weights apart from their direction; slower"
    )


def frozen(base: Any, dtype: torch.dtype) -> Tensor:
    """The (out, in) weight of a frozen linear layer of any kind."""
    if hasattr(base, "dequantized"):
        weight: Tensor = base.dequantized(dtype)
    else:
        weight = base.weight.T if type(base).__name__ == "Conv1D" else base.weight
    return weight.to(dtype)


def _size(base: Any) -> tuple[int, int]:
    """(out, in) of a linear layer of any kind."""
    if type(base).__name__ == "Conv1D":
        return base.weight.shape[1], base.weight.shape[0]
    return base.out_features, base.in_features


class Update(torch.autograd.Function):
    """y = x Wᵀ + bias + s (drop(x) Aᵀ) Bᵀ, with gradients for x, A and B and none for W.

    Kept for backward: x itself (which layers that read the same x share), (N, r) x Aᵀ, A and B; with dropout also its
    mask.  Autograd's own version keeps W in the compute type, and x again wherever it is cast, and adds the two
    branches as (N, out) and (N, in) temporaries; here the small products are accumulated into the large ones.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        base: nn.Module,
        bias: Tensor | None,
        scale: float,
        dropout: float,
        dtype: torch.dtype,
    ) -> Tensor:
        """x (..., in), a (r, in), b (out, r); y (..., out) in `dtype`, in which all products are computed."""
        rows = x.reshape(-1, x.shape[-1]).to(dtype)  # (N, in)
        weight = frozen(base, dtype).T
        whole = rows.new_empty(
            *x.shape[:-1], weight.shape[1]
        )  # given back itself, not a view: Falcon adds to it in place
        out = whole.view(len(rows), -1)
        torch.mm(rows, weight, out=out) if bias is None else torch.addmm(bias.to(dtype), rows, weight, out=out)
        read, mask = torch.native_dropout(rows, dropout, True) if dropout else (rows, None)
        inner = read @ a.to(dtype).T  # (N, r)
        out.addmm_(inner, b.to(dtype).T, alpha=scale)
        ctx.save_for_backward(x, inner, a, b, mask)
        ctx.base, ctx.scale, ctx.dropout, ctx.dtype = base, scale, dropout, dtype
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, a, b, mask = ctx.saved_tensors
        scale, dtype = ctx.scale, ctx.dtype
        out = gradient.reshape(-1, gradient.shape[-1])  # (N, out)
        down = out @ b.to(dtype)  # (N, r)
        kept = None if mask is None else mask.to(dtype).mul_(1 / (1 - ctx.dropout))
        to_x = to_a = to_b = None
        if ctx.needs_input_grad[0]:
            to_x = out @ frozen(ctx.base, dtype)
            if kept is None:
                to_x.addmm_(down, a.to(dtype), alpha=scale)
            else:
                to_x.addcmul_(down @ a.to(dtype), kept, value=scale)
            to_x = to_x.view(x.shape).to(x.dtype)
        if ctx.needs_input_grad[1]:
            rows = x.reshape(-1, x.shape[-1]).to(dtype)
            to_a = (rows if kept is None else rows * kept).T @ down  # (in, r): faster than its transpose
            to_a = to_a.to(a.dtype).mul_(scale).T
        if ctx.needs_input_grad[2]:
            to_b = (inner.T @ out).to(b.dtype).mul_(scale).T
        return to_x, to_a, to_b, None, None, None, None, None


class LoraLinear(nn.Module):
    """A frozen linear layer plus its update; with DoRA each output is then given a trained length.

    lora_A (rank, in), lora_B (out, rank), lora_magnitude_vector (out,) or None: names and shapes of PEFT's files.
    scale: alpha / rank, or alpha / sqrt(rank) with rsLoRA.  dropout: share of the update's input hidden in training.
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
        use_rslora: bool = False,
        use_dora: bool = False,
    ) -> None:
        super().__init__()
        self.base_layer = base
        self.rank, self.alpha, self.use_rslora, self.use_dora = rank, alpha, use_rslora, use_dora
        self.scale = alpha / (math.sqrt(rank) if use_rslora else rank)
        self.dropout = dropout
        self.enabled = True
        outputs, inputs = _size(base)
        device = next(chain(base.parameters(), base.buffers())).device
        device = torch.get_default_device() if device.type == "meta" else device  # a base that is still in its files
        bound = 1 / math.sqrt(inputs)  # kaiming_uniform(a=sqrt 5), as PEFT starts A; B = 0 leaves the base as it is
        start = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(start.to(device))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, device=device))
        with torch.no_grad(), present(base) if use_dora else nullcontext():
            self.lora_magnitude_vector = nn.Parameter(_lengths(frozen(base, torch.float32))) if use_dora else None
        for value in self.parameters(recurse=False):
            value.exact = True  # stays float32 in a bf16 model: `Update` casts it
        self._settled: tuple[tuple[int, ...], Tensor] | None = None

    @property
    def weight(self) -> Tensor:
        """The frozen weight: some models look at it (T5 at its dtype)."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.base_layer.bias

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.enabled:
            return self.base_layer(inputs)
        device = "cpu" if inputs.is_meta else inputs.device.type  # a skeleton computes nothing (train/keeps.py)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype
        dropout = self.dropout if self.training else 0.0
        bias = None if self.use_dora else self.bias
        if torch.is_grad_enabled() or dropout or bias is not self.bias:
            out = Update.apply(inputs, self.lora_A, self.lora_B, self.base_layer, bias, self.scale, dropout, dtype)
        else:
            out = self._answered(inputs, dtype)
        if self.lora_magnitude_vector is None:
            return out
        out = out * (self.lora_magnitude_vector / self._lengths()).to(dtype)
        return out if self.bias is None else out + self.bias.to(dtype)

    def _answered(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """What Update says, by the base layer's own forward pass: while answering it is a faster one (quicken.py)."""
        out: Tensor = self.base_layer(inputs)
        inner = inputs.reshape(-1, inputs.shape[-1]).to(dtype) @ self.lora_A.to(dtype).T
        out.view(-1, out.shape[-1]).addmm_(inner, self.lora_B.to(dtype).T, alpha=self.scale)
        return out

    def train(self, mode: bool = True) -> LoraLinear:
        """As nn.Module.train; what was settled for evaluation is forgotten."""
        self._settled = None
        return super().train(mode)

    @torch.no_grad()
    def _lengths(self) -> Tensor:
        """(out,) lengths of the rows of W + s B A, without a gradient (DoRA, section 4.3); kept while evaluating."""
        version = tuple(number for item in (self.lora_A, self.lora_B) for number in (item._version, item.data_ptr()))
        if self._settled is None or self._settled[0] != version or self.training:
            self._settled = version, _lengths(self._sum())
        return self._settled[1]

    def _sum(self) -> Tensor:
        """(out, in) W + s B A in the update's own type (float32)."""
        return torch.addmm(frozen(self.base_layer, self.lora_A.dtype), self.lora_B, self.lora_A, alpha=self.scale)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """(out, in) the one weight that computes the same, float32."""
        if self.lora_magnitude_vector is None:
            return self._sum()
        return self._sum() * (self.lora_magnitude_vector / self._lengths())[:, None]


def _lengths(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=1)


def attach(
    model: Model,
    rank: int,
    alpha: float,
    targets: Sequence[str] = (),
    use_rslora: bool = False,
    use_dora: bool = False,
    dropout: float = 0.0,
    seed: int = 0,
) -> None:
    """Freeze the base, give each target layer its update, and let a new head train whole."""
    names = chosen(model, targets)
    unheld = [name for name in beside_experts(model, names) if use_dora or hasattr(_at(model, name), "dequantized")]
    names = [name for name in names if name not in unheld]
    freeze(model)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        put(model, name, LoraLinear(_at(model, name), rank, alpha, dropout, generator, use_rslora, use_dora))


def refuse_random(model: Model, rung: str) -> None:
    """An adapter needs a base that can be found again; random weights exist nowhere but in this process."""
    if model.base.random:
        what = f"{rung} needs pre-trained weights"
        raise TaskError(what, "base.weights", "set rungs: [full] to train from scratch")


def freeze(model: Model) -> None:
    """Only a new head trains."""
    for name, value in model.hf.named_parameters():
        value.requires_grad_(name in model.fresh)


def _at(model: Model, name: str) -> nn.Module:
    return model.hf.get_submodule(name)


def put(model: Model, name: str, module: nn.Module) -> None:
    """Set the module at a dotted name."""
    parent, _, leaf = name.rpartition(".")
    setattr(_at(model, parent), leaf, module)


def layers(model: Model) -> dict[str, LoraLinear]:
    """The adapted layers by the names their bases had."""
    return {name: item for name, item in model.hf.named_modules() if isinstance(item, LoraLinear)}


def linear(model: Model) -> list[str]:
    """Every linear layer of the base that is neither its output layer nor part of a new head."""
    ends = {id(model.hf.get_output_embeddings())} if model.head.kind == "language" else set()
    fresh = {name.rpartition(".")[0] for name in model.fresh}
    mamba = getattr(model.hf.config, "model_type", "") in MAMBA
    return [
        name
        for name, item in model.hf.named_modules()
        if (is_linear(item) or hasattr(item, "dequantized"))
        and id(item) not in ends
        and name not in fresh
        and not (mamba and name.endswith("out_proj"))
    ]


def beside_experts(model: Model, names: Iterable[str]) -> list[str]:
    """The layers that PEFT takes for experts by their names, where experts lie in one tensor (transformers 5).

    They can be named to it by their weights, but not those in 4 bits and not with DoRA.
    """
    fused = any(value.ndim == 3 and name.endswith("gate_up_proj") for name, value in model.hf.named_parameters())
    return [name for name in names if fused and name.endswith(("gate_proj", "up_proj", "down_proj"))]


def chosen(model: Model, targets: Sequence[str]) -> list[str]:
    """The layers that `targets` name, by whole names or their ends; without targets all that are not tied."""
    known = linear(model)
    if not known:
        what = f"{type(model.hf).__name__} has no linear layer that LoRA could change"
        raise TaskError(what, "rungs", "take full or partial instead")
    if not targets:
        embeddings = [item for item in model.hf.modules() if isinstance(item, nn.Embedding)]
        tied = {id(value) for item in embeddings for value in item.parameters()}
        return [name for name in known if id(getattr(_at(model, name), "weight", None)) not in tied]
    names = [name for name in known if any(name == target or name.endswith(f".{target}") for target in targets)]
    if not names:
        leaves = sorted({name.rpartition(".")[2] for name in known})
        what = f"lora.targets {list(targets)} match no layer"
        raise TaskError(what, "lora.targets", f"this model has {', '.join(leaves)}")
    return names


@torch.no_grad()
def merge(model: Model) -> None:
    """Put each update into its weight, summed in float32 and rounded once; a quantised layer becomes a plain one."""
    for name, item in layers(model).items():
        base, weight = item.base_layer, item.merged()
        if hasattr(base, "dequantized"):
            base = base.plain(weight)
        else:
            base.weight.copy_(weight.T if type(base).__name__ == "Conv1D" else weight)
        put(model, name, base)


@contextmanager
def disabled(model: Model) -> Iterator[None]:
    """The base inside the tuned model, without a second copy."""
    adapted = list(layers(model).values())
    for item in adapted:
        item.enabled = False
    try:
        yield
    finally:
        for item in adapted:
            item.enabled = True
