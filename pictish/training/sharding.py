"""FSDP2: the weights of one network in shards over several processes, and whole again where they must be.

accelerate's own FSDP2 turns into DDP on a CPU without a word, so torch's `fully_shard` is called here, on
every device alike. Gradients are reduced after every backward pass, also within an accumulated step: kept
back, they would be as large as the whole network.
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

if TYPE_CHECKING:
    from accelerate import Accelerator

Network = TypeVar("Network", bound=nn.Module)
Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)


def shard(
    network: nn.Module,
    accelerate: "Accelerator",
    *,
    methods: Sequence[str] = (),
    frozen_whole: bool = False,
) -> "Skeleton":
    """Cut the parameters of `network` into shards of rows, in place; returns what `whole` needs.

    Every process must hold the network; the main one's weights count. Each block of a module list is a unit
    that is gathered when its turn comes. `methods` name what is called from outside like `forward` and reads
    weights, of the network or of a unit; with `frozen_whole` what is frozen now, and must remain so, stays
    whole on each process. Optimizer and averages are made afterwards. ValueError for a single process, and
    for fp16.
    """
    if accelerate.num_processes == 1:
        raise ValueError(
            "--fsdp shares weights out to several processes, and this is one alone; "
            "start several with torchrun or accelerate launch, or omit it"
        )
    if accelerate.mixed_precision == "fp16":
        raise ValueError("mixed_precision fp16: --fsdp does not scale gradients; bf16 or no would fit")
    from torch.distributed import broadcast
    from torch.distributed.device_mesh import init_device_mesh

    kept = {p for p in network.parameters() if frozen_whole and not p.requires_grad}
    for tensor in chain(network.parameters(), network.buffers()):
        broadcast(tensor.detach(), src=0)  # as DDP does
    skeleton = Skeleton(network, accelerate.is_main_process)
    mesh = init_device_mesh(accelerate.device.type, (accelerate.num_processes,))
    units = [*_blocks(network), network]
    for unit in units:
        # The root too: else its weights would stay gathered after a validation.
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
        for method in methods:
            if hasattr(unit, method):
                register_fsdp_forward_method(unit, method)
    for name, parameter in network.named_parameters():
        if parameter not in kept and not isinstance(parameter, DTensor):
            raise RuntimeError(f"{name} was not sharded: it is a {type(parameter).__name__}, not a DTensor")
    return skeleton


def prepare(
    accelerate: "Accelerator", network: nn.Module, optimizer: Optimizer
) -> tuple[nn.Module, Optimizer]:
    """What to call in training, and its optimizer; a network that is not sharded may come back as DDP."""
    if isinstance(network, FSDPModule):
        return network, accelerate.prepare(optimizer)  # which would wrap DDP around shards
    prepared: tuple[nn.Module, Optimizer] = accelerate.prepare(network, optimizer)
    return prepared


def plain(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, on every process, all of which must ask; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole(
    network: Network,
    skeleton: "Skeleton | None",
    accelerate: "Accelerator",
    device: str | torch.device | None = None,
) -> Network | None:
    """The network with all of its weights on the main process, None on the others; all must call it.

    Without a skeleton it is the network itself. Else it is a copy in evaluation mode on `device` (by default
    where training runs), gathered tensor by tensor: no other process ever holds more than one of them.
    """
    if skeleton is None:
        return network if accelerate.is_main_process else None
    return skeleton.filled(network, device or accelerate.device)


def local(tensor: Tensor) -> Tensor:
    """The rows that this process holds, in the same memory, without their history; of others, the tensor."""
    own = tensor.detach()
    return own.to_local() if isinstance(own, DTensor) else tensor


def local_rows(tensor: Tensor) -> tuple[int, int]:
    """The first row that this process holds, and how many; of a tensor that is not sharded, all of them."""
    if not isinstance(tensor, DTensor):
        return 0, len(tensor)
    assert tensor.placements == (Shard(0),), tensor.placements
    mesh, rows = tensor.device_mesh, tensor.shape[0]
    size = -(-rows // mesh.size())  # as torch.chunk cuts
    first = min(mesh.get_local_rank() * size, rows)
    count = min(size, rows - first)
    assert len(tensor.to_local()) == count, f"{len(tensor.to_local())} rows on this process, not {count}"
    return first, count


def sharded_like(own: Tensor, tensor: DTensor) -> DTensor:
    """A tensor sharded as another one is, of which this process holds `own`."""
    own = own.to(tensor.device)
    mesh, placements = tensor.device_mesh, tensor.placements
    return DTensor.from_local(own, mesh, placements, shape=tensor.shape, stride=tensor.stride())


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost module lists that have parameters."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if next(block.parameters(), None) is not None)
        else:
            yield from _blocks(child)


class Skeleton:
    """A network as it was before it was sharded, without its weights; empty but for the main process."""

    def __init__(self, network: nn.Module, main: bool) -> None:
        self._bones: nn.Module | None = None
        if main:
            empty: dict[int, Any] = {
                id(p): nn.Parameter(torch.empty_like(p, device="meta")) for p in network.parameters()
            }
            self._bones = copy.deepcopy(network, empty)

    @torch.no_grad()
    def filled(self, network: Network, device: str | torch.device) -> Network | None:
        """A copy that has the weights and buffers of `network`, see `whole`."""
        ready: dict[int, Any] = {}
        bones = [] if self._bones is None else [*self._bones.parameters(), *self._bones.buffers()]
        for bone, tensor in zip_longest(bones, chain(network.parameters(), network.buffers())):
            gathered = plain(tensor)
            if bone is not None:
                own = gathered.detach().to(device, copy=True)
                trained = tensor.requires_grad
                ready[id(bone)] = nn.Parameter(own, trained) if isinstance(bone, nn.Parameter) else own
        if self._bones is None:
            return None
        return cast(Network, copy.deepcopy(self._bones, ready).eval())
