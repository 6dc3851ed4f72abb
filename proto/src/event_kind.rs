//! The kinds of events. Both the writer (control plane) and who asks for events check against this list; docs/events.md
//! explains each.

/// All kinds, in the order of docs/events.md.
pub const EVENT_KINDS: &[&str] = &[
    "node-joined",
    "node-returned",
    "node-superseded",
    "name-clash",
    "node-left",
    "node-suspect",
    "node-expired",
    "node-forgotten",
    "instance-joined",
    "instance-left",
    "instance-expired",
    "instance-unhealthy",
    "instance-healthy",
    "service-forgotten",
    "path-conflict",
    "path-released",
    "schema-removed",
    "replica-joined",
    "replica-left",
    "duty-taken",
];
