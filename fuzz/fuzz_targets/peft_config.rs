#![no_main]

catelier_fuzz::fuzz!("peft_config");
