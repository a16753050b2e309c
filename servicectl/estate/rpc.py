"""What the gRPC clients of Service B and Service C share: a channel, and failures in the operator's words."""

from __future__ import annotations

import threading

import grpc

from servicectl.errors import BadAnswer, PartyUnavailable, ServicectlError

MAX_MESSAGE_BYTES = 64 << 20

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A hidden second call would stack on a worker that is still busy with the first one.
    ("grpc.enable_retries", 0),
    # The estate speaks plain text: an http_proxy in the environment is never meant for it.
    ("grpc.enable_http_proxy", 0),
)


def open_channel(address: str) -> grpc.Channel:
    """A lazily connecting channel without TLS (the estate has none). The caller closes it."""
    return grpc.insecure_channel(address, options=list(OPTIONS))


def answers(address: str, timeout_s: float) -> bool:
    """True if a gRPC server accepts a connection there within `timeout_s` seconds; a refusal is told at once."""
    settled = threading.Event()
    states: list[grpc.ChannelConnectivity] = []

    def seen(state: grpc.ChannelConnectivity) -> None:
        if state in {grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE}:
            states.append(state)
            settled.set()

    with open_channel(address) as channel:
        channel.subscribe(seen, try_to_connect=True)
        settled.wait(timeout_s)
        channel.unsubscribe(seen)
    return states[:1] == [grpc.ChannelConnectivity.READY]


def explained(error: grpc.RpcError, party: str, address: str, *, late: str, cure: str) -> ServicectlError:
    """The error to raise for a failed call.

    `late` words a passed deadline. UNAVAILABLE, CANCELLED and DEADLINE_EXCEEDED are PartyUnavailable; every other
    status means that something else than the expected service answered: BadAnswer.
    """
    status = error.code()
    detail = " ".join((error.details() or "no detail given").split())[:300]
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return PartyUnavailable(party, late, cure=cure)
    if status in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}:
        return PartyUnavailable(party, f"no connection to {address}: {detail}", cure=cure)
    if status is grpc.StatusCode.UNIMPLEMENTED:
        return BadAnswer(
            f"what listens on {address} does not offer this call of {party}",
            cure="check the address: Service B's worker is usually on port 50052, Service C on 50053",
        )
    return BadAnswer(f"{party} at {address} answered {status.name}: {detail}", cure=f"see the log of {party}")
