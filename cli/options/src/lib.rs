//! What all processes of Heddle share: options from flags, environment and file; logging; the ready line; signals;
//! one-line failures; background tasks whose end is noticed. Options of a single program do not belong here: each
//! program defines its own with clap.

mod duration;
mod layers;
mod file;
mod nearest;
mod private;
mod logging;
mod process;
mod tasks;

pub use duration::parse_duration;
pub use layers::{Parsed, Stop, parse, try_parse};
pub use logging::init_logging;
pub use nearest::{edit_distance, nearest};
pub use private::{create_private_dir, make_private, private_file};
pub use process::{
    fail, one_line, print_error, raise_file_limit, ready, terminated, terminated_again,
};
pub use tasks::Tasks;

#[cfg(test)]
mod tests;
