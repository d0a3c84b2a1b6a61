"""An abstract pickle machine: it follows every opcode and never imports or calls anything.

What a stream would call is looked up in `pickles_names`; the result of a call is a description of it. Whatever this
machine does not know as harmless is a finding.
"""

from __future__ import annotations

from typing import Any

from scanner.adapter.pickles_names import DTYPES, ITEM_BYTES, STORAGES
from scanner.adapter.pickles_opcodes import ARGUMENTS, read_argument
from scanner.adapter.pickles_report import Findings, clean
from scanner.adapter.pickles_values import OPAQUE, Blob, Global, Mapping, Opaque, Storage, Tensor, Unordered
from scanner.errors import LimitExceededError, MalformedFileError

__all__ = ["Machine"]

MAX_OPCODES = 4_000_000
"""A tensor takes about 30."""
MAX_VALUES = 1_500_000
"""Lists, dicts, tuples and results of calls. A tensor takes six; each costs memory far beyond its byte."""
MAX_STACK = 1_000_000
MAX_MEMO = 1_000_000
MAX_DIMENSIONS = 8
_MARKED = frozenset(b"1leduti o\x90\x91".replace(b" ", b""))
_MAKERS = frozenset(b"]}tld(ioRcQ\x81\x85\x86\x87\x8f\x91\x92\x93")
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
_CONSTANTS = {ord("N"): None, 0x88: True, 0x89: False}
_PUSHES = frozenset(b"IJKMLFGSTUBCVX\x8a\x8b\x8e\x96\x8c\x8d")


