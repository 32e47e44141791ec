"""Which parameter an id in nanochat's optimizer state stands for.

An optimizer's state dict names parameters by number, in the order of its
groups. nanochat makes the groups from the model in the same way in every
revision: AdamW has one for each kind of parameter outside the blocks, Muon one
for each shape of matrix inside them, smallest shape first. So names and shapes
of the model file give every id its parameter, and a file whose groups are not
these was made from another model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from fastckpt.errors import MismatchError
from fastckpt.layout.prefixes import bare_name
from fastckpt.text import some

Shape = tuple[int, ...]

_ADAMW_GROUPS: Final = (
    (r"lm_head\.weight",),
    (r"transformer\.wte\.weight",),
    (r"value_embeds\.\d+\.weight",),
    (r"resid_lambdas",),
    (r"x0_lambdas",),
    (r"smear_gate\.weight", r"smear_lambda", r"backout_lambda"),
)
"""Groups and their members in order. A revision without some of them has the others in the same order."""
_MATRIX: Final = re.compile(r"transformer\.h\.\d+\..+")


class Parameter(NamedTuple):
    """A parameter of the model."""

    name: str
    shape: Shape

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class ParameterGroups(NamedTuple):
    """The parameters in the order of their ids, group by group."""

    adamw: list[list[Parameter]]
    muon: list[list[Parameter]]


def parameter_groups(shapes: Mapping[str, Shape]) -> ParameterGroups:
    """The groups that nanochat's optimizer has for a model.

    Args:
        shapes: Every tensor of the model file, in its order. The prefix of a wrapper does not matter.

    Raises:
        MismatchError: A parameter whose place in the optimizer is not known.
    """
    parameters = [Parameter(bare_name(name), shape) for name, shape in shapes.items()]
    adamw = [[found for pattern in group for found in _named(parameters, pattern)] for group in _ADAMW_GROUPS]
    adamw = [group for group in adamw if group]
    matrices = [parameter for parameter in parameters if _MATRIX.fullmatch(parameter.name)]
    muon = [[m for m in matrices if m.shape == shape] for shape in sorted({m.shape for m in matrices})]
    known = {parameter for group in (*adamw, *muon) for parameter in group}
    unknown = [parameter.name for parameter in parameters if parameter not in known]
    unknown += [parameter.name for parameter in matrices if len(parameter.shape) != 2]
    if unknown or not adamw:
        shown = some(unknown, 4) or "no parameter of nanochat at all"
        raise MismatchError(
            f"this model has {shown}: the order of its optimizer's parameters is not known",
            next_step="resume on as many ranks as saved the step, or without the optimizer",
        )
    return ParameterGroups(adamw, muon)


def _named(parameters: Iterable[Parameter], pattern: str) -> list[Parameter]:
    return [parameter for parameter in parameters if re.fullmatch(pattern, parameter.name)]
