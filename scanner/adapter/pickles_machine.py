"""An abstract pickle machine: the stack, marks and memo of the real one, but nothing is imported or called.

What a call would return is either rebuilt here (tensors, `scanner/adapter/pickles_calls.py`) or stands on the stack as
`Opaque`. Whatever could make the real machine do more than fill containers is named in `Findings`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scanner.adapter.pickles_calls import build, call, extend, persistent, store
from scanner.adapter.pickles_opcodes import ARGUMENTS, Unread, read_argument
from scanner.adapter.pickles_report import Findings, clean
from scanner.adapter.pickles_values import OPAQUE, Blob, Global, Mapping, Unordered
from scanner.errors import LimitExceededError, MalformedFileError

__all__ = ["MAX_MEMO", "MAX_NESTING", "MAX_OPCODES", "MAX_PICKLE_BYTES", "MAX_STACK", "Machine"]

MAX_PICKLE_BYTES = 2**25
"""A tensor takes about 120 bytes: 100,000 of them fit twice."""
MAX_OPCODES = 1_600_000
"""Of a file: 50,000 tensors of 32. Each leaves at most about 100 bytes of memory behind."""
MAX_MEMO = 1_000_000
MAX_STACK = 250_000
MAX_NESTING = 1_000
"""Open marks. Real files have four."""

_CONSTANTS: dict[int, Any] = {ord("N"): None, 0x88: True, 0x89: False, ord(")"): ()}
_PUSHED = frozenset(b"JKMGFILSTUBCVX\x8a\x8b\x8c\x8d\x8e\x96")
"""Opcodes that put their own argument onto the stack."""


class Machine:
    """Reads one pickle, from its first opcode to STOP."""

    def __init__(self, data: Blob, begin: int, end: int, where: str, findings: Findings, opcodes: int = 0) -> None:
        self.data = data
        self.at = begin
        self.end = min(end, begin + MAX_PICKLE_BYTES)
        self.is_cut = end > self.end
        self.size = end - begin
        self.where = where
        self.findings = findings
        self.opcodes = opcodes
        """Counted on from earlier pickles of the same file: together they stay below the limit."""
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.imports: dict[tuple[str, str], Global] = {}

    def run(self) -> Any:
        """The value that is left at STOP; `at` is then the place after it.

        Raises:
            LimitExceededError: more opcodes, memo entries, stack, marks or bytes than allowed.
            MalformedFileError: an unknown opcode, a stack or memo that does not hold what is taken from it, or no STOP.
        """
        data, end = self.data, self.end
        while self.at < end:
            code = data[self.at]
            if code not in ARGUMENTS:
                raise MalformedFileError(f"no pickle opcode: byte 0x{code:02x} at {self.at:,}")
            self.opcodes += 1
            if self.opcodes > MAX_OPCODES:
                raise LimitExceededError("number of pickle opcodes", MAX_OPCODES, self.opcodes)
            argument, self.at = read_argument(data, code, self.at + 1, end)
            if isinstance(argument, Unread):
                self.findings.add_error("odd_argument", argument.error, self.where)
                argument = OPAQUE["allowed"]
            if code == 0x2E:  # STOP
                return self.pop()
            if code in _PUSHED:
                self.push(argument)
            elif code in _CONSTANTS:
                self.push(_CONSTANTS[code])
            else:
                _STEPS[code](self, argument)
        if self.is_cut:
            raise LimitExceededError("bytes of a pickle", MAX_PICKLE_BYTES, self.size)
        raise MalformedFileError("the stream ends before STOP")

    def push(self, value: Any) -> None:
        """Onto the stack."""
        self.stack.append(value)
        if len(self.stack) > MAX_STACK:
            raise LimitExceededError("pickle stack", MAX_STACK, len(self.stack))

    def pop(self) -> Any:
        """The top, which must lie above the last mark."""
        self._need(1)
        return self.stack.pop()

    def _need(self, count: int) -> None:
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise MalformedFileError(f"an opcode before {self.at:,} takes more than the stack holds")

    def _pop_mark(self) -> list[Any]:
        if not self.marks:
            raise MalformedFileError(f"an opcode before {self.at:,} wants a mark, and there is none")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _top(self) -> Any:
        self._need(1)
        return self.stack[-1]

    def _remember(self, index: int) -> None:
        self.memo[index] = self._top()
        if len(self.memo) > MAX_MEMO:
            raise LimitExceededError("pickle memo", MAX_MEMO, len(self.memo))

    def _put(self, index: int) -> None:
        self._remember(index)

    def _memoize(self, _: None) -> None:
        self._remember(len(self.memo))

    def _get(self, index: int) -> None:
        if index not in self.memo:
            raise MalformedFileError(f"memo entry {str(index)[:20]} was never set")
        self.push(self.memo[index])

    def _mark(self, _: None) -> None:
        self.marks.append(len(self.stack))
        if len(self.marks) > MAX_NESTING:
            raise LimitExceededError("nesting of a pickle", MAX_NESTING, len(self.marks))

    def _tuple(self, count: int) -> None:
        self._need(count)
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def _dict(self, _: None) -> None:
        made = Mapping()
        store(made, self._pop_mark(), self.where, self.findings)
        self.push(made)

    def _frozenset(self, _: None) -> None:
        self._pop_mark()
        self.push(Unordered())

    def _extend(self, items: list[Any]) -> None:
        extend(self._top(), items, self.where, self.findings)

    def _store(self, items: list[Any]) -> None:
        store(self._top(), items, self.where, self.findings)

    def _add(self, _: None) -> None:
        self._pop_mark()
        if not isinstance(self._top(), Unordered):
            self._odd("ADDITEMS on something that is no set")

    def _drop(self, _: None) -> None:
        if self.marks and len(self.stack) == self.marks[-1]:
            self.marks.pop()
        else:
            self.pop()

    # From here on: the opcodes with which the real machine imports and calls.

    def _stack_global(self, _: None) -> None:
        name, module = self.pop(), self.pop()
        self._import(module, name)

    def _inst(self, names: tuple[str, str]) -> None:
        self._import(*names)  # before the mark is looked for, as Python does: the import counts even if that fails
        kind, items = self.pop(), self._pop_mark()
        self.push(call(kind, tuple(items), self.where, self.findings, is_class=True))

    def _obj(self, _: None) -> None:
        items = self._pop_mark()
        if not items:
            raise MalformedFileError("OBJ without a class")
        self.push(call(items[0], tuple(items[1:]), self.where, self.findings, is_class=True))

    def _reduce(self, _: None) -> None:
        args, function = self.pop(), self.pop()
        self.push(call(function, args, self.where, self.findings))

    def _new(self, _: None) -> None:
        args, kind = self.pop(), self.pop()
        self.push(call(kind, args, self.where, self.findings, is_new=True))

    def _new_named(self, _: None) -> None:
        named, args, kind = self.pop(), self.pop(), self.pop()
        if not isinstance(named, Mapping) or named.pairs:
            self._odd("NEWOBJ_EX with named arguments")
        self.push(call(kind, args, self.where, self.findings, is_new=True))

    def _build(self, _: None) -> None:
        state = self.pop()
        build(self._top(), state, self.where, self.findings)

    def _extension(self, number: int) -> None:
        # The registry belongs to the process that unpickles: nobody can tell here what the number means.
        self.findings.add_global("copyreg", f"extension {number}", self.where)
        self.push(OPAQUE["dangerous"])

    def _persistent(self, identity: Any) -> None:
        self.push(persistent(identity, self.where, self.findings))

    def _frame(self, length: int) -> None:
        if length > self.end - self.at:
            self._odd("a frame longer than the stream")

    def _buffer(self, _: None) -> None:
        self.findings.add_problem("out_of_band_buffer", f"{self.where}: refers to a buffer outside of the file")
        self.push(OPAQUE["allowed"])

    def _pop_marked(self, _: None) -> None:
        self._pop_mark()

    def _read_only(self, _: None) -> None:
        self._need(1)

    def _protocol(self, number: int) -> None:
        if number > 5:
            self._odd(f"protocol {number}")

    def _import(self, module: Any, name: Any) -> None:
        if isinstance(module, str) and isinstance(name, str):
            key = (module, name)
            if key not in self.imports:
                self.imports[key] = Global(module, name, self.findings.add_global(module, name, self.where))
            self.push(self.imports[key])
            return
        # The name would come out of a call: only running it could tell.
        known = [part if isinstance(part, str) else None for part in (module, name)]
        self.findings.add_global(known[0], known[1], self.where)
        self.push(OPAQUE["dangerous"])

    def _odd(self, what: str) -> None:
        self.findings.add_problem("odd_opcode", f"{self.where}: {clean(what)}")


_STEPS: dict[int, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(b"qrp", Machine._put), 0x94: Machine._memoize, **dict.fromkeys(b"hjg", Machine._get),
    ord("("): Machine._mark, ord("t"): lambda m, _: m.push(tuple(m._pop_mark())),
    0x85: lambda m, _: m._tuple(1), 0x86: lambda m, _: m._tuple(2), 0x87: lambda m, _: m._tuple(3),
    ord("]"): lambda m, _: m.push([]), ord("}"): lambda m, _: m.push(Mapping()),
    ord("l"): lambda m, _: m.push(m._pop_mark()), ord("d"): Machine._dict,
    0x8F: lambda m, _: m.push(Unordered()), 0x91: Machine._frozenset, 0x90: Machine._add,
    ord("a"): lambda m, _: m._extend([m.pop()]), ord("e"): lambda m, _: m._extend(m._pop_mark()),
    ord("s"): lambda m, _: m._store([m.pop(), m.pop()][::-1]), ord("u"): lambda m, _: m._store(m._pop_mark()),
    ord("0"): Machine._drop, ord("1"): Machine._pop_marked, ord("2"): lambda m, _: m.push(m._top()),
    ord("c"): lambda m, names: m._import(*names), 0x93: Machine._stack_global, ord("i"): Machine._inst,
    ord("o"): Machine._obj, ord("R"): Machine._reduce, 0x81: Machine._new, 0x92: Machine._new_named,
    ord("b"): Machine._build, **dict.fromkeys(b"\x82\x83\x84", Machine._extension),
    ord("P"): Machine._persistent, ord("Q"): lambda m, _: m._persistent(m.pop()),
    0x95: Machine._frame, 0x97: Machine._buffer, 0x98: Machine._read_only, 0x80: Machine._protocol,
}  # fmt: skip