class Machine:
    """Runs one stream after the other over the same bytes; findings go to `findings`."""

    def __init__(self, data: Blob, findings: Findings, where: str) -> None:
        self._data, self._found, self._where = data, findings, where
        self._steps = self._made = 0

    def run(self, start: int, end: int) -> tuple[Any, int]:
        """Follow the stream at `start`; (what it would leave, the place after its STOP).

        Raises:
            MalformedFileError: the stream breaks pickle's rules, or ends before STOP.
            LimitExceededError: too many opcodes, or something in it is too large.
        """
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        at = start
        while at < end:
            code = self._data[at]
            at += 1
            self._steps += 1
            if self._steps > MAX_OPCODES:
                raise LimitExceededError("opcodes of a pickle", MAX_OPCODES, self._steps)
            if code not in ARGUMENTS:
                raise MalformedFileError(f"byte {at - 1:,} is no opcode")
            if code in _MAKERS:
                self._made += 1
                if self._made > MAX_VALUES:
                    raise LimitExceededError("lists, dicts and tuples of a pickle", MAX_VALUES, self._made)
            argument, at = read_argument(self._data, code, at, end)
            if code == ord("."):
                return self._pop(), at
            try:
                self._step(code, argument)
            except (IndexError, TypeError, ValueError, KeyError) as error:
                raise MalformedFileError(f"opcode {chr(code)!r} before byte {at:,} has nothing to work on") from error
            if len(self._stack) > MAX_STACK or len(self._marks) > MAX_STACK or len(self._memo) > MAX_MEMO:
                raise LimitExceededError("values that a pickle holds", MAX_STACK, len(self._stack) + len(self._memo))
        raise MalformedFileError("the stream ends before its STOP")

    def _pop(self) -> Any:
        if not self._stack:
            raise MalformedFileError("the stream takes a value from an empty stack")
        return self._stack.pop()

    def _popped_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _step(self, code: int, argument: Any) -> None:
        push = self._stack.append
        if code in _PUSHES:
            push(argument)
        elif code in _CONSTANTS:
            push(_CONSTANTS[code])
        elif code == ord("("):
            self._marks.append(self._stack)
            self._stack = []
        elif code in _MARKED:
            items = self._popped_mark()
            self._with_items(code, argument, items)
        elif code in (ord("q"), ord("r"), ord("p")):
            self._memo[argument] = self._stack[-1]
        elif code == 0x94:
            self._memo[len(self._memo)] = self._stack[-1]
        elif code in (ord("h"), ord("j"), ord("g")):
            push(self._memo[argument])
        elif code in _TUPLES:
            count = _TUPLES[code]
            items = [self._pop() for _ in range(count)]
            push(tuple(reversed(items)))
        elif code == ord(")"):
            push(())
        elif code == ord("]"):
            push([])
        elif code == ord("}"):
            push(Mapping())
        elif code == 0x8F:
            push(Unordered())
        elif code == ord("0"):
            if self._stack:
                self._pop()
            else:
                self._popped_mark()
        elif code == ord("2"):
            push(self._stack[-1])
        elif code == ord("a"):
            item = self._pop()
            self._extend(self._stack[-1], [item])
        elif code == ord("s"):
            value, key = self._pop(), self._pop()
            self._set_items(self._stack[-1], [key, value])
        elif code == 0x80:
            if argument > 5:
                self._problem("unknown_protocol", f"protocol {argument} does not exist")
        elif code != 0x95:
            self._special(code, argument)

    def _with_items(self, code: int, argument: Any, items: list[Any]) -> None:
        push = self._stack.append
        if code == ord("t"):
            push(tuple(items))
        elif code == ord("l"):
            push(items)
        elif code == ord("d"):
            mapping = Mapping()
            push(mapping)
            self._set_items(mapping, items)
        elif code == ord("e"):
            self._extend(self._stack[-1], items)
        elif code == ord("u"):
            self._set_items(self._stack[-1], items)
        elif code == 0x91:
            push(Unordered())
        elif code == ord("i"):
            push(self._call(self._global(*argument), tuple(items)))
        elif code == ord("o"):
            push(self._call(items[0], tuple(items[1:])))

    def _special(self, code: int, argument: Any) -> None:
        push = self._stack.append
        if code == ord("c"):
            push(self._global(*argument))
        elif code == 0x93:
            name, module = self._pop(), self._pop()
            known = isinstance(name, str) and isinstance(module, str)
            push(self._global(module, name) if known else self._global(None, None))
        elif code in (0x82, 0x83, 0x84):
            push(self._global("copyreg", f"extension {argument}"))
        elif code in (ord("R"), 0x81):
            arguments, function = self._pop(), self._pop()
            push(self._call(function, arguments))
        elif code == 0x92:
            keywords, arguments, function = self._pop(), self._pop(), self._pop()
            if isinstance(keywords, Mapping) and keywords.pairs:
                self._problem("unexpected_call", f"{_name_of(function)} is called with keywords")
            push(self._call(function, arguments))
        elif code == ord("b"):
            state = self._pop()
            self._build(self._stack[-1], state)
        elif code == ord("Q"):
            push(self._persistent(self._pop()))
        elif code == ord("P"):
            push(self._persistent(argument))
        elif code in (0x97, 0x98):
            self._problem("out_of_band_buffer", "the stream asks for a buffer that is not in the file")
            if code == 0x97:
                push(OPAQUE["dangerous"])
        else:
            raise MalformedFileError(f"opcode {code:#x} is not known")

    def _problem(self, code: str, message: str) -> None:
        self._found.add_problem(code, f"{self._where}: {message}")

    def _global(self, module: str | None, name: str | None) -> Global:
        level = self._found.add_global(module, name, self._where)
        return Global(module or "?", name or "?", level)

    def _extend(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):
            self._problem("unexpected_append", "items are appended to something that is no list")

    def _set_items(self, target: Any, items: list[Any]) -> None:
        if len(items) % 2:
            raise MalformedFileError("a key has no value")
        if isinstance(target, Mapping):
            target.pairs.extend(zip(items[::2], items[1::2], strict=True))
        elif not isinstance(target, Opaque):
            self._problem("unexpected_item", "items are set on something that is no dict")

    def _build(self, target: Any, state: Any) -> None:
        if isinstance(target, Opaque):
            return  # its name is listed already
        # A module's state dict carries its versions as an attribute, which torch writes in this way.
        keys = [key for key, _ in state.pairs] if isinstance(state, Mapping) else None
        if isinstance(target, Mapping) and target.ordered and keys in ([], ["_metadata"]):
            return
        self._problem("unexpected_state", f"a state is set on {_name_of(target)}")

    def _persistent(self, token: Any) -> Any:
        fits = (
            isinstance(token, tuple) and len(token) in (5, 6) and token[0] == "storage" and token[5:] in ((), (None,))
        )
        if fits and isinstance(token[1], Global) and token[1].pair in STORAGES:
            _, kind, key, _, count = token[:5]
            if isinstance(key, str) and type(count) is int and 0 <= count < 2**62:
                return Storage(STORAGES[kind.pair], key, count)
        self._problem("persistent_id", "a persistent id is not one of torch's storages")
        return OPAQUE["dangerous"]

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Global):
            # What is called is the result of another call: only running the stream could tell what it is.
            self._global(None, None)
            return OPAQUE["dangerous"]
        if function.level == "dangerous":
            return OPAQUE["dangerous"]
        if not isinstance(arguments, tuple):
            raise MalformedFileError("a call without a tuple of arguments")
        self._steps += len(arguments)  # the same long tuple may be passed a million times
        if function.level == "trainer":
            if not _trainers_own(function.pair, arguments):
                self._problem("unexpected_call", f"{_name_of(function)} is called in a way that no trainer does")
            return OPAQUE["trainer"]
        made = self._rebuilt(function.pair, arguments)
        if made is None:
            self._problem("unexpected_call", f"{_name_of(function)} is called in a way that torch never does")
            return OPAQUE["allowed"]
        return made

    def _rebuilt(self, pair: tuple[str, str], arguments: tuple[Any, ...]) -> Any:
        """What an allowed call gives, None where its arguments are not those that torch writes."""
        name = pair[1]
        if name == "OrderedDict":
            return self._ordered(arguments)
        if name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            return _tensor(name, arguments)
        if name in ("_rebuild_parameter", "Parameter"):
            fits = 1 <= len(arguments) <= 3 and isinstance(arguments[0], Tensor)
            return arguments[0] if fits else None
        if name == "Size" and len(arguments) == 1 and _naturals(arguments[0]):
            return tuple(arguments[0])
        if name == "device" and 1 <= len(arguments) <= 2 and all(isinstance(a, str | int) for a in arguments):
            return OPAQUE["allowed"]
        return None

    def _ordered(self, arguments: tuple[Any, ...]) -> Mapping | None:
        mapping = Mapping(ordered=True)
        if not arguments:
            return mapping
        pairs = arguments[0]
        if len(arguments) != 1 or not isinstance(pairs, list | tuple):
            return None
        self._made += len(pairs)
        if self._made > MAX_VALUES:
            raise LimitExceededError("lists, dicts and tuples of a pickle", MAX_VALUES, self._made)
        for pair in pairs:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                return None
            mapping.pairs.append((pair[0], pair[1]))
        return mapping


