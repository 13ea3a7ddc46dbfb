//! `catelier federate round`: the rounds of a federation over a shared folder or bucket.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use catelier_workflows::Session;
use catelier_workflows::round::{
    self, Coordinator, CreateRequest, FetchReport, FetchRequest, Look, MembersChange, ResultRequest, SubmitRequest,
};
use catelier_workflows::rounds::{Closed, Members, OpenRound, Opened, Participant, Sent, Status, Submitted, spoken};
use serde::Serialize;
use serde_json::json;

use crate::cli::{CoordinatorArgs, LookArgs, MemberCommand, NamedKey, RoundCommand, RoundCreateArgs};
use crate::failure::Outcome;
use crate::{shell, terminal};

pub(super) fn run(command: RoundCommand, session: &Session<'_>) -> Outcome<()> {
    match command {
        RoundCommand::Key { out } => {
            let public = round::key(&out)?;
            terminal::say(&format!("private key: {} (keep it secret, and keep a copy)", out.display()));
            terminal::data(&public.to_string())
        }
        RoundCommand::Create(args) => create(*args, session),
        RoundCommand::Member(command) => member(command, session),
        RoundCommand::Open { coordinator, json } => opened(&round::open(&coordinator.into(), session)?, json),
        RoundCommand::Fetch { look, out, force, json } => {
            let request = FetchRequest { look: look.into(), out, force };
            fetched(&round::fetch(&request, session)?, &request.out, json)
        }
        RoundCommand::Submit { look, key, contribution, round } => {
            let request = SubmitRequest { look: look.into(), key, contribution, round };
            submitted(&round::submit(&request, session)?);
            Ok(())
        }
        RoundCommand::Close { coordinator, now, json } => {
            closed(&round::close(&coordinator.into(), now, session)?, json)
        }
        RoundCommand::Status { look, json } => {
            let status = round::status(&look.into(), session)?;
            if json { terminal::json(&status) } else { terminal::lines(lines(&status, now())) }
        }
        RoundCommand::Result { look, out, force } => {
            let rounds = round::result(&ResultRequest { look: look.into(), out, force }, session)?;
            terminal::say(&format!("after {}", counted(rounds, "round")));
            Ok(())
        }
    }
}

fn create(args: RoundCreateArgs, session: &Session<'_>) -> Outcome<()> {
    let RoundCreateArgs { coordinator, settings, config, base, start } = args;
    let request = CreateRequest { coordinator: coordinator.into(), settings, config, base, start };
    let public = round::create(&request, session)?;
    terminal::say("created; members need its coordinator's public key:");
    terminal::data(&public.to_string())
}

fn member(command: MemberCommand, session: &Session<'_>) -> Outcome<()> {
    let (coordinator, change) = match command {
        MemberCommand::List { look, json } => {
            let members = round::list_members(&look.into(), session)?;
            return if json { terminal::json(&members) } else { terminal::lines(rows(&members)) };
        }
        MemberCommand::Add { members, coordinator } => {
            let new = members.into_iter().map(|NamedKey(name, key)| (name, key)).collect();
            (coordinator, MembersChange::Add(new))
        }
        MemberCommand::Remove { members, coordinator } => (coordinator, MembersChange::Remove(members)),
    };
    let members = round::change_members(&coordinator.into(), &change, session)?;
    terminal::say(&counted(members.len(), "member"));
    Ok(())
}

fn rows(members: &Members) -> Vec<String> {
    let width = members.keys().map(|name| name.as_str().len()).max().unwrap_or(0);
    members.iter().map(|(name, key)| format!("{name:<width$}  {key}")).collect()
}

fn opened(opened: &Opened, json: bool) -> Outcome<()> {
    let Opened { round, deadline, participants, is_new } = opened;
    if json {
        return terminal::json(&json!({
            "round": round, "deadline": deadline, "participants": participants, "is_new": is_new
        }));
    }
    let (verb, count) = (if *is_new { "is open" } else { "was open already" }, counted(participants.len(), "client"));
    terminal::say(&format!("round {round} {verb} for {count}, until {}", date(*deadline)));
    Ok(())
}

fn fetched(report: &FetchReport, out: &Path, json: bool) -> Outcome<()> {
    if json {
        return terminal::json(report);
    }
    let FetchReport { round, deadline, participants, .. } = report;
    terminal::say(&format!("round {round} of {}, until {}", counted(*participants, "client"), date(*deadline)));
    terminal::say(&format!("train with: catelier train --round {}", shell::quoted(out)));
    Ok(())
}

fn submitted(submitted: &Submitted) {
    let Submitted { round, client, bytes, is_new } = submitted;
    let verb = if *is_new { "has sent" } else { "had sent already" };
    terminal::say(&format!("`{client}` {verb} {:.1} MB to round {round}", *bytes as f64 / 1e6));
}

fn closed(closed: &Closed, json: bool) -> Outcome<()> {
    if json {
        #[derive(Serialize)]
        struct Printed<'a> {
            refused: &'a [(String, String)],
            missing: &'a [catelier_workflows::rounds::ClientName],
            #[serde(flatten)]
            report: &'a catelier_workflows::federation::RoundReport,
        }
        let Closed { refused, missing, report, .. } = closed;
        return terminal::json(&Printed { refused, missing, report });
    }
    let Closed { round, rounds, missing, report, decided_here, .. } = closed;
    let by = if *decided_here { "" } else { ", with the contributions that were fixed before" };
    terminal::say(&format!("round {round} of {rounds} is closed{by}"));
    let names: Vec<&str> = report.clients.iter().map(|client| client.client.as_str()).collect();
    terminal::say(&format!("contributions: {} ({})", names.len(), shortlist(&names)));
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(catelier_workflows::rounds::ClientName::as_str).collect();
        terminal::say(&format!("missing: {} ({})", names.len(), shortlist(&names)));
    }
    terminal::say(&format!("update norm {:.3}, changed by {:.3}", report.norm, report.change));
    Ok(())
}

