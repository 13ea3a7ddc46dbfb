#![no_main]

catelier_fuzz::fuzz!("federation_state");
