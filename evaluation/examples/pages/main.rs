//! Writes both pages with synthetic images, to look at them:
//! `cargo run -p catelier-evaluation --example pages -- FOLDER`

mod drawing;
mod story;

use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "pages".to_owned()));
    std::fs::create_dir_all(&folder)?;
    let winning = story::Story::new(0.06, 0.42, 0.9);
    let losing = story::Story::new(0.3, 0.28, 0.35);
    write(&folder.join("demo.html"), &winning.demo_page()?)?;
    write(&folder.join("demo-three.html"), &winning.demo_page_of_three()?)?;
    write(&folder.join("evaluation.html"), &winning.evaluation_page()?)?;
    write(&folder.join("demo-losing.html"), &losing.demo_page()?)?;
    Ok(())
}

fn write(path: &Path, page: &str) -> Result<(), Box<dyn Error>> {
    Ok(catelier_numerics::atomic::write(path, |file| file.write_all(page.as_bytes()))?)
}
