"""Pickle files built by hand: what attackers used against scanners, each with a payload that would leave a file."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LORA = "base_model.model.layers.0.q_proj"


def state(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {
        f"{LORA}.lora_A.weight": torch.randn(4, 16).to(dtype),
        f"{LORA}.lora_B.weight": torch.randn(16, 4).to(dtype),
    }


def saved(value: Any, *, zipped: bool = True, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return stream.getvalue()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def imported(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def stack_imported(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def called(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def proto(body: bytes, protocol: int = 4) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def payload(marker: Path) -> str:
    """A shell command that proves itself."""
    return f"touch {marker}"


def zipped(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return stream.getvalue()


def torch_like(pickled: bytes, *more: tuple[str, bytes]) -> bytes:
    return zipped([("archive/data.pkl", pickled), ("archive/version", b"3\n"), *more])


class _Reduced:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.reduced = (function, args)

    def __reduce__(self) -> Any:
        return self.reduced


def gadgets(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Name of the trick -> a stream, and the import that must be named."""
    import functools
    import importlib
    import operator
    import os

    shell = text(payload(marker))
    code = text(f"open({str(marker)!r}, 'w')")
    found: dict[str, tuple[bytes, str]] = {}

    def direct(name: str, module: str, attribute: str, *args: bytes) -> None:
        found[name] = (proto(called(imported(module, attribute), *args)), f"{module}.{attribute}")

    direct("os.system", "os", "system", shell)
    direct("posix.system", "posix", "system", shell)
    direct("nt.system", "nt", "system", shell)
    direct("subprocess", "subprocess", "getoutput", shell)
    direct("eval", "builtins", "eval", code)
    direct("eval of Python 2", "__builtin__", "eval", code)
    direct("exec", "builtins", "exec", code)
    direct("compile", "builtins", "compile", code, text("x"), text("exec"))
    direct("__import__", "builtins", "__import__", text("os"))
    direct("open", "builtins", "open", text(str(marker)), text("w"))
    direct("import_module", "importlib", "import_module", text("os"))
    direct("runpy", "runpy", "_run_code", code, b"}")
    direct("pip", "pip", "main", b"]")
    direct("pip internal", "pip._internal", "main", b"]")
    direct("torch.load", "torch", "load", text("other.pt"))
    direct("torch.serialization.load", "torch.serialization", "load", text("other.pt"))
    direct("torch.hub.load", "torch.hub", "load", text("a/b"), text("c"))
    direct("torch.jit.load", "torch.jit", "load", text("other.pt"))
    direct("torch.execWrapper", "torch.jit.unsupported_tensor_ops", "execWrapper", code, b"}", b"}")
    direct("torch.collect_env", "torch.utils.collect_env", "run", shell)
    direct("torch.package", "torch.package", "PackageImporter", text("other.pt"))
    direct("torch.testing", "torch.testing._internal.distributed.rpc", "eval", code)
    direct("torch.distributed.pickle", "torch.distributed.rpc.internal", "_InternalRPCPickler")
    direct("rebuild_from_type", "torch._tensor", "_rebuild_from_type_v2", imported("os", "system"), shell)
    direct("numpy runstring", "numpy.testing._private.utils", "runstring", code, b"}")
    direct("numpy load", "numpy", "load", text("other.npy"))
    direct("numpy f2py", "numpy.f2py.crackfortran", "getlincoef", code, b"}")
    direct("copyreg", "copyreg", "_reconstructor", imported("os", "system"), b"N", b"N")
    direct("copyreg extension", "copyreg", "add_extension", text("os"), text("system"), b"K\x01")
    direct("pickle in pickle", "pickle", "loads", b"C\x01.")
    direct("cProfile", "cProfile", "run", code)
    direct("timeit", "timeit", "timeit", code)
    direct("idlelib", "idlelib.pyshell", "ModifiedInterpreter.runcommand", code)
    direct("asyncio", "asyncio.unix_events", "_UnixSubprocessTransport._start", shell)
    direct("ctypes", "ctypes", "CDLL", text("libc.so.6"))
    direct("webbrowser", "webbrowser", "open", text("file:///"))
    direct("pydoc", "pydoc", "pipepager", text("x"), shell)
    direct("site", "site", "execsitecustomize")
    direct("doctest", "doctest", "debug_script", code)
    direct("logging config", "logging.config", "listen")
    direct("types", "types", "CodeType")
    direct("case of an allowed name", "collections", "ordereddict")
    direct("blank after an allowed name", "collections ", "OrderedDict")
    direct("submodule of an allowed module", "collections.abc", "OrderedDict")
    direct("allowed name, other module", "os", "OrderedDict")

    chain = called(imported("builtins", "getattr"), imported("os", "path"), text("system"))
    found["getattr chain"] = (proto(called(chain, shell)), "builtins.getattr")
    getter = called(imported("operator", "attrgetter"), text("system"))
    found["attrgetter"] = (proto(called(called(getter, imported("os", "path")), shell)), "operator.attrgetter")
    found["partial"] = (pickle.dumps(_Reduced(functools.partial, os.system, payload(marker))), "functools.partial")
    found["methodcaller"] = (pickle.dumps(_Reduced(operator.methodcaller, "system")), "operator.methodcaller")
    found["import_module by protocol 0"] = (
        pickle.dumps(_Reduced(importlib.import_module, "os"), 0),
        "importlib.import_module",
    )
    for protocol in range(6):
        found[f"os.system, protocol {protocol}"] = (
            pickle.dumps(_Reduced(os.system, payload(marker)), protocol),
            "posix.system",
        )
    shell_line = payload(marker).encode()
    found["INST"] = (b"(S'" + shell_line + b"'\nios\nsystem\n.", "os.system")
    found["OBJ"] = (b"(" + imported("os", "system") + shell + b"o.", "os.system")
    found["protocol 0 text"] = (b"cos\nsystem\n(S'" + shell_line + b"'\ntR.", "os.system")
    found["protocol 0 unicode escapes"] = (
        b"cos\nsystem\n(V" + shell_line.replace(b"t", b"\\u0074") + b"\ntR.",
        "os.system",
    )
    found["NEWOBJ"] = (proto(imported("os", "system") + b"(" + shell + b"t\x81"), "os.system")
    found["NEWOBJ_EX"] = (proto(imported("os", "system") + b"(" + shell + b"t}\x92"), "os.system")
    found["STACK_GLOBAL"] = (proto(called(stack_imported("os", "system"), shell)), "os.system")
    found["dotted name"] = (
        proto(called(stack_imported("torch", "serialization.os.system"), shell)),
        "torch.serialization.os.system",
    )
    found["dotted name below an allowed one"] = (
        proto(called(stack_imported("collections", "OrderedDict.__init__.__globals__"), shell)),
        "collections.OrderedDict.__init__.__globals__",
    )
    found["dotted name, two allowed halves"] = (
        proto(called(stack_imported("torch", "_utils._rebuild_tensor_v2"), shell)),
        "torch._utils._rebuild_tensor_v2",
    )
    memo = text("system") + b"\x94" + text("os") + b"\x94" + b"0" + b"0" + b"h\x01h\x00\x93"
    found["names out of the memo"] = (proto(called(memo, shell)), "os.system")
    renamed = text("OrderedDict") + b"q\x07" + text("system") + b"q\x07" + b"00" + text("os") + b"h\x07\x93"
    found["memo entry set twice"] = (proto(called(renamed, shell)), "os.system")
    by_text = text("os") + b"p1_0\n0" + text("system") + b"p11\n0" + b"g10\ng1_1\n\x93"
    found["memo index with an underscore"] = (proto(called(by_text, shell)), "os.system")
    found["LONG_BINPUT"] = (
        proto(called(text("os") + b"r\xff\xff\xff\x7f0" + b"j\xff\xff\xff\x7f" + text("system") + b"\x93", shell)),
        "os.system",
    )
    found["names through DUP and POP"] = (
        proto(called(text("os") + b"2" + b"0" + text("system") + b"\x93", shell)),
        "os.system",
    )
    found["names out of POP_MARK"] = (
        proto(called(b"(" + text("x") + b"1" + stack_imported("os", "system"), shell)),
        "os.system",
    )
    found["broken after the call"] = (b"\x80\x04" + called(imported("os", "system"), shell) + b"\xff\xff", "os.system")
    found["cut after the call"] = (b"\x80\x04" + called(imported("os", "system"), shell), "os.system")
    found["frame that lies"] = (
        b"\x80\x04\x95" + b"\xff" * 8 + called(imported("os", "system"), shell) + b".",
        "os.system",
    )
    found["stacked, benign first"] = (proto(b"}") + proto(called(imported("os", "system"), shell)), "os.system")
    found["import without a call"] = (proto(imported("antigravity", "geohash")), "antigravity.geohash")
    found["import thrown away"] = (proto(imported("os", "system") + b"0}"), "os.system")
    unknown = called(imported("collections", "OrderedDict"))
    found["name out of a call"] = (proto(text("os") + unknown + b"\x93"), "os.<computed>")
    found["module out of a call"] = (proto(unknown + text("system") + b"\x93"), "<computed>.system")
    for opcode, argument in ((b"\x82", b"\x05"), (b"\x83", b"\x05\x00"), (b"\x84", b"\x05\x00\x00\x00")):
        found[f"EXT{len(argument)}"] = (proto(called(opcode + argument, shell)), "copyreg.extension 5")
    return found


