"""State dicts of PyTorch in files: `.safetensors`, `.npz`, `.pt` and `.pth`, told apart by what they hold.

A state dict is tensors by name, `encoder.layer1.0.conv1.weight`. Only numbers are read: archives of numpy without
pickled objects, and PyTorch's own files by its reader of tensors alone, in versions in which that reader is safe.
"""

from __future__ import annotations

import pickletools
import re
import shlex
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from console import UserError

Form = Literal["safetensors", "npz", "torch", "program", "pickle"]
Tensors = dict[str, NDArray[Any]]

CONTAINERS = ("state_dict", "model_state_dict", "model")  # where checkpoints of training loops keep the weights
WRAPPERS = ("module.", "model.", "_orig_mod.")  # DataParallel, Lightning, torch.compile
# Before it, `weights_only` could be tricked into running code: https://nvd.nist.gov/vuln/detail/CVE-2025-32434
SAFE_TORCH = (2, 6)

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that its older files begin with
_NUMPY_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
# What torch.save names for tensors and the dict that they are in.
_TENSORS = r"torch\.\w+|torch\.(_utils|_tensor|storage|serialization|nn\.parameter)\.\w+|collections\.\w+"
_CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    "d = next((d[k] for k in ('state_dict', 'model_state_dict', 'model') if k in d), d); "
    "save_file({k: v.clone().contiguous() for k, v in d.items() if torch.is_tensor(v)}, sys.argv[2])"
)


@dataclass(frozen=True)
class StateDict:
    """What a PyTorch weights file holds.

    Attributes:
        path: The file.
        tensors: Values by name, without the prefixes of `WRAPPERS` and without counts of batches.
    """

    path: Path
    tensors: Tensors


def form_of(path: Path) -> Form | None:
    """Return what kind of PyTorch weights file `path` is by its content; None for any other file.

    `program` is a TorchScript archive and `pickle` a Python pickle other than PyTorch's: neither is ever read.

    Raises:
        zipfile.BadZipFile: It is a damaged zip archive.
    """
    with path.open("rb") as stream:
        start = stream.read(64)
        size = stream.seek(0, 2)
    if start.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if names and all(name.endswith(".npy") for name in names):
            return "npz"
        if any(re.fullmatch(r"[^/]+/data\.pkl", name) for name in names):
            return "program" if any(name.endswith("/constants.pkl") for name in names) else "torch"
        return None
    if start.startswith(_LEGACY_TORCH):
        return "torch"
    if re.match(rb"\x80[\x02-\x05]", start):
        return "pickle"
    # The length of a JSON object, eight bytes, and the object. A longer one than the file is one that was cut off.
    if re.match(rb"\{\s*[\"}]", start[8:]) and 2 <= int.from_bytes(start[:8], "little") <= max(size, 10**8):
        return "safetensors"
    return None


def read_state_dict(path: Path, form: Form) -> StateDict:
    """Return the state dict of the file `path`, which is of the form `form`.

    Raises:
        UserError: The file is damaged, holds code or no tensors, or needs PyTorch, which is not installed.
    """
    if form == "program":
        raise UserError(
            f"{path} is a TorchScript archive, which holds a program: expected a state dict; in PyTorch, save "
            "torch.jit.load(FILE).state_dict() with safetensors"
        )
    if form == "pickle":
        raise UserError(
            f"{path} is a Python pickle, which can hold code and is never unpickled: expected a state dict as "
            "`.safetensors`, `.npz`, or as torch.save writes it"
        )
    tensors = {"safetensors": _safetensors, "npz": _npz, "torch": _torch}[form](path)
    tensors = {name: values for name, values in tensors.items() if not name.endswith("num_batches_tracked")}
    if not tensors:
        raise UserError(f"{path} holds no tensors: expected a state dict, tensors by name")
    return StateDict(path, unwrapped(tensors))


