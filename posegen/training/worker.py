"""The worker's side of a stage on Ray Train: runs the loop and sends events to the driver.

Workers communicate over the network by which their nodes joined the cluster. By default gloo resolves the host's own
name; where /etc/hosts gives that a loopback address, as Debian does, workers on different hosts cannot connect.
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
from posegen.training import events
from posegen.training.checkpoints import Curve
from posegen.training.loop import train_stage
from posegen.training.task import NonFinite, Task

ASK_EVERY = 0.05  # seconds between two looks for the answer to a validation
TELL_EVERY = 0.25  # seconds between two announcements of steps

WORKER = "worker"  # the one key of Ray Train's configuration: a WorkerConfig
EVENT = "event"  # the one key of what a worker reports to Ray Train: an Event


@dataclass(frozen=True)
class WorkerConfig:
    """Configuration of every worker of a stage."""

    task: Task
    queue: Any  # the actor of an EventQueue
    threads: int


@dataclass
class RayContext:
    """The loop's context on a Ray Train worker."""

    queue: Any  # the actor of an EventQueue
    device: torch.device = field(default_factory=lambda: ray.train.torch.get_device())  # pyright: ignore
    rank: int = field(default_factory=lambda: ray.train.get_context().get_world_rank())
    world_size: int = field(default_factory=lambda: ray.train.get_context().get_world_size())
    step: int = 0  # that is being carried out
    _careful_until: int = 0
    _told: float = 0.0
    _preempted: set[str] = field(default_factory=set)  # nodes whose preemption is known

    def on_start(self, step: int) -> None:
        """Announce the worker; rank 0 also starts the attempt."""
        self.step = step
        self.queue.put.remote(events.WorkerJoined(self.world_size, self.rank, socket.gethostname()))
        if self.rank == 0:
            self._careful_until = ray.get(self.queue.start_attempt.remote(step, self.world_size))

    def on_step(self, step: int) -> None:
        """Announce a step from rank 0 now and then; near a step that failed before, wait until it is noted."""
        self.step = step
        if self.rank:
            return
        if step <= self._careful_until:
            ray.get(self.queue.reach.remote(step))
        elif time.monotonic() - self._told > TELL_EVERY:
            self._told = time.monotonic()
            self.queue.reach.remote(step)

    def on_terms(self, step: int, terms: dict[str, float]) -> None:
        """Send live progress."""
        self.queue.put.remote(events.StepReached(step, terms))

    def on_checkpoint(self, rows: Curve) -> None:
        """Report the rows alone to Ray: the checkpoint is written to the run's own storage."""
        ray.train.report({EVENT: events.RowsLogged(rows)})

    def preempted(self) -> bool:
        """Return whether a further node of this training is to be taken away."""
        info = ray.train.get_preemption_info()
        nodes = set(info.preempted_node_ids) if info else set()
        new, self._preempted = nodes - self._preempted, nodes | self._preempted
        if new and self.rank == 0:
            message = f"{len(new)} machine(s) will be taken away: a checkpoint is written now"
            self.queue.put.remote(events.WarningRaised(message))
        return bool(new)

    def should_continue(self, step: int, scores: dict[str, float]) -> bool:
        """Send the scores to the driver and wait for its answer."""
        ray.get(self.queue.put.remote(events.Validated(step, scores)))
        answer: bool | None = None
        while answer is None:
            time.sleep(ASK_EVERY)
            answer = ray.get(self.queue.take_answer.remote(step))
        return answer


def run_worker(config: dict[str, WorkerConfig]) -> None:
    """Train the task in `config["worker"]` on one worker of Ray Train.

    A loss that is not finite, a failure that keeps coming back and storage that cannot be written for long end the
    stage on all ranks.
    """
    given = config[WORKER]
    torch.set_num_threads(given.threads)
    logging.getLogger("posegen").addHandler(_ForwardWarnings(given.queue))
    reason: str = ray.get(given.queue.stop_reason.remote())
    if reason:
        ray.train.report({EVENT: events.RetriesExhausted(reason)})
        return
    context = RayContext(given.queue)
    try:
        train_stage(given.task, context)
    except NonFinite as error:
        ray.train.report({EVENT: events.NonFiniteFound(str(error))})
    except StorageFailed as error:
        ray.get(given.queue.put.remote(events.StorageUnavailable(str(error))))
        raise
    except Exception as error:
        ray.get(given.queue.report_error.remote(context.step, events.one_line(error)))
        raise


class _ForwardWarnings(logging.Handler):
    """Forwards a worker's warnings to the driver, such as those of retried writes."""

    def __init__(self, queue: Any) -> None:
        super().__init__(logging.WARNING)
        self._queue = queue

    def emit(self, record: logging.LogRecord) -> None:
        """Send one warning."""
        self._queue.put.remote(events.WarningRaised(record.getMessage()))


def interface_of(address: str) -> str | None:
    """Return the network interface that has an IPv4 address, None where there is none."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.family == socket.AF_INET and each.address == address for each in addresses):
            return name
    return None


def use_nodes_network() -> None:
    """Set the interface of this node's address for gloo and NCCL, unless the user has set one."""
    name = interface_of(ray.util.get_node_ip_address())
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
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
