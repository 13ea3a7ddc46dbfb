#![no_main]

catelier_fuzz::fuzz!("tokenizer");
