"""LLVM IR written from Python: values with operators, loops, and calls, as text."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

Number = int | float


class Value:
    """An SSA value or a constant; arithmetic appends instructions to its function."""

    def __init__(self, function: Function, type_: str, text: str) -> None:
        self.function = function
        self.type = type_
        self.text = text

    def __str__(self) -> str:
        return f"{self.type} {self.text}"

    def __add__(self, other: Value | Number) -> Value:
        return self.function.binary("add", self, other)

    def __sub__(self, other: Value | Number) -> Value:
        return self.function.binary("sub", self, other)

    def __mul__(self, other: Value | Number) -> Value:
        return self.function.binary("mul", self, other)


class Loop:
    """What a loop carries from round to round."""

    def __init__(self, index: Value, values: list[Value]) -> None:
        self.index = index
        self.values = values
        """At the start of a round; after the loop, the last."""
        self.next: list[Value] = []
        """To be set in every round, one for each value."""


class Function:
    """A function in the making. Indices and sizes are i64; a pointer's elements are named where it is read."""

    def __init__(self, name: str, parameters: Sequence[tuple[str, str]], internal: bool = False) -> None:
        self.name = name
        self.parameters = tuple(Value(self, type_, f"%{parameter}") for parameter, type_ in parameters)
        self.internal = internal
        self.lines: list[str] = ["entry:"]
        self.block = "entry"
        self.declarations: set[str] = set()
        self._count = 0

    def __str__(self) -> str:
        linkage = "internal " if self.internal else ""
        parameters = ", ".join(map(str, self.parameters))
        body = "\n".join([*self.lines, "  ret void"])
        return f"define {linkage}void @{self.name}({parameters}) #{int(self.internal)} {{\n{body}\n}}\n"

    def emit(self, type_: str, instruction: str) -> Value:
        """An instruction with a result of that type."""
        name = self._name("v")
        self.lines.append(f"  %{name} = {instruction}")
        return Value(self, type_, f"%{name}")

    def constant(self, type_: str, number: Number) -> Value:
        """A scalar, or a vector of equal entries."""
        if "x" in type_:
            return self.splat(type_, self.constant(type_[:-1].split()[-1], number))
        text = str(number)
        if type_ == "float":
            # LLVM writes a float as the double of its value.
            (single,) = struct.unpack("f", struct.pack("f", number))
            text = f"0x{struct.unpack('Q', struct.pack('d', single))[0]:016X}"
        elif type_ == "double":
            text = f"0x{struct.unpack('Q', struct.pack('d', number))[0]:016X}"
        return Value(self, type_, text)

    def splat(self, type_: str, x: Value) -> Value:
        """A vector of equal entries."""
        first = self.emit(type_, f"insertelement {type_} poison, {x}, i64 0")
        lanes = type_[1:].split()[0]
        return self.emit(type_, f"shufflevector {first}, {type_} poison, <{lanes} x i32> zeroinitializer")

    def binary(self, name: str, x: Value, other: Value | Number) -> Value:
        """Arithmetic on integers or floats, or on vectors of them."""
        y = other if isinstance(other, Value) else self.constant(x.type, other)
        if _is_float(x.type) and name in ("add", "sub", "mul", "div"):
            name = f"f{name}"
        return self.emit(x.type, f"{name} {x}, {y.text}")

    def compare(self, condition: str, x: Value, other: Value | Number) -> Value:
        """``slt``, ``eq``, ... of integers, ``olt``, ... of floats."""
        y = other if isinstance(other, Value) else self.constant(x.type, other)
        lanes = x.type[1:].split()[0] if "x" in x.type else ""
        kind = "fcmp" if _is_float(x.type) else "icmp"
        return self.emit(f"<{lanes} x i1>" if lanes else "i1", f"{kind} {condition} {x}, {y.text}")

    def select(self, condition: Value, x: Value, y: Value) -> Value:
        """``condition ? x : y``."""
        return self.emit(x.type, f"select {condition}, {x}, {y}")

    def minimum(self, x: Value, y: Value | Number) -> Value:
        """Of two integers."""
        y = y if isinstance(y, Value) else self.constant(x.type, y)
        return self.select(self.compare("slt", x, y), x, y)

    def maximum(self, x: Value, y: Value | Number) -> Value:
        """Of two integers."""
        y = y if isinstance(y, Value) else self.constant(x.type, y)
        return self.select(self.compare("sgt", x, y), x, y)

    def quotient(self, x: Value, y: Value | int) -> Value:
        """``floor(x / y)`` of two sizes."""
        return self.emit(x.type, f"udiv {x}, {y.text if isinstance(y, Value) else y}")

    def divide_up(self, x: Value, y: Value | int) -> Value:
        """``ceil(x / y)`` of two sizes."""
        y = y if isinstance(y, Value) else self.constant(x.type, y)
        return self.emit(x.type, f"udiv {x + (y - 1)}, {y.text}")

    def convert(self, instruction: str, x: Value, type_: str) -> Value:
        """``bitcast``, ``fpext``, ``trunc``, ..."""
        return self.emit(type_, f"{instruction} {x} to {type_}")

    def call(self, type_: str, name: str, *arguments: Value) -> Value:
        """An intrinsic or external function with a result."""
        self.declarations.add(f"declare {type_} @{name}({', '.join(x.type for x in arguments)})")
        return self.emit(type_, f"call {type_} @{name}({', '.join(map(str, arguments))})")

    def call_void(self, name: str, *arguments: Value) -> None:
        """A function of this module."""
        self.lines.append(f"  call void @{name}({', '.join(map(str, arguments))})")

    def call_pointer(self, pointer: Value, *arguments: Value) -> None:
        """A function by its address."""
        self.lines.append(f"  call void {pointer.text}({', '.join(map(str, arguments))})")

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """``x y + z``, rounded once."""
        return self.call(x.type, f"llvm.fma.{_mangled(x.type)}", x, y, z)

    def sum(self, x: Value) -> Value:
        """Of a vector's entries."""
        element = x.type[:-1].split()[-1]
        zero = self.constant(element, 0.0)
        name = f"llvm.vector.reduce.fadd.{_mangled(x.type)}"
        self.declarations.add(f"declare {element} @{name}({element}, {x.type})")
        return self.emit(element, f"call reassoc {element} @{name}({zero}, {x})")

    def higher(self, x: Value, y: Value) -> Value:
        """Of two floats, or of the entries of two vectors; ``y`` where either is NaN."""
        return self.select(self.compare("ogt", x, y), x, y)

    def highest(self, x: Value) -> Value:
        """Of a vector's entries, none of them NaN."""
        element = x.type[:-1].split()[-1]
        return self.call(element, f"llvm.vector.reduce.fmax.{_mangled(x.type)}", x)

    def address(self, pointer: Value, index: Value | int, element: str = "float") -> Value:
        """Of the entry at ``index``."""
        index = index if isinstance(index, Value) else self.constant("i64", index)
        return self.emit("ptr", f"getelementptr inbounds {element}, {pointer}, {index}")

    def load(self, type_: str, pointer: Value, index: Value | int = 0, align: int = 4) -> Value:
        """A scalar or a vector from the entry at ``index`` on."""
        element = type_[:-1].split()[-1] if "x" in type_ else type_
        return self.emit(type_, f"load {type_}, {self.address(pointer, index, element)}, align {align}")

    def store(self, x: Value, pointer: Value, index: Value | int = 0, align: int = 4) -> None:
        """A scalar or a vector to the entry at ``index`` and on."""
        element = x.type[:-1].split()[-1] if "x" in x.type else x.type
        address = self.address(pointer, index, element)
        self.lines.append(f"  store {x}, {address}, align {align}")

    def masked_load(self, type_: str, pointer: Value, mask: Value) -> Value:
        """Entries under the mask, 0 elsewhere, where nothing is read."""
        name = f"llvm.masked.load.{_mangled(type_)}.p0"
        self.declarations.add(f"declare {type_} @{name}(ptr, i32, {mask.type}, {type_})")
        return self.emit(type_, f"call {type_} @{name}({pointer}, i32 4, {mask}, {type_} zeroinitializer)")

    def masked_store(self, x: Value, pointer: Value, mask: Value) -> None:
        """Writes the entries under the mask."""
        name = f"llvm.masked.store.{_mangled(x.type)}.p0"
        self.declarations.add(f"declare void @{name}({x.type}, ptr, i32, {mask.type})")
        self.lines.append(f"  call void @{name}({x}, {pointer}, i32 4, {mask})")

    def prefetch(self, pointer: Value, write: bool = False) -> None:
        """Asks for a cache line ahead of its use; any address will do."""
        self.declarations.add("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        self.lines.append(f"  call void @llvm.prefetch.p0({pointer}, i32 {int(write)}, i32 3, i32 1)")

    def interleave(self, x: Value, y: Value) -> tuple[Value, Value]:
        """``x0 y0 x1 y1 ...``, as two vectors."""
        lanes = int(x.type[1:].split()[0])
        halves = []
        for first in (0, lanes // 2):
            order = ", ".join(f"i32 {lane}, i32 {lane + lanes}" for lane in range(first, first + lanes // 2))
            halves.append(self.emit(x.type, f"shufflevector {x}, {y}, <{lanes} x i32> <{order}>"))
        return halves[0], halves[1]

    @contextmanager
    def loop(self, start: Value | int, stop: Value | int, step: int, carry: Sequence[Value] = ()) -> Iterator[Loop]:
        """``for index in range(start, stop, step)``."""
        name = self._name("loop")
        start, stop = (x if isinstance(x, Value) else self.constant("i64", x) for x in (start, stop))
        before = self.block
        self.lines.append(f"  br label %{name}.head")
        self._begin(f"{name}.head")
        index = Value(self, "i64", f"%{name}.i")
        values = [Value(self, x.type, f"%{name}.c{number}") for number, x in enumerate(carry)]
        phis = len(self.lines)
        inside = self.compare("slt", index, stop)
        self.lines.append(f"  br {inside}, label %{name}.body, label %{name}.end")
        self._begin(f"{name}.body")
        loop = Loop(index, values)
        yield loop
        assert len(loop.next) == len(values)
        following = index + step
        self.lines.append(f"  br label %{name}.head")
        sources = zip([index, *values], [start, *carry], [following, *loop.next], strict=True)
        self.lines[phis:phis] = [
            f"  {x.text} = phi {x.type} [ {first.text}, %{before} ], [ {later.text}, %{self.block} ]"
            for x, first, later in sources
        ]
        self._begin(f"{name}.end")

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """The instructions inside run where the condition holds."""
        name = self._name("when")
        self.lines.append(f"  br {condition}, label %{name}.body, label %{name}.end")
        self._begin(f"{name}.body")
        yield
        self.lines.append(f"  br label %{name}.end")
        self._begin(f"{name}.end")

    @contextmanager
    def case(self, x: Value, numbers: Sequence[int]) -> Iterator[Iterator[int]]:
        """A switch: the block inside goes through the numbers and writes the instructions for each."""
        name = self._name("case")
        cases = " ".join(f"i64 {number}, label %{name}.{number}" for number in numbers)
        self.lines.append(f"  switch {x}, label %{name}.end [ {cases} ]")

        def arms() -> Iterator[int]:
            for number in numbers:
                self._begin(f"{name}.{number}")
                yield number
                self.lines.append(f"  br label %{name}.end")

        yield arms()
        self._begin(f"{name}.end")

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def _begin(self, block: str) -> None:
        self.block = block
        self.lines.append(f"{block}:")


def module(functions: Sequence[Function], attributes: Sequence[str]) -> str:
    """The text of a module."""
    declarations = sorted(set().union(*(function.declarations for function in functions)))
    parts = ['target triple = "x86_64-unknown-linux-gnu"', *map(str, functions), *declarations]
    groups = [
        f"attributes #{number} = {{ {' '.join(attributes)}{more} }}" for number, more in enumerate(("", " noinline"))
    ]
    return "\n".join([*parts, *groups, ""])


def _is_float(type_: str) -> bool:
    return "float" in type_ or "double" in type_


def _mangled(type_: str) -> str:
    names = {"float": "f32", "double": "f64"}
    if "x" not in type_:
        return names[type_]
    lanes, element = type_[1:-1].split(" x ")
    return f"v{lanes}{names[element]}"
