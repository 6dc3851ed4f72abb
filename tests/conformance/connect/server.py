"""The server under test: the suite's own reference server behind the outbound listener of a proxy.

connectconformance starts it for each server configuration, sends one ServerCompatRequest (its length in four bytes, then
protobuf), reads one ServerCompatResponse with the address to call, and ends it by SIGTERM. The request goes on to the
reference server as it is; of its answer only host and port are read.
"""

import http.client
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

SERVICES = """\
service: conformance
protocol: grpc
protos: [connectrpc.conformance.v1.ConformanceService]
health: {{kind: none}}
instances:
  - {{id: e1, address: "127.0.0.1:{port}"}}
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def read_message(stream):
    (length,) = struct.unpack(">I", stream.read(4))
    return stream.read(length)


def write_message(stream, message):
    stream.write(struct.pack(">I", len(message)) + message)
    stream.flush()


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def port_of(response):
    """Field 2 of a ServerCompatResponse."""
    at = 0
    while at < len(response):
        key, at = varint(response, at)
        value, at = varint(response, at)
        if key & 7 == 2:
            at += value
        elif key >> 3 == 2:
            return value
    raise ValueError("the reference server named no port")


def encode_varint(value):
    encoded = b""
    while value > 0x7F:
        encoded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return encoded + bytes([value])


def response(port):
    host = b"127.0.0.1"
    return b"\x0a" + encode_varint(len(host)) + host + b"\x10" + encode_varint(port)


def await_ready(admin):
    for _ in range(600):
        try:
            page = http.client.HTTPConnection("127.0.0.1", admin, timeout=1)
            page.request("GET", "/readyz")
            if page.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise TimeoutError("the proxy is not ready")


def main():
    request = read_message(sys.stdin.buffer)
    server = subprocess.Popen(
        [os.path.join(os.environ["CONNECT_BIN"], "connect-referenceserver")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    write_message(server.stdin, request)
    port = port_of(read_message(server.stdout))
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "conformance.yaml"), "w") as file:
            file.write(SERVICES.format(port=port))
        outbound, admin = free_port(), free_port()
        proxy = subprocess.Popen(
            [os.environ["HEDDLE_PROXY"], "--node", "a", "--control", "none"]
            + ["--services-dir", folder, "--state-dir", os.path.join(folder, "state")]
            + ["--outbound", f"127.0.0.1:{outbound}", "--inbound", "127.0.0.1:0"]
            + ["--agent", "127.0.0.1:0", "--admin", f"127.0.0.1:{admin}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            await_ready(admin)
            write_message(sys.stdout.buffer, response(outbound))
            while True:
                signal.pause()
        finally:
            proxy.kill()
            proxy.wait()
            server.terminate()
            server.wait()


main()
