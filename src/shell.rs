//! Commands that a person can paste into a shell.

use std::path::Path;

use crate::terminal::is_unprintable;

/// The path as one word of a POSIX shell, in characters that every terminal shows as they are.
pub(crate) fn quoted(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes();
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains(is_unprintable));
    // A word in front of which there is a dash would be taken for a flag.
    let before = if bytes.starts_with(b"-") { "./" } else { "" };
    match text {
        Some(text) if !text.is_empty() && text.chars().all(is_plain) => format!("{before}{text}"),
        Some(text) => format!("'{before}{}'", text.replace('\'', r"'\''")),
        None => format!("$'{before}{}'", ansi_c(bytes)),
    }
}

fn is_plain(character: char) -> bool {
    character.is_alphanumeric() || "/._-+:,@%".contains(character)
}

/// The inside of `$'…'`, which bash, zsh and ksh read: what cannot be shown as hexadecimal bytes.
fn ansi_c(bytes: &[u8]) -> String {
    let mut word = String::new();
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\'' | '\\' => word.extend(['\\', character]),
                character if is_unprintable(character) => word += &hexadecimal(character.to_string().as_bytes()),
                character => word.push(character),
            }
        }
        word += &hexadecimal(chunk.invalid());
    }
    word
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

#[cfg(all(test, unix))]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_reads_the_path_that_was_meant() {
        let names: [&[u8]; 9] = [
            b"runs/one-2.5",
            b"my run",
            b"it's $HOME `x` \"y\" \\ !",
            b"new\nline\x1b[2J",
            b"bad\xff\xc3/'out",
            "künstler/بيت".as_bytes(),
            "turned\u{202e}".as_bytes(),
            b"",
            b"~",
        ];
        for name in names {
            let word = quoted(Path::new(OsStr::from_bytes(name)));
            assert!(!word.contains(is_unprintable), "{word:?}");
            let shell = Command::new("bash").args(["-c", &format!("printf %s {word}")]).output().unwrap();
            assert_eq!(shell.stdout, name, "{word}");
        }
        assert_eq!(quoted(Path::new("runs/one")), "runs/one");
        assert_eq!(quoted(Path::new("-run")), "./-run");
    }
}
