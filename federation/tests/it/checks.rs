//! The check of contributions: every contribution that fails is named.

use candle_core::{Device, Tensor};
use catelier_adapters::{Adapter, LayerUpdate, LoraFactors, UpdateKind};
use catelier_federation::{Contribution, Error, Problem, RejectedContribution, Strategy};

use crate::adapters::{MODULES, adapter, contribution, dora};

fn round() -> Vec<Contribution> {
    (0..4).map(|seed| contribution(&format!("client {seed}"), adapter(2, 4.0, seed), 10.0)).collect()
}

fn rejected(strategy: &Strategy, contributions: &[Contribution]) -> Vec<RejectedContribution> {
    match strategy.aggregate(contributions) {
        Err(Error::Contributions { rejected, total }) => {
            assert_eq!(total, contributions.len());
            rejected
        }
        other => panic!("{other:?}"),
    }
}

/// The problems of the first contribution after a change, the same under every strategy.
#[track_caller]
fn problems_of(change: impl Fn(&mut Contribution)) -> Vec<Problem> {
    let mut contributions = round();
    change(&mut contributions[0]);
    let [fedavg, product] = [Strategy::Fedavg, Strategy::product()].map(|s| rejected(&s, &contributions));
    // Compared as text, since a weight may be NaN, which is not equal to itself.
    assert_eq!(format!("{fedavg:?}"), format!("{product:?}"));
    assert_eq!(fedavg.len(), 1, "{fedavg:?}");
    fedavg[0].problems.clone()
}

#[test]
fn a_sound_round_passes() {
    for strategy in [Strategy::Fedavg, Strategy::product()] {
        assert_eq!(strategy.aggregate(&round()).unwrap().adapter.len(), MODULES.len());
    }
}

#[test]
fn a_round_without_contributions_is_an_error() {
    assert!(matches!(Strategy::Fedavg.aggregate(&[]), Err(Error::NoContributions)));
}

#[test]
fn weights_must_be_finite_and_positive() {
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let problems = problems_of(|contribution| contribution.weight = weight);
        assert!(matches!(problems[..], [Problem::Weight { .. }]), "{problems:?}");
    }
}

#[test]
fn clients_need_a_name_of_their_own() {
    assert_eq!(problems_of(|contribution| contribution.client = " ".to_owned()), [Problem::NoName]);
    let mut twice = round();
    twice[2].client = twice[1].client.clone();
    let named: Vec<_> = rejected(&Strategy::Fedavg, &twice).into_iter().map(|o| o.client).collect();
    assert_eq!(named, ["client 1", "client 1"]);
}

#[test]
fn an_empty_adapter_is_named_once() {
    assert_eq!(problems_of(|contribution| contribution.adapter = Adapter::new()), [Problem::Empty]);
}

#[test]
fn values_must_be_finite() {
    let problems = problems_of(|contribution| {
        let (path, ..) = MODULES[0];
        let factors = contribution.adapter.get(path).unwrap().low_rank().clone();
        let down = (factors.down.zeros_like().unwrap() + f64::NAN).unwrap();
        contribution.adapter.insert(path, LoraFactors { down, ..factors });
    });
    assert_eq!(problems, [Problem::NotFinite { count: 1, first: MODULES[0].0.to_owned() }]);
}

/// The problems of a contribution whose factors of the second module are filled with these values.
fn problems_of_values(down: f64, up: f64) -> Vec<Problem> {
    problems_of(|contribution| {
        let (path, ..) = MODULES[1];
        let factors = contribution.adapter.get(path).unwrap().low_rank().clone();
        let filled = |tensor: &Tensor, value: f64| (tensor.zeros_like().unwrap() + value).unwrap();
        let (down, up) = (filled(&factors.down, down), filled(&factors.up, up));
        contribution.adapter.insert(path, LoraFactors { down, up, ..factors });
    })
}

