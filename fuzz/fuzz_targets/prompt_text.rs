#![no_main]

catelier_fuzz::fuzz!("prompt_text");
