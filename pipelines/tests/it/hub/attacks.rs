//! Hubs that lie: nothing outside the cache changes, no other server sees the token, no wrong byte is kept, and one
//! error says what was wrong. The table of `docs/hub.md` is this one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use catelier_pipelines::models::hub::{CacheCheck, HubError, HubSettings, Timeouts};
use catelier_testkit::golden::Golden;

use super::server::{self, Alter, COMMIT, Hub, Piece, Request, Response, Server, Shape};
use super::{WEIGHTS, blobs, fetch_checked, hub, hub_error, settings, token};

/// Longer than any of these fetches may take.
const FOREVER: Duration = Duration::from_secs(60);

const TOKEN: &str = "hf_SECRETSECRET123";

/// A user's folder, the cache deep inside of it, and a second server that sees who comes.
struct World {
    folder: tempfile::TempDir,
    before: BTreeMap<PathBuf, Vec<u8>>,
    /// The model as it is.
    source: PathBuf,
    other: Server,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("a/b/cache")).unwrap();
        std::fs::write(folder.path().join(".profile"), "export PATH").unwrap();
        let before = files_but(folder.path(), &folder.path().join("a/b/cache"));
        Self { folder, before, source: Golden::open().model("tiny-sd1"), other: hub(Shape::New).start() }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("a/b/cache")
    }

    fn settings(&self, server: &Server) -> HubSettings {
        HubSettings { token: token(TOKEN), ..settings(&server.endpoint, &self.cache()) }
    }

    /// What must hold after every fetch, whatever the hub did.
    fn is_unharmed(&self, name: &str) {
        let after = files_but(self.folder.path(), &self.cache());
        assert_eq!(after, self.before, "{name}: files outside the cache changed");
        for entry in std::fs::read_dir(self.cache()).unwrap() {
            let entry = entry.unwrap().file_name();
            assert!(entry == "models--gallery--tiny-sd1" || entry == ".locks", "{name}: {entry:?} in the cache");
        }
        let seen = self.other.requests();
        assert!(seen.iter().all(|it| it.authorization.is_none()), "{name}: another server saw the token: {seen:?}");
        let snapshot = self.cache().join("models--gallery--tiny-sd1/snapshots");
        for (path, bytes) in files_but(&snapshot, Path::new("")) {
            let file = path.strip_prefix(snapshot.join(COMMIT)).unwrap();
            let source = self.source.join(file);
            assert!(bytes == std::fs::read(source).unwrap(), "{name}: {} has other bytes", file.display());
        }
    }
}

/// All files below a folder but for another one, through links to files, with their content.
fn files_but(folder: &Path, other: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path == other {
            continue;
        }
        if path.is_dir() {
            found.extend(files_but(&path, other));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap_or_default());
        }
    }
    found
}

/// What a hub tries, and what must come of it.
struct Attack {
    name: &'static str,
    alter: Alter,
    /// The kind of error, by the name of its variant, and what its message must say.
    expected: (&'static str, Vec<&'static str>),
}

fn attack(
    name: &'static str,
    (kind, says): (&'static str, &[&'static str]),
    alter: impl Fn(&Request, &mut Response) + Send + Sync + 'static,
) -> Attack {
    Attack { name, alter: Arc::new(alter), expected: (kind, says.to_vec()) }
}

fn is_listing(request: &Request) -> bool {
    request.path.starts_with("/api/")
}

fn is_index(request: &Request) -> bool {
    request.path.ends_with("model_index.json")
}

fn is_weights(request: &Request) -> bool {
    request.path.ends_with(WEIGHTS)
}

/// Changes the text of the listing.
fn relist(request: &Request, answer: &mut Response, change: impl Fn(&mut serde_json::Value)) {
    if is_listing(request) {
        let mut listing = serde_json::from_slice(&answer.body()).unwrap();
        change(&mut listing);
        *answer = Response::new(200).with_body(listing.to_string().into_bytes());
    }
}

fn listed(listing: &mut serde_json::Value, file: &str) -> usize {
    let siblings = listing["siblings"].as_array().unwrap();
    siblings.iter().position(|sibling| sibling["rfilename"] == file).unwrap()
}

