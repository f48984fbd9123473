"""Which part a process has in a distributed search: keras-tuner's own environment variables."""

import dataclasses
import os
import socket
import time

from ad_keras.errors import RunError, UsageError

_ID, _IP, _PORT = "KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT"
_SECONDS_TO_WAIT = 300.0  # the chief may be started later, and loads TensorFlow first


@dataclasses.dataclass(frozen=True)
class Role:
    """What a process does in a search.

    Attributes:
        name: "single" for all of it; "chief" for choosing the trials, "worker" for training them.
        tuner_id: of the process.
        ip: of the chief, unless single.
        port: of the chief, unless single.
    """

    name: str
    tuner_id: str = "tuner0"
    ip: str = ""
    port: int = 0


def role() -> Role:
    """Reads the part of this process from the environment.

    Raises:
        UsageError: if variables are missing or impossible.
    """
    present = [name for name in (_ID, _IP, _PORT) if name in os.environ]
    if not present:
        return Role("single")
    missing = [name for name in (_ID, _IP, _PORT) if not os.environ.get(name)]
    if missing:
        raise UsageError(
            f"{' and '.join(present)} set, but no value in {' and '.join(missing)}: a distributed "
            "search needs all three, a search by one process none of them."
        )
    port = os.environ[_PORT]
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise UsageError(f"{_PORT}={port} is not possible: it must be a number from 1 to 65535.")
    # keras-tuner takes whoever has "chief" in the name for the chief.
    name = "chief" if "chief" in os.environ[_ID] else "worker"
    return Role(name, os.environ[_ID], os.environ[_IP], int(port))


def check_port(chief: Role) -> None:
    """Makes sure that the chief can serve at its address.

    gRPC would share a port with another chief, which then gets half of the requests.

    Args:
        chief: with the address.

    Raises:
        UsageError: if it cannot.
    """
    try:
        (family, *_, address), *_ = socket.getaddrinfo(
            chief.ip, chief.port, type=socket.SOCK_STREAM
        )
        with socket.socket(family, socket.SOCK_STREAM) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(address)
    except OSError as error:
        raise UsageError(
            f"{_IP}={chief.ip} with {_PORT}={chief.port} cannot be served "
            f"({error.strerror or error}): choose an address of this machine and a free port."
        ) from error


def wait_for_chief(worker: Role) -> None:
    """Waits until the chief can be reached.

    Args:
        worker: with the chief's address.

    Raises:
        RunError: if that takes too long.
    """
    deadline = time.monotonic() + _SECONDS_TO_WAIT
    while True:
        try:
            socket.create_connection((worker.ip, worker.port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError(
                    f"no chief answers at {worker.ip}:{worker.port} ({error.strerror or error}). "
                    f"Start it with the same flags and {_ID}=chief, then this worker again; if the "
                    "search is finished, its results are in --tuner_dir."
                ) from error
        time.sleep(0.5)
