//! The project command.
fn main() {}