/// The same bytes, one of which is another one.
fn flip(answer: &mut Response) {
    let mut bytes = answer.body();
    if let Some(byte) = bytes.get_mut(1000) {
        *byte ^= 1;
    }
    answer.pieces = vec![Piece::Bytes(bytes)];
}

/// One byte at a time, for longer than anyone waits.
fn trickle(answer: &mut Response) {
    let slow = |byte: &u8| [Piece::Bytes(vec![*byte]), Piece::Pause(Duration::from_millis(100))];
    answer.pieces = answer.body().iter().take(500).flat_map(slow).collect();
}

/// A beginning, and then nothing.
fn stall(answer: &mut Response, after: usize) {
    answer.pieces = vec![Piece::Bytes(answer.body()[..after].to_vec()), Piece::Pause(FOREVER)];
}

fn range(answer: &mut Response, text: &str) {
    answer.status = if answer.status == 200 { 206 } else { answer.status };
    answer.set("content-range", text);
}

/// Attacks on object ids, commits and names, which other clients use as paths.
fn on_paths(shape: Shape) -> Vec<Attack> {
    let shards = |ending: &'static str, name: &'static str| {
        attack(name, ("UnsafeName", &["unet/diffusion_pytorch_model-"]), move |request, answer| {
            relist(request, answer, |listing| {
                let at = listed(listing, WEIGHTS);
                listing["siblings"][at]["rfilename"] = format!("unet/diffusion_pytorch_model-{ending}").into();
                let index = serde_json::json!({ "rfilename": "unet/diffusion_pytorch_model.safetensors.index.json" });
                listing["siblings"].as_array_mut().unwrap().push(index);
            });
        })
    };
    let sha = |value: &'static str| {
        attack("sha of the listing", ("Contradiction", &["sha", "commit"]), move |request, answer| {
            relist(request, answer, |listing| listing["sha"] = value.into());
        })
    };
    let commit = |value: &'static str| {
        attack("x-repo-commit", ("Contradiction", &["x-repo-commit", "model_index.json"]), move |request, answer| {
            if !is_listing(request) {
                answer.set("x-repo-commit", value);
            }
        })
    };
    let mut attacks = vec![
        shards("/../../../../../../evil-00001-of-00001.safetensors", "shard with .."),
        shards("\\..\\..\\evil-00001-of-00001.safetensors", "shard with backslashes"),
        shards("\u{1b}[2J-00001-of-00001.safetensors", "shard with an escape"),
        sha("../../../evil"),
        sha("/tmp/evil"),
        sha(""),
        commit("../../../../evil"),
        commit("/tmp/evil"),
        commit("ffffffffffffffffffffffffffffffffffffffff"),
    ];
    if shape == Shape::Old {
        for value in ["../../../../../.profile", "\"../../../../../.profile\"", "/tmp/evil", "..", "", "\"\"", "abc"] {
            attacks.push(attack("etag", ("Contradiction", &["etag", "model_index.json"]), move |request, answer| {
                if !is_listing(request) {
                    answer.set("etag", value);
                }
            }));
            attacks.push(attack("x-linked-etag", ("Contradiction", &["x-linked-etag"]), move |request, answer| {
                if !is_listing(request) {
                    answer.set("x-linked-etag", value);
                }
            }));
        }
    } else {
        attacks.push(attack("object id of the listing", ("Contradiction", &["object id"]), |request, answer| {
            relist(request, answer, |listing| {
                let at = listed(listing, WEIGHTS);
                listing["siblings"][at]["lfs"]["sha256"] = "../../../../../.profile".into();
            });
        }));
    }
    attacks
}

