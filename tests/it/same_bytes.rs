//! Commands whose results must not change in any bit: `same_bytes.txt` has the SHA-256 of their outputs.
//!
//! The test compares the tensors of a safetensors file (names, dtypes, shapes and values, not the header's metadata),
//! the pixels of PNG files (not their text), the named fields of JSON, and all bytes of other files.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::adapters::golden;
use crate::catelier::Studio;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/same_bytes.txt");

/// If this variable is set, the sums of this run replace the sums in the table.
const BLESS: &str = "CATELIER_BLESS";

/// The kind of CPU in the table if the bits do not depend on the CPU.
const ANY: &str = "any";

/// One entry of the table, in its order.
enum Entry {
    /// An empty line or a comment.
    Note(String),
    /// The arguments of `catelier`.
    Command(String),
    /// An output of the command before it: a file, a folder of PNG files or `stdout`, and the JSON fields that count.
    Output {
        name: String,
        /// SHA-256 by kind of CPU.
        sums: BTreeMap<String, String>,
    },
}

/// An output with its sum in this run.
struct Found<'a> {
    command: &'a str,
    output: &'a str,
    before: &'a BTreeMap<String, String>,
    now: String,
}

#[test]
fn commands_write_the_same_bytes_as_before() {
    let mut table = parse(&fs::read_to_string(TABLE).unwrap());
    let found = run(&table);
    if std::env::var_os(BLESS).is_some() {
        let sums = found.into_iter().map(|found| found.now).collect();
        bless(&mut table, sums);
        return fs::write(TABLE, table.iter().map(ToString::to_string).collect::<String>()).unwrap();
    }
    let compared: Vec<_> = found.iter().filter_map(|found| Some((found, found.expected()?))).collect();
    if compared.len() < found.len() {
        warn(&format!(
            "same_bytes compares {} of {} outputs: the table has no sums of the others for `{}`, and CONTRIBUTING.md \
             says how to add them",
            compared.len(),
            found.len(),
            cpu_name(),
        ));
    }
    let differing: Vec<_> = compared.into_iter().filter_map(|(found, before)| found.difference(before)).collect();
    assert!(
        differing.is_empty(),
        "{} of {} outputs are not what they were; if that is on purpose, {BLESS}=1 renews the sums\n{}",
        differing.len(),
        found.len(),
        differing.concat()
    );
}

fn parse(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            entries.push(Entry::Command(command.to_string()));
        } else if let Some(row) = line.strip_prefix("    ") {
            let Some(Entry::Output { sums, .. }) = entries.last_mut() else { panic!("`{line}` follows no output") };
            let (cpu, sum) = row.split_once(' ').unwrap_or_else(|| panic!("`{line}` has no sum"));
            sums.insert(cpu.to_string(), sum.to_string());
        } else if line.is_empty() || line.starts_with('#') {
            entries.push(Entry::Note(line.to_string()));
        } else {
            entries.push(Entry::Output { name: line.to_string(), sums: BTreeMap::new() });
        }
    }
    entries
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Note(text) => writeln!(f, "{text}"),
            Self::Command(line) => writeln!(f, "$ {line}"),
            Self::Output { name, sums } => {
                writeln!(f, "{name}")?;
                sums.iter().try_for_each(|(cpu, sum)| writeln!(f, "    {cpu} {sum}"))
            }
        }
    }
}

/// Runs all commands in one folder, so that later commands find the files of earlier ones.
fn run(table: &[Entry]) -> Vec<Found<'_>> {
    let studio = Studio::new();
    let (mut command, mut stdout) = ("", String::new());
    let mut found = Vec::new();
    for entry in table {
        match entry {
            Entry::Note(_) => {}
            Entry::Command(line) => {
                stdout = studio.done(&line.replace("golden/", &format!("{}/", golden("").display()))).stdout;
                command = line;
            }
            Entry::Output { name, sums } => {
                let bytes = output_bytes(&studio, &stdout, name);
                let now = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
                found.push(Found { command, output: name, before: sums, now });
            }
        }
    }
    found
}