#[test]
fn values_must_leave_images_finite() {
    for (down, up) in [(3e38, 0.01), (3e38, 0.0), (0.0, -3e38)] {
        let problems = problems_of_values(down, up);
        let [Problem::LargeValue { value, module }] = &problems[..] else { panic!("{down} {up}: {problems:?}") };
        assert!(*value > 2e38 && module == MODULES[1].0);
    }
}

#[test]
fn updates_must_leave_images_finite() {
    let problems = problems_of_values(1e9, 1e9);
    assert!(matches!(&problems[..], [Problem::TooLarge { norm, module }] if *norm > 1e18 && module == MODULES[1].0));
}

/// A huge `down` with a tiny `up` is an ordinary update, but the separate mean of the `down`s can overflow.
#[test]
fn a_mean_that_overflows_is_refused_by_name() {
    let mut contributions: Vec<_> =
        (0..4).map(|seed| contribution(&format!("client {seed}"), adapter(2, 40.0, seed), 10.0)).collect();
    let (path, ..) = MODULES[0];
    let factors = contributions[2].adapter.get(path).unwrap().low_rank().clone();
    let scaled = |tensor: &Tensor, factor: f64| (tensor * factor).unwrap();
    let (down, up) = (scaled(&factors.down, 2e11), scaled(&factors.up, 1e-9));
    contributions[2].adapter.insert(path, LoraFactors { down, up, ..factors });
    let error = Strategy::Fedavg.aggregate(&contributions).unwrap_err();
    assert!(matches!(&error, Error::Overflow { client, .. } if client == "client 2"), "{error}");
    assert!(error.to_string().contains(path) && error.hint().unwrap().contains("`client 2`"), "{error}");
}

#[test]
fn modules_must_be_those_of_the_others() {
    let problems = problems_of(|contribution| {
        let moved = |(path, update): (&str, &LayerUpdate)| match path {
            path if path == MODULES[0].0 => ("unet.other".to_owned(), update.clone()),
            path => (path.to_owned(), update.clone()),
        };
        contribution.adapter = contribution.adapter.iter().map(moved).collect();
    });
    let expected = [
        Problem::MissingModules { count: 1, first: MODULES[0].0.to_owned() },
        Problem::UnknownModules { count: 1, first: "unet.other".to_owned() },
    ];
    assert_eq!(problems, expected);
}

#[test]
fn shapes_must_be_those_of_the_others() {
    let problems = problems_of(|contribution| {
        let ones = |rows, columns| Tensor::ones((rows, columns), candle_core::DType::F32, &Device::Cpu).unwrap();
        contribution.adapter.insert(MODULES[0].0, LoraFactors::new(ones(2, 6), ones(5, 2), 4.0).unwrap());
    });
    let expected = Problem::Shape { module: MODULES[0].0.to_owned(), expected: vec![5, 7], found: vec![5, 6] };
    assert_eq!(problems, [expected]);
}

#[test]
fn bases_must_be_the_same_where_they_are_known() {
    let mut contributions = round();
    for (contribution, base) in contributions.iter_mut().zip(["a", "b", "b"]) {
        contribution.base_fingerprint = Some(base.to_owned());
    }
    let rejected = rejected(&Strategy::product(), &contributions);
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].problems, [Problem::Base { expected: "b".to_owned(), found: "a".to_owned() }]);
}

/// The rejected contributions of a round on bases with these fingerprints, by client.
fn rejected_on(fingerprints: [&str; 4]) -> Vec<RejectedContribution> {
    let mut contributions = round();
    for (contribution, fingerprint) in contributions.iter_mut().zip(fingerprints) {
        contribution.base_fingerprint = Some(fingerprint.to_owned());
    }
    match Strategy::Fedavg.aggregate(&contributions) {
        Ok(_) => vec![],
        Err(_) => rejected(&Strategy::Fedavg, &contributions),
    }
}

