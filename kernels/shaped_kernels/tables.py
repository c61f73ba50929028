"""Where tensors lie, written into device memory: so that one launch reaches any number of them.

    addresses  int64 [roles, tensors]   where each parameter, gradient, moment ... begins
    chunks     int64 [n, 4]             tensor, first element, elements, fast

A chunk is `fast` when it begins at a 16-byte boundary in every role and holds whole blocks: a
kernel walks it without masks, 128 bits at a time. All other memory (the tail of a tensor, a view or
a shard that begins anywhere) is walked with masks, in the same launch. Offsets are 64 bits wide.

A step compares addresses (0.04 us a tensor) and uploads them, in one copy, only when one changed.
Nothing here imports triton.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# One program owns BLOCK neighbours: 1024 = 4 warps x 32 lanes x 8 elements (2 x 64 x 8 on AMD), two
# 128-bit float32 loads a lane. Fixed, never autotuned: a trial launch would take a second optimizer step.
BLOCK = 1024
# Blocks per chunk: 32 bytes of table for 8192 elements, and still 150,000 chunks to share out at 1.24 B parameters.
BLOCKS_PER_CHUNK = 8
# Programs per multiprocessor: at 64 registers eight groups of four warps are resident at once.
RESIDENT = 8
ALIGNMENT = 16  # bytes


class AddressTable:
    """Addresses and chunks of tensors that have, role by role, one dtype.

    Attributes:
        addresses, chunks: As at the top of this file; on `device` after `point`.
        programs: How many programs a launch should have.

    Args:
        sizes: Elements of each tensor; 0 is allowed.
        device: Where the tensors and the tables are.
        block: Elements a program walks at a time; tests make it small.
    """

    addresses: Tensor
    chunks: Tensor
    programs: int

    def __init__(self, sizes: Sequence[int], device: torch.device, block: int = BLOCK) -> None:
        self.block = block
        self._sizes = torch.tensor(sizes, dtype=torch.int64)
        self._device = device
        self._seen: list[list[int]] = []
        self._aligned: Tensor | None = None
        self._captured: list[Tensor] = []

    def point(self, roles: Sequence[Sequence[Tensor]]) -> None:
        """Make the tables those of these tensors; nothing is uploaded when no address has changed.

        Args:
            roles: For each role one tensor a size, dense, of that many elements.
        """
        now = [list(map(Tensor.data_ptr, role)) for role in roles]
        if now == self._seen:
            return
        host = torch.tensor(now, dtype=torch.int64)
        aligned = ((host % ALIGNMENT) == 0).all(0)
        if self._aligned is None or not torch.equal(aligned, self._aligned):
            self.chunks = self._upload(chunk_rows(self._sizes, aligned, self.block))
            self._aligned = aligned
            self.programs = min(len(self.chunks), RESIDENT * _multiprocessors(self._device))
        self.addresses = self._upload(host)
        self._seen = now

    def _upload(self, host: Tensor) -> Tensor:
        """Copy behind the kernels that are queued; from pageable memory torch would wait for them."""
        if self._device.type != "cuda":
            return host.to(self._device)
        pinned = host.pin_memory()
        if torch.cuda.is_current_stream_capturing():  # a replay copies from these bytes again
            self._captured.append(pinned)
        return pinned.to(self._device, non_blocking=True)


def chunk_rows(sizes: Tensor, aligned: Tensor, block: int) -> Tensor:
    """Cut tensors into chunks: whole blocks first, then the tails.

    Args:
        sizes: int64 [tensors], elements of each.
        aligned: bool [tensors], whether it begins at a 16-byte boundary in every role.
        block: Elements of a block; a multiple of 16 bytes, so that aligned chunks stay aligned.

    Returns:
        int64 [n, 4]: tensor, first element, elements, fast (1 or 0). Every element is in one chunk.
    """
    chunk = block * BLOCKS_PER_CHUNK
    whole = sizes // block * block
    pieces = (whole + chunk - 1) // chunk
    owner = torch.repeat_interleave(torch.arange(len(sizes)), pieces)
    first = torch.cumsum(pieces, 0) - pieces
    start = (torch.arange(len(owner)) - first[owner]) * chunk
    count = (whole[owner] - start).clamp(max=chunk)
    ragged = (sizes > whole).nonzero().flatten()
    left = (sizes - whole)[ragged]
    blocks = torch.stack([owner, start, count, aligned[owner].long()], 1)
    return torch.cat([blocks, torch.stack([ragged, whole[ragged], left, torch.zeros_like(left)], 1)])


def _multiprocessors(device: torch.device) -> int:
    # Elsewhere is Triton's interpreter, which runs one program after another.
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
