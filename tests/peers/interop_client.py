"""The gRPC project's interop cases (those that need neither TLS nor a cloud credential), run with stock grpcio.

Usage: interop_client.py ADDRESS PROTOSET CASE...

The cases are written after the project's description of them (doc/interop-test-descriptions.md); the messages come
from PROTOSET, a FileDescriptorSet. Prints one line per case; exits 1 if one failed.
"""

import queue
import sys
import threading
import time
import traceback

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

ECHO_INITIAL = "x-grpc-test-echo-initial"
ECHO_TRAILING = "x-grpc-test-echo-trailing-bin"
SERVICE = "grpc.testing.TestService"
WAIT = 30
# Iterations of each soak case, as the project's client has by default.
SOAK = 10


class Messages:
    def __init__(self, protoset):
        files = descriptor_pb2.FileDescriptorSet()
        with open(protoset, "rb") as file:
            files.ParseFromString(file.read())
        self.pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            self.pool.Add(file)

    def __getattr__(self, name):
        return self.find(f"grpc.testing.{name}")

    def find(self, name):
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(name))


class Stub:
    """The test service over a channel; `new_channel` opens another one to the same server."""

    def __init__(self, channel, messages, new_channel):
        self.messages = messages
        self.new_channel = new_channel
        self.load_report = messages.find("xds.data.orca.v3.OrcaLoadReport")
        m = messages

        def method(kind, name, request, response, service=SERVICE):
            return getattr(channel, kind)(
                f"/{service}/{name}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )

        self.empty_call = method("unary_unary", "EmptyCall", m.Empty, m.Empty)
        self.unary_call = method("unary_unary", "UnaryCall", m.SimpleRequest, m.SimpleResponse)
        self.streaming_input = method(
            "stream_unary", "StreamingInputCall", m.StreamingInputCallRequest, m.StreamingInputCallResponse
        )
        self.streaming_output = method(
            "unary_stream", "StreamingOutputCall", m.StreamingOutputCallRequest, m.StreamingOutputCallResponse
        )
        self.full_duplex = method(
            "stream_stream", "FullDuplexCall", m.StreamingOutputCallRequest, m.StreamingOutputCallResponse
        )
        self.unimplemented_method = method("unary_unary", "UnimplementedCall", m.Empty, m.Empty)
        self.unimplemented_service = method(
            "unary_unary", "UnimplementedCall", m.Empty, m.Empty, "grpc.testing.UnimplementedService"
        )
        self.stream_core_metrics = method(
            "unary_stream",
            "StreamCoreMetrics",
            messages.find("xds.service.orca.v3.OrcaLoadReportRequest"),
            self.load_report,
            "xds.service.orca.v3.OpenRcaService",
        )

    def payload(self, size):
        return self.messages.Payload(body=b"\0" * size)

    def simple(self, response_size, request_size, **fields):
        return self.messages.SimpleRequest(
            response_size=response_size, payload=self.payload(request_size), **fields
        )

    def output(self, sizes, request_size=None, **fields):
        request = self.messages.StreamingOutputCallRequest(**fields)
        for size in sizes:
            request.response_parameters.add(size=size)
        if request_size is not None:
            request.payload.body = b"\0" * request_size
        return request


class Requests:
    """A request stream that the case feeds by hand."""

    def __init__(self):
        self.queue = queue.Queue()

    def send(self, request):
        self.queue.put(request)

    def close(self):
        self.queue.put(None)

    def __iter__(self):
        return iter(self.queue.get, None)


def expect(actual, expected, what):
    assert actual == expected, f"{what}: {actual!r} instead of {expected!r}"


def fails(code, call):
    try:
        answer = call()
    except grpc.RpcError as error:
        expect(error.code(), code, f"status ({error.details()!r})")
        return error
    raise AssertionError(f"answered {answer!r} instead of failing with {code}")


def empty_unary(stub):
    expect(stub.empty_call(stub.messages.Empty(), timeout=WAIT), stub.messages.Empty(), "response")


def large_unary(stub):
    response = stub.unary_call(stub.simple(314159, 271828), timeout=WAIT)
    expect(len(response.payload.body), 314159, "size of the response")


def client_streaming(stub):
    sizes = [27182, 8, 1828, 45904]
    requests = (stub.messages.StreamingInputCallRequest(payload=stub.payload(size)) for size in sizes)
    expect(stub.streaming_input(requests, timeout=WAIT).aggregated_payload_size, 74922, "sum of sizes")


def server_streaming(stub):
    sizes = [31415, 9, 2653, 58979]
    responses = stub.streaming_output(stub.output(sizes), timeout=WAIT)
    expect([len(response.payload.body) for response in responses], sizes, "sizes")


def ping_pong(stub):
    requests = Requests()
    responses = stub.full_duplex(iter(requests), timeout=WAIT)
    for response_size, request_size in [(31415, 27182), (9, 8), (2653, 1828), (58979, 45904)]:
        requests.send(stub.output([response_size], request_size))
        expect(len(next(responses).payload.body), response_size, "size of a response")
    requests.close()
    expect(list(responses), [], "responses after the last request")


def empty_stream(stub):
    expect(list(stub.full_duplex(iter([]), timeout=WAIT)), [], "responses")


def cancel_after_begin(stub):
    requests = Requests()
    call = stub.streaming_input.future(iter(requests), timeout=WAIT)
    call.cancel()
    requests.close()
    assert call.cancelled(), "the call is not cancelled"
    expect(call.code(), grpc.StatusCode.CANCELLED, "status")


def cancel_after_first_response(stub):
    requests = Requests()
    call = stub.full_duplex(iter(requests), timeout=WAIT)
    requests.send(stub.output([31415], 27182))
    expect(len(next(call).payload.body), 31415, "size of the response")
    call.cancel()
    fails(grpc.StatusCode.CANCELLED, lambda: next(call))
    requests.close()


def timeout_on_sleeping_server(stub):
    requests = Requests()
    requests.send(stub.output([31415], 27182))
    call = stub.full_duplex(iter(requests), timeout=0.001)
    fails(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: list(call))
    requests.close()


def custom_metadata(stub):
    metadata = [(ECHO_INITIAL, "test_initial_metadata_value"), (ECHO_TRAILING, b"\xab\xab\xab")]

    def check(call):
        initial = dict(call.initial_metadata())
        trailing = dict(call.trailing_metadata())
        expect(initial.get(ECHO_INITIAL), metadata[0][1], "initial metadata")
        expect(trailing.get(ECHO_TRAILING), metadata[1][1], "trailing metadata")

    _, call = stub.unary_call.with_call(stub.simple(314159, 271828), metadata=metadata, timeout=WAIT)
    check(call)
    requests = Requests()
    requests.send(stub.output([314159], 271828))
    requests.close()
    call = stub.full_duplex(iter(requests), metadata=metadata, timeout=WAIT)
    expect(len(list(call)), 1, "responses")
    check(call)


def status(stub, message):
    wanted = dict(code=grpc.StatusCode.UNKNOWN.value[0], message=message)
    request = stub.messages.SimpleRequest(response_status=wanted)
    error = fails(grpc.StatusCode.UNKNOWN, lambda: stub.unary_call(request, timeout=WAIT))
    expect(error.details(), message, "message")
    stream = stub.full_duplex(iter([stub.output([], response_status=wanted)]), timeout=WAIT)
    error = fails(grpc.StatusCode.UNKNOWN, lambda: list(stream))
    expect(error.details(), message, "message of the stream")


def status_code_and_message(stub):
    status(stub, "test status message")


def special_status_message(stub):
    message = "\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \U0001f608\t\n"
    wanted = dict(code=grpc.StatusCode.UNKNOWN.value[0], message=message)
    request = stub.messages.SimpleRequest(response_status=wanted)
    error = fails(grpc.StatusCode.UNKNOWN, lambda: stub.unary_call(request, timeout=WAIT))
    expect(error.details(), message, "message")


def unimplemented_method(stub):
    fails(
        grpc.StatusCode.UNIMPLEMENTED,
        lambda: stub.unimplemented_method(stub.messages.Empty(), timeout=WAIT),
    )


def unimplemented_service(stub):
    fails(
        grpc.StatusCode.UNIMPLEMENTED,
        lambda: stub.unimplemented_service(stub.messages.Empty(), timeout=WAIT),
    )


def concurrent_large_unary(stub):
    """The project's name for it in Java and C++; here: the same case from many threads at once."""
    failures = []

    def one():
        try:
            large_unary(stub)
        except Exception as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, f"{len(failures)} of {len(threads)} failed, first: {failures[0]}"


def rpc_soak(stub):
    for _ in range(SOAK):
        large_unary(stub)


def channel_soak(stub):
    for _ in range(SOAK):
        with stub.new_channel() as channel:
            large_unary(Stub(channel, stub.messages, stub.new_channel))


def orca_oob(stub):
    """grpcio has no listener for these reports, so the case asks the service that sends them itself."""
    requests = Requests()
    responses = stub.full_duplex(iter(requests), timeout=WAIT)
    ask = stub.messages.find("xds.service.orca.v3.OrcaLoadReportRequest")()
    ask.report_interval.FromSeconds(1)
    reports = stub.stream_core_metrics(ask, timeout=WAIT)
    for cpu, memory, util in [(0.8210, 0.5847, 0.30499), (0.29309, 0.2, 0.2039)]:
        request = stub.output([1], orca_oob_report=dict(cpu_utilization=cpu, memory_utilization=memory))
        request.orca_oob_report.utilization["util"] = util
        requests.send(request)
        next(responses)
        wanted = stub.load_report(cpu_utilization=cpu, mem_utilization=memory)
        wanted.utilization["util"] = util
        assert wanted in reports, f"no load report {wanted}"
    reports.cancel()
    requests.close()
    expect(list(responses), [], "responses after the last request")


CASES = [
    empty_unary,
    large_unary,
    client_streaming,
    server_streaming,
    ping_pong,
    empty_stream,
    cancel_after_begin,
    cancel_after_first_response,
    timeout_on_sleeping_server,
    custom_metadata,
    status_code_and_message,
    special_status_message,
    unimplemented_method,
    unimplemented_service,
    concurrent_large_unary,
    rpc_soak,
    channel_soak,
    orca_oob,
]


def main():
    address, protoset, *names = sys.argv[1:]
    cases = {case.__name__: case for case in CASES}
    messages = Messages(protoset)

    def new_channel():
        # A connection of its own, as each case of the project's runner is a process of its own.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        return grpc.insecure_channel(address, options=options)

    failed = 0
    for name in names or cases:
        start = time.monotonic()
        try:
            with new_channel() as channel:
                cases[name](Stub(channel, messages, new_channel))
            print(f"ok {name} ({time.monotonic() - start:.2f} s)", flush=True)
        except Exception:  # noqa: BLE001 - whatever it is, the case failed
            failed += 1
            print(f"FAILED {name}: {traceback.format_exc()}", flush=True)
    sys.exit(1 if failed else 0)


main()
