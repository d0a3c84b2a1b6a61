"""What calls, persistent ids and state would do, decided by the exact shape of their arguments."""

from __future__ import annotations

from typing import Any

from scanner.adapter.pickles_names import DTYPES, STORAGES
from scanner.adapter.pickles_report import Findings, clean
from scanner.adapter.pickles_values import OPAQUE, Global, Mapping, Opaque, Storage, Tensor

__all__ = ["build", "call", "extend", "persistent", "store"]

MAX_ARGUMENTS = 64
"""Longer tuples are no arguments and no shape. A tuple can be passed again and again: what it costs is bounded."""
_BYTE_CODECS = ("latin1", "latin-1")
_FILLED = frozenset({"TrainingArguments", "Seq2SeqTrainingArguments", "AcceleratorConfig", "PartialState"})
"""Classes that are made without their __init__, which would touch files and process groups, and then filled."""


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _naturals(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_ARGUMENTS and all(_natural(item) for item in value)


def _no_hooks(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping) and value.ordered and not value.pairs)


def call(
    function: Any, args: Any, where: str, findings: Findings, *, is_class: bool = False, is_new: bool = False
) -> Any:
    """What stands on the stack after `function(*args)`, or after `cls.__new__(cls, *args)` where `is_new`."""
    if not isinstance(function, Global):
        # The name behind a dangerous call has been listed; the result of a harmless one is called by nothing benign.
        findings.add_problem("indirect_call", f"{where}: calls something that is no imported name")
        return OPAQUE["dangerous"]
    if function.level == "dangerous":
        return OPAQUE["dangerous"]
    result = None
    if isinstance(args, tuple) and len(args) <= MAX_ARGUMENTS:
        if function.level == "trainer":
            result = _trainer(function, args, is_new)
        elif not is_new or function.name == "OrderedDict":
            result = _rebuilt(function, args, is_class)
    if result is None:
        name = clean(f"{function.module}.{function.name}")
        findings.add_problem("unexpected_call", f"{where}: {name} is called with arguments that no tensor file has")
        return OPAQUE["dangerous"]
    return result


def _rebuilt(function: Global, args: tuple[Any, ...], is_class: bool) -> Any:
    """The result of an allowed call, None where its arguments are not as torch writes them."""
    match function.name, args:
        case "OrderedDict", ():
            return Mapping(ordered=True)
        case "OrderedDict", (list() as items,) if all(isinstance(i, list | tuple) and len(i) == 2 for i in items):
            made = Mapping(ordered=True)
            made.pairs.extend((key, value) for key, value in items)
            # As Python 2 wrote it, each list passed once. Passed again it is refused: the work would square.
            items[:] = [None]
            return made
        case "_rebuild_tensor", (Storage() as storage, offset, shape, strides):
            return _tensor(storage, storage.dtype, offset, shape, strides)
        case "_rebuild_tensor_v2", (Storage() as storage, offset, shape, strides, bool(), hooks, *rest):
            if _no_hooks(hooks) and _no_metadata(rest):
                return _tensor(storage, storage.dtype, offset, shape, strides)
        case "_rebuild_tensor_v3", (
            Storage() as storage,
            offset,
            shape,
            strides,
            bool(),
            hooks,
            Global() as dtype,
            *rest,
        ):
            if _no_hooks(hooks) and _no_metadata(rest) and dtype.pair in DTYPES:
                return _tensor(storage, DTYPES[dtype.pair], offset, shape, strides)
        case "_rebuild_parameter", (Tensor() as tensor, bool(), hooks) if _no_hooks(hooks):
            return tensor
        case "Parameter", (Tensor() as tensor, bool()) if not is_class:
            return tensor
        case "Size", (tuple() as shape,) if _naturals(shape):
            return shape
        case "device", (str(),) | (str(), int()):
            return OPAQUE["allowed"]
    return None


def _no_metadata(rest: list[Any]) -> bool:
    """The last argument of newer versions: Python attributes of a tensor, which adapters have none of."""
    return not rest or (len(rest) == 1 and (rest[0] is None or (isinstance(rest[0], Mapping) and not rest[0].pairs)))


