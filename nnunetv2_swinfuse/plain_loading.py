"""Checkpoints of models from outside: plain values, never code. Our own files: `architecture/torch_file.py`.

`torch.load(weights_only=True)` runs an interpreter of its own that knows a short list of constructors. Before it sees a
file from outside, :func:`inspect_checkpoint` has read the file's pickle as data (pickletools) and its archive's table
of contents.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from nnunetv2_swinfuse.architecture.torch_file import TorchFileError, load_torch_file
from nnunetv2_swinfuse.errors import InputError

# What PyTorch's and our own checkpoints call to be rebuilt. All are on the list of torch.load(weights_only=True) too,
# which is longer.
TENSOR_GLOBALS = frozenset(
    {
        "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch device",
        "torch Size", "torch FloatStorage", "torch DoubleStorage", "torch HalfStorage", "torch BFloat16Storage",
        "torch LongStorage", "torch IntStorage", "torch ShortStorage", "torch CharStorage", "torch ByteStorage",
        "torch BoolStorage", "torch.storage UntypedStorage", "torch.serialization _get_layout",
    }
)  # fmt: skip
# numpy's numbers, which nnU-Net's own trainer leaves in the curves of its checkpoints.
NUMPY_GLOBALS = frozenset(
    {
        "numpy._core.multiarray scalar", "numpy.core.multiarray scalar", "numpy dtype", "_codecs encode",
        *(f"numpy.dtypes {kind}DType" for kind in ("Float64", "Float32", "Float16", "Int64", "Int32", "Bool")),
    }
)  # fmt: skip
# By these first bytes `torch.load` takes a file for an archive; it reads any other as a format of before PyTorch 1.6.
ARCHIVE_START = b"PK\x03\x04"
# A pickle holds names and numbers; tensors lie beside it. That of the largest nnU-Net has less than 1 MB.
LARGEST_PICKLE = 64 * 1024**2


class PlainFileError(InputError):
    """A file that is damaged, or that could run code and was refused; the message names it and what to do."""


class UnsafeFileError(PlainFileError):
    """A file whose pickle needs code execution, or is none."""


def load_plain(path: Path | IO[bytes], name: str | None = None) -> dict[str, Any]:
    """A dictionary of tensors (on the CPU) and plain values.

    Args:
        path: the file, or its content.
        name: name of the file for messages, where its content is given.

    Raises:
        PlainFileError: when the file is damaged, needs code execution, or holds something else.
    """
    try:
        with numpy_numbers():
            content = load_torch_file(path, name)
    except TorchFileError as error:
        if error.needs_code:
            raise UnsafeFileError(
                f"{error}. Get it again from its source; open it with torch.load(weights_only=False) only if you would "
                "run any program of its author's"
            ) from error
        raise PlainFileError(f"{error}; copy it again") from error
    if not isinstance(content, dict):
        raise PlainFileError(f"{name or path}: holds a {type(content).__name__}, expected a dictionary")
    return content


def numpy_numbers() -> AbstractContextManager[None]:
    """Lets `weights_only=True` also rebuild numpy's numbers: constructors of values, which run nothing."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f8", "f4", "f2", "i8", "i4", "?")]
    allowed: list[Any] = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]
    return torch.serialization.safe_globals(allowed)


def plain_values(content: Any) -> Any:
    """The same with numpy's numbers and arrays as Python's, all the way down: what any `weights_only=True` reads."""
    if isinstance(content, np.generic):
        return content.item()
    if isinstance(content, np.ndarray):
        return content.tolist()
    if isinstance(content, dict):
        return type(content)((key, plain_values(value)) for key, value in content.items())
    if type(content) in (list, tuple):
        return type(content)(plain_values(value) for value in content)
    return content


def inspect_checkpoint(file: IO[bytes], name: str) -> None:
    """Refuses a checkpoint that could run code, or that is an archive of another kind, without opening it as one.

    What is inspected must be what `torch.load` reads. Python finds an archive by its end, so the file may begin as
    something else; and the end can point to two tables of contents, of which Python and PyTorch read one each.

    Args:
        file: seekable.
        name: for the message.

    Raises:
        PlainFileError: for anything but a PyTorch archive (its format since 1.6) of stored tensors and one pickle that
            builds them.
    """
    try:
        file.seek(0)
        if file.read(len(ARCHIVE_START)) != ARCHIVE_START:
            raise zipfile.BadZipFile("does not begin as an archive")
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            pickles = [member for member in members if member.filename.endswith("data.pkl")]
            file.seek(0, 2)
            if len(pickles) != 1:
                raise PlainFileError(f"{name}: {len(pickles)} pickles inside, expected one; no checkpoint of PyTorch")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise PlainFileError(f"{name}: compressed parts inside; PyTorch stores its checkpoints uncompressed")
            if sum(member.file_size for member in members) > file.tell():
                raise PlainFileError(f"{name}: its parts overlap or are announced larger than the file")
            if pickles[0].file_size > LARGEST_PICKLE:
                raise PlainFileError(
                    f"{name}: a pickle of {pickles[0].file_size} bytes, at most {LARGEST_PICKLE} expected"
                )
            if min(member.header_offset for member in members) != 0:
                raise zipfile.BadZipFile("its archive does not begin at the file's first byte")
            content = archive.read(pickles[0])
        file.seek(0)
        if torch._C.PyTorchFileReader(file).get_record("data.pkl") != content:
            raise zipfile.BadZipFile("two tables of contents: PyTorch reads another pickle than Python")
    except PlainFileError:
        raise
    except Exception as error:
        raise PlainFileError(
            f"{name}: damaged or no PyTorch archive ({type(error).__name__}: {_first_line(error)})"
        ) from error
    foreign = sorted(set(_globals(content, name)) - TENSOR_GLOBALS - NUMPY_GLOBALS)
    if foreign:
        raise PlainFileError(
            f"{name}: its pickle calls {', '.join(foreign[:5])}, which could run code; only tensors and plain values "
            "are allowed. Do not open this file"
        )


def _globals(content: bytes, name: str) -> Iterator[str]:
    """Every `module name` that a pickle would import.

    The names of STACK_GLOBAL come from the stack. Following it would mean to interpret the pickle; PyTorch writes
    protocol 2, which has no such opcode, so it is refused, as are the opcodes of other protocols that import.
    """
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "GLOBAL":
                yield str(argument)
            elif opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX", "PERSID"):
                yield f"something by {opcode.name}"
    except Exception as error:
        raise PlainFileError(f"{name}: damaged pickle ({type(error).__name__}: {_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0]
