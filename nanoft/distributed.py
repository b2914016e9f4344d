"""One process or many: torchrun's environment, the device, its memory, number formats, DDP, reductions, signals.

A single process is a world of one: the same calls, which then do nothing.
"""

import ctypes
import os
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nanoft import UserError
from nanoft.config import torchrun
from nanoft.files import available_cores


@dataclass(frozen=True)
class Dist:
    """Rank, world size and device of this process, the number format of its matrix products, and why that one."""
    rank: int
    world_size: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    reason: str = ""

    @property
    def main(self) -> bool:
        """Is this the process that writes and prints?"""
        return self.rank == 0

    def autocast(self):
        """The context in which matrix products run in `dtype`."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)


def start(device: str = "auto", dtype: str = "auto") -> Dist:
    """Join the processes that torchrun started, if any; choose the device and the number format.

    device: auto, cpu, cuda or mps. dtype: auto, float32, bfloat16 or float16. Raises UserError for a missing device.
    """
    rank, world_size, local = torchrun()
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    available["mps"] &= world_size == 1  # its tensors cannot be sent between processes
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[device] or (device == "cuda" and local >= torch.cuda.device_count()):
        raise UserError(f"device={device} is not available to process {rank} of {world_size} on this machine; use "
                        "--device=auto or --device=cpu, or fewer processes")
    if device == "cuda":
        torch.cuda.set_device(local)
    if device == "cpu":
        keep_memory()
    if device == "cpu" and world_size > 1:  # torchrun gives each process one thread; share the cores out instead
        torch.set_num_threads(max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", world_size))))
    if world_size > 1 and not torch.distributed.is_initialized():
        # the others may wait for hours while rank 0 prepares a large data set
        torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(hours=12),
                                             store=store_of_this_start(), rank=rank, world_size=world_size)
    place = torch.device(device, local) if device == "cuda" else torch.device(device)
    return Dist(rank, world_size, place, *number_format(dtype, place))


def keep_memory() -> None:
    """Let freed memory be kept instead of handed back to Linux, and large tensors lie in pages of 2 MB.

    Every step asks for the same gigabyte again, and the system would give it page by page, each cleared anew: a tenth
    of the step, with a large table of n-grams a quarter.
    """
    if sys.platform == "linux":
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first tensor
        if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # another C library may lack it
            mallopt(-3, 2**25)      # M_MMAP_THRESHOLD, 32 MB, the largest it takes: smaller blocks come from the heap
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap shrinks above 2 GB of free memory only


def store_of_this_start():
    """Where the processes leave their addresses; None: torch's choice.

    torchrun --max-restarts keeps one store for all its starts, and in torch 2.13 a process could find there the address
    of one that is dead. On one machine the number of the start tells them apart. On several it is not the same
    everywhere: there torchrun itself makes a new store each time if TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return None
    store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return torch.distributed.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)


def native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 itself: elsewhere it is emulated, many times slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        can = torch.cpu.get_capabilities()
        return bool(can.get("avx512_bf16") or can.get("amx_bf16") or can.get("bf16"))
    return False


