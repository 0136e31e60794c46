"""Several passes of a network on one input that compute the features before the first changed layer only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """One finished call of a module."""

    module: nn.Module
    within: tuple[nn.Module, ...]
    """Modules that were running when the module was called."""
    shape: tuple[int, ...]
    """Shape of the (first) output. Empty without a tensor in the output."""
    repeatable: bool
    """Whether the outputs can replace another call. They can if they are tensors in plain containers, and if nothing
    changed inputs or outputs in place."""


def trace(network: nn.Module, forward: Callable[[], object]) -> list[Call]:
    """Calls of all modules while `forward` runs the network once, in the order in which the calls finished.

    All features of one pass are held in memory, as in training, because only a tensor that still exists tells whether
    the tensor was changed in place.
    """
    running: list[tuple[nn.Module, list[tuple[Tensor, int]]]] = []
    finished: list[tuple[nn.Module, tuple[nn.Module, ...], bool, bool, list[tuple[Tensor, int]]]] = []

    def entered(module: nn.Module, args: Any, kwargs: Any) -> None:
        running.append((module, _versions((args, kwargs))))

    def left(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        _, inputs = running.pop()
        within = tuple(outer for outer, _ in running)
        finished.append((module, within, _unchanged(inputs), _plain(output), _versions(output)))

    handles = []
    for module in network.modules():
        handles.append(module.register_forward_pre_hook(entered, with_kwargs=True))
        handles.append(module.register_forward_hook(left, with_kwargs=True))
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return [
        Call(
            module,
            within,
            tuple(outputs[0][0].shape) if outputs else (),
            clean and plain and bool(outputs) and _unchanged(outputs),
        )
        for module, within, clean, plain, outputs in finished
    ]


def done_before(calls: Sequence[Call], last: int) -> list[nn.Module]:
    """Largest modules of which every call had finished when the call at position `last` finished.

    Changes after this call cannot change the outputs of these modules. Modules with a call that is not `repeatable` are
    left out.
    """
    early = {call.module for call in calls[: last + 1]}
    early -= {call.module for call in calls[last + 1 :]}
    early -= {call.module for call in calls if not call.repeatable}
    return list(
        dict.fromkeys(call.module for call in calls if call.module in early and not early.intersection(call.within))
    )


class _Recalled:
    """Replacement of a module's `forward` that keeps the outputs of the first pass and returns them in later passes."""

    def __init__(self, module: nn.Module, depth: list[int]) -> None:
        self.forward = module.forward
        # Number of recalled modules that are running, shared by all. A call inside another such module is not kept.
        self.depth = depth
        self.outputs: list[Any] = []
        self.turn: int | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.turn is not None:
            self.turn += 1
            return _fresh(self.outputs[self.turn - 1])
        self.depth[0] += 1
        try:
            output = self.forward(*args, **kwargs)
        finally:
            self.depth[0] -= 1
        if not self.depth[0]:
            self.outputs.append(_fresh(output))
        return output


@contextmanager
def recalled(modules: Sequence[nn.Module]) -> Iterator[Callable[[], None]]:
    """Context in which a network runs several times on one input, and these modules compute in the first pass only.

    Yields a function to call at the end of each pass.
    """
    depth = [0]
    kept = {module: _Recalled(module, depth) for module in modules}

    def next_pass() -> None:
        for recall in kept.values():
            recall.turn = 0

    for module, recall in kept.items():
        module.forward = recall  # type: ignore[assignment]
    try:
        yield next_pass
    finally:
        for module in kept:
            del module.forward


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _plain(value: Any) -> bool:
    """Whether a value consists of tensors in plain lists, tuples and dictionaries only."""
    if type(value) in (list, tuple):
        return all(map(_plain, value))
    if type(value) is dict:
        return all(map(_plain, value.values()))
    return isinstance(value, Tensor)


def _fresh(value: Any) -> Any:
    """The same tensors in new containers, because a network may remove features from a list that it has been handed."""
    if isinstance(value, dict):
        return {key: _fresh(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_fresh(part) for part in value)
    return value


def _versions(value: Any) -> list[tuple[Tensor, int]]:
    # `_version` counts the changes in place of a tensor and of its views.
    return [(tensor, tensor._version) for tensor in _tensors(value)]


def _unchanged(versions: Sequence[tuple[Tensor, int]]) -> bool:
    return all(tensor._version == version for tensor, version in versions)


def stacked(passes: Sequence[Tensor]) -> Tensor:
    """Outputs of several passes, joined along the channels: `[1, passes * output, *window]`.

    A sliding window blends every channel on its own, so the passes stay apart.
    """
    return torch.cat(list(passes), dim=1)
