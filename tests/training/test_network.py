"""Which network workers use."""

import socket

import pytest

from posegen.training.worker import interface_of


def test_the_interface_of_an_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None, "an address that documentation alone has"


def test_the_interface_of_this_hosts_own_address():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("203.0.113.7", 9))  # sends nothing: asks by which way it would go
        except OSError as error:
            pytest.skip(f"this machine has no way to other networks: {error}")
        address = asked.getsockname()[0]
    assert interface_of(address) in [name for _, name in socket.if_nameindex()]