def _tensor(storage: Storage, dtype: str, offset: Any, shape: Any, strides: Any) -> Tensor | None:
    if not dtype or not _natural(offset) or not _naturals(shape) or not _naturals(strides):
        return None
    return Tensor(storage, dtype, offset, shape, strides) if len(shape) == len(strides) else None


def _trainer(function: Global, args: tuple[Any, ...], is_new: bool) -> Any:
    """An object of a trainer's, None where a call does more than make one."""
    done = OPAQUE["trainer"]
    match function.name, args:
        case "encode", (str(), codec):
            return done if codec in _BYTE_CODECS and not is_new else None
        case "_reconstruct", (Global() as kind, tuple(), bytes() | Opaque()):
            return done if kind.pair == ("numpy", "ndarray") else None
        case "scalar", (Opaque(), bytes() | Opaque()):
            return done
        case "dtype", (str(), *rest):
            return done if all(isinstance(item, bool | int) for item in rest) else None
        case "defaultdict", () | (Global(),):
            return Mapping()
        case "dict", ():
            return Mapping()
        case "Counter", () | (Mapping(),):
            return Mapping()
        case "set", () | ([*_],):
            return done
        case "bytes", ():  # how protocol 2 spells no bytes at all
            return done
        case "bytearray", () | (bytes() | Opaque(level="trainer"),):
            return done
        case "bytearray", (str(), codec):
            return done if codec in _BYTE_CODECS else None
        case (
            "encode"
            | "_reconstruct"
            | "scalar"
            | "dtype"
            | "defaultdict"
            | "dict"
            | "Counter"
            | "set"
            | "bytes"
            | "bytearray",
            _,
        ):
            return None
        case name, () if is_new or not (name in _FILLED or name.endswith("Config")):
            return done
        case name, (str() | int(),) if not is_new and not (name in _FILLED or name.endswith("Config")):
            return done  # a member of an enumeration, looked up by its value
    return None


def persistent(value: Any, where: str, findings: Findings) -> Any:
    """A storage, where the id is one as torch writes it: ("storage", class, key, device, count[, None])."""
    match value if isinstance(value, tuple) and len(value) <= MAX_ARGUMENTS else None:
        case ("storage", Global() as kind, str() as key, str(), count, *rest) if kind.pair in STORAGES and _natural(
            count
        ):
            if not rest or rest == [None]:
                return Storage(STORAGES[kind.pair], key, count)
    findings.add_problem("persistent_id", f"{where}: a persistent id that is no storage of torch's")
    return OPAQUE["allowed"]


def build(target: Any, state: Any, where: str, findings: Findings) -> None:
    """`BUILD`: calls __setstate__, or sets attributes. On what is rebuilt here only `_metadata` of a state dict is."""
    if isinstance(target, Opaque) and target.level != "allowed":
        if target.level == "trainer" and isinstance(state, tuple) and len(state) == 2:
            findings.add_problem("unexpected_state", f"{where}: sets attributes one by one")
        return
    if isinstance(target, Mapping) and target.ordered and isinstance(state, Mapping):
        match state.pairs:
            case [("_metadata", Mapping())]:
                return
    kind = "an imported name" if isinstance(target, Global) else f"a {type(target).__name__.lower()}"
    findings.add_problem("unexpected_state", f"{where}: sets the state of {kind}")


def store(target: Any, items: list[Any], where: str, findings: Findings) -> None:
    """`SETITEM(S)`: items are keys and values in turn."""
    if len(items) % 2:
        findings.add_problem("odd_opcode", f"{where}: a key without a value")
        return
    if isinstance(target, Mapping):
        target.pairs.extend(zip(items[::2], items[1::2], strict=True))
    elif not (isinstance(target, Opaque) and target.level == "dangerous"):
        findings.add_problem("odd_opcode", f"{where}: sets items of something that is no dict")


def extend(target: Any, items: list[Any], where: str, findings: Findings) -> None:
    """`APPEND(S)`."""
    if isinstance(target, list):
        target.extend(items)
    elif not (isinstance(target, Opaque) and target.level == "dangerous"):
        findings.add_problem("odd_opcode", f"{where}: appends to something that is no list")