/// Attacks on contents and sizes.
fn on_contents(shape: Shape) -> Vec<Attack> {
    let weights = |name, kind: &'static str, change: fn(&mut Response)| {
        attack(name, (kind, &[WEIGHTS]), move |request, answer| {
            if is_weights(request) {
                change(answer);
            }
        })
    };
    let index = |name, kind: &'static str, change: fn(&mut Response)| {
        attack(name, (kind, &["model_index.json"]), move |request, answer| {
            if is_index(request) && answer.status == 200 {
                change(answer);
            }
        })
    };
    // Where the listing says the size, a header that says another one is a contradiction.
    let oversize = if shape == Shape::Old { "TooLong" } else { "Contradiction" };
    let mut attacks = vec![
        weights("wrong bytes of a large file", "WrongBytes", flip),
        index("wrong bytes of a small file", "WrongBytes", |answer| {
            answer.pieces = vec![Piece::Bytes(answer.body().to_ascii_uppercase())];
        }),
        weights("body without end", if shape == Shape::Old { "Contradiction" } else { "TooLong" }, |answer| {
            (answer.length, answer.pieces) = (None, vec![Piece::Endless]);
        }),
        weights("body without end behind a size", "TooLong", |answer| {
            answer.set("x-linked-size", answer.body().len().to_string());
            (answer.length, answer.pieces) = (None, vec![Piece::Endless]);
        }),
        index("model_index.json of 2 GB", oversize, |answer| {
            (answer.length, answer.pieces) = (Some(2 << 30), vec![Piece::Endless]);
        }),
        weights("content-length of 10^15", oversize, |answer| answer.length = Some(1_000_000_000_000_000)),
        weights("content-range of 10^15", oversize, |answer| range(answer, "bytes 0-999999999999999/1000000000000000")),
        weights("content-range of 2^64-1", "Contradiction", |answer| {
            range(answer, "bytes 0-18446744073709551615/18446744073709551615");
        }),
        weights("content-range of 10", "Contradiction", |answer| range(answer, "bytes 5-9/10")),
        weights("content-range of nonsense", "Contradiction", |answer| range(answer, "../../evil")),
        weights("x-linked-size of nonsense", "Contradiction", |answer| answer.set("x-linked-size", "-1")),
        weights("half a body", "Unreachable", |answer| {
            answer.pieces = vec![Piece::Bytes(answer.body()[..900].to_vec())]
        }),
        weights(
            "a page instead of the file",
            if shape == Shape::Old { "WrongBytes" } else { "Contradiction" },
            |answer| {
                *answer =
                    Response { headers: answer.headers.clone(), ..Response::new(200).with_body(b"<html>".to_vec()) };
            },
        ),
        weights("status 500", "Status", |answer| *answer = Response::new(500)),
        attack("listing without end", ("TooLong", &["gallery/tiny-sd1", "listing"]), |request, answer| {
            if is_listing(request) {
                (answer.length, answer.pieces) = (None, vec![Piece::Endless]);
            }
        }),
        attack("listing that is a page", ("Listing", &["gallery/tiny-sd1"]), |request, answer| {
            if is_listing(request) {
                *answer = Response::new(200).with_body(b"<html>".to_vec());
            }
        }),
        attack("listing without the index", ("Incomplete", &["model_index.json"]), |request, answer| {
            relist(request, answer, |listing| listing["siblings"] = serde_json::json!([]));
        }),
    ];
    if shape == Shape::Old {
        let one = "5".repeat(64);
        attacks.push(attack("two files with one etag", ("WrongBytes", &["safetensors"]), move |request, answer| {
            if request.path.ends_with(".safetensors") {
                answer.set("etag", one.clone());
            }
        }));
    } else {
        attacks.push(attack(
            "model_index.json of 2 GB in the listing",
            ("TooLong", &["model_index.json"]),
            |request, answer| {
                relist(request, answer, |listing| {
                    let at = listed(listing, "model_index.json");
                    listing["siblings"][at]["size"] = (2_u64 << 30).into();
                });
                if is_index(request) {
                    answer.headers.retain(|(name, _)| name != "x-linked-size");
                    if answer.status == 200 {
                        (answer.length, answer.pieces) = (Some(2 << 30), vec![Piece::Endless]);
                    }
                }
            },
        ));
    }
    attacks
}

/// Attacks on the patience of the user.
fn on_time() -> Vec<Attack> {
    let never = |answer: &mut Response| stall(answer, 0);
    vec![
        attack("listing that stalls", ("TimedOut", &["gallery/tiny-sd1", "1 s"]), move |request, answer| {
            if is_listing(request) {
                never(answer);
            }
        }),
        attack("listing that trickles", ("TimedOut", &["the listing", "2 s"]), |request, answer| {
            if is_listing(request) {
                trickle(answer);
            }
        }),
        attack("no answer", ("TimedOut", &["answer", "model_index.json"]), |request, _| {
            if is_index(request) {
                std::thread::sleep(FOREVER);
            }
        }),
        attack("body that stalls", ("TimedOut", &[WEIGHTS, "1 s"]), move |request, answer| {
            if is_weights(request) {
                stall(answer, 1000);
            }
        }),
        attack("body that trickles", ("TimedOut", &[WEIGHTS, "kilobyte"]), |request, answer| {
            if is_weights(request) {
                trickle(answer);
            }
        }),
    ]
}

