"""The names a pickle of tensors may import. Exact pairs only: below an allowed module lie gadgets as well.

A name that is missing here is dangerous, whatever its module. Nothing is matched by prefix: `torch` alone holds
`torch.load`, `torch.hub`, `torch.utils.collect_env.run` and `torch.jit.unsupported_tensor_ops.execWrapper`.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["DTYPES", "ITEM_BYTES", "STORAGES", "Level", "level_of"]

Level = Literal["allowed", "trainer", "dangerous"]

STORAGES = {
    ("torch", "DoubleStorage"): "F64", ("torch", "FloatStorage"): "F32", ("torch", "HalfStorage"): "F16",
    ("torch", "BFloat16Storage"): "BF16", ("torch", "LongStorage"): "I64", ("torch", "IntStorage"): "I32",
    ("torch", "ShortStorage"): "I16", ("torch", "CharStorage"): "I8", ("torch", "ByteStorage"): "U8",
    ("torch", "BoolStorage"): "BOOL", ("torch", "ComplexFloatStorage"): "C64",
    ("torch", "ComplexDoubleStorage"): "C128",
    ("torch.storage", "UntypedStorage"): "",  # bytes; the tensor brings the type
}  # fmt: skip
"""Classes that a persistent id may name, with the type of their elements as safetensors calls it."""

DTYPES = {
    ("torch", "float64"): "F64", ("torch", "float32"): "F32", ("torch", "float16"): "F16",
    ("torch", "bfloat16"): "BF16",
    ("torch", "float8_e4m3fn"): "F8_E4M3", ("torch", "float8_e5m2"): "F8_E5M2",
    ("torch", "float8_e4m3fnuz"): "F8_E4M3FNUZ", ("torch", "float8_e5m2fnuz"): "F8_E5M2FNUZ",
    ("torch", "float8_e8m0fnu"): "F8_E8M0",
    ("torch", "int64"): "I64", ("torch", "int32"): "I32", ("torch", "int16"): "I16", ("torch", "int8"): "I8",
    ("torch", "uint64"): "U64", ("torch", "uint32"): "U32", ("torch", "uint16"): "U16", ("torch", "uint8"): "U8",
    ("torch", "bool"): "BOOL", ("torch", "complex64"): "C64", ("torch", "complex128"): "C128",
}  # fmt: skip

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "F8_E8M0": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
    "C64": 8, "C128": 16,
}  # fmt: skip

_REBUILD = {
    ("collections", "OrderedDict"),  # state dicts and empty backward hooks
    ("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter"), ("torch.nn.parameter", "Parameter"),
    ("torch", "Size"),  # a tuple of ints
    ("torch", "device"),  # a word and a number
}  # fmt: skip

_TRAINER = {
    # training_args.bin: plain settings objects, made without __init__ and filled with a dict; none has __setstate__.
    ("transformers.training_args", "TrainingArguments"),
    ("transformers.training_args_seq2seq", "Seq2SeqTrainingArguments"),
    ("trl.trainer.sft_config", "SFTConfig"), ("trl.trainer.dpo_config", "DPOConfig"),
    ("trl.trainer.grpo_config", "GRPOConfig"), ("trl.trainer.kto_config", "KTOConfig"),
    ("trl.trainer.orpo_config", "ORPOConfig"), ("trl.trainer.reward_config", "RewardConfig"),
    # Enumerations of strings: a call looks a member up by its value and can do nothing else.
    ("transformers.training_args", "OptimizerNames"), ("transformers.training_args", "ParallelMode"),
    ("transformers.trainer_utils", "IntervalStrategy"), ("transformers.trainer_utils", "EvaluationStrategy"),
    ("transformers.trainer_utils", "SaveStrategy"), ("transformers.trainer_utils", "HubStrategy"),
    ("transformers.trainer_utils", "SchedulerType"), ("transformers.trainer_utils", "FSDPOption"),
    ("transformers.debug_utils", "DebugOption"),
    ("accelerate.utils.dataclasses", "DistributedType"),
    # A dataclass of settings, and the state of a process group, which is a shared dict of plain values.
    ("transformers.trainer_pt_utils", "AcceleratorConfig"), ("accelerate.state", "PartialState"),
    # rng_state.pth: numpy's generator state is an array: an empty one is made, its bytes are set by BUILD.
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"), ("numpy", "dtype"),
    # A number of numpy's (best metric, learning rates): a dtype and its bytes.
    ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
    # How protocol 2 spells bytes: a text and the codec latin1. Any other argument is a problem.
    ("_codecs", "encode"),
    # optimizer.pt of optimizers that keep their state so, and counts of a scheduler: containers of values.
    ("collections", "defaultdict"), ("collections", "Counter"), ("builtins", "dict"), ("__builtin__", "dict"),
    ("builtins", "set"), ("__builtin__", "set"),
    ("builtins", "bytes"), ("__builtin__", "bytes"), ("builtins", "bytearray"), ("__builtin__", "bytearray"),
}  # fmt: skip
"""What transformers and accelerate leave beside checkpoints. Data for people who unpickle; no adapter needs it."""

_ALLOWED = _REBUILD | STORAGES.keys() | DTYPES.keys()


def level_of(module: str, name: str) -> Level:
    """How an imported name is judged. Only exact pairs are known: a dotted name walks through attributes."""
    if (module, name) in _ALLOWED:
        return "allowed"
    return "trainer" if (module, name) in _TRAINER else "dangerous"
