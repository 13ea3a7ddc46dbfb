//! Rounds of a federation over a shared folder or bucket: what a coordinator and its clients do, step by step.

use std::fs;
use std::path::{Path, PathBuf};

use catelier_adapters::Adapter;
use catelier_adapters::file::{self, Format, Metadata, TrainedOn};
use catelier_federation::ClientRound;
use catelier_numerics::bounded;
use catelier_rounds::{
    self as rounds, ClientName, Closed, Fetched, Members, Opened, Place, PrivateKey, PublicKey, Remembered, Status,
    Submitted, Trust, members,
};
use serde::Serialize;

use crate::base::{self, BaseSource, EMBEDDED};
use crate::error::{Context, Error, Result};
use crate::event::ArtefactKind;
use crate::output::{self, OutputFolder, now};
use crate::session::Session;
use crate::settings::{self, RoundSettings, Settings};

/// The command that makes a client's folder.
const FETCH: &str = "federate round fetch";

/// What a client's folder remembers of the federation, as the coordinator signed it.
const REMEMBERED: &str = "federation.json";

/// Most bytes of that file, as in the place.
const LARGEST_REMEMBERED: u64 = 16 << 20;

/// A coordinator's step: the place, and the file of the key.
#[derive(Debug, Clone)]
pub struct Coordinator {
    /// The folder or bucket.
    pub place: String,
    /// The file of the coordinator's private key.
    pub key: PathBuf,
}

/// A federation as it is asked for.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// Where, and whose it is. A folder that is not there is made.
    pub coordinator: Coordinator,
    /// What its rounds are like.
    pub settings: RoundSettings,
    /// A file with settings below those.
    pub config: Option<PathBuf>,
    /// The base: [`EMBEDDED`], a folder or a hub id.
    pub base: String,
    /// The adapter that all clients start from.
    pub start: Option<PathBuf>,
}

/// A change of the members.
#[derive(Debug, Clone)]
pub enum MembersChange {
    /// Adds these.
    Add(Vec<(ClientName, PublicKey)>),
    /// Removes these.
    Remove(Vec<ClientName>),
}

/// A look at the place, without a private key.
#[derive(Debug, Clone)]
pub struct Look {
    /// The folder or bucket.
    pub place: String,
    /// The coordinator's public key, where it is known.
    pub coordinator: Option<PublicKey>,
}

/// A round to be fetched.
#[derive(Debug, Clone)]
pub struct FetchRequest {
    /// The place, and whose federation it should be. Without a key, the folder must remember it.
    pub look: Look,
    /// The client's folder.
    pub out: PathBuf,
    /// Write beside files of others.
    pub force: bool,
}

/// A contribution to be sent.
#[derive(Debug, Clone)]
pub struct SubmitRequest {
    /// The place, and whose federation it should be. Without a key, the round's folder must remember it.
    pub look: Look,
    /// The file of the client's private key.
    pub key: PathBuf,
    /// The contribution's file.
    pub contribution: PathBuf,
    /// The folder of the round; `None` is that of the contribution.
    pub round: Option<PathBuf>,
}

/// The result of a federation, to be written as an adapter.
#[derive(Debug, Clone)]
pub struct ResultRequest {
    /// The place, and whose federation it should be.
    pub look: Look,
    /// The new file.
    pub out: PathBuf,
    /// Replace the file if it is there.
    pub force: bool,
}

/// What `federate round fetch --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct FetchReport {
    /// The round, from 1.
    pub round: usize,
    /// Its deadline, in seconds since 1970.
    pub deadline: u64,
    /// Clients that take part.
    pub participants: usize,
    /// The coordinator's public key, which the folder remembers.
    pub coordinator: PublicKey,
}

/// Makes a private key in a new file, and returns the public one.
///
/// # Errors
/// [`Error::User`] for a file that is there already.
pub fn key(path: &Path) -> Result<PublicKey> {
    let key = PrivateKey::from_bytes(&random()?);
    told(key.save(path), "cannot make a key")?;
    Ok(key.public())
}

/// Creates a federation, and returns the coordinator's public key.
///
/// # Errors
/// [`Error::User`] for a place that has one, settings that mean nothing, or a start that does not fit the base.
pub fn create(request: &CreateRequest, session: &Session<'_>) -> Result<PublicKey> {
    let CreateRequest { coordinator, settings, config, base, start } = request;
    let below = config.as_deref().map(settings::read).transpose()?.unwrap_or_default();
    let resolved = settings.clone().over(below).resolve();
    let key = private_key(&coordinator.key)?;
    let fingerprint = base::inspect(base, session)?.fingerprint;
    let start = start.as_deref().map(|path| start_adapter(path, base, fingerprint.as_deref(), session)).transpose()?;
    let terms = resolved.terms(fingerprint)?;
    make_place(&coordinator.place)?;
    let place = open_place(&coordinator.place, session)?;
    told(rounds::create(&place, &key, random()?, terms, start, now()), "cannot create a federation")?;
    Ok(key.public())
}

