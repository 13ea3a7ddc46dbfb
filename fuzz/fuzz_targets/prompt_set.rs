#![no_main]

catelier_fuzz::fuzz!("prompt_set");
