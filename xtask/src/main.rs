//! Automation for the people who build Catelier.

fn main() {}
