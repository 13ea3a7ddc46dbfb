# The list that CI runs.
check:
    bash .ci/run

# One room's tests, or those whose name contains FILTER.
test *FILTER:
    cargo nextest run {{FILTER}}

# Parity with diffusers and PEFT.
golden:
    cargo test golden

# The whole story on the embedded base.
demo:
    cargo run --release -- demo
