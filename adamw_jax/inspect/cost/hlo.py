"""Compiled programs: what their text says of memory traffic.

XLA prints an optimised program as computations, each a list of instructions
`%name = shape opcode(operands), attributes`.  A layout that ends in `S(1)` lives
in another memory space than the device's main one: on a TPU in the vector
memory of the chip (1), in that of its scalar unit (6).
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# They move nothing themselves.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("add-dependency", "opt-barrier", "partition-id", "replica-id", "domain"),
    *("async-update", "async-done"),
}


FREE_CALLS = ('custom_call_target="AllocateBuffer"', 'custom_call_target="ConcatBitcast"')


SLICES = {"slice", "dynamic-slice", "gather"}


COLLECTIVES = re.compile(
    r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(-start)?$"
)


_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")


_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")


_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")


_CALLED = re.compile(r"(\w+)=\{?((?:%[\w.\-]+(?:, )?)+)\}?")


class Shape(NamedTuple):
    """An array: its dtype, dimensions, and layout as HLO writes it."""

    dtype: str
    dimensions: tuple[int, ...]
    layout: str

    @property
    def main(self) -> bool:
        """Whether it lives in the main memory of the device."""
        return re.search(r"S\([1-9]", self.layout) is None

    @property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.dimensions)

    @property
    def itemsize(self) -> float:
        """Bytes a number."""
        if self.dtype in ("token", "opaque"):
            return 0
        bits = re.search(r"\d+", self.dtype)
        return int(bits[0]) / 8 if bits else 1  # pred

    @property
    def bytes(self) -> float:
        """Bytes in memory, in whole tiles: a TPU keeps f32[3] in the room of f32[128]."""
        order, _, rest = self.layout.partition(":")
        minor_to_major = [int(i) for i in order.split(",") if i]
        sides = [self.dimensions[i] for i in reversed(minor_to_major)] or list(self.dimensions)
        if tile := re.match(r"T\(([\d,]+)\)", rest):
            for i, side in enumerate(reversed([int(n) for n in tile[1].split(",")]), start=1):
                sides = [1] * (i - len(sides)) + sides
                sides[-i] = math.ceil(sides[-i] / side) * side
        return math.prod(sides) * self.itemsize


class Instruction(NamedTuple):
    """One line; `text` is all that follows the name of the operation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    text: str
    root: bool

    def called(self, attribute: str) -> list[str]:
        """The computations that an attribute names."""
        found = (names for key, names in _CALLED.findall(self.text) if key == attribute)
        return [name.strip("%") for names in found for name in names.split(", ") if name]


class Collective(NamedTuple):
    """A transfer between devices: its operation, the bytes each device gives, how often."""

    operation: str
    bytes: float
    times: float


class Traffic(NamedTuple):
    """What running a computation moves.

    Attributes:
      bytes: to and from main memory, through the dearest branch of every condition.
      least: the same through the cheapest.
      kernels: operations on arrays.
      collectives: transfers between devices.
      unbounded: loops whose length is not known, counted as one pass.
    """

    bytes: float = 0.0
    least: float = 0.0
    kernels: int = 0
    collectives: tuple[Collective, ...] = ()
    unbounded: int = 0

    def plus(self, other: "Traffic", times: float = 1) -> "Traffic":
        """This and, so many times, the other; its kernels and loops stand there once."""
        repeated = tuple(c._replace(times=c.times * times) for c in other.collectives)
        return Traffic(
            self.bytes + times * other.bytes,
            self.least + times * other.least,
            self.kernels + other.kernels,
            self.collectives + repeated,
            self.unbounded + other.unbounded,
        )


class Program(NamedTuple):
    """A module: its computations, each with its instructions by name in order."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


def parse(text: str) -> Program:
    """Reads what `compiled.as_text()` prints.

    Example:
      >>> import jax
      >>> program = parse(jax.jit(lambda x: x + 1).lower(1.0).compile().as_text())
      >>> [x.shapes[0].size for x in program.computations[program.entry].values() if x.root]
      [1]
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if found := _INSTRUCTION.match(line):
            if current is not None:
                computations[current][found[2]] = _instruction(*found.groups())
        elif found := _COMPUTATION.match(line):
            current = found[2]
            computations[current] = {}
            entry = current if found[1] else entry
    return Program(computations, entry)


def _instruction(root, name, shapes, opcode, rest) -> Instruction:
    depth, end = 1, 0
    while depth and end < len(rest):
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[:end]))
    return Instruction(name, opcode, _shapes(shapes), operands, rest, root is not None)


def _shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a type, a tuple's one after the other."""
    return tuple(
        Shape(dtype, tuple(int(n.lstrip("<=")) for n in dims.split(",") if n), layout)
        for dtype, dims, layout in _SHAPE.findall(text)
    )


def floor(program: Program) -> float:
    """Bytes that any program with these arguments and results moves: each argument
    read once, each result written once."""
    entry = program.computations[program.entry].values()
    ends = [x for x in entry if x.root or x.opcode == "parameter"]
    return sum(shape.bytes for x in ends for shape in x.shapes)


