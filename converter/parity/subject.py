"""A model that is compared: with the family that knows how it is run and what its weights are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from converter.mapping.entries import Tap
from converter.mapping.spec import Config
from converter.parity.family import Family

if TYPE_CHECKING:
    from torch import Tensor, nn

    from converter.parity.taps import OnValue


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model and its family. `is_whole`: it runs as it is, and no activation of it can be replaced meanwhile."""

    family: Family[Any]
    model: nn.Module
    is_whole: ClassVar[bool] = False

    @property
    def config(self) -> Config:
        """Its sizes."""
        return self.family.config(self.model)

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """By their names in the spec."""
        return self.family.parameters(self.model)

    @property
    def paths(self) -> Mapping[str, str]:
        """By their names in the spec, the names that the parameters have in the model."""
        names = {value: name for name, value in self.model.named_parameters()}
        return {name: names[value] for name, value in self.parameters.items()}

    @property
    def parameter(self) -> Tensor:
        """Any parameter, for the dtype and the device of the model."""
        return next(self.model.parameters())

    @property
    def dtype(self) -> str:
        """`float32`."""
        return str(self.parameter.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return str(self.parameter.device.type)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the numbers of a run, as JSON."""
        from converter.parity.device import settings

        return settings(self.parameter)

    def computes(self, tap: Tap) -> bool:
        """Whether the activation that a tap names can be looked at."""
        return True

    def observed(self, inputs: Mapping[str, Tensor], taps: Sequence[Tap], on_value: OnValue) -> Any:
        """As `run`; `on_value` sees, and may replace, what `taps` name."""
        from converter.parity.taps import observe

        with observe(self.model, taps, on_value):
            return self.run(inputs)

    def run(self, inputs: Mapping[str, Tensor]) -> Any:
        """The model's output."""
        device = self.parameter.device
        with self.family.comparing(self.model):
            return self.family.run(self.model, {name: value.to(device) for name, value in inputs.items()})
