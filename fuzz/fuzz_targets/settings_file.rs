#![no_main]

catelier_fuzz::fuzz!("settings_file");