def unwrapped(tensors: Tensors) -> Tensors:
    """Return `tensors` without the prefixes of `WRAPPERS`, unless two names would become one."""
    for _ in WRAPPERS:  # wrapped in one another, in any order
        for prefix in WRAPPERS:
            stripped = {name.removeprefix(prefix): values for name, values in tensors.items()}
            if len(stripped) == len(tensors):
                tensors = stripped
    return tensors


def _safetensors(path: Path) -> Tensors:
    from safetensors import SafetensorError, deserialize

    try:
        listed = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise _damaged(path, error) from None
    tensors: Tensors = {}
    for name, tensor in listed:
        kind = str(tensor["dtype"])
        if kind not in _NUMPY_TYPES:
            raise UserError(f"{path}: the tensor {name} is of type {kind}; expected one of {', '.join(_NUMPY_TYPES)}")
        values = np.frombuffer(tensor["data"], _NUMPY_TYPES[kind]).reshape(tensor["shape"])
        if kind == "BF16":  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = values
    return tensors


def _npz(path: Path) -> Tensors:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from None
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise _damaged(path, error) from None
        raise UserError(
            f"{path} holds pickled Python objects, which are never unpickled: expected an array of numbers by name "
            "for each tensor, as np.savez writes them"
        ) from None


def _torch(path: Path) -> Tensors:
    try:
        import torch
    except ImportError:
        if objects := _foreign_objects(path):
            raise _more_than_tensors(path, objects[0]) from None
        command = shlex.join(["python", "-c", _CONVERT, str(path), f"{path.with_suffix('')}.safetensors"])
        raise UserError(
            f"{path} is a file of torch.save, and PyTorch is not installed here: convert it once where PyTorch and "
            f"safetensors are, and give the new file\n  {command}\nor install PyTorch beside this: pip install torch"
        ) from None
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < SAFE_TORCH:
        raise UserError(
            f"{path} is a file of torch.save, which PyTorch {torch.__version__} can't read without the risk of running "
            f"code in it: update PyTorch to {'.'.join(map(str, SAFE_TORCH))} or later"
        )

    import pickle

    try:
        with path.open("rb") as stream:  # given a path, it goes by the name's ending
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        raise _more_than_tensors(path, found[1] if found else "") from None
    except (RuntimeError, EOFError, OSError) as error:
        raise _damaged(path, str(error).partition("\n")[0]) from None
    for container in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a state dict, tensors by name")
    tensors = {str(name): tensor for name, tensor in content.items() if torch.is_tensor(tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(content)[:8])) or "nothing"
        raise UserError(
            f"{path} holds no tensors by name (at its top: {keys}): expected a state dict, or one under "
            f"{', '.join(CONTAINERS)}"
        )
    try:
        return {
            name: (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
            for name, tensor in tensors.items()
        }
    except (TypeError, RuntimeError) as error:
        raise UserError(f"{path} holds tensors that are no dense arrays ({error})") from None


def _foreign_objects(path: Path) -> list[str]:
    """Return the Python objects but tensors that a file of torch.save names; nothing is unpickled."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        program = archive.read(next(name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)))
    found: list[str] = []
    words = ["", ""]
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "GLOBAL":
                found.append(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                found.append(".".join(words[-2:]))
            elif isinstance(argument, str):
                words.append(argument)
    except ValueError as error:
        raise _damaged(path, error) from None
    return [name for name in dict.fromkeys(found) if not re.fullmatch(_TENSORS, name)]


def _more_than_tensors(path: Path, name: str) -> UserError:
    what = f" ({name})" if name else ""
    return UserError(
        f"{path} holds more than tensors: Python objects{what}, which can run code and are never unpickled. Where you "
        "trust it, load it in PyTorch and save its state dict alone: torch.save(model.state_dict(), FILE)"
    )


def _damaged(path: Path, error: object) -> UserError:
    return UserError(f"{path} is damaged, most likely cut off while it was copied ({error}): download or copy it again")
