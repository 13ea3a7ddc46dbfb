#![no_main]

catelier_fuzz::fuzz!("train_state");