/// The adapter of a file, if it fits the base.
fn start_adapter(path: &Path, base: &str, fingerprint: Option<&str>, session: &Session<'_>) -> Result<Adapter> {
    let modules = BaseSource::parse(base)?.open(session)?.modules();
    let loaded = file::read(path, &modules).user_error(format!("cannot read `{}`", path.display()))?;
    let trained_on = loaded.metadata.base.fingerprint.as_deref();
    match fingerprint.zip(trained_on) {
        Some((base, found)) if !crate::aggregate::metadata::is_same_base(base, found) => Err(Error::user(
            format!("`{}` was trained on another base: fingerprint `{found}`, expected `{base}`", path.display()),
            "start from an adapter of the federation's base",
        )),
        _ => Ok(loaded.adapter),
    }
}

/// Makes the folder, if the place is one that is not there.
fn make_place(address: &str) -> Result<()> {
    match address.strip_prefix("file://").unwrap_or(address) {
        path if path.contains("://") => Ok(()),
        path => fs::create_dir_all(path).user_error(format!("cannot make the folder `{path}`")),
    }
}

/// Changes the members, and returns those after it.
///
/// # Errors
/// [`Error::User`] for names and keys that are taken or unknown.
pub fn change_members(coordinator: &Coordinator, change: &MembersChange, session: &Session<'_>) -> Result<Members> {
    let (place, key) = (open_place(&coordinator.place, session)?, private_key(&coordinator.key)?);
    let changed = match change {
        MembersChange::Add(new) => members::add(&place, &key, new),
        MembersChange::Remove(names) => members::remove(&place, &key, names),
    };
    told(changed, "cannot change the members")
}

/// The members.
///
/// # Errors
/// [`Error::User`] for a place without a federation, or with a damaged one.
pub fn list_members(look: &Look, session: &Session<'_>) -> Result<Members> {
    let place = open_place(&look.place, session)?;
    told(members::list(&place, look.trust()), "cannot list the members")
}

/// Opens the next round.
///
/// # Errors
/// [`Error::User`] after the last round, or with too few members.
pub fn open(coordinator: &Coordinator, session: &Session<'_>) -> Result<Opened> {
    let (place, key) = (open_place(&coordinator.place, session)?, private_key(&coordinator.key)?);
    told(rounds::open(&place, &key, now()), "cannot open a round")
}

/// Closes the open round, `early` before its deadline too.
///
/// # Errors
/// [`Error::User`] before the deadline, without a quorum, or without an open round.
pub fn close(coordinator: &Coordinator, early: bool, session: &Session<'_>) -> Result<Closed> {
    let (place, key) = (open_place(&coordinator.place, session)?, private_key(&coordinator.key)?);
    let closed = told(rounds::close(&place, &key, now(), early), "cannot close the round")?;
    for (name, reason) in &closed.refused {
        session.warn(format!("refused: `{name}`: {reason}"));
    }
    Ok(closed)
}

/// Fetches the open round into the client's folder.
///
/// # Errors
/// [`Error::User`] for a federation that is not known to be the one that is meant, or has no open round.
pub fn fetch(request: &FetchRequest, session: &Session<'_>) -> Result<FetchReport> {
    let out = OutputFolder::claim(&request.out, FETCH, request.force, session)?;
    out.refuse_unknown(&Fetched::FILES)?;
    let place = open_place(&request.look.place, session)?;
    let known = Known::of(&request.look, out.path())?;
    let fetched = told(rounds::fetch(&place, known.trust()), "cannot fetch the round")?;
    out.begin()?;
    fetched.save(out.path()).failed("cannot save the round")?;
    out.finish()?;
    let Fetched { round, deadline, participants, remembered, .. } = &fetched;
    let (round, deadline, participants) = (*round, *deadline, *participants);
    Ok(FetchReport { round, deadline, participants, coordinator: remembered.coordinator() })
}

