//! The standard cases of the page.

/// The rows of docs/performance.md, in the syntax of `--case`. A round of a full shape takes minutes, so these cases
/// have few rounds.
pub(super) const STANDARD: &[&str] = &[
    "lora --shape sd15 --latent 32 --rounds 2",
    "lora --shape sd15 --latent 64 --rounds 2",
    "lora --shape sd15 --latent 64 --dtype mixed --rounds 3",
    "cat --shape sd15 --latent 64 --dtype mixed --rounds 2",
    "cat --shape sd15 --latent 64 --dtype mixed --copies 1 --rounds 1",
    "cat --shape sd15 --latent 64 --dtype mixed --memory-limit 3GB --rounds 1",
    "cat --shape embedded --latent 16 --rounds 7 --repeat 20 --warmup 3",
    "lora --shape embedded --latent 16 --rounds 7 --repeat 20 --warmup 3",
    "generate --shape sd15 --latent 64 --dtype mixed --steps 20 --rounds 2 --warmup 0",
];

#[cfg(test)]
mod tests {
    use super::super::case::Case;
    use super::*;

    #[test]
    fn every_standard_case_can_be_measured() {
        for text in STANDARD {
            assert_eq!(text.parse::<Case>().unwrap().to_string(), *text);
        }
    }
}
