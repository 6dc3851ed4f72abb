// Writes the messages of the gRPC project's interop tests, and those of the load reports (ORCA) that some cases look at,
// as a FileDescriptorSet to standard output, so that the Python interop client can use them without a protocol compiler.
package main

import (
	"fmt"
	"os"

	orca "github.com/cncf/xds/go/xds/service/orca/v3"
	testing "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

func main() {
	set := &descriptorpb.FileDescriptorSet{}
	seen := map[string]bool{}
	var add func(file protoreflect.FileDescriptor)
	add = func(file protoreflect.FileDescriptor) {
		if seen[file.Path()] {
			return
		}
		seen[file.Path()] = true
		for i := range file.Imports().Len() {
			add(file.Imports().Get(i).FileDescriptor)
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(file))
	}
	add(testing.File_grpc_testing_test_proto)
	add(orca.File_xds_service_orca_v3_orca_proto)
	bytes, err := proto.Marshal(set)
	if err == nil {
		_, err = os.Stdout.Write(bytes)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "protoset:", err)
		os.Exit(1)
	}
}