/// Redirects that must not be followed; the others are in [`harmless`].
fn on_redirects() -> Vec<Attack> {
    let to = |location: &'static str, kind: &'static str, says: &'static [&'static str]| {
        attack("redirect", (kind, says), move |request, answer| {
            if !is_listing(request) {
                *answer = Response::new(302).with([("location", location.to_owned())]);
            }
        })
    };
    let not_followed: &[&str] = &["not followed", "model_index.json"];
    vec![
        to("/gallery/tiny-sd1/resolve/x/model_index.json", "Redirect", &["too many", "model_index.json"]),
        to("file:///etc/passwd", "Redirect", not_followed),
        to("//other.example/x", "Redirect", not_followed),
        to("http://user@other.example/x", "Redirect", not_followed),
        to("ftp://other.example/x", "Redirect", not_followed),
        to("", "Redirect", not_followed),
        attack("redirect to nowhere", ("Status", &["302"]), |request, answer| {
            if !is_listing(request) {
                *answer = Response::new(302);
            }
        }),
    ]
}

fn variant(error: &HubError) -> String {
    let text = format!("{error:?}");
    text.split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}

/// Plays one attack on a fresh cache.
fn play(shape: Shape, attack: &Attack, timeouts: Option<Timeouts>) {
    let world = World::new();
    let server = Hub { token: Some(TOKEN), alter: attack.alter.clone(), ..hub(shape) }.start();
    let began = Instant::now();
    let mut settings = world.settings(&server);
    settings.timeouts = timeouts.unwrap_or(settings.timeouts);
    let error = hub_error(fetch_checked(&settings, CacheCheck::Size));
    let name = format!("{} ({shape:?})", attack.name);
    assert!(began.elapsed() < FOREVER, "{name}: took {:?}", began.elapsed());
    let (kind, says) = &attack.expected;
    let text = error.to_string();
    assert_eq!(variant(&error), *kind, "{name}: {text}");
    assert!(says.iter().all(|part| text.contains(part)), "{name}: {text}");
    assert!(error.hint().is_some(), "{name}");
    assert_eq!(error.is_user_error(), matches!(error, HubError::Incomplete { .. }), "{name}");
    assert!(!text.contains(TOKEN) && !text.chars().any(char::is_control), "{name}: {text:?}");
    world.is_unharmed(&name);
}

fn play_all(attacks: impl Fn(Shape) -> Vec<Attack>, timeouts: Option<Timeouts>) {
    for shape in [Shape::Old, Shape::New] {
        let attacks = attacks(shape);
        std::thread::scope(|scope| {
            let runs: Vec<_> = attacks.iter().map(|attack| scope.spawn(|| play(shape, attack, timeouts))).collect();
            for run in runs {
                run.join().unwrap();
            }
        });
    }
}

#[test]
fn object_ids_commits_and_names_are_never_used_as_paths() {
    play_all(on_paths, None);
}

#[test]
fn wrong_contents_and_sizes_are_never_kept() {
    play_all(on_contents, None);
}

#[test]
fn a_hub_that_keeps_the_user_waiting_is_left() {
    let second = Duration::from_secs(1);
    play_all(|_| on_time(), Some(Timeouts { connect: 20 * second, idle: second, listing: 2 * second }));
}

#[test]
fn odd_redirects_are_not_followed() {
    play_all(|_| on_redirects(), None);
}

