//! Every rule on whole models.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use catelier_federation::{Error, Ewwa, Memory, ModelReply, NamedTensors, Strategy as Aggregation};
use catelier_numerics::noise::{Noise, Stream};

/// A tall and a wide matrix.
fn model(seed: u64) -> NamedTensors {
    let matrix = |sample: u64, shape| Noise::new(seed).normal(Stream("model"), 0, sample, shape, &Device::Cpu).unwrap();
    BTreeMap::from([("tall".to_owned(), matrix(0, (7, 3))), ("wide".to_owned(), matrix(1, (3, 8)))])
}

fn replies(count: u64) -> BTreeMap<String, ModelReply> {
    let reply = |client: u64| ModelReply { tensors: model(10 + client), weight: 1.0 + client as f64 };
    (0..count).map(|client| (format!("client {client}"), reply(client))).collect()
}

fn step(strategy: &str, replies: &BTreeMap<String, ModelReply>) -> Result<NamedTensors, Error> {
    let strategy: Aggregation = strategy.parse().unwrap();
    Ok(strategy.step_model(1, &model(1), replies, &Memory::new())?.0)
}

fn distance(left: &NamedTensors, right: &NamedTensors) -> f64 {
    let squares = left.iter().map(|(name, tensor)| {
        let square = (tensor - &right[name]).unwrap().sqr().unwrap().sum_all().unwrap();
        f64::from(square.to_scalar::<f32>().unwrap())
    });
    squares.sum::<f64>().sqrt()
}

/// The weighted mean, tensor by tensor.
fn mean(replies: &BTreeMap<String, ModelReply>) -> NamedTensors {
    let total: f64 = replies.values().map(|reply| reply.weight).sum();
    let mean = |name: &String| {
        let weighted = replies.values().map(|reply| (&reply.tensors[name] * (reply.weight / total)).unwrap());
        weighted.reduce(|sum, next| (sum + next).unwrap()).unwrap()
    };
    model(1).keys().map(|name| (name.clone(), mean(name))).collect()
}

#[test]
fn rules_that_average_factors_give_the_mean_of_whole_models() {
    let replies = replies(4);
    for strategy in ["fedavg", "product", "ffa", "fair", "raflora"] {
        let far = distance(&step(strategy, &replies).unwrap(), &mean(&replies));
        assert!(far < 1e-4, "{strategy}: {far}");
    }
}

#[test]
fn ewwa_sees_the_models_themselves() {
    let replies = replies(3);
    let models = replies.iter().map(|(client, reply)| (client.clone(), reply.tensors.clone())).collect();
    let (expected, _) = Ewwa::default().step(&model(1), &models, &Memory::new()).unwrap();
    assert_eq!(distance(&step("ewwa-adam", &replies).unwrap(), &expected), 0.0);
}

#[test]
fn robust_rules_bear_a_poisoned_model() {
    let mut replies: BTreeMap<String, ModelReply> =
        (0..5).map(|client| (format!("client {client}"), ModelReply { tensors: model(10), weight: 1.0 })).collect();
    let poisoned = model(99).into_iter().map(|(name, tensor)| (name, (tensor * 1e3).unwrap())).collect();
    replies.insert("poisoned".to_owned(), ModelReply { tensors: poisoned, weight: 1.0 });
    for strategy in ["median", "trimmed-mean", "krum:1", "geometric-median"] {
        let far = distance(&step(strategy, &replies).unwrap(), &model(10));
        assert!(far < 1e-2, "{strategy}: {far}");
    }
    assert!(distance(&step("fedavg", &replies).unwrap(), &model(10)) > 100.0);
}

#[test]
fn clients_that_change_nothing_leave_the_model_as_it_is() {
    let replies =
        (0..3).map(|client| (format!("client {client}"), ModelReply { tensors: model(1), weight: 1.0 })).collect();
    for strategy in ["fedavg", "product", "median", "geometric-median", "norm-bound", "fedadam", "ewwa-yogi"] {
        let far = distance(&step(strategy, &replies).unwrap(), &model(1));
        assert!(far < 1e-6, "{strategy}: {far}");
    }
}

#[test]
fn what_is_no_model_of_this_round_is_refused_by_name() {
    let mut without = replies(3);
    without.get_mut("client 1").unwrap().tensors.remove("wide");
    let mut reshaped = replies(3);
    let other = Tensor::zeros((3, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    reshaped.get_mut("client 1").unwrap().tensors.insert("wide".to_owned(), other);
    for replies in [without, reshaped] {
        let error = step("fedavg", &replies).unwrap_err();
        assert!(matches!(&error, Error::Global { module, .. } if module == "wide"), "{error}");
    }
    let mut infinite = replies(3);
    let tensors = &mut infinite.get_mut("client 2").unwrap().tensors;
    let bad = (&tensors["tall"] / 0.0).unwrap();
    tensors.insert("tall".to_owned(), bad);
    for strategy in ["fedavg", "ewwa-adam"] {
        let error = step(strategy, &infinite).unwrap_err();
        assert!(error.to_string().contains("client 2"), "{strategy}: {error}");
    }
    for strategy in ["rolora", "fedsa", "flora", "fedex"] {
        let error = step(strategy, &replies(3)).unwrap_err();
        assert!(matches!(error, Error::Incompatible { other: "a whole model", .. }), "{strategy}: {error}");
    }
}
