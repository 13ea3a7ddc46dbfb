#![no_main]

catelier_fuzz::fuzz!("image_file");
