#![no_main]

catelier_fuzz::fuzz!("adapter_file");