/// Sends a contribution.
///
/// # Errors
/// [`Error::User`] for a contribution that the round would refuse, and for a second one.
pub fn submit(request: &SubmitRequest, session: &Session<'_>) -> Result<Submitted> {
    let SubmitRequest { look, key, contribution, round } = request;
    let attempt = format!("cannot send `{}`", contribution.display());
    let (place, key) = (open_place(&look.place, session)?, private_key(key)?);
    let beside = contribution.parent().unwrap_or(Path::new(""));
    let known = Known::of(look, round.as_deref().unwrap_or(beside))?;
    let bytes = bounded::read(contribution, LARGEST_CONTRIBUTION).user_error(&attempt)?;
    told(rounds::submit(&place, known.trust(), &key, bytes), attempt)
}

/// Most bytes of a contribution that is read; the terms of a federation allow less.
const LARGEST_CONTRIBUTION: u64 = 2 << 30;

/// How the federation stands.
///
/// # Errors
/// [`Error::User`] for a place without a federation, or with a damaged one.
pub fn status(look: &Look, session: &Session<'_>) -> Result<Status> {
    let place = open_place(&look.place, session)?;
    told(rounds::status(&place, look.trust()), "cannot read the federation")
}

/// Writes the adapter after the last round that has closed, in kohya's key names, and returns the number of these
/// rounds.
///
/// # Errors
/// [`Error::User`] before the first round has closed, and for a file that is there already.
pub fn result(request: &ResultRequest, session: &Session<'_>) -> Result<usize> {
    let ResultRequest { look, out, force } = request;
    output::new_file(out, *force)?;
    let place = open_place(&look.place, session)?;
    let outcome = told(rounds::result(&place, look.trust()), "cannot take the result")?;
    let (rounds, strategy) = (outcome.completed, &outcome.terms.plan.strategy);
    let metadata = Metadata {
        description: Some(format!("{rounds} rounds of a federation: {}", strategy.description())),
        base: TrainedOn { fingerprint: outcome.terms.base, ..TrainedOn::default() },
        ..Metadata::default()
    };
    file::write(out, &outcome.adapter, Format::Kohya, &metadata).failed("cannot save the result")?;
    session.written(ArtefactKind::Adapter, out);
    Ok(rounds)
}

impl Look {
    fn trust(&self) -> Trust<'_> {
        self.coordinator.map_or(Trust::Nothing, Trust::Key)
    }
}

/// What is known of the federation that is meant.
struct Known {
    coordinator: Option<PublicKey>,
    remembered: Option<Remembered>,
}

impl Known {
    /// The key that was given, and what the folder remembers; they must agree.
    fn of(look: &Look, folder: &Path) -> Result<Self> {
        let remembered = remembered(folder)?;
        match (look.coordinator, &remembered) {
            (Some(given), Some(known)) if given != known.coordinator() => Err(Error::user(
                format!("`{}` remembers the coordinator {}, not {given}", folder.display(), known.coordinator()),
                "use another folder for another federation",
            )),
            (coordinator, _) => Ok(Self { coordinator, remembered }),
        }
    }

    fn trust(&self) -> Trust<'_> {
        match &self.remembered {
            Some(remembered) => Trust::Remembered(remembered),
            None => self.coordinator.map_or(Trust::Nothing, Trust::Key),
        }
    }
}

/// What a client's folder remembers; `None` if nothing was fetched into it yet.
fn remembered(folder: &Path) -> Result<Option<Remembered>> {
    let path = folder.join(REMEMBERED);
    if !path.exists() {
        return Ok(None);
    }
    let attempt = format!("cannot read `{}`", path.display());
    let bytes = bounded::read(&path, LARGEST_REMEMBERED).user_error(&attempt)?;
    // A fetch that was stopped has left no round.
    let round = ClientRound::load(folder).map_or(0, |round| round.instructions.round);
    told(Remembered::from_record(&path.display().to_string(), &bytes, round), attempt).map(Some)
}

fn private_key(path: &Path) -> Result<PrivateKey> {
    told(PrivateKey::load(path), "cannot use the key")
}

fn open_place(address: &str, session: &Session<'_>) -> Result<Place> {
    told(Place::open(address, |name| session.variable(name)), "cannot use the place")
}

/// Whether the place is at fault, or somebody who must change something.
fn told<T>(result: rounds::Result<T>, attempt: impl Into<String>) -> Result<T> {
    match result {
        Err(error) if error.is_failure() => Err(error).failed(attempt),
        result => result.user_error(attempt),
    }
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).failed("cannot draw a random number")?;
    Ok(bytes)
}

impl Default for CreateRequest {
    /// For the embedded base, in no place yet.
    fn default() -> Self {
        Self {
            coordinator: Coordinator { place: String::new(), key: PathBuf::new() },
            settings: RoundSettings::default(),
            config: None,
            base: EMBEDDED.into(),
            start: None,
        }
    }
}
