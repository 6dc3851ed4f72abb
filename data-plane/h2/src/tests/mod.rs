//! Tests of the public interface: two connections joined in memory, or one connection against
//! scripted frames.

mod pair;
mod script;

mod calls;
mod examples;
mod faults;
mod states;
mod windows;
mod messages;
mod lists;
mod large_lists;
mod settings;
mod shutdown;
mod floods;
mod random;
mod memory;
mod slab;
