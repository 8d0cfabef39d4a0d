"""One rank's share of a checkpoint: copied into a buffer that is laid out as the file, and written from there in one go.

The file is safetensors with the offsets that torch.distributed.checkpoint writes, so its reader loads it at any world size.
Copy and file are apart because only the copy needs the training step to wait. The buffer is made once and used again: memory
that was never touched before costs several times the copy.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Replicate

PAGE = 4096
BLOCK = 1 << 24
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls them."""


class ShardBuffer:
    """This rank's share of a set of tensors, as the bytes of a safetensors file in host memory.

    Args:
        tensors: sharded ones (DTensor), of which this rank's part is taken, where several ranks hold the same part the first
            one's; plain ones are the same on all ranks and rank 0's.
        rank: this process's.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], rank: int) -> None:
        self._rank = rank
        self._shapes = _shapes(tensors)
        pieces = sorted(
            _own(tensors, rank), key=lambda piece: (-piece[1].element_size(), piece[0])
        )  # keeps all aligned
        header: dict[str, dict[str, Any]] = {}
        offsets: dict[str, dict[str, list[int]]] = {}
        end = 0
        for name, local, offset in pieces:
            begin, end = end, end + local.numel() * local.element_size()
            header[name] = {"dtype": DTYPES[local.dtype], "shape": list(local.shape), "data_offsets": [begin, end]}
            offsets[name] = {"saved_offsets": offset}
        text = json.dumps({"__metadata__": {"format": "pt", "DCP_SHARDING_INFO": json.dumps(offsets)}, **header})
        length = -(-(8 + len(text)) // PAGE) * PAGE  # the data begin on a page
        self.size: int = length + end if pieces else 0
        """Bytes of the file; 0: this rank has nothing to write."""
        pinned = any(local.is_cuda for _, local, _ in pieces)
        room = torch.zeros(self.size + PAGE, dtype=torch.uint8, pin_memory=pinned)
        start = -room.data_ptr() % PAGE
        self._bytes = room[start : start + self.size]
        if pieces:
            head = (length - 8).to_bytes(8, "little") + text.encode().ljust(length - 8)
            self._bytes[:length].copy_(torch.frombuffer(bytearray(head), dtype=torch.uint8))
        self._views = {}
        for name, local, _ in pieces:
            begin, end = (length + place for place in header[name]["data_offsets"])
            self._views[name] = self._bytes[begin:end].view(local.dtype).view(local.shape)

    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Tell whether the buffer was made for tensors of these names and shapes."""
        return self._shapes == _shapes(tensors)

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the tensors' values; they may change again when this returns."""
        on_gpu = False
        for name, local, _ in _own(tensors, self._rank):
            self._views[name].copy_(local, non_blocking=True)
            on_gpu = on_gpu or local.is_cuda
        if on_gpu:
            torch.cuda.synchronize()

    def write(self, path: Path) -> str:
        """Write the file, past the page cache where the file system allows it; return its digest once it is on the disk.

        Raises:
            OSError: no space, or the folder cannot be written.
        """
        import xxhash

        content = memoryview(self._bytes.numpy())  # type: ignore[arg-type]
        digest = xxhash.xxh3_128()
        file, direct = _open(path)
        try:
            for begin in range(0, len(content), BLOCK):
                block = content[begin : begin + BLOCK]
                digest.update(block)
                while block:
                    if direct and len(block) % PAGE:  # the last bytes fill no page
                        file, direct = _reopen(file, path), False
                    try:
                        block = block[os.write(file, block) :]
                    except OSError as error:
                        if not direct or error.errno != errno.EINVAL:
                            raise
                        file, direct = _reopen(file, path), False
            os.fsync(file)
        finally:
            os.close(file)
        return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return a file's digest (xxh3, 128 bits: it tells torn files, it is no signature). Raises OSError."""
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _open(path: Path) -> tuple[int, bool]:
    """Open a new file, if possible so that writes go to the disk straight from memory (then the second value is true)."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    if direct := getattr(os, "O_DIRECT", 0):
        try:
            return os.open(path, flags | direct, 0o644), True
        except OSError as error:
            if error.errno != errno.EINVAL:  # tmpfs, some network file systems
                raise
    return os.open(path, flags, 0o644), False


def _reopen(file: int, path: Path) -> int:
    """Open a file anew, to go on at its end through the page cache."""
    os.close(file)
    return os.open(path, os.O_WRONLY | os.O_APPEND)


def _shapes(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Size, torch.dtype]]:
    return [(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()]


def _own(tensors: Mapping[str, torch.Tensor], rank: int) -> Iterator[tuple[str, torch.Tensor, list[int]]]:
    """Yield name, local tensor and its offset in the whole one, of what this rank is to save."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            if rank == 0:
                yield name, tensor.detach(), [0] * tensor.ndim
            continue
        place: list[int] = list(tensor.device_mesh.get_coordinate() or ())
        copies = [
            where for where, placement in zip(place, tensor.placements, strict=True) if isinstance(placement, Replicate)
        ]
        local = tensor.to_local().detach()
        if local.numel() and not any(copies):
            (chunk,) = tensor.__create_chunk_list__()
            yield name, local, list(chunk.offsets)