def tricks(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Name of the trick -> a stream of allowed names only, and the code of the problem that must be named."""
    ordered = imported("collections", "OrderedDict")
    rebuild = imported("torch._utils", "_rebuild_tensor_v2")
    shell = text(payload(marker))
    made = called(ordered)
    storage = b"(" + text("storage") + imported("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x01tQ"
    return {
        "tensor of no storage": (
            proto(called(rebuild, b"K\x00", b"K\x00", b")", b")", b"\x89", made)),
            "unexpected_call",
        ),
        "tensor with hooks": (
            proto(
                called(rebuild, storage, b"K\x00", b")", b")", b"\x89", called(ordered, b"](K\x00" + shell + b"\x86e"))
            ),
            "unexpected_call",
        ),
        "shape is no tuple": (proto(called(rebuild, storage, b"K\x00", b"]", b")", b"\x89", made)), "unexpected_call"),
        "negative offset": (
            proto(called(rebuild, storage, b"J\xff\xff\xff\xff", b")", b")", b"\x89", made)),
            "unexpected_call",
        ),
        "OrderedDict of a number": (proto(called(ordered, b"K\x01")), "unexpected_call"),
        "arguments are no tuple": (proto(ordered + b"]R"), "unexpected_call"),
        "a dtype is called": (proto(called(imported("torch", "float32"), shell)), "unexpected_call"),
        "a storage is called": (proto(called(imported("torch", "FloatStorage"), b"K\x05")), "unexpected_call"),
        "codec": (proto(called(imported("_codecs", "encode"), shell, text("zlib"))), "unexpected_call"),
        "settings with arguments": (
            proto(called(imported("transformers.training_args", "TrainingArguments"), text("/"))),
            "unexpected_call",
        ),
        "array of another class": (
            proto(called(imported("numpy._core.multiarray", "_reconstruct"), ordered, b"K\x00\x85", b"C\x01b")),
            "unexpected_call",
        ),
        "a result is called": (proto(called(made, shell)), "indirect_call"),
        "a text is called": (proto(called(shell, shell)), "indirect_call"),
        "dict as state of an OrderedDict": (proto(made + b"}" + text("items") + ordered + b"sb"), "unexpected_state"),
        "more than _metadata": (
            proto(made + b"}(" + text("_metadata") + b"}" + text("items") + ordered + b"ub"),
            "unexpected_state",
        ),
        "__setstate__ of a class": (proto(ordered + b"}" + text("__setstate__") + ordered + b"sb"), "unexpected_state"),
        "slots of a class": (proto(ordered + b"N}" + text("__setitem__") + ordered + b"s\x86b"), "unexpected_state"),
        "state of a dict": (proto(b"}}b"), "unexpected_state"),
        "items of a class": (proto(ordered + text("x") + text("y") + b"s"), "odd_opcode"),
        "append to a dict": (proto(b"}K\x01a"), "odd_opcode"),
        "key without a value": (proto(b"}(K\x01u"), "odd_opcode"),
        "persistent id of text": (b"Pstorage\n.", "persistent_id"),
        "persistent id of another class": (
            proto(b"(" + text("storage") + ordered + text("0") + text("cpu") + b"K\x01tQ"),
            "persistent_id",
        ),
        "persistent id of a module": (proto(b"(" + text("module") + ordered + shell + shell + b"tQ"), "persistent_id"),
        "buffer outside": (b"\x80\x05\x97.", "out_of_band_buffer"),
        "protocol 9": (b"\x80\x04\x80\x09N.", "odd_opcode"),
        "unknown opcode": (b"\x80\x04N\xff.", "broken_stream"),
        "stack underflow": (b"\x80\x04R.", "broken_stream"),
        "pop through a mark": (b"\x80\x04N(R.", "broken_stream"),
        "memo never set": (b"\x80\x04h\x09.", "broken_stream"),
        "no STOP": (b"\x80\x04N", "broken_stream"),
        "inside of a text": (b"\x80\x04X\xff\x00\x00\x00abc", "broken_stream"),
        "bytes after STOP": (proto(b"}") + b"\x00junk", "trailing_data"),
        "two benign pickles": (proto(b"}") + proto(b"}"), "stacked_pickles"),
        "marks without end": (b"\x80\x04" + b"(" * 2_000 + b".", "limit_exceeded"),
        "text over the limit": (proto(b"X" + struct.pack("<I", 2**20 + 1) + b"a" * (2**20 + 1)), "limit_exceeded"),
        "text that is no UTF-8": (proto(b"X\x02\x00\x00\x00\xff\xff"), "odd_argument"),
    }


Builder = Callable[[Path], dict[str, tuple[bytes, str]]]
