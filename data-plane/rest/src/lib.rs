//! REST from descriptors: which method a path names, its request from path, query and JSON, its response as JSON. Takes
//! bytes and descriptors; gives bytes, or a fault that names the field. No sockets, no clock, no HTTP library, so that
//! everything here can be fuzzed and compared with other implementations.

