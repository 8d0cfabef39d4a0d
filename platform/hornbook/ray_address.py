"""Looks at a Ray address before Ray does: over a port of another program Ray sits for more than a minute, and where a token
is missing it warns each second for 20 s and then says only that it failed to connect.

A cluster's control store speaks gRPC, so HTTP/2: it answers a client's opening words with a SETTINGS frame at once. Then it
is asked for its id, which it tells to those who have its token.
"""

from __future__ import annotations

import os
import socket

from hornbook.errors import ClusterError

ANSWER_SECONDS = 5.0
HTTP2_OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # preface, empty SETTINGS
SETTINGS_FRAME = 4
CURE = (
    "RAY_ADDRESS=HOST:PORT of a running cluster (`ray start --head` prints it, 6379 by default), or unset RAY_ADDRESS to run "
    "on this machine"
)
TOKEN_CURE = (
    "export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE (a copy of the head's ~/.ray/auth_token, mode 0600)"
)


def require_ray_at(address: str) -> None:
    """Check that something that can be Ray answers at an address: `HOST:PORT`, or `ray://HOST:PORT`; takes seconds at most.

    `auto`, `local` and the empty address are left to Ray.

    Raises:
        ClusterError: it is no such address, nothing listens there, what listens is not Ray, or it wants another token.
    """
    if address in ("", "auto", "local"):
        return
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"RAY_ADDRESS={address} is a Jobs API: jobs can be submitted there, but a run cannot connect to it",
            f"`hornbook submit RECIPE --address {address}`; else {CURE}",
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ClusterError(f"RAY_ADDRESS={address} is not HOST:PORT", CURE)
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "1":
                _require_http2(connection, address)
    except OSError as error:
        raise ClusterError(f"no Ray answers at RAY_ADDRESS={address}: {error}", CURE) from error
    _require_token(f"{host}:{port}", address)


def _require_http2(connection: socket.socket, address: str) -> None:
    connection.sendall(HTTP2_OPENING)
    answer = b""
    while len(answer) < 9 and (more := connection.recv(64)):
        answer += more
    if len(answer) < 9 or answer[3] != SETTINGS_FRAME:
        begin = answer[:40].decode("ascii", "replace").split("\r\n")[0]
        raise ClusterError(
            f"what listens at RAY_ADDRESS={address} is not Ray{f' (it says {begin!r})' if begin else ''}",
            f"`hornbook doctor` says who holds Ray's ports; {CURE}",
        )


def _require_token(target: str, address: str) -> None:
    from ray._private.grpc_utils import init_grpc_channel  # with Ray's own settings of TLS and token
    from ray.exceptions import AuthenticationError

    try:
        with init_grpc_channel(target) as channel:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=ANSWER_SECONDS)
    except AuthenticationError as error:  # this side has no token to show
        raise ClusterError(str(error).splitlines()[0], TOKEN_CURE) from error
    except Exception as error:
        code = getattr(error, "code", None)
        if code is None or code().name not in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            return  # not a matter of the token: Ray's own attempt says what it is
        given = "refuses the token of this process"
        if os.environ.get("RAY_AUTH_MODE") != "token":
            given = "wants its token, and this process has none"
        raise ClusterError(f"the cluster at RAY_ADDRESS={address} {given}", TOKEN_CURE) from error
