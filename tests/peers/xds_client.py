"""Stock grpcio that finds its service by xDS: calls Echo/Unary through `xds:///NAME` for as long as it is told to.

Usage: xds_client.py TARGET PROTOSET   (GRPC_XDS_BOOTSTRAP names the bootstrap file)

Prints one JSON line per call: {"instance": …} or {"code": …, "message": …}. Ends when its standard input ends.
The calls wait for a connection only in the beginning: after the first answer nothing hides an error.
"""

import json
import sys
import threading
import time

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# Seconds: no call takes so long, but the first one may take some on a busy machine, as it waits for everything.
DEADLINE = 20


def main():
    target, protoset = sys.argv[1:]
    files = descriptor_pb2.FileDescriptorSet()
    with open(protoset, "rb") as file:
        files.ParseFromString(file.read())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    request_type = message_factory.GetMessageClass(pool.FindMessageTypeByName("heddle.echo.v1.EchoRequest"))
    response_type = message_factory.GetMessageClass(pool.FindMessageTypeByName("heddle.echo.v1.EchoResponse"))

    done = threading.Event()

    def watch():
        sys.stdin.read()
        done.set()

    threading.Thread(target=watch, daemon=True).start()

    channel = grpc.insecure_channel(target)
    unary = channel.unary_unary(
        "/heddle.echo.v1.Echo/Unary",
        request_serializer=request_type.SerializeToString,
        response_deserializer=response_type.FromString,
    )
    answered = False
    number = 0
    while not done.is_set():
        number += 1
        payload = f"call {number}".encode()
        try:
            response = unary(request_type(payload=payload), timeout=DEADLINE, wait_for_ready=not answered)
            answered = True
            line = {"instance": response.instance}
            if response.payload != payload:
                line = {"code": "DATA_LOSS", "message": f"answered {response.payload!r}"}
        except grpc.RpcError as error:
            line = {"code": error.code().name, "message": error.details()}
        print(json.dumps(line), flush=True)
        time.sleep(0.01)
    channel.close()


main()
