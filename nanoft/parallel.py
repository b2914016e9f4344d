"""One process or many: torchrun's environment, the device, number formats, compilation, DDP, reductions.

A single process is the case of one: the same calls, and they do nothing.
"""

import ctypes
import math
import os
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nanoft import UserError
from nanoft.files import available_cores


@dataclass(frozen=True)
class Here:
    """Where this process stands: rank of world, and its device."""
    rank: int
    world: int
    device: torch.device

    @property
    def main(self):
        return self.rank == 0


def start(device="auto"):
    """Join the other processes that torchrun started, if any, and choose the device."""
    rank, world, local = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    available["mps"] &= world == 1  # its tensors cannot be sent between processes
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[device] or (device == "cuda" and local >= torch.cuda.device_count()):
        raise UserError(f"device={device} is not available to process {rank} of {world} on this machine; use "
                        "--device=auto or --device=cpu, or fewer processes")
    if device == "cuda":
        torch.cuda.set_device(local)
        torch.set_float32_matmul_precision("high")  # TF32 where fp32 is asked for
    elif device == "cpu":
        keep_memory()
        if world > 1:  # torchrun gives each process one thread; share the cores out instead
            torch.set_num_threads(max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", world))))
    if world > 1 and not dist.is_initialized():
        # the others may wait for hours while rank 0 prepares a large data set
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(hours=12))
    return Here(rank, world, torch.device(device, local) if device == "cuda" else torch.device(device))


def keep_memory():
    """Let glibc keep freed memory instead of handing it back to the system.

    Every step asks for the same gigabyte again, and the system would give it page by page, each cleared anew: a tenth
    of the step (LOG.md).
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another C library may lack it
        if mallopt:
            mallopt(-3, 2**25)      # M_MMAP_THRESHOLD, 32 MB, the largest it takes: smaller blocks come from the heap
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap shrinks above 2 GB of free memory only


def peak_memory(device):
    """The most memory held so far in GB (2^30 bytes): the GPU's where there is one, else that of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return math.nan  # not told by Python there
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def catch_signals():
    """From now on SIGINT and SIGTERM end nothing, but are noted; another one more than 3 seconds later does end all.

    Returns the list of their numbers, which fills as they come, and a function that puts things back as they were.
    """
    caught, times = [], []

    def note(number, _frame):
        caught.append(number)
        times.append(time.time())
        if times[-1] - times[0] > 3:  # torchrun and its scheduler may both send one at once
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}

    def release():
        for number, handler in before.items():
            signal.signal(number, handler)

    return caught, release


def native_bf16(device):
    """Whether the device multiplies bf16 itself: elsewhere it is emulated, many times slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        can = torch.cpu.get_capabilities()
        return bool(can.get("avx512_bf16") or can.get("amx_bf16") or can.get("bf16"))
    return False


def number_format(dtype, device):
    """(torch dtype, sentence on the choice or ''): `auto` is bf16 where it is native, else fp32."""
    if dtype != "auto":
        return getattr(torch, dtype), ""
    if native_bf16(device):
        return torch.bfloat16, ""
    return torch.float32, f"dtype=auto: float32, because {device.type} has no native bfloat16 here"


def autocast(device, dtype):
    """The context in which matrix products run in `dtype`."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def wants_compile(choice, minutes, device):
    """Whether to compile, `choice` being auto, true or false. On a CPU it costs half a minute: not in short runs."""
    if choice != "auto":
        return choice == "true"
    return device.type == "cuda" or (device.type == "cpu" and minutes > 5)


def compiled(net, try_it, choice, dtype, length, say):
    """The compiled module, tried once; with choice auto the module itself, and the reason, where that fails.

    dtype, length: of its products, of its texts in tokens.
    """
    began = time.time()
    if next(net.parameters()).device.type == "cpu":
        # What is cheap to compute is computed again backward and not kept: a seventh less memory, in the same time
        # (LOG.md), for a processor waits for its memory more than for sums. Where attention is the fused kernel,
        # less than 0.8 makes that again, too, and takes longer.
        fused = dtype == torch.float32 or length > 512
        torch._functorch.config.activation_memory_budget = 0.8 if fused else 0.6
    try:
        fast = torch.compile(net, dynamic=False)
        try_it(fast)
        say(f"compiled in {time.time() - began:.0f} s")
        return fast
    except Exception as error:  # no C++ compiler, an unsupported system: whatever the compiler raises
        reason = str(error).strip().partition("\n")[0][:150]
        if choice == "true":
            raise UserError(f"compile=true, but it fails here ({reason}); use --compile=false") from None
        say(f"compile=auto: eager, because compiling fails here ({reason})")
        return net


def wrap(model, here):
    """The model with its gradients averaged over the processes."""
    if here.world == 1:
        return model
    return DistributedDataParallel(model, device_ids=[here.device.index] if here.device.type == "cuda" else None,
                                   gradient_as_bucket_view=True)


def total(numbers, here, op="sum"):
    """The sum (or with op="max" the largest) over all processes of each number: a list of floats."""
    if here.world == 1:
        return [float(x) for x in numbers]
    tensor = torch.tensor([float(x) for x in numbers], dtype=torch.float64, device=here.device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM)
    return tensor.tolist()


def wait(here):
    """Return when every process has come here."""
    if here.world > 1:
        dist.barrier()


def stop(here):
    """Part from the other processes, together: one that is gone early can abort another that is still connected."""
    if here.world > 1:
        dist.barrier()
        dist.destroy_process_group()
