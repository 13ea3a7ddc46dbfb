use candle_core::{DType, Device, Tensor, Var};
use catelier_numerics::{
    noise::{Noise, Stream},
    ops::{FrozenConv2d, FrozenLinear},
    work,
};
fn n(shape: &[usize]) -> Tensor {
    Noise::new(1).normal(Stream("a"), 0, 0, shape, &Device::Cpu).unwrap()
}
fn cpu() -> f64 {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|t| {
            std::fs::read_to_string(t.unwrap().path().join("schedstat"))
                .unwrap()
                .split_whitespace()
                .next()
                .unwrap()
                .parse::<f64>()
                .unwrap()
        })
        .sum::<f64>()
        / 1e9
}
fn time(name: &str, f: &dyn Fn()) {
    f();
    let mut best = f64::MAX;
    let mut flops = 0;
    for _ in 0..5 {
        let (t, w) = (cpu(), work::flops());
        f();
        best = best.min(cpu() - t);
        flops = work::flops() - w;
    }
    println!("{name:40} {:8.2} ms {:7.1} GFLOP/s", best * 1e3, flops as f64 / best / 1e9);
}
fn main() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        for (t, s, w, h) in [
            (4096usize, 4096usize, 320usize, 8usize),
            (4096, 77, 320, 8),
            (1024, 1024, 640, 8),
            (1024, 77, 640, 8),
            (256, 256, 1280, 8),
        ] {
            use catelier_numerics::ops::{AttentionMask, attention};
            let (q, k, v) = (
                Var::from_tensor(&n(&[1, t, w])).unwrap(),
                Var::from_tensor(&n(&[1, s, w])).unwrap(),
                Var::from_tensor(&n(&[1, s, w])).unwrap(),
            );
            time(&format!("attention {t} x {s} width {w}"), &|| {
                attention(&q, &k, &v, h, AttentionMask::None).unwrap();
            });
            let loss = attention(&q, &k, &v, h, AttentionMask::None).unwrap().sum_all().unwrap();
            time("attention backward", &|| {
                loss.backward().unwrap();
            });
        }
    });
    pool.install(|| {
        for dtype in [DType::F32, DType::BF16, DType::F64] {
            for (c, o, s, b) in [
                (320, 320, 64, 1),
                (640, 640, 32, 1),
                (1280, 1280, 16, 1),
                (1280, 1280, 8, 1),
                (64, 64, 16, 4),
                (160, 160, 8, 4),
            ] {
                if dtype == DType::F64 && c > 100 {
                    continue;
                }
                let conv = FrozenConv2d::new(&n(&[o, c, 3, 3]).to_dtype(dtype).unwrap(), None, 1, 1).unwrap();
                let x = n(&[b, c, s, s]);
                let x = if dtype == DType::F64 { x.to_dtype(DType::F64).unwrap() } else { x };
                time(&format!("{dtype:?} conv {c}->{o} at {s} x{b}"), &|| {
                    conv.forward(&x).unwrap();
                });
                let v = Var::from_tensor(&x).unwrap();
                let y = conv.forward(&v).unwrap();
                let loss = y.sum_all().unwrap();
                time(&format!("{dtype:?} conv backward"), &|| {
                    loss.backward().unwrap();
                });
            }
            for (i, o, r) in [(320, 320, 4096), (320, 2560, 4096), (1280, 1280, 64), (768, 320, 77), (64, 64, 1024)] {
                if dtype == DType::F64 && i > 100 {
                    continue;
                }
                let linear = FrozenLinear::new(&n(&[o, i]).to_dtype(dtype).unwrap(), None).unwrap();
                let x = n(&[r, i]);
                let x = if dtype == DType::F64 { x.to_dtype(DType::F64).unwrap() } else { x };
                time(&format!("{dtype:?} linear {i}->{o} rows {r}"), &|| {
                    linear.forward(&x).unwrap();
                });
                let v = Var::from_tensor(&x).unwrap();
                let loss = linear.forward(&v).unwrap().sum_all().unwrap();
                time(&format!("{dtype:?} linear backward"), &|| {
                    loss.backward().unwrap();
                });
            }
        }
    });
}
