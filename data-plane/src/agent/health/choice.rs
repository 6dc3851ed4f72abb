//! The choice of health kind `auto` between `grpc` and `tcp`, for one run of a program. Input: what its checks found.
//! Output: the check in use, and whether the question for gRPC health is to be asked. Pure: no clock, no sockets.

use heddle_proto::registry::v1::health_check::Kind;

/// How often a program that accepted a connection but did not answer in time is asked again, one check each: it may
/// listen before it has finished starting.
const GRPC_TRIES: u8 = 10;

/// See the module documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// `Unspecified`: nothing is chosen yet.
    kind: Kind,
    /// How often the question may still be asked.
    questions: u8,
}

impl Choice {
    /// `before`: what is in use already.
    pub(super) fn resumed(before: Kind) -> Self {
        Self {
            kind: before,
            questions: match before {
                Kind::Unspecified => 1 + GRPC_TRIES,
                _ => 0,
            },
        }
    }

    pub(super) fn kind(self) -> Kind {
        self.kind
    }

    /// Whether the next check asks for gRPC health.
    pub(super) fn tries_grpc(self) -> bool {
        self.kind != Kind::Grpc && self.questions > 0
    }

    /// The health service answered. No later failure but those below changes this.
    pub(super) fn answered(&mut self) {
        self.kind = Kind::Grpc;
        self.questions = 0;
    }

    /// It has no health service for the whole server.
    pub(super) fn has_none(&mut self) {
        self.kind = Kind::Tcp;
        self.questions = 0;
    }

    /// It accepts connections, but the question got no answer in time.
    pub(super) fn unanswered(&mut self) {
        self.kind = Kind::Tcp;
        self.questions = self.questions.saturating_sub(1);
    }

    /// No program listens: the next one that does may be another one, so it is asked anew. Until then the kind in use
    /// stays.
    pub(super) fn refused(&mut self) {
        self.questions = 1 + GRPC_TRIES;
        self.kind = Kind::Unspecified;
    }
}

#[cfg(test)]
mod tests {
    use super::{Choice, GRPC_TRIES};
    use heddle_proto::registry::v1::health_check::Kind;

    #[test]
    fn an_answer_decides_and_silence_is_asked_again_a_few_times() {
        let mut choice = Choice::resumed(Kind::Unspecified);
        assert!(choice.tries_grpc());
        for _ in 0..GRPC_TRIES {
            choice.unanswered();
            assert!(
                choice.tries_grpc() && choice.kind() == Kind::Tcp,
                "{choice:?}"
            );
        }
        choice.unanswered();
        assert!(!choice.tries_grpc(), "{choice:?}");
        let mut late = Choice::resumed(Kind::Unspecified);
        late.unanswered();
        late.answered();
        assert!(!late.tries_grpc() && late.kind() == Kind::Grpc, "{late:?}");
    }

    #[test]
    fn only_the_end_of_the_program_makes_the_choice_anew() {
        let mut choice = Choice::resumed(Kind::Grpc);
        assert!(!choice.tries_grpc());
        choice.refused();
        assert!(choice.tries_grpc());
        choice.has_none();
        assert!(
            !choice.tries_grpc() && choice.kind() == Kind::Tcp,
            "{choice:?}"
        );
        choice.refused();
        choice.answered();
        assert_eq!(choice.kind(), Kind::Grpc);
    }
}
