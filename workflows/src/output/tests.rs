use super::*;

const QUIET: fn(crate::Event) = |_| {};

fn claim(path: &Path, command: &'static str) -> Result<OutputFolder> {
    OutputFolder::claim(path, command, false, &Session::new(QUIET))
}

fn forced(path: &Path, command: &'static str) -> Result<OutputFolder> {
    OutputFolder::claim(path, command, true, &Session::new(QUIET))
}

fn refused<T: std::fmt::Debug>(result: Result<T>) -> String {
    let error = result.unwrap_err();
    assert!(error.is_user_error() && error.hint().is_some(), "{error}");
    error.to_string()
}

fn done(path: &Path, command: &'static str) {
    let folder = claim(path, command).unwrap();
    folder.begin().unwrap();
    folder.finish().unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    files_below(folder).unwrap().iter().map(|file| file.display().to_string()).collect()
}

#[test]
fn a_folder_belongs_to_the_command_that_made_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new");
    done(&path, "demo");
    let marker = Marker::read(&path).unwrap().unwrap();
    assert!(marker.finished && marker.writer.is_none());
    let again = claim(&path, "demo").unwrap();
    assert!(again.was_finished() && Marker::read(&path).unwrap().unwrap().writer.is_some());
    again.begin().unwrap();
    drop(again);
    let marker = Marker::read(&path).unwrap().unwrap();
    assert!(!marker.finished && marker.writer.is_none(), "begun and not finished");
    assert!(refused(claim(&path, "train")).contains("the output of `catelier demo`"));
}

#[test]
fn a_claim_without_work_leaves_the_folder_as_it_was_found() {
    let folder = tempfile::tempdir().unwrap();
    let (new, empty, made) = (folder.path().join("new"), folder.path().join("empty"), folder.path().join("made"));
    fs::create_dir(&empty).unwrap();
    done(&made, "demo");
    let before = fs::read(made.join(MARKER)).unwrap();
    for path in [&new, &empty, &made] {
        drop(claim(path, "demo").unwrap());
    }
    assert!(!new.exists() && names(&empty).is_empty());
    assert_eq!(fs::read(made.join(MARKER)).unwrap(), before);
}

#[test]
fn two_at_once_are_refused_and_told_by_whom() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let first = claim(&path, "demo").unwrap();
    for second in [claim(&path, "demo"), claim(&path, "train"), forced(&path, "demo")] {
        let told = refused(second);
        let who = format!("is in use: process {} (`catelier demo`) has been writing there for", std::process::id());
        assert!(told.contains(&who), "{told}");
    }
    Marker::read(&path).unwrap().unwrap();
    drop(first);
    claim(&path, "train").unwrap();
}

#[test]
fn content_of_others_is_refused_by_name_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("images/sunset.png");
    make_folder(own.parent().unwrap()).unwrap();
    write_text(&own, "precious").unwrap();
    assert!(refused(claim(folder.path(), "demo")).contains("images/sunset.png"));
    assert!(Marker::read(folder.path()).unwrap().is_none());

    let beside = forced(folder.path(), "demo").unwrap();
    assert!(refused(beside.refuse_unknown(&["report.html", "images"])).contains("/images` is in the way"));
    beside.refuse_unknown(&["report.html"]).unwrap();
    let any = |_: &Path| true;
    assert!(refused(beside.clear(Path::new("images"), &any)).contains("images/sunset.png"));
    beside.clear(Path::new("images"), &|_| false).unwrap();
    assert_eq!(fs::read_to_string(&own).unwrap(), "precious");
}

#[test]
fn only_files_that_the_command_makes_are_cleared() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    done(&path, "demo");
    let own = path.join("images/sunset.png");
    make_folder(own.parent().unwrap()).unwrap();
    write_text(&own, "precious").unwrap();
    write_text(&own.with_file_name("0000.png"), "").unwrap();
    let numbered = |file: &Path| file.to_string_lossy().starts_with('0');
    let again = claim(&path, "demo").unwrap();
    assert!(refused(again.clear(Path::new("images"), &numbered)).contains("images/sunset.png"));
    assert_eq!(names(&path), [".catelier.json", "images/0000.png", "images/sunset.png"]);
    drop(again);
    forced(&path, "demo").unwrap().clear(Path::new("images"), &numbered).unwrap();
    assert_eq!(names(&path), [".catelier.json", "images/sunset.png"]);
    fs::rename(&own, own.with_file_name("0001.png")).unwrap();
    let again = claim(&path, "demo").unwrap();
    again.clear(Path::new(""), &|file| numbered(file.strip_prefix("images").unwrap())).unwrap();
    assert!(!own.parent().unwrap().exists() && path.exists());
}

#[test]
fn the_marker_of_another_command_survives_what_is_forced_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    done(&path, "train");
    let beside = forced(&path, "preview").unwrap();
    beside.begin().unwrap();
    beside.finish().unwrap();
    drop(beside);
    assert_eq!(Marker::read(&path).unwrap().unwrap().command, "train");
}

#[test]
fn leftovers_of_killed_commands_go_and_files_of_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    make_folder(&path).unwrap();
    // Killed while it wrote the marker.
    write_text(&path.join(".catelier.json.12345-0.partial"), "{").unwrap();
    done(&path, "train");
    assert_eq!(names(&path), [".catelier.json"]);
    make_folder(&path.join("state")).unwrap();
    for name in ["state/.step-000002.safetensors.12345-3.partial", "state/.mine.partial", ".run.toml.1-1.partial"] {
        write_text(&path.join(name), "half").unwrap();
    }
    OutputFolder::reopen(&path, "train", &Session::new(QUIET)).unwrap();
    assert_eq!(names(&path), [".catelier.json", "state/.mine.partial"]);
}

#[test]
fn every_flipped_bit_of_a_marker_is_found() {
    let folder = tempfile::tempdir().unwrap();
    done(&folder.path().join("out"), "train");
    let path = folder.path().join("out").join(MARKER);
    let (whole, expected) = (fs::read(&path).unwrap(), Marker::read(path.parent().unwrap()).unwrap().unwrap());
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &flipped).unwrap();
        // Without its checksum, a marker of an older program says the same.
        let read = Marker::read(path.parent().unwrap());
        let same = |marker: &Option<Marker>| marker.as_ref().map(|marker| &marker.command) == Some(&expected.command);
        assert!(
            read.is_err() || read.is_ok_and(|marker| same(&marker) && marker.is_some_and(|marker| marker.finished))
        );
    }
}

#[test]
fn a_file_that_exists_is_replaced_only_by_force() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    new_file(&path, false).unwrap();
    write_text(&path, "precious").unwrap();
    write_text(&folder.path().join(".a.safetensors.1-0.partial"), "half").unwrap();
    assert!(refused(new_file(&path, false)).contains("exists already"));
    new_file(&path, true).unwrap();
    assert_eq!(names(folder.path()), ["a.safetensors"]);
}

#[test]
fn a_marker_of_a_later_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let marker = r#"{"format":"catelier-output","version":2,"command":"demo","finished":true}"#;
    write_text(&folder.path().join(MARKER), marker).unwrap();
    assert!(refused(claim(folder.path(), "demo")).contains("version 2"));
}
