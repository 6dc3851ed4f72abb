mod clients;
mod delta;
mod sotw;
mod order;
mod properties;
mod refusal;
mod scale;
mod bounds;
mod late;
mod shed;

use crate::{access::Caller, budget::Account};

/// A client over the Unix socket.
fn caller() -> Caller {
    Caller::of_connection(None, Account::default())
}
