#![doc = include_str!("../README.md")]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::disallowed_methods,
        reason = "a test may panic, and writes half files on purpose"
    )
)]

mod close;
mod create;
mod digest;
mod error;
mod federation;
mod fetch;
mod judge;
mod key;
pub mod members;
mod name;
mod open;
mod place;
mod record;
mod result;
mod signed;
mod status;
mod submit;

pub use close::{Closed, close};
pub use create::create;
pub use digest::Digest;
pub use error::{Error, Result, spoken};
pub use federation::{Remembered, Trust};
pub use fetch::{Fetched, fetch};
pub use key::{PrivateKey, PublicKey};
pub use members::Members;
pub use name::ClientName;
pub use open::{Opened, open};
pub use place::{Place, S3_VARIABLES};
pub use record::{Object, Terms};
pub use result::{Outcome, result};
pub use status::{OpenRound, Participant, Sent, Status, status};
pub use submit::{Submitted, submit};
