//! Laws that hold for every sampler.

use candle_core::{Device, Tensor};
use catelier_testkit::close::assert_close;
use catelier_testkit::tolerance::Tolerance;

use super::*;
use crate::diffusion::{BetaSchedule, Prediction, SchedulerConfig, Spacing};

/// A model that knows the image: for any input, its prediction leads to it.
struct PerfectModel {
    x0: Tensor,
    prediction: Prediction,
}

impl PerfectModel {
    fn predict(&self, input: &Tensor, signal: f64) -> Tensor {
        let (root, spread) = (signal.sqrt(), (1.0 - signal).sqrt());
        let noise = ((input - (&self.x0 * root).unwrap()).unwrap() / spread).unwrap();
        match self.prediction {
            Prediction::Epsilon => noise,
            Prediction::Velocity => ((noise * root).unwrap() - (&self.x0 * spread).unwrap()).unwrap(),
        }
    }
}

fn schedule(prediction_type: Prediction, rescale_betas_zero_snr: bool) -> NoiseSchedule {
    let config = SchedulerConfig {
        beta_start: 0.00085,
        beta_end: 0.012,
        beta_schedule: BetaSchedule::ScaledLinear,
        prediction_type,
        rescale_betas_zero_snr,
        set_alpha_to_one: Some(true),
        timestep_spacing: rescale_betas_zero_snr.then_some(Spacing::Trailing),
        ..SchedulerConfig::default()
    };
    NoiseSchedule::from_config(&config).unwrap()
}

fn wave(frequency: f64) -> Tensor {
    let values: Vec<f64> = (0..16).map(|index| (f64::from(index) * frequency).sin() * 1.5).collect();
    Tensor::from_vec(values, (1, 1, 4, 4), &Device::Cpu).unwrap()
}

/// Share of signal of the latents at a call.
fn signal_at(sampler: &dyn Sampler, schedule: &NoiseSchedule, call: usize) -> f64 {
    match sampler.sigmas() {
        Some(sigmas) => 1.0 / (sigmas[call] * sigmas[call] + 1.0),
        None => schedule.alphas_cumprod()[sampler.timesteps()[call] as usize],
    }
}

fn sample(schedule: &NoiseSchedule, settings: &SamplerSettings, x0: &Tensor) -> Tensor {
    let model = PerfectModel { x0: x0.clone(), prediction: schedule.prediction() };
    let mut sampler = prepare(schedule, settings).unwrap();
    let mut latents = (wave(2.3) * sampler.initial_noise_scale()).unwrap();
    for call in 0..sampler.timesteps().len() {
        let input = sampler.scale_input(&latents, call).unwrap();
        let output = model.predict(&input, signal_at(sampler.as_ref(), schedule, call));
        let noise = wave(1.1 + call as f64);
        latents = sampler.step(&output, call, &latents, Some(&noise)).unwrap();
    }
    latents
}

#[test]
fn every_sampler_arrives_at_the_image_that_a_perfect_model_sees() {
    let x0 = wave(0.7);
    let schedules = [(Prediction::Epsilon, false), (Prediction::Velocity, false), (Prediction::Velocity, true)];
    for (prediction, zero_snr) in schedules {
        let schedule = schedule(prediction, zero_snr);
        for kind in SamplerKind::ALL.into_iter().filter(|kind| !(zero_snr && *kind == SamplerKind::Pndm)) {
            for karras in [false, true] {
                let settings = SamplerSettings { karras: Some(karras), ..SamplerSettings::new(kind, 7) };
                let what = format!("{kind}, {prediction:?}, zero SNR {zero_snr}, Karras {karras}");
                // LCM keeps 4e-6 of the latents at its last timestep
                assert_close(&what, &sample(&schedule, &settings, &x0), &x0, Tolerance::Absolute(1e-4));
            }
        }
    }
}

#[test]
fn one_step_is_enough_for_a_perfect_model() {
    let (x0, schedule) = (wave(0.7), schedule(Prediction::Velocity, false));
    for kind in SamplerKind::ALL {
        let found = sample(&schedule, &SamplerSettings::new(kind, 1), &x0);
        assert_close(kind.name(), &found, &x0, Tolerance::Absolute(1e-4));
    }
}

#[test]
fn a_sampler_that_draws_noise_asks_for_it() {
    let schedule = schedule(Prediction::Epsilon, false);
    for kind in SamplerKind::ALL {
        let mut sampler = prepare(&schedule, &SamplerSettings::new(kind, 5)).unwrap();
        let answer = sampler.step(&wave(0.5), 0, &wave(0.3), None);
        assert_eq!(answer.is_err(), sampler.draws_noise(0), "{kind}");
    }
}

#[test]
fn pndm_refuses_to_start_where_no_signal_is_left() {
    let error = prepare(&schedule(Prediction::Velocity, true), &SamplerSettings::new(SamplerKind::Pndm, 5));
    assert!(error.unwrap_err().to_string().contains("zero terminal SNR"));
}
