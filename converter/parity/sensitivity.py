"""What a change of one element of a parameter does to the compared activations, for all elements at once.

The squared effects of an element on all taps are wanted, each in units of that tap's limit: the sum over taps of
|dT/dw|^2 (step / (limit |T|))^2, which would take a forward pass for each element. A backward pass with random normal
cotangents gives for every element a normal number with just this variance (Hutchinson 1990), so that an effect is
found unless the number happens to be near zero; further passes find those.

What is zero in exact arithmetic, such as the effect of a bias that a softmax cancels, comes out as rounding errors.
They are told from small effects by a pass over a model whose small parameters are off in the last digits: an effect is
then the same to many digits, a rounding error is another, of the size that it has in every pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from converter.parity.device import deterministic
from converter.parity.run import Run, tensors_of
from converter.parity.taps import observe

STEP = 1e-3  # the change of an element, in units of the RMS of its tensor, or absolute if that is all zeros
PASSES = 7  # backward passes for each capture at most
_WHOLE = 4  # of these, the first go through the whole model; the others only where effects are still to be found
_SIGMAS = 5.0  # a normal number beyond this is not met: 6 in ten million are
_HOPELESS = 0.02  # an effect that came to this part of its limit at most will hardly pass it in another pass
_NUDGE, _SMALL = 1e-13, 1 << 16  # relative; of parameters of so many elements at most
_TINY = 1e-3  # of a limit; rounding errors are far below it
_SAME = 1e-7  # after a nudge, an effect differs by less than this part of the largest that was found of it
_ALIKE = 10.0  # rounding errors of one tensor are not larger than so many times the largest that is known for one

NOTHING, CANCELS, WITHIN, SEEN = range(4)  # states of an element; of several captures the last one counts


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivity:
    """Of one parameter, beside one capture.

    states: uint8 in its shape: NOTHING depends on the element; what it does CANCELS but for rounding errors; it is
        not shown to pass a limit, and so counts as WITHIN them; SEEN.
    effect: the median over its elements of what a step does: the root of the mean square over the taps that it can
        change, in units of their limits, times a normal number.
    """

    states: Tensor
    effect: float


def sensitivity(
    run: Run, names: Collection[str], on_done: Callable[[int], object] = lambda count: None
) -> dict[str, Sensitivity]:
    """Of the parameters of these names of a float64 model; one on which no output depends is not among them.

    `on_done` is told how many parameters were passed, `PASSES` times their number in all. Memory: the activations of
    one block more than those that are tapped, a byte for each element, and 24 for each that is neither seen nor zero.
    """
    every = run.subject.parameters
    parameters = {name: every[name] for name in names}
    passes = _Passes(parameters, on_done)
    with torch.inference_mode(False), torch.enable_grad(), deterministic(), _requiring_grad(parameters.values()):
        with _nudged([value for value in every.values() if value.is_floating_point()]):
            passes.nudged(_graph(run, parameters))
        passes.over(_graph(run, parameters))
    return passes.found


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    """roots: what was computed for each tap that has a limit; scales: what an error of it is multiplied by to be in
    units of that; later: how many of these taps each parameter can change, as they were computed after it was used;
    outputs: of the model, compared or not.
    """

    roots: list[Tensor]
    scales: list[float]
    later: Mapping[str, int]
    outputs: list[Tensor]


def _graph(run: Run, parameters: Mapping[str, nn.Parameter]) -> _Graph:
    """A forward run, of which only what passes between blocks is kept; these are run again where gradients need it."""
    model = run.subject.model
    modules = dict(model.named_modules())
    roots: list[Tensor] = []
    scales: list[float] = []
    began: dict[str, int] = {}  # how many taps were computed when a module first ran

    def keep(name: str, value: Tensor) -> None:
        limit = run.comparison.limit(name, "propagated", value.shape)
        if limit is not None and value.requires_grad:
            roots.append(value)
            scales.append(1 / (limit * (float(value.detach().norm()) or 1.0)))

    def begin(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object) -> None:
            began.setdefault(path, len(roots))

        return hook

    def later(parameter: nn.Parameter) -> int:
        return len(roots) - min(_began(began, path) for path in owners[parameter])

    owners: dict[nn.Parameter, list[str]] = {}  # several of one that is tied
    for path, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(path)
    handles = [module.register_forward_pre_hook(begin(path)) for path, module in modules.items()]
    blocks = _innermost({tap.target for tap in run.taps})
    try:
        with (
            _recomputed([modules[path] for path in blocks]),
            observe(model, run.taps, lambda tap, value: keep(tap.source, value)),
        ):
            out = run.again()
            outputs = [value for value in tensors_of(out) if value.requires_grad]
            for name, derived in run.derived.items():
                keep(name, derived.compute(out))
    finally:
        for handle in handles:
            handle.remove()
    return _Graph(roots, scales, {name: later(value) for name, value in parameters.items()}, outputs)


def _began(began: Mapping[str, int], path: str) -> int:
    """When the module at `path` first ran, or the one around it, which uses its parameters where it does not run."""
    while path not in began:
        path = path.rpartition(".")[0]
    return began[path]


def _innermost(paths: Collection[str]) -> list[str]:
    """The modules in which no other of them is; the model itself is none."""
    return [path for path in paths if path and not any(other.startswith(f"{path}.") for other in paths)]


@contextmanager
def _requiring_grad(parameters: Collection[nn.Parameter]) -> Iterator[None]:
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
            parameter.grad = None
        yield
    finally:
        for parameter, required, grad in before:
            parameter.requires_grad_(required)
            parameter.grad = grad


@contextmanager
def _nudged(parameters: Collection[nn.Parameter]) -> Iterator[None]:
    """Small parameters, norms and biases, are off in their last digits, so that everything is rounded otherwise."""
    generator = torch.Generator().manual_seed(0)
    small = [parameter.data for parameter in parameters if parameter.numel() <= _SMALL]
    before = [values.clone() for values in small]
    try:
        for values in small:
            values.mul_(1 + _NUDGE * torch.randn(values.shape, generator=generator, dtype=values.dtype).to(values))
        yield
    finally:
        for values, value in zip(small, before, strict=True):
            values.copy_(value)


@contextmanager
def _recomputed(modules: Collection[nn.Module]) -> Iterator[None]:
    """What happens inside these modules is not kept for the backward pass, but computed again in it."""

    def forward(compute: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: checkpoint(
            compute, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
        )

    once = {id(module): module for module in modules}.values()  # one may be at several paths
    try:
        for module in once:
            module.forward = forward(module.forward)
        yield
    finally:
        for module in once:
            del module.forward


class _Small(NamedTuple):
    """Elements with an effect that is not beyond its limit: their places, by how much a nudge changed the effect of the
    first pass (before that pass, the effect in the nudged model), and the largest effect so far; in units of the limit.
    """

    places: Tensor
    change: Tensor
    largest: Tensor


@dataclass(slots=True, eq=False)
class _Passes:
    """Backward passes, and what they found so far."""

    parameters: Mapping[str, nn.Parameter]
    on_done: Callable[[int], object]
    found: dict[str, Sensitivity] = field(default_factory=dict)
    small: dict[str, _Small] = field(default_factory=dict)

    def nudged(self, graph: _Graph) -> None:
        """The pass over the nudged model, which only the next one is held against."""

        def keep(name: str, effect: Tensor) -> None:
            flat = effect.flatten()
            places = ((flat != 0) & (flat.abs() <= 1)).nonzero().squeeze(1)
            self.small[name] = _Small(places, flat[places], flat[places].abs())

        self._backward(graph, 0, [*self.parameters], keep)

    def over(self, graph: _Graph) -> None:
        """All other passes, over the model as it is; the graph is freed."""
        for number in range(PASSES - 1):
            wanted = [*self.parameters] if number < _WHOLE - 1 else self._unsettled()
            self._backward(graph, number, wanted, self._first if number == 0 else self._further)
        for name, small in self.small.items():
            self._settle(self.found[name].states.view(-1), small)
        others = {name: value for name, value in self.parameters.items() if name not in self.found}
        if others and graph.outputs:
            sums = [value.sum() for value in graph.outputs]
            grads = torch.autograd.grad(sums, [*others.values()], allow_unused=True)
            for (name, value), grad in zip(others.items(), grads, strict=True):
                if grad is not None:  # an output that is not compared depends on it
                    self.found[name] = Sensitivity(torch.full(value.shape, NOTHING, dtype=torch.uint8), 0.0)

    def _unsettled(self) -> list[str]:
        return [
            name
            for name, small in self.small.items()
            if bool(((self.found[name].states.view(-1)[small.places] == WITHIN) & (small.largest > _HOPELESS)).any())
        ]

    def _backward(self, graph: _Graph, seed: int, wanted: list[str], judge: Callable[[str, Tensor], None]) -> None:
        """`judge` is told the effect of a step of each element; beyond 1 it is certain that a tap passes its limit."""
        done = 0

        def take(name: str) -> Callable[[nn.Parameter], None]:
            def hook(parameter: nn.Parameter) -> None:
                nonlocal done
                grad, parameter.grad = parameter.grad, None
                if grad is not None:
                    step = STEP * (float(parameter.detach().square().mean().sqrt()) or 1.0)
                    judge(name, grad.mul_(step / (_SIGMAS * math.sqrt(max(graph.later[name], 1)))).cpu())
                done += 1
                self.on_done(1)

            return hook

        generator = torch.Generator().manual_seed(seed)
        handles = [
            self.parameters[name].register_post_accumulate_grad_hook(take(name))  # type: ignore[no-untyped-call]
            for name in wanted
        ]
        try:
            if wanted and graph.roots:
                cotangents = [
                    torch.randn(root.shape, generator=generator, dtype=root.dtype).mul_(scale).to(root)
                    for root, scale in zip(graph.roots, graph.scales, strict=True)
                ]
                inputs = [self.parameters[name] for name in wanted]
                torch.autograd.backward(graph.roots, cotangents, retain_graph=True, inputs=inputs)
        finally:
            for handle in handles:
                handle.remove()
        self.on_done(len(self.parameters) - done)

    def _first(self, name: str, effect: Tensor) -> None:
        """The pass with the cotangents of the nudged one."""
        size = effect.abs()
        states = torch.where(size > 1, SEEN, torch.where(size > 0, WITHIN, NOTHING)).to(torch.uint8)
        self.found[name] = Sensitivity(states, _SIGMAS * float(size.median()) if size.numel() else 0.0)
        nudged = torch.zeros_like(effect)
        before = self.small[name]
        nudged.view(-1)[before.places] = before.change
        places = (states == WITHIN).flatten().nonzero().squeeze(1)
        change = (effect - nudged).flatten()[places].abs()
        self.small[name] = _Small(places, change, size.flatten()[places])

    def _further(self, name: str, effect: Tensor) -> None:
        if name not in self.found:
            return
        size, states = effect.abs(), self.found[name].states
        # zero before and not now: a rounding error that was zero by chance
        states[(states == NOTHING) & (size > 0)] = CANCELS
        states[size > 1] = SEEN
        small = self.small[name]
        largest = torch.maximum(small.largest, size.flatten()[small.places])
        self.small[name] = small._replace(largest=largest)

    @staticmethod
    def _settle(states: Tensor, small: _Small) -> None:
        """Tell rounding errors from effects that are within the limits."""
        within = states[small.places] == WITHIN
        # what was beyond the limit in the nudged model counts as zero there: it is too large to be a rounding error
        errors = within & (small.change > _SAME * small.largest) & (small.largest < _TINY)
        if bool(errors.any()):
            # by chance, a nudge may leave one of them as it was, but for what it does to the units
            same = small.change <= _NUDGE * small.largest
            errors |= within & same & (small.largest <= _ALIKE * small.largest[errors].max())
        states[small.places[errors]] = CANCELS
