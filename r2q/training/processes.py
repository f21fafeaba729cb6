"""The processes of one training run, on one machine: each has a device, a share of every batch, a shard of the models.

Parameters, gradients and optimizer states are split by FSDP2 (torch's ``fully_shard``): a decoder block is whole only
while it computes, so the quantizer always sees whole latent weights, in their own number type, and its groups never
straddle two processes. Results differ from those of one process by the order of sums, no more.
"""

import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Group:
    """One process among those of a run; alone, it has everything and nothing here does anything."""

    rank: int = 0  # of this process; the first one writes and prints
    count: int = 1  # of processes
    device: torch.device = CPU  # where this process computes

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over all processes, in place."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """A small object of every process, by rank."""
        found = [value] * self.count
        if self.count > 1:
            distributed.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            distributed.barrier()

    def shard(self, module: nn.Module, keep_whole: bool = False) -> None:
        """Split a module's parameters, but for those of parts that were split before.

        Args:
            keep_whole: after a forward pass they stay whole until the backward pass has gone through them.
        """
        if self.count > 1:
            mesh = init_device_mesh(self.device.type, (self.count,))
            fully_shard(module, mesh=mesh, reshard_after_forward=not keep_whole)


ALONE = Group()


def runner(model: Any, trains: bool) -> Callable[[Callable[[], Any]], Any]:
    """What runs a function as the model's forward pass: inside, parameters that no block holds are whole.

    A model that does not train keeps them whole from then on; one that does must not after a pass without gradients,
    because its copy would be stale after the next step.
    """
    if not hasattr(model, "reshard"):
        return lambda work: work()
    model.run_forward = MethodType(lambda self, work: work(), model)
    register_fsdp_forward_method(model, "run_forward")

    def run(work: Callable[[], Any]) -> Any:
        result = model.run_forward(work)
        if trains and not torch.is_grad_enabled():
            model.reshard()
        return result

    return run


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that may be split; every process has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor that may be split; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(part: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A process's part as a tensor that is split as another one; the inverse of :func:`own`."""
    if not isinstance(tensor, DTensor) or part.shape != tensor.to_local().shape:
        return part
    mesh, placements = tensor.device_mesh, tensor.placements
    return DTensor.from_local(part, mesh, placements, shape=tensor.shape, stride=tensor.stride(), run_check=False)


def spread(work: Callable[[Group], Any], count: int, device: torch.device, folder: Path) -> Any:
    """Result of ``work`` in the first of ``count`` processes; each gets a device of the type of ``device``.

    What ``work`` holds reaches the processes through a file in ``folder`` that all of them map, so main memory has the
    model's weights once. Processes that a kill of this one leaves behind end with it.

    Raises:
        ValueError: there are fewer GPUs than processes.
        Whatever ``work`` raised in the process that failed first.
    """
    if device.type == "cuda" and count > torch.cuda.device_count():
        raise ValueError(f"limits.training_processes: {count}, but torch finds {torch.cuda.device_count()} GPUs")
    scratch = folder / ".processes"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        torch.save(work, scratch / "work.pt")
        threads = torch.get_num_threads()
        try:
            torch.multiprocessing.spawn(_process, (count, device.type, threads, scratch), nprocs=count)
        except torch.multiprocessing.ProcessRaisedException as error:  # has the traceback of that process
            reasons = sorted(scratch.glob("error-*.pt"), key=lambda path: path.stat().st_mtime_ns)
            if reasons:  # the first one; others may only say that they were left alone
                raise torch.load(reasons[0], weights_only=False) from error
            raise
        return torch.load(scratch / "result.pt", map_location=device, weights_only=False)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _process(rank: int, count: int, kind: str, threads: int, scratch: Path) -> None:
    """What each process does."""
    _prctl_pr_set_pdeathsig(signal.SIGKILL)  # it ends with the process that started it
    torch.set_num_threads(threads)
    device, backend = CPU, "gloo"
    if kind == "cuda":
        device, backend = torch.device("cuda", rank), "nccl"
        torch.cuda.set_device(device)
    distributed.init_process_group(backend, f"file://{scratch.resolve()}/meeting", rank=rank, world_size=count)
    try:
        work = torch.load(scratch / "work.pt", mmap=True, weights_only=False)
        result = work(Group(rank, count, device))
        if rank == 0:
            torch.save(result, scratch / "result.pt")
    except Exception as error:
        torch.save(error, scratch / f"error-{rank}.pt")
        raise
    distributed.barrier()
    distributed.destroy_process_group()
