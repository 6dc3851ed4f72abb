//! Whether a call may go on: bounds and budgets per service and per connection. Counts and `now` come in, yes
//! or no goes out. Nothing here calls out, and no sockets may come in.

pub mod budget;
pub mod share;

pub use budget::RetryBudget;
pub use share::{Shares, within_group_share, within_share};
