//! What every input is held to: memory, time, and a trace of the input that ended the process.

use std::sync::{LazyLock, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use catelier_testkit::thread_memory::peak_of;
use nix::time::{ClockId, clock_gettime};

use crate::{Target, Verdict, folder};

/// Most CPU time of one input, without optimisation.
const LONGEST: Duration = Duration::from_secs(5);

/// An input that is read for so long, on a machine that may be busy otherwise, will never end.
const HANGING: Duration = Duration::from_secs(180);

/// Thread, target and start of an input at work.
type AtWork = (ThreadId, &'static str, Instant);

static AT_WORK: LazyLock<Mutex<Vec<AtWork>>> = LazyLock::new(|| {
    thread::spawn(watch);
    Mutex::new(Vec::new())
});

pub(crate) fn check(target: &Target, input: &[u8]) -> Verdict {
    folder::note(input);
    let _watched = Watched::start(target.name);
    let started = cpu_time();
    let (verdict, peak) = peak_of(|| (target.read)(input));
    let took = cpu_time().saturating_sub(started);
    assert!(took <= LONGEST, "{} bytes took {took:?} of CPU time", input.len());
    let most = 2 * input.len() as u64 + target.spare_bytes;
    assert!(peak <= most, "{} bytes took {peak} bytes of memory, at most {most} are allowed", input.len());
    verdict
}

/// CPU time of this thread; busy neighbours do not count.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// An input at work, for as long as this lives.
struct Watched;

impl Watched {
    fn start(target: &'static str) -> Self {
        AT_WORK.lock().unwrap().push((thread::current().id(), target, Instant::now()));
        Self
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let own = thread::current().id();
        AT_WORK.lock().unwrap().retain(|(thread, ..)| *thread != own);
    }
}

/// Ends the process when an input hangs; nothing else can.
fn watch() {
    loop {
        thread::sleep(Duration::from_secs(5));
        let at_work = AT_WORK.lock().unwrap();
        if let Some((_, target, _)) = at_work.iter().find(|(.., started)| started.elapsed() > HANGING) {
            eprintln!("an input of `{target}` hangs; it is in {}", folder::notes());
            std::process::abort();
        }
    }
}
