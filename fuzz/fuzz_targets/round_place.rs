#![no_main]

catelier_fuzz::fuzz!("round_place");