#[test]
fn copies_of_one_base_in_any_precision_are_one_base() {
    assert_eq!(rejected_on(["v2-a", "v2-a-b", "v2-a", "v2-a-b"]), []);
    let other = rejected_on(["v2-a", "v2-a-b", "v2-a", "v2-c"]);
    assert_eq!(other.len(), 1);
    assert_eq!(other[0].problems, [Problem::Base { expected: "v2-a-b".to_owned(), found: "v2-c".to_owned() }]);
}

#[test]
fn fingerprints_of_different_versions_are_not_compared() {
    assert_eq!(rejected_on(["0123", "v2-a-b", "0123", "v2-a-b"]), []);
    let all = rejected_on(["0123", "4567", "v2-a-b", "v2-a-c"]);
    let clients: Vec<&str> = all.iter().map(|one| one.client.as_str()).collect();
    assert_eq!(clients, ["client 1", "client 3"]);
}

#[test]
fn mixed_ranks_are_for_product_alone() {
    let mut contributions = round();
    contributions[3].adapter = adapter(3, 4.0, 9);
    let error = Strategy::Fedavg.aggregate(&contributions).unwrap_err();
    assert!(error.to_string().contains("expected rank 2, found 3"), "{error}");
    assert!(error.hint().unwrap().contains("`product` accepts mixed ranks"));
    assert!(Strategy::product().aggregate(&contributions).is_ok());
}

#[test]
fn mixed_alphas_are_for_product_alone() {
    let mut contributions = round();
    contributions[3].adapter = adapter(2, 5.0, 9);
    let error = Strategy::Fedavg.aggregate(&contributions).unwrap_err();
    assert!(error.to_string().contains("expected alpha 4, found 5"), "{error}");
    assert!(Strategy::product().aggregate(&contributions).is_ok());
}

#[test]
fn unlike_kinds_are_refused_in_words() {
    let problems = problems_of(|contribution| contribution.adapter = dora(2, 4.0, 0));
    let module = MODULES[0].0.to_owned();
    assert_eq!(problems, [Problem::Kind { module, expected: UpdateKind::Lora, found: UpdateKind::Dora }]);
    assert!(problems[0].to_string().contains("expected a LoRA, found a DoRA"), "{}", problems[0]);
}

#[test]
fn the_product_of_doras_is_refused_in_words() {
    let contributions: Vec<_> =
        (0..3).map(|seed| contribution(&format!("client {seed}"), dora(2, 4.0, seed), 1.0)).collect();
    let error = Strategy::product().aggregate(&contributions).unwrap_err();
    assert!(error.to_string().contains("averages the updates of LoRA"), "{error}");
    assert!(error.hint().unwrap().contains("`fedavg`"));
    assert!(Strategy::Fedavg.aggregate(&contributions).is_ok());
}

#[test]
fn all_rejected_contributions_are_counted_and_the_first_few_spelled_out() {
    let mut contributions: Vec<_> =
        (0..9).map(|seed| contribution(&format!("client {seed}"), adapter(2, 4.0, seed), 10.0)).collect();
    for contribution in &mut contributions[..5] {
        contribution.weight = f64::NAN;
    }
    let error = Strategy::product().aggregate(&contributions).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("5 of 9 contributions cannot be aggregated"), "{text}");
    assert!(text.contains("`client 2`") && text.ends_with("and 2 more"), "{text}");
    assert!(error.hint().unwrap().contains("leave these contributions out"));
}

#[test]
fn impossible_targets_are_refused() {
    use catelier_federation::TargetRank;
    let product = |contributions: &[_], rank, alpha| Strategy::Product { rank, alpha }.aggregate(contributions);
    let contributions = round();
    for (rank, alpha) in
        [(TargetRank::Fixed(0), None), (TargetRank::Largest, Some(0.0)), (TargetRank::Largest, Some(f64::NAN))]
    {
        assert!(matches!(product(&contributions, rank, alpha), Err(Error::Target { .. })));
    }
    let chosen = product(&contributions, TargetRank::Fixed(3), Some(6.0)).unwrap().adapter;
    assert_eq!((chosen.uniform_rank(), chosen.uniform_alpha()), (Some(3), Some(6.0)));
}