/// What looks odd and does no harm: the model is fetched, and the token stays.
#[test]
fn names_that_are_not_wanted_and_redirects_to_other_servers_do_no_harm() {
    for shape in [Shape::Old, Shape::New] {
        let world = World::new();
        let other = world.other.by_name();
        let plays: [(&str, Alter); 4] = [
            (
                "evil names",
                Arc::new(|request, answer| {
                    relist(request, answer, |listing| {
                        for name in ["../../evil", "/tmp/evil", "a\\b", "unet/../../evil.json", "\u{1b}[2J"] {
                            listing["siblings"].as_array_mut().unwrap().push(serde_json::json!({ "rfilename": name }));
                        }
                    });
                }),
            ),
            ("the listing is elsewhere", redirecting(other.clone(), is_listing)),
            ("the files are elsewhere", redirecting(other.clone(), |request| !is_listing(request))),
            ("all is elsewhere", redirecting(other, |_| true)),
        ];
        for (name, alter) in plays {
            let server = Hub { token: Some(TOKEN), alter, ..hub(shape) }.start();
            std::fs::remove_dir_all(world.cache()).unwrap();
            fetch_checked(&world.settings(&server), CacheCheck::Digest).unwrap();
            world.is_unharmed(name);
        }
        assert!(world.other.requests().len() > 10);
    }
}

/// Redirects what `which` chooses to the same path on another server.
fn redirecting(other: String, which: fn(&Request) -> bool) -> Alter {
    Arc::new(move |request, answer| {
        if which(request) {
            *answer = Response::new(307).with([("location", format!("{other}{}", request.path))]);
        }
    })
}

/// Wrong bytes never come into the place of a blob that is right: with its object id, nothing is transferred at all.
#[test]
fn a_blob_that_is_right_stays_when_a_hub_lies_later() {
    let world = World::new();
    let honest = hub(Shape::Old).start();
    let without_token = |server: &Server| HubSettings { token: None, ..world.settings(server) };
    fetch_checked(&without_token(&honest), CacheCheck::Digest).unwrap();
    let whole = blobs(&world.cache());
    let snapshot = world.cache().join("models--gallery--tiny-sd1/snapshots").join(COMMIT);
    std::fs::remove_file(snapshot.join(WEIGHTS)).unwrap();
    let alter: Alter = Arc::new(|request, answer| {
        if is_weights(request) {
            flip(answer);
        }
    });
    let liar = Hub { alter, ..hub(Shape::Old) }.start();
    fetch_checked(&without_token(&liar), CacheCheck::Size).unwrap();
    assert_eq!(blobs(&world.cache()), whole);
    world.is_unharmed("a lie about a blob that is there");
}

/// A link in the cache leads nowhere: folders are refused, files replaced.
#[cfg(unix)]
#[test]
fn links_in_the_cache_lead_nowhere() {
    use std::os::unix::fs::symlink;
    let server = hub(Shape::New).start();
    let model = "models--gallery--tiny-sd1";
    let snapshot = format!("{model}/snapshots/{COMMIT}");
    for folder in [
        format!("{model}/blobs"),
        format!("{model}/refs"),
        snapshot.clone(),
        format!("{snapshot}/unet"),
        ".locks".into(),
    ] {
        let world = World::new();
        let planted = world.cache().join(&folder);
        std::fs::create_dir_all(planted.parent().unwrap()).unwrap();
        symlink(world.folder.path(), &planted).unwrap();
        let error = hub_error(fetch_checked(&HubSettings { token: None, ..world.settings(&server) }, CacheCheck::Size));
        assert!(
            matches!(&error, HubError::Cache { path, .. } if planted.starts_with(path) || path.starts_with(&planted)),
            "{error}"
        );
        assert!(error.hint().unwrap().contains("in the way"), "{:?}", error.hint());
        std::fs::remove_file(&planted).unwrap();
        world.is_unharmed(&folder);
    }
    let weights = std::fs::read(Golden::open().model("tiny-sd1").join(WEIGHTS)).unwrap();
    let blob = format!("{model}/blobs/{}", server::oid(WEIGHTS, &weights));
    for file in [
        blob,
        format!("{snapshot}/model_index.json"),
        format!("{model}/refs/main"),
        format!(".locks/{model}/catelier.lock"),
    ] {
        let world = World::new();
        let planted = world.cache().join(&file);
        std::fs::create_dir_all(planted.parent().unwrap()).unwrap();
        symlink(world.folder.path().join(".profile"), &planted).unwrap();
        fetch_checked(&HubSettings { token: None, ..world.settings(&server) }, CacheCheck::Digest).unwrap();
        world.is_unharmed(&file);
    }
}
