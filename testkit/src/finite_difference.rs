//! Gradients against central differences, in f64.

use candle_core::{DType, Result, Tensor, Var};

/// Step of the difference: in f64 this balances truncation against cancellation for functions of order one.
const STEP: f64 = 1e-5;
/// Largest difference allowed, relative to the largest gradient of the same input (at least 1).
const TOLERANCE: f64 = 1e-6;

/// Checks the gradient of `function` with respect to every element of every input.
///
/// The output is contracted with fixed uneven weights, so that the errors of two elements cannot cancel. Inputs must be
/// f64 and may have any shape; every one of them must receive a gradient.
///
/// # Panics
/// If a gradient is wrong or absent; the message names `what`, the input, the index, and both values.
pub fn check(what: &str, inputs: &[Tensor], function: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let loss = |inputs: &[Tensor]| -> Result<Tensor> {
        let output = function(inputs)?;
        (&output * uneven_weights(&output)?)?.sum_all()
    };
    let gradients = autograd(what, inputs, &loss);
    for (position, gradient) in gradients.iter().enumerate() {
        let scale = gradient.iter().fold(1.0f64, |largest, value| largest.max(value.abs()));
        for (index, analytic) in gradient.iter().enumerate() {
            let numeric =
                central_difference(inputs, position, index, &loss).unwrap_or_else(|error| panic!("{what}: {error}"));
            let difference = (analytic - numeric).abs() / scale;
            assert!(
                difference <= TOLERANCE,
                "{what}: gradient of input {position} at index {index}: expected {numeric} (finite difference), \
                 found {analytic}, relative difference {difference:.1e}"
            );
        }
    }
}

fn autograd(what: &str, inputs: &[Tensor], loss: &dyn Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Vec<f64>> {
    let run = || -> Result<Vec<Option<Tensor>>> {
        let variables = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
        let tracked: Vec<_> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
        let store = loss(&tracked)?.backward()?;
        Ok(tracked.iter().map(|input| store.get(input).map(Tensor::detach)).collect())
    };
    let gradients = run().unwrap_or_else(|error| panic!("{what}: {error}"));
    let numbers = |(position, gradient): (usize, Option<Tensor>)| {
        let gradient = gradient.unwrap_or_else(|| panic!("{what}: input {position} received no gradient"));
        assert_eq!(gradient.dims(), inputs[position].dims(), "{what}: shape of the gradient of input {position}");
        values(&gradient).unwrap_or_else(|error| panic!("{what}: {error}"))
    };
    gradients.into_iter().enumerate().map(numbers).collect()
}

fn central_difference(
    inputs: &[Tensor],
    position: usize,
    index: usize,
    loss: &dyn Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<f64> {
    let at = |offset: f64| -> Result<f64> {
        let mut moved = inputs.to_vec();
        let mut numbers = values(&inputs[position])?;
        numbers[index] += offset;
        moved[position] = Tensor::from_vec(numbers, inputs[position].shape(), inputs[position].device())?;
        loss(&moved)?.to_scalar::<f64>()
    };
    Ok((at(STEP)? - at(-STEP)?) / (2.0 * STEP))
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    if tensor.dtype() != DType::F64 {
        candle_core::bail!("finite differences need f64 inputs, found {:?}", tensor.dtype());
    }
    tensor.flatten_all()?.to_vec1()
}

/// Weights between 0.5 and 1.5 without a period that could match a shape.
fn uneven_weights(output: &Tensor) -> Result<Tensor> {
    let weight = |index: usize| 1.0 + 0.5 * (index as f64 * 1.234_567 + 0.3).sin();
    let weights = (0..output.elem_count()).map(weight).collect::<Vec<_>>();
    Tensor::from_vec(weights, output.shape(), output.device())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn input() -> Tensor {
        Tensor::new(&[[0.3, -0.7, 1.1], [0.2, 0.9, -0.4]], &Device::Cpu).unwrap()
    }

    #[test]
    fn a_right_gradient_passes() {
        check("product of sine and square", &[input(), input()], |inputs| inputs[0].sin()? * inputs[1].sqr()?);
    }

    #[test]
    #[should_panic(expected = "gradient of input 0 at index 0")]
    fn a_wrong_gradient_is_caught() {
        // Half of the dependence is hidden from the graph.
        check("hidden half", &[input()], |inputs| &inputs[0] * inputs[0].detach());
    }

    #[test]
    #[should_panic(expected = "received no gradient")]
    fn a_dropped_gradient_is_caught() {
        check("cut graph", &[input(), input()], |inputs| inputs[0].sqr()? + inputs[1].detach());
    }
}