def traffic(program: Program, name: str | None = None) -> Traffic:
    """What running a computation moves, by default the whole program; see `Traffic`."""
    name = name or program.entry
    total = Traffic()
    for x in program.computations[name].values():
        if x.opcode == "while":
            times = _trips(program, x)
            body = traffic(program, x.called("body")[0])._replace(kernels=0)
            total = total.plus(body, times or 1)._replace(
                unbounded=total.unbounded + body.unbounded + (times is None)
            )
        elif x.opcode == "conditional":
            total = total.plus(_dearest([traffic(program, branch) for branch in _branches(x)]))
        elif x.opcode in ("call", "async-start"):
            for callee in x.called("to_apply") + x.called("calls"):
                total = total.plus(traffic(program, callee))
        else:
            total = total.plus(_moved(program, name, x))
    return total


def _branches(x: Instruction) -> list[str]:
    names = ("branch_computations", "true_computation", "false_computation")
    return [branch for name in names for branch in x.called(name)]


def _dearest(branches: list[Traffic]) -> Traffic:
    dearest = max(branches, key=lambda branch: branch.bytes)
    return dearest._replace(least=min(branch.least for branch in branches), kernels=0)


def _trips(program: Program, loop: Instruction) -> int | None:
    """How often a loop runs: as it says, or as its condition `i < constant` does,
    since JAX counts its loops from 0."""
    if said := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text):
        return int(said[1])
    condition = program.computations[loop.called("condition")[0]]
    root = next(x for x in condition.values() if x.root)
    bounds = [condition[name] for name in root.operands if name in condition]
    limits = [x.text.partition(")")[0] for x in bounds if x.opcode == "constant"]
    counts = root.opcode == "compare" and "direction=LT" in root.text and limits
    return int(limits[0]) if counts and limits[0].isdigit() else None


def _moved(program: Program, name: str, x: Instruction) -> Traffic:
    """One instruction: what it reads from and writes to main memory."""
    if x.opcode in FREE or any(call in x.text for call in FREE_CALLS):
        return Traffic()
    known = program.computations[name]
    operands = [known[operand] for operand in x.operands if operand in known]
    moved = sum(_read(program, x, operands)) + sum(_written(program, known, x))
    collectives: tuple[Collective, ...] = ()
    if found := COLLECTIVES.match(x.opcode):
        given = sum(s.size * s.itemsize for operand in operands for s in operand.shapes)
        collectives = (Collective(found[1], given, 1),)
    shapes = [s for operand in operands for s in operand.shapes] + list(x.shapes)
    pair = x.opcode.endswith(("-start", "-done", "-update"))
    kernel = not pair and any(s.size > 1 for s in shapes)
    return Traffic(moved, moved, int(kernel), collectives)


def _read(program: Program, x: Instruction, operands: list[Instruction]) -> Iterator[float]:
    """Bytes read of every operand in main memory."""
    if x.opcode.endswith(("-done", "-update")):
        return
    for i, operand in enumerate(operands):
        whole = sum(shape.bytes for shape in operand.shapes if shape.main)
        if not whole or (i == 0 and x.opcode == "dynamic-update-slice"):
            continue
        if i == 0 and x.opcode in SLICES:
            yield min(whole, sum(shape.bytes for shape in x.shapes))
        elif x.opcode == "slice-start":  # ((from), to, flag)
            yield min(whole, x.shapes[len(operands)].bytes)
        elif x.opcode == "fusion":
            yield min(whole, _read_inside(program, x, i, whole))
        else:
            yield whole


def _read_inside(program: Program, fusion: Instruction, index: int, whole: float) -> float:
    """Bytes that a fusion reads of one operand: slices of it, if it needs no more."""
    inside = program.computations[fusion.called("calls")[0]].values()
    argument = next(x for x in inside if x.opcode == "parameter" and x.text.startswith(f"{index})"))
    users = [x for x in inside if argument.name in x.operands]
    if not all(
        x.opcode in {*SLICES, "dynamic-update-slice"} and x.operands[0] == argument.name
        for x in users
    ):
        return whole
    return sum(s.bytes for x in users if x.opcode in SLICES for s in x.shapes)


def _written(program: Program, known: dict[str, Instruction], x: Instruction) -> Iterator[float]:
    """Bytes written of every result in main memory: of one updated in place, the update."""
    if x.opcode.endswith("-start"):
        return  # what arrives is counted when it is done
    makers = [x]
    if x.opcode == "fusion":
        known = program.computations[x.called("calls")[0]]
        root = next(y for y in known.values() if y.root)
        makers = [known[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for i, shape in enumerate(x.shapes):
        maker = makers[i if len(makers) > 1 else 0]
        updates = maker.opcode == "dynamic-update-slice"
        if shape.main:
            yield known[maker.operands[1]].shapes[0].bytes if updates else shape.bytes
