"""The machines of a job: nodes, cores, memory and GPUs."""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from typing_extensions import Self, override

from bt_lightning.errors import InvalidSettingError
from bt_lightning.truss_definitions.definition import Definition
from bt_lightning.truss_definitions.validators import Memory, at_least

if TYPE_CHECKING:
    from bt_lightning.truss_definitions.coercion import Coercion

_COUNT: Final = re.compile(r"0*[1-9][0-9]*")


class Accelerator(str, Enum):
    """A kind of GPU that Baseten offers."""

    _B10 = "B10"
    T4 = "T4"
    L4 = "L4"
    A10G = "A10G"
    V100 = "V100"
    A100 = "A100"
    A100_40GB = "A100_40GB"
    H100 = "H100"
    H200 = "H200"
    H100_40GB = "H100_40GB"
    B200 = "B200"
    L40S = "L40S"
    RTX_PRO_6000 = "RTX_PRO_6000"
    B300 = "B300"
    GB300 = "GB300"


class AvailabilityModel(str, Enum):
    """Whether the platform may preempt the machine."""

    DEDICATED = "dedicated"
    SPOT = "spot"


class AcceleratorSpec(Definition):
    """The GPUs of one node; a field of this type also takes text such as `"H100:8"`."""

    _lax: ClassVar[bool] = True

    accelerator: Accelerator | None = None
    count: Annotated[int, at_least(0, "give the number of GPUs of a node")] = 1

    @classmethod
    @override
    def read(cls, value: object, at: str, how: Coercion) -> Self:
        if isinstance(value, str):
            value = _parsed(value, at)
        return super().read({} if value is None else value, at, how)

    @override
    def model_dump(self, *, mode: Literal["python", "json"] = "python") -> str | None:
        """As `"H100:8"`, or None without a GPU; `Compute` writes the fields instead."""
        if self.accelerator is None or not self.count:
            return None
        many = f":{self.count}" if self.count > 1 else ""
        return f"{self.accelerator.value}{many}"


class Compute(Definition):
    """The machines of a job."""

    node_count: Annotated[int, at_least(1, "leave it out for one node")] = 1
    cpu_count: Annotated[int, at_least(1, "leave it out for one core")] = 1
    """Cores of each node."""
    memory: Memory = "2Gi"
    """Memory of each node."""
    accelerator: AcceleratorSpec | None = None
    availability_model: AvailabilityModel = AvailabilityModel.DEDICATED

    @override
    def model_dump(self, *, mode: Literal["python", "json"] = "python") -> dict[str, Any]:
        """The fields as plain values; the accelerator as its fields."""
        plain: dict[str, Any] = super().model_dump(mode=mode)
        gpu = self.accelerator
        if gpu is not None and gpu.accelerator is not None:
            plain["accelerator"] = {"accelerator": gpu.accelerator.value, "count": gpu.count}
        plain["availability_model"] = self.availability_model.value
        return plain


def _parsed(text: str, at: str) -> dict[str, Any]:
    """The fields that `H100` or `H100:8` means."""
    name, colon, count = text.strip().partition(":")
    known = {kind.value: kind for kind in Accelerator}
    if name in known and (not colon or _COUNT.fullmatch(count)):
        return {"accelerator": known[name], "count": int(count or 1)}
    kinds = ", ".join(value for value, kind in known.items() if kind.name[0] != "_")
    msg = f"{at} is {text!r}, expected a GPU and how many, such as 'H100:8': the GPUs are {kinds}"
    raise InvalidSettingError(msg)
