#![no_main]

catelier_fuzz::fuzz!("style_index");
