"""The frozen layers below the first trained one: what they say of a row is always the same, so it is worked out once.

In: a Model whose lowest layers no training moves.  Out: a Bottom, which gives the hidden states that enter the first
trained layer; a Batch that brings them (`Batch.states`) makes the model begin there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from burnish.models.model import FIRST, SECOND, Model
from burnish.models.widened import widened
from burnish.tokens.batch import Batch, join
from burnish.tokens.rows import Tokens


class _Reached(Exception):
    """Ends a pass at the first trained layer."""


def stack(body: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """The longest list of layers that lies in no other, and the module that holds it."""
    lists = {name: item for name, item in body.named_modules() if isinstance(item, nn.ModuleList)}
    outer = {name: item for name, item in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}
    name = max(outer, key=lambda name: len(outer[name]))
    return body.get_submodule(name.rpartition(".")[0]), outer[name]


@dataclass(frozen=True)
class Bottom:
    """The first `depth` layers of a decoder or encoder."""

    model: Model
    depth: int

    def states(self, batch: Batch) -> Tensor:
        """(1, T, H) what enters the first trained layer, for a pack and what fills it up."""
        found: list[Tensor] = []

        def reached(_: nn.Module, told: tuple[Any, ...], named: dict[str, Any]) -> None:
            found.append(_hidden(told, named))
            raise _Reached

        hook = self._layers[self.depth].register_forward_pre_hook(reached, with_kwargs=True)
        try:
            self.model.features(self.model.even(batch))
        except _Reached:
            return found[0]
        finally:
            hook.remove()
        raise ValueError("no pass reaches this layer")

    def install(self) -> bool:
        """Let the model begin above these layers where a batch brings `states`; whether that is exact.

        Shown on the model itself with two short rows, in training: nothing below learns, nothing there is random, and
        the features are equal to the last bit.  Where one of these fails the model is as it was.
        """
        plain = [layer.forward for layer in self._layers[: self.depth]]
        was, made = self.model.training, [_row(ids, self.model.base.vocabulary) for ids in (FIRST, SECOND)]
        batch = self.model.even(join(made).to(self.model.device))
        self.model.train()
        try:
            with torch.random.fork_rng(), widened(self.model.hf):
                torch.manual_seed(1)
                states = self.states(batch)
                torch.manual_seed(2)
                if states.requires_grad or not torch.equal(states, self.states(batch)):
                    return False
                for number, layer in enumerate(self._layers[: self.depth]):
                    layer.forward = partial(_through, self.model, layer.forward, number == 0)
                told = []
                for one in (batch, replace(batch, states=states)):
                    torch.manual_seed(3)
                    with torch.no_grad():
                        told.append(self.model.features(one))
                if torch.equal(*told):
                    plain = []
                    return True
                return False
        except Exception:  # whatever an unknown architecture raises: its layers run
            return False
        finally:
            for layer, forward in zip(self._layers, plain, strict=False):
                layer.forward = forward
            self.model.train(was)

    def fingerprint(self) -> bytes:
        """A digest of what decides the states of a row besides its tokens: configuration and every frozen number."""
        digest = hashlib.sha256(f"{self.model.hf.config.to_json_string()} {self.depth}".encode())
        above = {id(item) for layer in self._layers[self.depth :] for item in (*layer.parameters(), *layer.buffers())}
        body = self.model.hf.base_model
        for name, value in (*body.named_parameters(), *body.named_buffers()):
            if id(value) not in above and not value.requires_grad:
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.digest()

    @property
    def _layers(self) -> nn.ModuleList:
        return stack(self.model.hf.base_model)[1]


def _through(model: Model, plain: Callable[..., Any], first: bool, /, *told: Any, **named: Any) -> Any:
    """A frozen layer: the lowest one gives what is known, the others hand it on."""
    if model.states is None:
        return plain(*told, **named)
    return model.states if first else _hidden(told, named)


def _hidden(told: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    hidden: Tensor = told[0] if told else named["hidden_states"]
    return hidden


def _row(ids: tuple[int, ...], size: int) -> Tokens:
    return Tokens(np.asarray(ids, np.int32) % (size or 10), np.ones(len(ids), np.float32), "", "")