def number_format(dtype: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The torch dtype, and a sentence on a choice that was not the user's or "". auto: bf16 if native, else fp32."""
    if dtype != "auto":
        return getattr(torch, dtype), ""
    if native_bf16(device):
        return torch.bfloat16, ""
    return torch.float32, f"dtype=auto: float32, because {device.type} has no native bfloat16 here"


def to_device(batch: dict[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """NumPy arrays, by name, as tensors on the device. A GPU fetches them itself: nobody waits for the copy."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    if device.type == "cuda":  # only from pinned memory in one piece, which the system never moves, does it copy itself
        tensors = {name: tensor.contiguous().pin_memory() for name, tensor in tensors.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


def wrap(model: nn.Module, dist: Dist) -> nn.Module:
    """The model with its gradients averaged over the processes."""
    if dist.world_size == 1 or is_sharded(model):
        return model
    return DistributedDataParallel(model, device_ids=[dist.device.index] if dist.device.type == "cuda" else None,
                                   forward_sync_buffers=False, gradient_as_bucket_view=True)


def shard(model, dist: Dist) -> None:
    """Give each process a part of every weight, of its gradient and of its moments (FSDP2, arXiv:2304.11277).

    A block's weights are put together in bf16 (or what `dtype` is) just before they are needed, and its gradients
    averaged in fp32. What is in no block is one group, for a tied head shares its weight with the embedding.
    """
    from torch.distributed.device_mesh import init_device_mesh  # here, not above: takes half a second
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(dist.device.type, (dist.world_size,))
    policy = MixedPrecisionPolicy() if dist.dtype == torch.float32 else MixedPrecisionPolicy(
        dist.dtype, torch.float32, cast_forward_inputs=False)
    for block in model.trunk.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def is_sharded(model) -> bool:
    return hasattr(model, "set_requires_gradient_sync")  # of torch's class, which would take long to import


def sync_gradients(net, wanted: bool) -> None:
    """Whether the next backward pass averages the gradients over the processes. To be set before the forward pass."""
    if is_sharded(net):
        net.set_requires_gradient_sync(wanted)
    elif isinstance(net, DistributedDataParallel):
        net.require_backward_grad_sync = wanted


def local(tensor):
    """This process's part of a sharded tensor, in the same memory; another tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def like(tensor: torch.Tensor, own):
    """A whole tensor, or the part of it that this process has of the sharded one in whose place it is put."""
    if not hasattr(own, "to_local") or tensor.shape[:1] != own.shape[:1]:  # a number, for the whole tensor
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def whole(tensor):
    """A sharded tensor put together, for which every process must call this; another tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def unread_total(number: float, dist: Dist) -> float | torch.Tensor:
    """The sum over all processes of a number, as a tensor () on the device, for which no GPU's process waits."""
    if dist.world_size == 1:
        return number
    tensor = to_device({"number": np.array(number, dtype=np.float32)}, dist.device)["number"]
    torch.distributed.all_reduce(tensor)
    return tensor


def total(numbers, dist: Dist, op: str = "sum") -> list[float]:
    """The sum (or with op="max" the largest) over all processes of each number. Waits for the others."""
    if dist.world_size == 1:
        return [float(x) for x in numbers]
    dtype = torch.float32 if dist.device.type == "mps" else torch.float64
    tensor = torch.tensor([float(x) for x in numbers], dtype=dtype, device=dist.device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX if op == "max" else
                                 torch.distributed.ReduceOp.SUM)
    return tensor.tolist()


def shorten_timeout() -> None:
    """From here on a process that waits ten minutes, or NANOFT_TIMEOUT seconds, for another gives up: one hangs."""
    if torch.distributed.is_initialized():
        seconds = int(os.environ.get("NANOFT_TIMEOUT", 600))
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))


def barrier(dist: Dist) -> None:
    """Return when every process has come here."""
    if dist.world_size > 1:
        torch.distributed.barrier()


def stop(dist: Dist) -> None:
    """Shut down after a barrier: a process that leaves early can abort another that is still connected."""
    if dist.world_size > 1:
        torch.distributed.barrier()
        # A thread of gloo's frees the barrier's tensor, for which it needs Python's lock. If the last owner of the
        # group, a DDP model, is deleted before, it holds that lock and waits for the thread, and both for ever.
        time.sleep(0.2)
        torch.distributed.destroy_process_group()


def catch_signals():
    """Record SIGINT, SIGTERM and SIGHUP instead of ending; one more than 3 seconds later does end the process.

    Returns the list of their numbers, which fills as they come, and a function that restores the former handlers.
    """
    caught, times = [], []

    def record(number, _frame):
        caught.append(number)
        times.append(time.monotonic())
        if times[-1] - times[0] > 3:  # torchrun and its scheduler may both send one at once
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    numbers = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}  # Windows has no SIGHUP
    before = {number: signal.signal(number, record) for number in numbers
              if signal.getsignal(number) != signal.SIG_IGN}  # nohup ignores SIGHUP, and so do we

    def release():
        for number, handler in before.items():
            signal.signal(number, handler)

    return caught, release