impl Found<'_> {
    /// The sum in the table, if there is one for this kind of CPU.
    fn expected(&self) -> Option<&str> {
        assert!(!self.before.is_empty(), "`{}` has no sum yet; {BLESS}=1 adds it", self.output);
        let sum = self.before.get(ANY).or_else(|| self.before.get(&cpu_name()));
        sum.map(String::as_str)
    }

    fn difference(&self, before: &str) -> Option<String> {
        let Self { command, output, now, .. } = self;
        (before != now).then(|| format!("{output}    of `catelier {command}`\n    before {before}\n    now    {now}\n"))
    }
}

/// Puts the sums of this run into the table. Where one changes, the sums of other kinds of CPU are outdated and
/// removed.
fn bless(table: &mut [Entry], found: Vec<String>) {
    let outputs = table.iter_mut().filter_map(|entry| match entry {
        Entry::Output { sums, .. } => Some(sums),
        _ => None,
    });
    for (sums, now) in outputs.zip(found) {
        let kind = if sums.contains_key(ANY) { ANY.to_string() } else { cpu_name() };
        if sums.get(&kind).is_some_and(|before| *before != now) {
            sums.clear();
        }
        sums.insert(kind, now);
    }
}

/// The bytes of an output that must not change.
fn output_bytes(studio: &Studio, stdout: &str, output: &str) -> Vec<u8> {
    let mut words = output.split_whitespace();
    let name = words.next().unwrap();
    let fields: Vec<_> = words.collect();
    if name == "stdout" {
        return json_fields(stdout, &fields);
    }
    let path = studio.path(name);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json" | "jsonl") => json_fields(&fs::read_to_string(path).unwrap(), &fields),
        Some("safetensors") => tensors(&path),
        Some("png") => pixels(&path),
        None => pixels_of_folder(&path),
        Some(_) => fs::read(path).unwrap(),
    }
}

/// The named fields of every JSON value in `text`, or all of them.
fn json_fields(text: &str, fields: &[&str]) -> Vec<u8> {
    let values: Vec<Value> = serde_json::Deserializer::from_str(text).into_iter().map(Result::unwrap).collect();
    for field in fields {
        assert!(values.iter().any(|value| value.get(field).is_some()), "no field `{field}` in {text}");
    }
    let chosen = values.into_iter().map(|mut value| {
        if let (false, Some(object)) = (fields.is_empty(), value.as_object_mut()) {
            object.retain(|field, _| fields.contains(&field.as_str()));
        }
        // The order of fields may change.
        value.sort_all_objects();
        value.to_string() + "\n"
    });
    chosen.collect::<String>().into_bytes()
}

/// Every tensor in the order of the names.
fn tensors(path: &Path) -> Vec<u8> {
    let file = fs::read(path).unwrap();
    let mut tensors = SafeTensors::deserialize(&file).unwrap().tensors();
    tensors.sort_by(|(left, _), (right, _)| left.cmp(right));
    let mut bytes = Vec::new();
    for (name, tensor) in &tensors {
        writeln!(bytes, "{name} {:?} {:?}", tensor.dtype(), tensor.shape()).unwrap();
        bytes.extend(tensor.data());
    }
    bytes
}

/// Size, kind of pixel and every pixel.
fn pixels(path: &Path) -> Vec<u8> {
    let image = image::open(path).unwrap();
    let mut bytes = format!("{}x{} {:?}\n", image.width(), image.height(), image.color()).into_bytes();
    bytes.extend(image.as_bytes());
    bytes
}

/// The PNG files of a folder in the order of the names, which count too.
fn pixels_of_folder(folder: &Path) -> Vec<u8> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "png"));
    files.sort();
    assert!(!files.is_empty(), "no PNG file in `{}`", folder.display());
    let file_bytes = |file: &PathBuf| {
        let name = file.file_name().unwrap().to_string_lossy().into_owned() + "\n";
        [name.into_bytes(), pixels(file)].concat()
    };
    files.iter().flat_map(file_bytes).collect()
}

/// The kind of CPU: the features that the kernels, the `gemm` crate and the system's mathematics library check.
fn cpu_name() -> String {
    let mut kind = vec![std::env::consts::OS, std::env::consts::ARCH];
    #[cfg(target_arch = "x86_64")]
    kind.extend(
        [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ]
        .iter()
        .filter_map(|(name, has)| has.then_some(name)),
    );
    kind.join("-")
}

/// Writes a line to stderr.
#[expect(clippy::explicit_write, reason = "the output of `eprintln!` is shown only where the test fails")]
fn warn(text: &str) {
    writeln!(std::io::stderr(), "{text}").unwrap();
}
