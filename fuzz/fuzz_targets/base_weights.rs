#![no_main]

catelier_fuzz::fuzz!("base_weights");
