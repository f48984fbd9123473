"""Trains with two workers on this machine, as two machines would.

python examples/two_workers.py --dataset=synth_digits --epochs=1

The flags are those of `python -m ad_keras.train`. On two machines, start that command on each
with `TF_CONFIG` as printed here, but with the machines' own addresses.
"""

import json
import os
import shlex
import socket
import subprocess
import sys


def free_ports(count: int) -> list[int]:
    """Finds ports of this machine that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listening.getsockname()[1] for listening in sockets]
    for listening in sockets:
        listening.close()
    return ports


def main(flags: list[str]) -> int:
    """Runs the workers; the chief is the first and the one whose progress is shown.

    Returns:
        The exit status: 0 if both ended well.
    """
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    command = [sys.executable, "-m", "ad_keras.train", "--strategy=multi_worker", *flags]
    workers = []
    for index in range(len(addresses)):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        told = json.dumps(task)
        print(f"TF_CONFIG={shlex.quote(told)} {shlex.join(command)}", flush=True)
        workers.append(subprocess.Popen(command, env={**os.environ, "TF_CONFIG": told}))
    try:
        return max(abs(worker.wait()) for worker in workers)
    except KeyboardInterrupt:  # which the workers got too
        return max(abs(worker.wait()) for worker in workers)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
