"""What a model says at the places that are asked, and no more of it than is wanted.

In: what the language head reads there.  Out: log-probabilities of single ids, chunk by chunk: all (N, V) logits at once
are made only for those who ask for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from burnish.models.fused import logits_gradient
from burnish.models.layout import rounded
from burnish.models.quicken import product

CELLS = 1 << 20  # logits made at once, so that they stay in the cache
LEAST = 192  # places at once from which reading the head's weights is not what takes the time


@dataclass(frozen=True)
class Places:
    """N places whose next id is asked.  states: (N, H) that `head` reads; or (N, V) logits, with no head."""

    states: Tensor
    head: nn.Linear | None = None

    def __len__(self) -> int:
        return len(self.states)

    def logits(self, start: int = 0, end: int | None = None) -> Tensor:
        """(N, V) of these places, in float32 at least."""
        some = self.states[start:end]
        if self.head is not None:
            more = rounded(len(some)) - len(some)  # products come in few shapes, and none is too small to be alike
            some = product(nn.functional.pad(some, (0, 0, 0, more)), self.head.weight, self.head.bias)[: len(some)]
        return some if some.dtype == torch.float64 else some.float()

    def odds(self, place: Tensor, token: Tensor) -> Tensor:
        """(M,) log-probability in nats, float64, of `token` (M,) at `place` (M,); ids may be asked of one place."""
        place, token = place.to(self.states.device), token.to(self.states.device)
        told = torch.empty(len(place), dtype=torch.float64, device=place.device)
        width = self.states.shape[1] if self.head is None else len(self.head.weight)
        step = rounded(max(CELLS // width, LEAST))
        for start in range(0, len(self), step):
            logits = self.logits(start, start + step)
            first = torch.zeros(len(logits), dtype=torch.long, device=place.device)
            # a loss is the log of the sum less the target's logit
            losses = logits_gradient(logits, first, torch.ones_like(first, dtype=logits.dtype), 0.0, False)[1]
            log = losses.double() + logits[:, 0].double()
            here = torch.nonzero((place >= start) & (place < start + step))[:, 0]
            at = place[here] - start
            told[here] = logits[at, token[here]].double() - log[at]
        return told