def _tensor(name: str, arguments: tuple[Any, ...]) -> Tensor | None:
    counts = {"_rebuild_tensor": (4,), "_rebuild_tensor_v2": (6, 7), "_rebuild_tensor_v3": (7, 8)}[name]
    if len(arguments) not in counts or not isinstance(arguments[0], Storage):
        return None
    storage, offset, shape, strides = arguments[:4]
    hooks = arguments[5] if len(arguments) > 5 else None
    if hooks is not None and not (isinstance(hooks, Mapping) and not hooks.pairs):
        return None  # functions that run with every gradient
    dtype = storage.dtype
    if name == "_rebuild_tensor_v3":
        kind = arguments[6]
        dtype = DTYPES.get(kind.pair, "") if isinstance(kind, Global) else ""
    if type(offset) is not int or not 0 <= offset < 2**62 or not _naturals(shape) or not _naturals(strides):
        return None
    if dtype not in ITEM_BYTES or len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        return None
    return Tensor(storage, dtype, offset, tuple(shape), tuple(strides))


def _trainers_own(pair: tuple[str, str], arguments: tuple[Any, ...]) -> bool:
    """Whether a call of a trainer's class has the arguments that its own pickling gives it: plain values."""
    if pair == ("_codecs", "encode"):
        return len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] in ("latin1", "latin-1")
    if pair[1] == "_reconstruct":
        kind = arguments[0] if arguments else None
        return isinstance(kind, Global) and kind.pair == ("numpy", "ndarray")
    if pair[1] in ("scalar", "defaultdict"):  # a dtype and bytes; a class of containers
        return all(not isinstance(a, Global) or a.level != "dangerous" for a in arguments)
    return not any(isinstance(argument, Global | Opaque) for argument in arguments)


def _naturals(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= MAX_DIMENSIONS
        and all(type(item) is int and 0 <= item < 2**62 for item in value)
    )


def _name_of(value: Any) -> str:
    return clean(f"{value.module}.{value.name}") if isinstance(value, Global) else type(value).__name__.lower()
