//! Folders, and addresses that are none.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use catelier_rounds::{Error, Place, Trust, create, fetch, members, status};
use object_store::local::LocalFileSystem;

use crate::world::{CLIENTS, START, World, join_at_once, key, name, terms, told};

fn nothing(_: &str) -> Option<String> {
    None
}

/// A federation in a folder.
fn in_folder(folder: &Path) -> World {
    let mut world = World::at(Arc::new(LocalFileSystem::new_with_prefix(folder).unwrap()));
    world.place = Place::open(&folder.display().to_string(), nothing).unwrap();
    create(&world.place, &world.coordinator, [7; 16], terms("fedavg", 2), Some(crate::world::adapter(2, 9)), START)
        .unwrap();
    let new = CLIENTS.map(|client| (name(client), key(client).public()));
    members::add(&world.place, &world.coordinator, &new).unwrap();
    world
}

#[test]
fn a_round_in_a_folder_leaves_the_bytes_of_one_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (world, memory) = (in_folder(folder.path()), World::new("fedavg", 2));
    for round in 1..=2 {
        assert_eq!(world.play(round), memory.play(round));
    }
    assert!(world.objects() == memory.objects());
    let address = format!("file://{}", folder.path().display());
    assert_eq!(status(&Place::open(&address, nothing).unwrap(), world.trust()).unwrap().completed, 2);
}

#[test]
fn members_who_are_added_at_once_are_all_there() {
    let folder = tempfile::tempdir().unwrap();
    let world = in_folder(folder.path());
    join_at_once(|| Place::open(&folder.path().display().to_string(), nothing).unwrap());
    assert!(world.objects().contains_key("members-0009.json"));
}

#[cfg(unix)]
#[test]
fn files_that_are_none_and_files_of_nothing_are_refused_without_waiting_or_reading() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let world = in_folder(folder.path());
    world.open(1).unwrap();
    CLIENTS.iter().for_each(|client| drop(world.take_part(client).unwrap()));
    let contributions = folder.path().join("rounds/0001/contributions");
    let entries = fs::read_dir(&contributions).unwrap().map(|entry| entry.unwrap().path());
    let tensors = entries
        .into_iter()
        .find(|path| path.display().to_string().contains("cy.") && path.extension().unwrap() == "safetensors");
    fs::File::options().write(true).open(tensors.unwrap()).unwrap().set_len(2 << 30).unwrap();
    for (client, device) in [("ada", "/dev/zero"), ("ben", "/")] {
        let path = contributions.join(format!("{client}.json"));
        fs::remove_file(&path).unwrap();
        symlink(device, &path).unwrap();
    }
    let Err(Error::Quorum { refused, .. }) = world.close_late(1) else { panic!("there is nothing to close with") };
    let reasons: Vec<_> = refused.iter().map(|(_, reason)| reason.as_str()).collect();
    assert!(reasons[0].contains("it is no file") && reasons[1].contains("it is no file"), "{reasons:?}");
    assert!(reasons[2].contains("bytes, found 2147483648"), "{reasons:?}");

    let pipe = folder.path().join("rounds/0001/open.json");
    fs::remove_file(&pipe).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(told(world.fetch()).contains("`rounds/0001/open.json` is not usable: it is no file"));
}

#[test]
fn names_that_only_a_file_system_knows_do_not_stop_a_round() {
    let folder = tempfile::tempdir().unwrap();
    let world = in_folder(folder.path());
    world.open(1).unwrap();
    CLIENTS.iter().for_each(|client| drop(world.take_part(client).unwrap()));
    let contributions = folder.path().join("rounds/0001/contributions");
    #[cfg(unix)]
    for odd in [&b"\xff.json"[..], b"new\nline.json", b"back\\slash", b"#1", b"ada.json#7", b"  ", b"%00"] {
        use std::os::unix::ffi::OsStrExt;
        fs::write(contributions.join(std::ffi::OsStr::from_bytes(odd)), "{}").unwrap();
    }
    fs::create_dir(contributions.join("..a")).unwrap();
    let closed = world.close(1).unwrap();
    assert_eq!(closed.report.clients.len(), 3);
    assert!(!closed.refused.is_empty());
}

#[test]
fn addresses_that_are_no_place_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let missing = folder.path().join("missing").display().to_string();
    let file = folder.path().join("file").display().to_string();
    for (address, reason) in [
        (&missing[..], "No such file"),
        (&file, "it is no folder"),
        ("", "expected a folder"),
        ("http://example.com", "expected a folder"),
        ("s3://", "is no place"),
        ("s3://bucket/../up", "is no place"),
    ] {
        let refused = told(Place::open(address, nothing));
        assert!(refused.contains(reason), "{address}: {refused}");
    }
    let empty = Place::open(&folder.path().display().to_string(), nothing).unwrap();
    assert!(matches!(fetch(&empty, Trust::Nothing), Err(Error::NoFederation { .. })));
}
