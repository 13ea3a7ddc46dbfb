#![no_main]

catelier_fuzz::fuzz!("sent_contribution");
