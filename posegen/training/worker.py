"""What every worker of a stage runs on Ray Train, and how it speaks with the driver: through the board.

Communication of workers over the network by which their nodes joined the cluster.

By default gloo resolves the host's own name; where /etc/hosts gives that a loopback address, as Debian does, workers on
different hosts cannot connect.
"""

import logging
import os
import socket
import time
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray
import ray.train
import ray.train.torch
import torch
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from posegen.storage.files import StorageFailed
from posegen.training.checkpoints import Curve
from posegen.training.events import one_line
from posegen.training.loop import train_stage
from posegen.training.loss_log import NonFinite

ASK_EVERY = 0.05  # seconds between two looks for the answer to a judgement
TELL_EVERY = 0.25  # seconds between two steps that the board is told of


@dataclass
class OnRay:
    """The loop's context on a Ray Train worker."""

    board: Any
    device: torch.device = field(default_factory=lambda: ray.train.torch.get_device())  # pyright: ignore
    rank: int = field(default_factory=lambda: ray.train.get_context().get_world_rank())
    world_size: int = field(default_factory=lambda: ray.train.get_context().get_world_size())
    step: int = 0  # that is being carried out
    _careful_until: int = 0
    _told: float = 0.0
    _taken: set[str] = field(default_factory=set)  # nodes that are known to be taken away

    def begins(self, step: int) -> None:
        self.step = step
        self.board.post.remote("joined", (self.world_size, self.rank, socket.gethostname()))
        if self.rank == 0:
            self._careful_until = ray.get(self.board.begins.remote(step, self.world_size))

    def at(self, step: int) -> None:
        """Told by rank 0 now and then; near a step that failed before each one is told before it is carried out."""
        self.step = step
        if self.rank:
            return
        if step <= self._careful_until:
            ray.get(self.board.at.remote(step))
        elif time.monotonic() - self._told > TELL_EVERY:
            self._told = time.monotonic()
            self.board.at.remote(step)

    def post(self, step: int, terms: dict[str, float]) -> None:
        self.board.post.remote("step", (step, terms))

    def saved(self, rows: Curve) -> None:
        """The checkpoint goes to the run's own storage: Ray is told of the rows alone, and uploads nothing."""
        ray.train.report({"rows": rows})

    def leaving(self) -> bool:
        info = ray.train.get_preemption_info()
        nodes = set(info.preempted_node_ids) if info else set()
        new, self._taken = nodes - self._taken, nodes | self._taken
        if new and self.rank == 0:
            self.board.post.remote("warning", f"{len(new)} machine(s) will be taken away: a checkpoint is written now")
        return bool(new)

    def goes_on(self, step: int, scores: dict[str, float]) -> bool:
        ray.get(self.board.post.remote("judged", (step, scores)))
        answer: bool | None = None
        while answer is None:
            time.sleep(ASK_EVERY)
            answer = ray.get(self.board.answered.remote(step))
        return answer


def run_worker(config: dict) -> None:
    """What every worker of a stage runs. A loss that is not finite, a failure that keeps coming back and storage that
    takes nothing for long end the stage on all ranks."""
    torch.set_num_threads(config["threads"])
    board = config["board"]
    logging.getLogger("posegen").addHandler(_Posting(board))
    if hopeless := ray.get(board.verdict.remote()):
        ray.train.report({"hopeless": hopeless})
        return
    context = OnRay(board)
    try:
        train_stage(config["task"], context)
    except NonFinite as error:
        ray.train.report({"stopped": str(error)})
    except StorageFailed as error:
        ray.get(board.give_up.remote(str(error)))
        raise
    except Exception as error:
        ray.get(board.raised.remote(context.step, one_line(error)))
        raise


class _Posting(logging.Handler):
    """Hands a worker's warnings to the driver: what its storage fails to do, and that it tries again."""

    def __init__(self, board: Any) -> None:
        super().__init__(logging.WARNING)
        self._board = board

    def emit(self, record: logging.LogRecord) -> None:
        self._board.post.remote("warning", record.getMessage())


VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def interface_of(address: str) -> str | None:
    """Return the network interface that has an IPv4 address, None where there is none."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.family == socket.AF_INET and each.address == address for each in addresses):
            return name
    return None


def use_nodes_network() -> None:
    """Set the interface of this node's address for gloo and NCCL, unless the user has set one."""
    name = interface_of(ray.util.get_node_ip_address())
    for variable in VARIABLES:
        if name is not None and variable not in os.environ:
            os.environ[variable] = name


class _OverNodesNetwork(_TorchBackend):
    def on_start(self, worker_group, backend_config) -> None:
        """Set the interface on every worker, then start the process group."""
        worker_group.execute(use_nodes_network)
        super().on_start(worker_group, backend_config)


@dataclass
class OverNodesNetwork(TorchConfig):
    """Ray Train's configuration of torch's process group, over the nodes' network."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The backend that sets the interface before it starts the process group."""
        return _OverNodesNetwork
