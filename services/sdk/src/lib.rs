//! What a service needs to be a good neighbour in the mesh: register with its node's agent and stay registered, and
//! leave without a lost call. Optional: any program can speak the same three calls, or be started by `heddle run`.
//! No routing, no address of another service and no transport of its own may come in here.

mod register;
mod once_in_a_while;
mod listen;
mod drain;

pub use drain::{FINISH_WITHIN, Finish, ServeError, serve_until_drained, server};
pub use listen::{ListenError, Listener};
pub use register::{
    Departure, LEAVE_WITHIN, Membership, Registration, SdkError, agent_address, agent_channel,
    outbound_address,
};

#[cfg(test)]
mod tests;
