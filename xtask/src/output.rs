//! What chores say: results on stdout, progress on stderr.

#[expect(clippy::print_stdout, reason = "this is what a chore is for")]
pub(crate) fn print(text: &str) {
    print!("{text}");
}

#[expect(clippy::print_stderr, reason = "a person waits for minutes")]
pub(crate) fn tell(line: &str) {
    eprintln!("{line}");
}