/// Clients that a table shows; the others are counted.
const SHOWN: usize = 30;

fn shortlist(names: &[&str]) -> String {
    match names.len().saturating_sub(SHOWN) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names[..SHOWN].join(", ")),
    }
}

/// The federation as a person reads it: one fact a line, then one client a line.
fn lines(status: &Status, now: u64) -> Vec<String> {
    let Status { federation, coordinator, is_trusted, terms, members, completed, open, .. } = status;
    let known = if *is_trusted { "" } else { "  (as the place says: not checked)" };
    let mut lines = vec![
        fact("federation", &federation[..federation.len().min(8)]),
        fact("coordinator", format!("{}…{known}", &coordinator.to_string()[..24])),
        fact("strategy", format!("{}, quorum {}", terms.plan.strategy, terms.quorum)),
        fact("members", members.len()),
        fact("rounds", format!("{completed} of {} closed", terms.plan.rounds)),
    ];
    match open {
        Some(open) => lines.extend(open_lines(open, terms.quorum, now)),
        None if *completed == terms.plan.rounds => lines.push(fact("now", "all rounds are over")),
        None => lines.push(fact("now", format!("round {} is not open yet", completed + 1))),
    }
    lines
}

fn open_lines(open: &OpenRound, quorum: usize, now: u64) -> Vec<String> {
    let OpenRound { round, opened, deadline, is_closing, participants, strangers } = open;
    let left = match deadline.checked_sub(now) {
        Some(left) => format!("in {}", spoken(left)),
        None => format!("{} ago", spoken(now - deadline)),
    };
    let (sent, all) = (open.contributions(), participants.len());
    let short = quorum.saturating_sub(sent);
    let standing = match (is_closing, short) {
        (true, _) => "fixed, and being closed".to_owned(),
        (false, 0) if sent == all => "all there".to_owned(),
        (false, 0) => "enough for the quorum".to_owned(),
        (false, short) => format!("{short} more for the quorum"),
    };
    let mut lines = vec![
        fact("round", format!("{round}, open since {}", date(*opened))),
        fact("deadline", format!("{} ({left})", date(*deadline))),
        fact("sent", format!("{sent} of {all}, {standing}")),
        String::new(),
    ];
    let width = participants.iter().map(|one| one.client.as_str().len()).max().unwrap_or(0);
    lines.extend(participants.iter().take(SHOWN).flat_map(|one| participant(one, width)));
    if participants.len() > SHOWN {
        lines.push(format!("  … and {} more", participants.len() - SHOWN));
    }
    for (name, reason) in strangers {
        lines.push(format!("  `{name}` is ignored"));
        lines.extend(wrapped(reason));
    }
    lines
}

fn participant(one: &Participant, width: usize) -> Vec<String> {
    let Participant { client, sent } = one;
    match sent {
        Sent::Nothing => vec![format!("  {client:<width$}  missing")],
        Sent::Contribution { weight, bytes } => {
            vec![format!("  {client:<width$}  sent     {:.1} MB, weight {weight}", *bytes as f64 / 1e6)]
        }
        Sent::Refused { reason } => {
            let mut lines = vec![format!("  {client:<width$}  will be refused")];
            lines.extend(wrapped(reason));
            lines
        }
    }
}

/// A reason below the line that it explains, in lines that fit a terminal.
fn wrapped(reason: &str) -> Vec<String> {
    const COLUMNS: usize = 76;
    let mut lines: Vec<String> = Vec::new();
    for word in reason.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() < COLUMNS => *line += &format!(" {word}"),
            _ => lines.push(format!("    {word}")),
        }
    }
    lines
}

fn fact(name: &str, value: impl std::fmt::Display) -> String {
    format!("{name:<12} {value}")
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// `2026-11-28 14:05 UTC`.
fn date(seconds: u64) -> String {
    // Later than that, a clock or a deadline is wrong, and there is no date to show.
    const YEAR_9999: u64 = 253_402_300_799;
    if seconds > YEAR_9999 {
        return format!("second {seconds}");
    }
    let text = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string();
    format!("{} {} UTC", &text[..10], &text[11..16])
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl From<CoordinatorArgs> for Coordinator {
    fn from(CoordinatorArgs { place, key }: CoordinatorArgs) -> Self {
        Self { place, key }
    }
}

impl From<LookArgs> for Look {
    fn from(LookArgs { place, coordinator }: LookArgs) -> Self {
        Self { place, coordinator }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_fit_a_terminal() {
        let reason = "word ".repeat(40);
        let lines = wrapped(&reason);
        assert!(lines.len() == 3 && lines.iter().all(|line| line.len() <= 80 && line.starts_with("    word")));
        assert_eq!(lines.iter().map(|line| line.split_whitespace().count()).sum::<usize>(), 40);
        assert!(wrapped("").is_empty());
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(1_794_000_000), "2026-11-06 21:20 UTC");
        assert_eq!(date(u64::MAX), format!("second {}", u64::MAX));
    }
}
