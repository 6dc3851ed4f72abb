//! Tests of the machine as its users see it: two machines joined in memory, or one machine against
//! scripted frames.

mod pair;
mod calls;
