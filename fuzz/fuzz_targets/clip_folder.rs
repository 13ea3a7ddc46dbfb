#![no_main]

catelier_fuzz::fuzz!("clip_folder");
