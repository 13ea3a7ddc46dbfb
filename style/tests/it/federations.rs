//! Federations of made-up artists: what is learned, what is promised, and what is refused.

use std::ops::ControlFlow;

use catelier_style::Error;
use catelier_style::federated::{Method, Participant, Settings, Trained, run};

use crate::work;

/// Artists whose works differ more by what they show than by their hand: the last half of the channels is noise.
fn artist(number: u64) -> Participant {
    let view = |work_number: u64, view: u64| {
        let mut feature = work(number, work_number, 0.3);
        let content = crate::values(3, number * 5000 + work_number * 10 + view);
        feature[8..].iter_mut().zip(&content).for_each(|(value, noise)| *value = 3.0 * noise);
        feature
    };
    Participant {
        name: format!("artist {number}"),
        learn: (0..5).map(|work| vec![view(work, 0), view(work, 1)]).collect(),
        held_out: (20..24).map(|work| view(work, 0)).collect(),
    }
}

fn artists() -> Vec<Participant> {
    (0..6).map(artist).collect()
}

fn public() -> Vec<Participant> {
    (50..56).map(artist).collect()
}

fn settings() -> Settings {
    Settings { rounds: 6, local_epochs: 3, measure_every: 3, learning_rate: 1e-2, ..Settings::default() }
}

fn trained(method: &str, settings: &Settings) -> Trained {
    run(method.parse().unwrap(), &artists(), &public(), settings, &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn fedstyle_and_all_works_in_one_place_learn_what_the_tower_does_not_see() {
    let accuracy = |method: &str| trained(method, &settings()).outcome.measures.accuracy;
    let (tower, fedstyle, centralised) = (accuracy("tower"), accuracy("fedstyle"), accuracy("centralised"));
    assert!(fedstyle > tower + 0.1 && centralised > tower + 0.1, "{tower} {fedstyle} {centralised}");
}

#[test]
fn every_method_gives_the_same_outcome_for_the_same_seed_and_another_one_for_another() {
    let short = Settings { rounds: 2, local_epochs: 1, tuning_epochs: 1, measure_every: 1, ..settings() };
    for method in Method::all() {
        let (first, again) = (trained(method.name(), &short), trained(method.name(), &short));
        assert_eq!(first.outcome, again.outcome, "{method}");
        let sums = [&first, &again].map(|trained| trained.head.as_ref().map(|head| head.sha256().unwrap()));
        assert_eq!(sums[0], sums[1], "{method}");
        assert_eq!(first.head.is_none(), method.is_personal() || method == Method::Tower, "{method}");
        let measures = first.outcome.measures;
        let all = [measures.accuracy, measures.macro_f1, measures.mean_average_precision, measures.recall_at_5];
        assert!(all.iter().all(|value| (0.0..=1.0).contains(value)), "{method}: {measures:?}");
        assert_eq!(first.outcome.curve.len(), if method == Method::Tower { 0 } else { 2 }, "{method}");
    }
    let sum = |seed: u64| trained("fedstyle", &Settings { seed, ..short.clone() }).head.unwrap().sha256().unwrap();
    assert_ne!(sum(1), sum(2));
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let short = Settings { rounds: 2, local_epochs: 1, ..settings() };
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| trained("fedstyle", &short).head.unwrap().sha256().unwrap())
    };
    assert_eq!(with(1), with(3));
}

/// A classifier that is random and stays: FedBABU's and FedRep's bodies leave home, classifiers do not.
#[test]
fn what_a_method_keeps_at_home_is_not_sent() {
    let short = Settings { rounds: 1, local_epochs: 1, tuning_epochs: 1, ..settings() };
    let sent = |method: &str| trained(method, &short).outcome.sent;
    let (body, classifier, width) = (16 * 17, 6 * 16, 16);
    assert_eq!((sent("local"), sent("tower"), sent("centralised")), (0, 0, 0));
    assert_eq!((sent("fedavg"), sent("ewwa")), (body + classifier, body + classifier));
    assert_eq!((sent("fedrep"), sent("fedbabu")), (body, body));
    assert_eq!((sent("fedproto"), sent("fedstyle")), (width, body + width));
}

#[test]
fn fine_tuning_at_home_is_told_apart_from_what_was_before() {
    let outcome = trained("fedbabu", &settings()).outcome;
    assert!(outcome.before_tuning.is_some());
    assert_eq!(trained("fedavg", &settings()).outcome.before_tuning, None);
}

#[test]
fn any_rule_for_whole_models_aggregates_and_others_are_refused() {
    let with = |strategy: &str| {
        let settings = Settings { rounds: 1, local_epochs: 1, strategy: strategy.parse().unwrap(), ..settings() };
        run(Method::FEDSTYLE, &artists(), &[], &settings, &mut |_| ControlFlow::Continue(()))
    };
    for strategy in
        ["product", "median", "trimmed-mean", "krum:1", "geometric-median", "norm-bound", "fedadam", "ewwa-yogi"]
    {
        with(strategy).unwrap_or_else(|error| panic!("{strategy}: {error:?}"));
    }
    for strategy in ["rolora", "fedsa", "flora", "fedex"] {
        assert!(matches!(with(strategy), Err(Error::Federation { .. })), "{strategy}");
    }
}

#[test]
fn participants_that_nothing_can_be_learned_from_are_refused_by_name() {
    let text = |participants: &[Participant]| {
        let error = run(Method::FEDSTYLE, participants, &[], &settings(), &mut |_| ControlFlow::Continue(()));
        error.unwrap_err().to_string()
    };
    assert!(text(&[artist(0)]).contains("at least 2 artists"));
    let one_picture = Participant { learn: artist(1).learn[..1].to_vec(), ..artist(1) };
    assert!(text(&[artist(0), one_picture]).contains("`artist 1` has 1 work, and 2 are needed to learn from"));
    let none_held_out = Participant { held_out: Vec::new(), ..artist(1) };
    assert!(text(&[artist(0), none_held_out]).contains("to be held out"));
    assert!(text(&[artist(0), artist(0)]).contains("two artists are called `artist 0`"));
    let mut short = artist(1);
    short.learn[0][0].pop();
    assert!(text(&[artist(0), short]).contains("expected features of 16 values, found 15"));
}

#[test]
fn settings_that_nothing_can_be_trained_with_are_refused() {
    let refused = |change: &dyn Fn(&mut Settings)| {
        let mut settings = settings();
        change(&mut settings);
        run(Method::FEDSTYLE, &artists(), &[], &settings, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
    };
    assert!(refused(&|settings| settings.rounds = 0).contains("rounds"));
    assert!(refused(&|settings| settings.temperature = 0.0).contains("temperature"));
    assert!(refused(&|settings| settings.learning_rate = f64::NAN).contains("learning_rate"));
    assert!(refused(&|settings| settings.momentum = 1.0).contains("momentum"));
    assert!(refused(&|settings| settings.contrast = -1.0).contains("contrast"));
    assert!(refused(&|settings| settings.width = Some(0)).contains("width"));
}

#[test]
fn an_observer_stops_the_work_after_a_round() {
    let mut rounds = 0;
    let stopped = run(Method::Fedavg, &artists(), &[], &settings(), &mut |round| {
        rounds = round;
        ControlFlow::Break(())
    });
    assert!(matches!(stopped, Err(Error::Cancelled)) && rounds == 1);
}
