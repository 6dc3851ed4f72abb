// Stock grpc-go that finds its service by xDS: calls Echo/Unary through xds:///NAME for as long as it is told to.
//
// Usage: xds-client TARGET PROTOSET   (GRPC_XDS_BOOTSTRAP names the bootstrap file)
//
// Prints one JSON line per call: {"instance": …} or {"code": …, "message": …}. Ends when its standard input ends.
// The calls wait for a connection only in the beginning: after the first answer nothing hides an error.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	_ "google.golang.org/grpc/xds"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// No call takes so long, but the first one may take some on a busy machine, as it waits for everything.
const deadline = 20 * time.Second

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "xds-client:", err)
		os.Exit(1)
	}
}

func messages(protoset string) (request, response protoreflect.MessageDescriptor, err error) {
	bytes, err := os.ReadFile(protoset)
	if err != nil {
		return nil, nil, err
	}
	set := &descriptorpb.FileDescriptorSet{}
	if err := proto.Unmarshal(bytes, set); err != nil {
		return nil, nil, err
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		return nil, nil, err
	}
	method, err := files.FindDescriptorByName("heddle.echo.v1.Echo.Unary")
	if err != nil {
		return nil, nil, err
	}
	unary := method.(protoreflect.MethodDescriptor)
	return unary.Input(), unary.Output(), nil
}

func run(target, protoset string) error {
	input, output, err := messages(protoset)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(done)
	}()
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	lines := json.NewEncoder(os.Stdout)
	answered := false
	for number := 1; ; number++ {
		line := call(connection, input, output, number, !answered)
		_, answer := line["instance"]
		answered = answered || answer
		if err := lines.Encode(line); err != nil {
			return err
		}
		select {
		case <-done:
			return nil
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func call(
	connection *grpc.ClientConn, input, output protoreflect.MessageDescriptor, number int, wait bool,
) map[string]string {
	payload := fmt.Sprintf("call %d", number)
	request, response := dynamicpb.NewMessage(input), dynamicpb.NewMessage(output)
	request.Set(input.Fields().ByName("payload"), protoreflect.ValueOfBytes([]byte(payload)))
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	err := connection.Invoke(ctx, "/heddle.echo.v1.Echo/Unary", request, response, grpc.WaitForReady(wait))
	if err != nil {
		failed := status.Convert(err)
		return map[string]string{"code": failed.Code().String(), "message": failed.Message()}
	}
	if got := string(response.Get(output.Fields().ByName("payload")).Bytes()); got != payload {
		return map[string]string{"code": "DataLoss", "message": "answered " + got}
	}
	return map[string]string{"instance": response.Get(output.Fields().ByName("instance")).String()}
}
