//! Which gRPC statuses count as errors: the one list for load reports, metrics and the like. Source: OpenTelemetry's semantic
//! conventions for gRPC servers (1.44).

/// gRPC's UNKNOWN, also for an invalid `grpc-status`.
pub const UNKNOWN: u8 = 2;

/// UNKNOWN, `DEADLINE_EXCEEDED`, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and `DATA_LOSS` are errors of the service. Any other
/// status is an answer, such as `NOT_FOUND` or `PERMISSION_DENIED`. Unknown numbers count as UNKNOWN.
#[must_use]
pub const fn is_error(status: u8) -> bool {
    matches!(status, UNKNOWN | 4 | 12 | 13 | 14 | 15 | 17..)
}

#[cfg(test)]
mod tests {
    use super::is_error;

    #[test]
    fn answers_are_distinguished_from_errors() {
        let errors: Vec<u8> = (0..=18).filter(|&status| is_error(status)).collect();
        assert_eq!(errors, [2, 4, 12, 13, 14, 15, 17, 18]);
    }
}
