"""Workers speak to each other over the network by which their nodes joined the cluster.

Left alone, gloo asks for the host's own name; where /etc/hosts gives that a loopback address, as Debian does,
workers on different hosts never meet.
"""

import os
import socket
import struct
from dataclasses import dataclass

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 address; None where there is none, or the system does not say."""
    try:
        import fcntl  # not on every system

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", name.encode()[:15])
                try:
                    answer = fcntl.ioctl(asked.fileno(), SIOCGIFADDR, request)
                except OSError:  # it has no such address
                    continue
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    except (ImportError, OSError):
        return None
    return None


def use_nodes_network() -> None:
    """Names the interface of this node's address to gloo and NCCL, unless the user did."""
    name = interface_of(ray.util.get_node_ip_address())
    for variable in VARIABLES:
        if name is not None and variable not in os.environ:
            os.environ[variable] = name


class _OverNodesNetwork(_TorchBackend):
    def on_start(self, worker_group, backend_config) -> None:
        worker_group.execute(use_nodes_network)
        super().on_start(worker_group, backend_config)


@dataclass
class OverNodesNetwork(TorchConfig):
    """Ray Train's set-up of torch's process group, over the nodes' network."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _OverNodesNetwork
