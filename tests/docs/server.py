"""`sae` in processes that start at once, forked from one that has imported all: python -m tests.docs.server SOCKET.

A client sends its folder and words, and its standard streams; it gets the exit code.
"""

import json
import os
import signal
import socket
import sys
from importlib import import_module

PRELOADED = [
    "torch",
    "transformer_lens",
    "sae_cli.training.execute",
    "sae_cli.evaluation.evaluate",
    "sae_cli.runs.sweep",
]
CLIENT = """import json, os, socket, sys
asking = socket.socket(socket.AF_UNIX)
asking.connect({0!r})
socket.send_fds(asking, [json.dumps([os.getcwd(), sys.argv[1:]]).encode()], [0, 1, 2])
sys.exit(int(asking.recv(16) or b"1"))
"""


def serve(path: str) -> None:
    """Answer clients until the process is ended; says `ready` on stdout."""
    from sae_cli.cli import app

    for name in PRELOADED:
        import_module(name)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    while True:
        asking, _ = listening.accept()
        if os.fork():
            asking.close()
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        message, streams, _, _ = socket.recv_fds(asking, 1 << 16, 3)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        folder, words = json.loads(message)
        os.chdir(folder)
        sys.argv = ["sae", *words]
        code: object = 1
        try:
            app(words, prog_name="sae")
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            asking.sendall(str(code).encode())
            os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
