//! For services in the mesh: register with the node's agent, stay registered, and leave without losing a call.
//! Optional: any program can make the same three calls itself, or be started by `heddle run`. Routing, addresses of
//! other services and transports do not belong here.

mod address;
mod register;
mod departure;
mod keep_alive;
mod log_limiter;
mod listen;
mod drain;

pub use address::{AddressError, proxy_url};
pub use departure::{LEAVE_TIMEOUT, LeaveOutcome};
pub use drain::{FINISH_TIMEOUT, Finish, ServeError, serve_until_drained, server};
pub use listen::{ListenError, Listener};
pub use register::{
    Registration, RegistrationOptions, SdkError, agent_address, agent_channel, outbound_address,
};

#[cfg(test)]
mod tests;
