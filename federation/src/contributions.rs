//! The contributions of a round, each of which was looked at once.

use std::collections::BTreeSet;

use catelier_adapters::{LayerUpdate, LoraFactors};
use rayon::prelude::*;

use crate::check::{RankPolicy, Scan, rejections_of};
use crate::error::{Error, RejectedContribution, Result};
use crate::source::{ContributionHeader, ContributionSource, ModuleHeader};
use crate::weighting::Weighting;

/// The contributions of a round: where their updates are, their weights, and what was found when their values were read
/// once. All checks and the norms come from that one reading.
#[derive(Clone)]
pub struct Contributions<'s> {
    source: &'s dyn ContributionSource,
    members: Vec<Member>,
}

/// A contribution that takes part.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// Its position in the source.
    pub(crate) position: usize,
    /// Its weight, before weights are divided by their sum.
    pub(crate) weight: f64,
    pub(crate) scan: Scan,
}

/// Positions of contributions and a factor for each, such as their shares of the mean.
pub(crate) type Shares = Vec<(usize, f64)>;

impl<'s> Contributions<'s> {
    /// Reads every contribution of the source once: whether its values are finite, the largest one, and its norm.
    ///
    /// # Errors
    /// The source's; [`Error::Tensor`] and [`Error::Adapters`] if a tensor cannot be used.
    pub fn read(source: &'s dyn ContributionSource) -> Result<Self> {
        let headers = source.headers();
        let scans: Vec<Result<Scan>> =
            (0..headers.len()).into_par_iter().map(|position| Scan::of(source, position)).collect();
        let member = |(position, scan): (usize, Result<Scan>)| {
            Ok(Member { position, weight: headers[position].weight, scan: scan? })
        };
        Ok(Self { source, members: scans.into_iter().enumerate().map(member).collect::<Result<_>>()? })
    }

    /// Number of contributions.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is no contribution.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// What is known of each contribution, its weight, and the Frobenius norm of the low-rank part of its update, in the
    /// order of arrival.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&'s ContributionHeader, f64, f64)> {
        self.members.iter().map(|member| (self.header(member.position), member.weight, member.scan.norm))
    }

    /// The same contributions with other weights.
    #[must_use]
    pub fn weighted(&self, weighting: &Weighting) -> Self {
        let weigh = |member: &Member| {
            let header = self.header(member.position);
            Member { weight: weighting.weight(&header.client, header.weight), ..member.clone() }
        };
        Self { source: self.source, members: self.members.iter().map(weigh).collect() }
    }

    /// The contributions without those of these clients.
    #[must_use]
    pub fn without(&self, rejected: &[RejectedContribution]) -> Self {
        let out: BTreeSet<&str> = rejected.iter().map(|rejected| rejected.client.as_str()).collect();
        let stays = |member: &&Member| !out.contains(self.header(member.position).client.as_str());
        Self { source: self.source, members: self.members.iter().filter(stays).cloned().collect() }
    }

    /// As [`check`](crate::check()). No value is read again.
    ///
    /// # Errors
    /// [`Error::NoContributions`]; [`Error::Contributions`] names every contribution that fails.
    pub fn check(&self, ranks: RankPolicy) -> Result<()> {
        if self.is_empty() {
            return Err(Error::NoContributions);
        }
        let rejected = self.rejections(ranks, None);
        if rejected.is_empty() { Ok(()) } else { Err(Error::Contributions { total: self.len(), rejected }) }
    }

    /// As [`rejections`](crate::rejections()). No value is read again.
    pub fn rejections(&self, ranks: RankPolicy, norm_factor: Option<f64>) -> Vec<RejectedContribution> {
        rejections_of(self, ranks, norm_factor)
    }

    pub(crate) fn header(&self, position: usize) -> &'s ContributionHeader {
        &self.source.headers()[position]
    }

    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    /// Weights normalised to sum 1, sorted by client name, so that results do not depend on the order of arrival.
    pub(crate) fn shares(&self) -> Shares {
        let sorted = self.sorted();
        let total: f64 = sorted.iter().map(|member| member.weight).sum();
        sorted.into_iter().map(|member| (member.position, member.weight / total)).collect()
    }

    /// Norms of the updates, sorted by client name.
    pub(crate) fn norms(&self) -> Shares {
        self.sorted().into_iter().map(|member| (member.position, member.scan.norm)).collect()
    }

    fn sorted(&self) -> Vec<&Member> {
        let mut sorted: Vec<&Member> = self.members.iter().collect();
        sorted.sort_by(|left, right| self.header(left.position).client.cmp(&self.header(right.position).client));
        sorted
    }

    /// Module paths of contributions that passed the check, in order.
    pub(crate) fn modules(&self) -> impl Iterator<Item = &'s str> {
        let first = self.members.first().map(|member| self.header(member.position));
        first.into_iter().flat_map(|header| header.modules.keys().map(String::as_str))
    }

    /// What is known of a module in the contributions of `shares`.
    pub(crate) fn headers_of(&self, module: &str, shares: &Shares) -> impl Iterator<Item = (&'s ModuleHeader, f64)> {
        shares.iter().filter_map(move |(position, share)| Some((self.header(*position).modules.get(module)?, *share)))
    }

    /// Calls `take` with the update of a module in every contribution of `shares`, one after the other.
    pub(crate) fn each_update(
        &self,
        module: &str,
        shares: &Shares,
        mut take: impl FnMut(LayerUpdate, f64) -> Result<()>,
    ) -> Result<()> {
        for (position, share) in shares {
            if let Some(update) = self.source.update(*position, module)? {
                take(update, *share)?;
            }
        }
        Ok(())
    }

    /// Calls `take` with the factors of a module in every contribution of `shares`, one after the other.
    pub(crate) fn each_lora(
        &self,
        strategy: &'static str,
        module: &str,
        shares: &Shares,
        mut take: impl FnMut(&LoraFactors, f64) -> Result<()>,
    ) -> Result<()> {
        self.each_update(module, shares, |update, share| match update.as_lora() {
            Some(factors) => take(factors, share),
            None => Err(Error::UnsupportedKind { strategy, module: module.to_owned(), kind: update.kind() }),
        })
    }

    /// The factors of a module in every contribution of `shares`, all at once.
    pub(crate) fn loras(
        &self,
        strategy: &'static str,
        module: &str,
        shares: &Shares,
    ) -> Result<Vec<(LoraFactors, f64)>> {
        let mut all = Vec::with_capacity(shares.len());
        self.each_lora(strategy, module, shares, |factors, share| {
            all.push((factors.clone(), share));
            Ok(())
        })?;
        Ok(all)
    }

    /// Refuses adapters that are no LoRA.
    pub(crate) fn refuse_other_kinds(&self, strategy: &'static str) -> Result<()> {
        let shares = self.shares();
        for module in self.modules() {
            let is_other = |(header, _): &(&ModuleHeader, f64)| header.kind() != catelier_adapters::UpdateKind::Lora;
            if let Some((header, _)) = self.headers_of(module, &shares).find(is_other) {
                let (module, kind) = (module.to_owned(), header.kind());
                return Err(Error::UnsupportedKind { strategy, module, kind });
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Contributions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contributions").field("members", &self.members).finish_non_exhaustive()
    }
}
