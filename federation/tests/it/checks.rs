//! The check of contributions: all offenders, each by name.

use candle_core::{Device, Tensor};
use catelier_adapters::{Adapter, LayerUpdate, LoraFactors, UpdateKind};
use catelier_federation::{Contribution, Error, Offence, Offender, Strategy};

use crate::adapters::{MODULES, adapter, contribution, dora};

fn round() -> Vec<Contribution> {
    (0..4).map(|seed| contribution(&format!("client {seed}"), adapter(2, 4.0, seed), 10.0)).collect()
}

fn offenders(strategy: &Strategy, contributions: &[Contribution]) -> Vec<Offender> {
    match strategy.aggregate(contributions) {
        Err(Error::Contributions { offenders, total }) => {
            assert_eq!(total, contributions.len());
            offenders
        }
        other => panic!("{other:?}"),
    }
}

/// The offences of the one client that a change makes an offender, under every strategy.
#[track_caller]
fn offences_of(change: impl Fn(&mut Contribution)) -> Vec<Offence> {
    let mut contributions = round();
    change(&mut contributions[0]);
    let [fedavg, product] = [Strategy::Fedavg, Strategy::product()].map(|s| offenders(&s, &contributions));
    // As text, since a weight may be NaN, which equals nothing.
    assert_eq!(format!("{fedavg:?}"), format!("{product:?}"));
    assert_eq!(fedavg.len(), 1, "{fedavg:?}");
    fedavg[0].offences.clone()
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
        let offences = offences_of(|contribution| contribution.weight = weight);
        assert!(matches!(offences[..], [Offence::Weight { .. }]), "{offences:?}");
    }
}

#[test]
fn clients_need_a_name_of_their_own() {
    assert_eq!(offences_of(|contribution| contribution.client = " ".to_owned()), [Offence::NoName]);
    let mut twice = round();
    twice[2].client = twice[1].client.clone();
    let named: Vec<_> = offenders(&Strategy::Fedavg, &twice).into_iter().map(|o| o.client).collect();
    assert_eq!(named, ["client 1", "client 1"]);
}

#[test]
fn an_empty_adapter_is_named_once() {
    assert_eq!(offences_of(|contribution| contribution.adapter = Adapter::new()), [Offence::Empty]);
}

#[test]
fn values_must_be_finite() {
    let offences = offences_of(|contribution| {
        let (path, ..) = MODULES[0];
        let factors = contribution.adapter.get(path).unwrap().low_rank().clone();
        let down = (factors.down.zeros_like().unwrap() + f64::NAN).unwrap();
        contribution.adapter.insert(path, LoraFactors { down, ..factors });
    });
    assert_eq!(offences, [Offence::NotFinite { count: 1, first: MODULES[0].0.to_owned() }]);
}

#[test]
fn modules_must_be_those_of_the_others() {
    let offences = offences_of(|contribution| {
        let moved = |(path, update): (&str, &LayerUpdate)| match path {
            path if path == MODULES[0].0 => ("unet.other".to_owned(), update.clone()),
            path => (path.to_owned(), update.clone()),
        };
        contribution.adapter = contribution.adapter.iter().map(moved).collect();
    });
    let expected = [
        Offence::MissingModules { count: 1, first: MODULES[0].0.to_owned() },
        Offence::UnknownModules { count: 1, first: "unet.other".to_owned() },
    ];
    assert_eq!(offences, expected);
}

#[test]
fn shapes_must_be_those_of_the_others() {
    let offences = offences_of(|contribution| {
        let ones = |rows, columns| Tensor::ones((rows, columns), candle_core::DType::F32, &Device::Cpu).unwrap();
        contribution.adapter.insert(MODULES[0].0, LoraFactors::new(ones(2, 6), ones(5, 2), 4.0).unwrap());
    });
    let expected = Offence::Shape { module: MODULES[0].0.to_owned(), expected: vec![5, 7], found: vec![5, 6] };
    assert_eq!(offences, [expected]);
}

#[test]
fn bases_must_be_the_same_where_they_are_known() {
    let mut contributions = round();
    for (contribution, base) in contributions.iter_mut().zip(["a", "b", "b"]) {
        contribution.base_fingerprint = Some(base.to_owned());
    }
    let offenders = offenders(&Strategy::product(), &contributions);
    assert_eq!(offenders.len(), 1);
    assert_eq!(offenders[0].offences, [Offence::Base { expected: "b".to_owned(), found: "a".to_owned() }]);
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
    let offences = offences_of(|contribution| contribution.adapter = dora(2, 4.0, 0));
    let module = MODULES[0].0.to_owned();
    assert_eq!(offences, [Offence::Kind { module, expected: UpdateKind::Lora, found: UpdateKind::Dora }]);
    assert!(offences[0].to_string().contains("expected a LoRA, found a DoRA"), "{}", offences[0]);
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
fn every_offender_is_listed_and_the_first_few_spelled_out() {
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
    use catelier_federation::{TargetRank, product};
    let contributions = round();
    for (rank, alpha) in
        [(TargetRank::Fixed(0), None), (TargetRank::Largest, Some(0.0)), (TargetRank::Largest, Some(f64::NAN))]
    {
        assert!(matches!(product(&contributions, rank, alpha), Err(Error::Target { .. })));
    }
    let chosen = product(&contributions, TargetRank::Fixed(3), Some(6.0)).unwrap().adapter;
    assert_eq!((chosen.uniform_rank(), chosen.uniform_alpha()), (Some(3), Some(6.0)));
}
